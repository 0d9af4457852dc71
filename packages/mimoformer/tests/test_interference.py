"""Noise between the slots of FAVOR+S beside the theory in vsa_core.interference: of scores, and of outputs.

All slots hold the same queries and keys, of coordinates +1 and -1, so that only binding tells them apart; the keys are random.
"""

import math

import pytest
import torch

from mimoformer.attention import favor_s
from mimoformer.bundles import bind_real_tokens
from mimoformer.features import ReLUFeatures
from vsa_core import hadamard
from vsa_core.interference import attention_score_bounds, retrieval_noise, retrieval_snr


def vectors(m, n, dim, tokens):
    """The same ones in every slot (1 m n 1 l d)."""
    return hadamard.random_keys(tokens, dim)[None, None, None, None].expand(1, m, n, 1, tokens, dim)


def score_noise(m, n, dim, draws, slot):
    """Of the superposed score of one slot over |k||q|, for every draw of the binding keys."""
    q, k = vectors(m, n, dim, 1), vectors(m, n, dim, 1)
    signal = q[0, 0, 0, 0, 0] @ k[0, 0, 0, 0, 0]
    noise = torch.empty(draws)
    for draw in range(draws):
        bound_q, bound_k, _ = bind_real_tokens(q, k, k, hadamard.random_keys(m * n, dim).unflatten(0, (m, n)), None)
        noise[draw] = bound_k.sum(2)[0, slot[0], 0, 0] @ bound_q.sum(1)[0, slot[1], 0, 0] - signal
    return noise / dim


@pytest.mark.parametrize(("m", "n", "dim"), [(2, 1, 64), (1, 2, 32), (2, 2, 64), (2, 3, 256), (4, 4, 32), (4, 4, 128)])
def test_score_noise_is_root_of_slots_over_dim(m, n, dim, draws=2000):
    """sqrt((m n - 1) / dim), and 0 on average, whatever q and k are.

    A standard deviation from independent draws has a standard error of sqrt((kurtosis - 1) / draws) / 2 of it. Measured
    kurtoses are below 4, so that is below 2 %, and the mean's is 1 / sqrt(draws) of the s.d.; 5 of each are allowed.
    """
    noise = score_noise(m, n, dim, draws, slot=(m - 1, n - 1))
    expected = attention_score_bounds(n, m, dim, alpha=0.5, cosine=0.5).noise_std
    assert noise.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)
    assert abs(noise.mean().item()) < 5 * expected / math.sqrt(draws)


def output_noise(m, n, dim, seeds, length_of_other_rows=1.0, tokens=16):
    """Noise energy over signal energy of favor_s at the last slot; values are the same in all slots too."""
    totals, references = [], []
    for _ in range(seeds):
        q, k, v = vectors(m, n, dim, tokens), vectors(m, n, dim, tokens), torch.randn(tokens, dim).expand(1, m, n, 1, tokens, dim)
        k = torch.cat([length_of_other_rows * k[:, :-1], k[:, -1:]], 1)
        keys, phi = hadamard.random_keys(m * n, dim).unflatten(0, (m, n)), ReLUFeatures(dim, 256)
        alone = torch.zeros_like(v)
        alone[:, -1, -1] = v[:, -1, -1]
        totals.append(favor_s(q, k, v, keys, phi)[:, -1, -1])
        references.append(favor_s(q, k, alone, keys, phi)[:, -1, -1])
    return 1 / retrieval_snr(torch.stack(totals), torch.stack(references)).item()


@pytest.mark.parametrize(("m", "n"), [(3, 1), (1, 3), (2, 3), (4, 4)])
@pytest.mark.parametrize("dim", [32, 128])
def test_output_noise_is_the_number_of_other_slots_at_every_dim(m, n, dim):
    """The others' values arrive at full length: their energy over that of the slot's own is m n - 1.

    Without binding they would add up to (m n - 1)^2. At each coordinate the noise is a normal number squared times a value
    squared, of variance 3 * 3 - 1 in units of the mean squared, over seeds and dim: 4 standard errors are allowed.
    """
    seeds = 2560 // dim
    assert output_noise(m, n, dim, seeds) == pytest.approx(retrieval_noise(m * n, dim), rel=4 * math.sqrt(8 / (seeds * dim)))


def test_output_noise_grows_with_the_denominators_of_other_rows(m=2, n=2, dim=128, seeds=20):
    """They are divided by this row's: with ReLU features, keys of twice the length arrive twice as large. Bounds as above."""
    expected = (n - 1) + n * (m - 1) * 2**2
    assert output_noise(m, n, dim, seeds, length_of_other_rows=2) == pytest.approx(expected, rel=4 * math.sqrt(8 / (seeds * dim)))
