"""Draw random numbers that depend on a key and a position alone: the same on any device, in any order, in compiled code."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

WORD = 2**32 - 1


def random_words(key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """Return the first `count` random 32-bit integers of a stream.

    Args:
        key: two 32-bit integers; the result is on their device.
        stream: number of the stream, from 0 to 15; the streams of a key are independent.
        count: how many integers, at most 2^28.
    """
    place = 16 * torch.arange(count, device=key.device) + stream
    return mix_bits(mix_bits(place ^ key[0]) ^ key[1])


def mix_bits(word: Int[Tensor, " count"]) -> Int[Tensor, " count"]:
    """Permute the 32-bit integers so that every bit depends on all bits (C. Wellons, "Hash Prospector": bias 0.107).

    Its factors have 31 bits, so that no product overflows 64.
    """
    word = ((word ^ (word >> 16)) * 0x21F0AAAD) & WORD
    word = ((word ^ (word >> 15)) * 0x735A2D97) & WORD
    return word ^ (word >> 15)


def random_uniform(key: Int[Tensor, "2"], stream: int, count: int) -> Float[Tensor, " count"]:
    """Return uniform random numbers from 0 to below 1, in steps of 2^-24."""
    return (random_words(key, stream, count) >> 8) * 2.0**-24


def random_integers(limit: int, key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """Return uniform random integers from 0 to below `limit`, which is at most 2^24."""
    return (random_uniform(key, stream, count) * limit).long().clamp(max=limit - 1)


def random_permutation(key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """Return the integers from 0 to below `count` in random order."""
    return random_words(key, stream, count).argsort(stable=True)
