"""Interference between slots: measures of it on activations, and what theory expects of them."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vsa_core import checks
from vsa_core.float64 import to_float64

__all__ = ["ScoreBounds", "attention_score_bounds", "crosstalk", "retrieval_noise", "retrieval_snr"]


def crosstalk(outputs: Float[Tensor, "b d"] | Float[Tensor, "redraws b d"], reference: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Measure which share of the variance of a slot's features the *other* slots' inputs cause: 0 none, 1 all of it.

    Fix b inputs in one slot and draw the other slots' inputs independently for each: `reference` holds the features of the
    slot. Draw the other inputs again, once or several times: `outputs` holds the features then. The result is the
    total-effect index of the other inputs, E[Var(f | own)] / Var(f), by Jansen's estimator E|f - f'|^2 / 2 over the pooled
    variance (Saltelli et al., 2010), with variances summed over the features. With a finite b it can exceed 1 slightly.

    Args:
        outputs: features (b d), or (redraws b d) with one redraw or more.
        reference: features (b d) of the same inputs in the same slot, b >= 2.

    Raises:
        TypeError: a tensor is not real floating point.
        ValueError: the shapes do not fit, there are no redraws or fewer than two inputs, or the features do not vary at
            all, or are not finite.

    >>> import torch
    >>> own, others = torch.randn(2, 1000, 8).unbind()
    >>> crosstalk(own, own).item()
    0.0
    >>> round(crosstalk(own + others.roll(1, 0), own + others).item(), 1)
    0.5
    """
    checks.floating(outputs=outputs, reference=reference)
    if reference.dim() != 2 or outputs.shape[-2:] != reference.shape or outputs.dim() not in (2, 3) or not outputs.numel():
        raise ValueError(
            f"outputs has shape {tuple(outputs.shape)} and reference {tuple(reference.shape)}: "
            "expected (b, d) or (redraws, b, d) with at least one redraw and one feature, and (b, d)"
        )
    if reference.shape[0] < 2:
        raise ValueError(f"got {reference.shape[0]} inputs; a variance needs at least 2")
    outputs, reference = to_float64(outputs).reshape(-1, *reference.shape), to_float64(reference)
    within = (outputs - reference).square().sum(-1).mean() / 2
    total = (outputs.var(1).sum(-1).mean() + reference.var(0).sum()) / 2
    if not 0 < total < math.inf:
        raise ValueError("the features do not vary, or are not finite, so no share of their variance can be computed")
    return within / total


def retrieval_snr(outputs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Measure the signal-to-noise ratio of retrieval, `|reference|^2 / |outputs - reference|^2`, summed over all axes.

    It is a power ratio (10 log10 of it is in dB), and infinite without noise. For vectors retrieved from bundles of n bound
    vectors it tends to `1 / retrieval_noise(n, dim, unitary=...)` as their number grows.

    Raises:
        TypeError: a tensor is not real floating point.
        ValueError: the shapes differ, or the reference is all zero.

    >>> import torch
    >>> retrieval_snr(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 0.0])).item()
    4.0
    """
    checks.floating(outputs=outputs, reference=reference)
    if outputs.shape != reference.shape:
        raise ValueError(
            f"outputs has shape {tuple(outputs.shape)} and reference {tuple(reference.shape)}; expected equal shapes"
        )
    outputs, reference = to_float64(outputs), to_float64(reference)
    signal = reference.square().sum()
    if signal == 0:
        raise ValueError("the reference is zero everywhere, so it holds no signal")
    return signal / (outputs - reference).square().sum()


def retrieval_noise(n: int, dim: int, *, unitary: bool = True) -> float:
    """Compute the expected ratio of noise energy to signal energy when one of n bound and bundled vectors is unbound.

    With unitary keys (`hrr.unitary_keys`, `hadamard.random_keys`, `mbat.random_keys`) it is n - 1 for any dim, because every
    other vector arrives at full length. Gaussian HRR keys of norm 1 add what unbinding leaves of the key's own spectrum,
    (dim - 2 + r) / (dim + 2), with r = 2 real frequencies for even dims and 1 for odd ones. So the cosine between a retrieved
    and a stored vector, 1 / sqrt(1 + noise) for large dims, is 1/sqrt(n), or 1/sqrt(n + 1) with Gaussian keys.

    The expectation is exact for vectors of equal expected energy, spread evenly over frequencies (needed for Gaussian keys
    only), and keys independent of each other and of the vectors. In single retrievals of Gaussian vectors the noise energy
    scatters around it, with a standard deviation of sqrt(2 / dim) of it with unitary keys, and 1.6 to 2.5 times that with
    Gaussian keys (simulated, n = 2 to 8).

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number.

    >>> retrieval_noise(4, 64)
    3.0
    >>> retrieval_noise(1, 62, unitary=False)
    0.96875
    """
    checks.positive(n=n, dim=dim)
    real_frequencies = 1 + (dim % 2 == 0)
    own = 0.0 if unitary else (dim - 2 + real_frequencies) / (dim + 2)
    return n - 1 + own


@dataclass(frozen=True, kw_only=True)
class ScoreBounds:
    """Bounds on how far the other slots move an attention score, from `attention_score_bounds`; they are not clipped at 1."""

    noise_std: float
    """Standard deviation of the noise, in units of |k||q|."""
    chebyshev: float
    """Upper bound on P(|noise| >= alpha |signal|) by Chebyshev's inequality."""
    exponential: float
    """Upper bound on P(|noise| >= alpha |signal|) by a union bound and Hoeffding's inequality, as in the paper."""

    @property
    def vacuous(self) -> bool:
        """Whether both bounds are 1 or more and so say nothing."""
        return min(self.chebyshev, self.exponential) >= 1


def attention_score_bounds(n: int, m: int, dim: int, *, alpha: float, cosine: float) -> ScoreBounds:
    """Bound the noise in <sum_w k^(u,w) a^(u,w), sum_t q^(t,n) a^(t,n)>, the superposed attention score of MIMOFormer.

    The score is the signal <k, q> plus m n - 1 cross terms, pairwise uncorrelated Rademacher sums, each of variance
    sum_d k_d^2 q_d^2 = |k|^2 |q|^2 / dim. Hence, with s = alpha |cosine|, P(|noise| >= alpha |<k, q>|) is at most
    (m n - 1) / (dim s^2), and at most 2 (m n - 1) exp(-dim s^2 / (2 (m n - 1)^2)) (Menet et al., 2023, sec. 4).

    The bounds hold for fixed k and q, of equal norms over the slots and with evenly spread coordinates, and independent bipolar
    keys. **A bound above 1 says nothing.** At alpha = cosine = 0.5 the exponential bound is above 1 for every head size and grid
    of the Long Range Arena: for dim 64 and a 2 x 2 grid it is 4.8, while about 25 % of simulated scores fail.

    Args:
        n, m: sides of the grid of m n slots.
        dim: dimension of an attention head.
        alpha: relative error of the score that counts as failure, above 0 and finite.
        cosine: cosine between k and q, from -1 to 1 but not 0.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: a count is not a whole number.

    >>> bounds = attention_score_bounds(2, 2, 64, alpha=0.5, cosine=0.5)
    >>> round(bounds.noise_std, 2), bounds.chebyshev, round(bounds.exponential, 1), bounds.vacuous
    (0.22, 0.75, 4.8, False)
    """
    checks.positive(n=n, m=m, dim=dim)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
    if not 0 < abs(cosine) <= 1:
        raise ValueError(f"cosine must be from -1 to 1 and not 0, got {cosine}")
    others, margin = m * n - 1, (alpha * cosine) * (alpha * cosine)
    return ScoreBounds(
        noise_std=math.sqrt(others / dim),
        chebyshev=others / (dim * margin) if margin else math.inf,
        exponential=2 * others * math.exp(-dim * margin / (2 * others**2)) if others else 0.0,
    )
