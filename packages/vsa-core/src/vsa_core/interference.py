"""Interference between slots: measured on real activations, and what theory expects, side by side."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vsa_core import checks


def crosstalk(outputs: Float[Tensor, "*redraws b d"], reference: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Share of the variance of a slot's features that the *other* slots' inputs cause: 0 none, 1 all of it.

    Fix b inputs in one slot. `reference` holds their features with one independent draw of the other slots' inputs for
    each, `outputs` with these redrawn, once (b d) or several times (redraws b d). This is the total-effect index of the
    other inputs, E[Var(f | own)] / Var(f), by Jansen's estimator E|f - f'|^2 / 2 over the pooled variance (Saltelli et
    al., 2010), with variances summed over the features. An estimate from a finite b can exceed 1 slightly.

    Args:
        outputs: features (b d) or (redraws b d).
        reference: features (b d), b >= 2, of the same inputs in the same slot.

    Raises:
        TypeError: a tensor is not real floating point.
        ValueError: shapes that do not fit, no redraw, fewer than two inputs, or features that do not vary at all.

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
            "they must be (b, d) or (redraws, b, d) with at least a redraw and a feature, and (b, d)"
        )
    if reference.shape[0] < 2:
        raise ValueError(f"a variance needs at least 2 inputs, got {reference.shape[0]}")
    outputs, reference = outputs.double().reshape(-1, *reference.shape), reference.double()
    within = (outputs - reference).square().sum(-1).mean() / 2
    total = (outputs.var(1).sum(-1).mean() + reference.var(0).sum()) / 2
    if total == 0:
        raise ValueError("the features do not vary: there is no variance to share out")
    return within / total


def retrieval_snr(outputs: Float[Tensor, "*b d"], reference: Float[Tensor, "*b d"]) -> Float[Tensor, ""]:
    """Energy of the reference over energy of what was added to it, `|ref|^2 / |out - ref|^2`, each summed over all axes.

    A power ratio: 10 log10 of it is in dB. Infinite where nothing was added. Over many retrievals at once, each from a bundle
    of n bound vectors, it tends to `1 / retrieval_noise(n, dim, unitary=...)`; single ones scatter around that.

    Raises:
        TypeError: a tensor is not real floating point.
        ValueError: the shapes differ, or the reference is all zero.

    >>> import torch
    >>> retrieval_snr(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 0.0])).item()
    4.0
    """
    checks.floating(outputs=outputs, reference=reference)
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs has shape {tuple(outputs.shape)} and reference {tuple(reference.shape)}: they must be equal")
    outputs, reference = outputs.double(), reference.double()
    signal = reference.square().sum()
    if signal == 0:
        raise ValueError("the reference is zero everywhere: it holds no signal")
    return signal / (outputs - reference).square().sum()


def retrieval_noise(n: int, dim: int, *, unitary: bool = True) -> float:
    """Expected noise energy over signal energy when one of n bound and bundled vectors is unbound again.

    Unitary keys (`hrr.unitary_keys`, `hadamard.random_keys`, `mbat.random_keys`): n - 1, whatever the dim: each other
    vector arrives at full length. Gaussian HRR keys of norm 1 add what unbinding leaves of the key's own spectrum,
    (dim - 2 + r) / (dim + 2) with r = 2 real frequencies for even dims (dim >= 2) and 1 for odd ones. So the cosine
    between retrieved and stored, 1 / sqrt(1 + noise) for large dims, is 1/sqrt(n), or 1/sqrt(n + 1) with Gaussian keys.

    Assumes vectors of equal expected energy that are white (energy spread evenly over frequencies; needed for Gaussian
    keys only), and keys independent of each other and of the vectors. Exact as an expectation under these assumptions.
    The noise energy of a single retrieval of Gaussian vectors scatters around its expectation with a standard deviation of
    sqrt(2 / dim) of it with unitary keys, and 1.6 to 2.5 times that with Gaussian keys (simulated, n = 2 to 8).

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
    """How far the other slots move an attention score; see `attention_score_bounds`. Probabilities are not clipped."""

    noise_std: float
    """Standard deviation of the noise over |k||q|."""
    chebyshev: float
    """Bound on P(|noise| >= alpha |signal|) by Chebyshev's inequality."""
    exponential: float
    """Bound on the same by a union over the terms and Hoeffding's inequality, the paper's form."""

    @property
    def vacuous(self) -> bool:
        """Whether both bounds are 1 or more, so that together they say nothing."""
        return min(self.chebyshev, self.exponential) >= 1


def attention_score_bounds(n: int, m: int, dim: int, *, alpha: float, cosine: float) -> ScoreBounds:
    """Bounds on the noise in <sum_w k^(u,w) a^(u,w), sum_t q^(t,n) a^(t,n)>, the superposed score of MIMOFormer.

    The score is the signal <k, q> plus m n - 1 cross terms, pairwise uncorrelated Rademacher sums, each of variance
    sum_d k_d^2 q_d^2 = |k|^2 |q|^2 / dim. Hence, with s = alpha |cosine|, P(|noise| >= alpha |<k, q>|) is at most
    (m n - 1) / (dim s^2), and at most 2 (m n - 1) exp(-dim s^2 / (2 (m n - 1)^2)) (Menet et al., 2023, sec. 4).

    Assumes fixed k and q of equal norms over the slots with evenly spread coordinates, and independent bipolar keys.
    **A bound above 1 says nothing**, and at alpha = cosine = 0.5 the exponential one is above 1 at every head size and grid
    of the long range arena: for dim 64 and a 2 x 2 grid it reads 4.8, where about 25 % of simulated scores fail.

    Args:
        n, m: sides of the grid of slots, m n in all.
        dim: dimension of an attention head.
        alpha: relative distortion of the score that counts as failure, above 0 and finite.
        cosine: of the angle between k and q, from -1 to 1, not 0.

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
