import math

import pytest
import torch
from torch.nn import functional as F

from vsa_core import hadamard, hrr
from vsa_core.interference import attention_score_bounds, crosstalk, retrieval_noise, retrieval_snr
from vsa_core.superposition import superpose


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("redraws", [None, 3])
def test_crosstalk_is_the_share_of_variance_of_the_others(share, redraws):
    """f = own + others with variances 1 - share and share, plus a mean that must not count; 5 standard errors of ~1/sqrt(b d)."""
    b, d = 4000, 16
    own = math.sqrt(1 - share) * torch.randn(b, d) + 7

    def features(*leading):
        return own + math.sqrt(share) * torch.randn(*leading, b, d)

    outputs = features() if redraws is None else features(redraws)
    assert abs(crosstalk(outputs, features()) - share) < 5 * math.sqrt(2 / (b * d))


def test_crosstalk_counts_interactions_with_the_others():
    """f = own * other: fixing own leaves all of the variance to the other."""
    own, one, another = torch.randn(3, 20_000, 1)
    assert abs(crosstalk(own * another, own * one) - 1) < 0.1


def test_crosstalk_of_a_linear_superposition_is_the_retrieval_noise():
    """Unbinding n vectors leaves noise n - 1 beside signal 1, so its share of the variance is (n - 1) / n."""
    n, dim, b = 4, 64, 2000
    keys = hrr.unitary_keys(n, dim)
    own, others, redrawn = torch.randn(b, 1, dim), torch.randn(b, n - 1, dim), torch.randn(b, n - 1, dim)

    def features(others):
        return hrr.unbind(superpose(torch.cat([own, others], 1), keys, hrr.bind), keys[0])

    assert abs(crosstalk(features(redrawn), features(others)) - (n - 1) / n) < 0.02


@pytest.mark.parametrize("n", [2, 3, 5])
def test_snr_of_retrieval_is_one_over_its_noise(n, dim=256, b=500):
    keys, x = hrr.unitary_keys(n, dim), torch.randn(b, n, dim)
    retrieved = hrr.unbind(superpose(x, keys, hrr.bind)[:, None], keys)
    assert retrieval_snr(retrieved, x) == pytest.approx(1 / retrieval_noise(n, dim), rel=0.05)


@pytest.mark.parametrize("make_keys", [hrr.unitary_keys, hrr.random_keys])
@pytest.mark.parametrize("n", [2, 8])
def test_noise_energy_scatters_as_documented(make_keys, n, dim=64, trials=4000):
    """sqrt(2 / dim) of the expectation with unitary keys, within 5 standard errors; 1.2 to 2.6 times that with Gaussian ones."""
    x, keys = torch.randn(trials, n, dim), make_keys(trials * n, dim).reshape(trials, n, dim)
    retrieved = hrr.unbind(hrr.bind(x, keys).sum(1), keys[:, 0])
    energy = (retrieved - x[:, 0]).square().sum(-1) / dim
    expected = retrieval_noise(n, dim, unitary=make_keys is hrr.unitary_keys)
    scatter = energy.std().item() / expected / math.sqrt(2 / dim)
    low, high = (0.93, 1.07) if make_keys is hrr.unitary_keys else (1.2, 2.6)
    assert low < scatter < high


def test_snr_is_infinite_without_noise():
    assert retrieval_snr(torch.ones(3), torch.ones(3)) == math.inf


def score_failures(dim, side, alpha=0.5, cosine=0.5, trials=10_000):
    """The share of simulated superposed scores that miss <k, q> by alpha of it or more; Gaussian directions, norms 1."""
    generator = torch.Generator().manual_seed(dim + side)

    def directions():
        return F.normalize(torch.randn(trials, side, dim, generator=generator), dim=-1)

    k, q = directions(), directions()
    across = F.normalize(q[:, 0] - (q[:, 0] * k[:, 0]).sum(-1, keepdim=True) * k[:, 0], dim=-1)
    q[:, 0] = cosine * k[:, 0] + math.sqrt(1 - cosine**2) * across
    keys = hadamard.random_keys(trials * (2 * side - 1), dim, generator=generator).reshape(trials, 2 * side - 1, dim)
    row, column = keys[:, :side], torch.cat([keys[:, :1], keys[:, side:]], 1)  # slot (u, n) is in its row and its column
    noise = ((k * row).sum(1) * (q * column).sum(1)).sum(-1) - cosine
    return (noise.abs() >= alpha * cosine).float().mean().item()


@pytest.mark.parametrize(("dim", "side", "failing"), [(64, 2, 0.25), (64, 4, 0.61), (128, 4, 0.46), (32, 2, 0.42)])
def test_attention_bounds_hold_and_say_when_they_say_nothing(dim, side, failing):
    bounds = attention_score_bounds(side, side, dim, alpha=0.5, cosine=0.5)
    simulated = score_failures(dim, side)
    assert simulated == pytest.approx(failing, abs=0.02)
    assert simulated <= min(bounds.chebyshev, bounds.exponential)
    assert bounds.exponential > 1  # at every head size of the long range arena
    assert bounds.vacuous == (bounds.chebyshev >= 1)


@pytest.mark.parametrize(("alpha", "vacuous"), [(1e-200, True), (1e200, False)])
def test_bounds_at_the_ends_of_their_range(alpha, vacuous):
    bounds = attention_score_bounds(2, 2, 64, alpha=alpha, cosine=1)
    assert bounds.vacuous == vacuous
    assert bounds.chebyshev == (math.inf if vacuous else 0)


def test_exponential_bound_is_informative_at_large_dims_and_holds():
    bounds = attention_score_bounds(2, 2, 1024, alpha=0.5, cosine=0.5)
    assert score_failures(1024, 2, trials=2000) <= bounds.exponential < 0.2  # 0.163; none of the trials fails
    assert not bounds.vacuous


def test_a_single_slot_has_no_noise():
    bounds = attention_score_bounds(1, 1, 64, alpha=0.5, cosine=0.5)
    assert (bounds.noise_std, bounds.chebyshev, bounds.exponential, bounds.vacuous) == (0, 0, 0, False)
