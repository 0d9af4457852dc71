"""Random numbers as a function of a key and a place: the same on any device, in any order, and inside compiled code."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

WORD = 2**32 - 1


def scattered(key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """The first `count` numbers of a stream, of 32 bits each.

    Args:
        key: two numbers of 32 bits, on the device where the others are to be.
        stream: from 0 to 15; numbers of one tell nothing of those of another.
        count: at most 2^28.
    """
    place = 16 * torch.arange(count, device=key.device) + stream
    return mixed(mixed(place ^ key[0]) ^ key[1])


def mixed(word: Int[Tensor, " count"]) -> Int[Tensor, " count"]:
    """A permutation of the numbers of 32 bits in which every bit depends on all (C. Wellons, "Hash Prospector": bias 0.107).

    Its factors have 31 bits, so that no product overflows 64.
    """
    word = ((word ^ (word >> 16)) * 0x21F0AAAD) & WORD
    word = ((word ^ (word >> 15)) * 0x735A2D97) & WORD
    return word ^ (word >> 15)


def uniform(key: Int[Tensor, "2"], stream: int, count: int) -> Float[Tensor, " count"]:
    """Numbers from 0 to less than 1, in steps of 2^-24."""
    return (scattered(key, stream, count) >> 8) * 2.0**-24


def below(limit: int, key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """Whole numbers from 0 to less than `limit`, which is at most 2^24."""
    return (uniform(key, stream, count) * limit).long().clamp(max=limit - 1)


def permutation(key: Int[Tensor, "2"], stream: int, count: int) -> Int[Tensor, " count"]:
    """The numbers from 0 to less than `count` in a random order."""
    return scattered(key, stream, count).argsort(stable=True)
