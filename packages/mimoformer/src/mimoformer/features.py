"""Feature maps phi of linear attention: phi(k) . phi(q) stands in for the weight that query q gives to key k.

A feature map is a function of vectors (... d) to features (... r), none of them negative. Where queries and keys need different
stabilisers it is a module with `query(x)` and `key(x, mask)`, and with `running_key(x, mask, start)` for causal attention; the
attention functions use these where they are there. All scale their vectors by d^(-1/4), so that products are divided by sqrt(d).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vsa_core import checks, mbat


def orthogonal_projection(features: int, dim: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "features dim"]:
    """W of FAVOR+: rows that are orthogonal in blocks of `dim`, each as long as a Gaussian vector (Choromanski et al., 2021).

    So every row by itself is N(0, I), but rows of a block do not repeat each other's directions, which lowers the variance.
    """
    checks.positive(features=features, dim=dim)
    device = None if generator is None else generator.device
    blocks = mbat.random_keys(-(-features // dim), dim, generator=generator, device=device, dtype=torch.float64)
    length = torch.randn(features, dim, generator=generator, device=device, dtype=torch.float64).norm(dim=-1, keepdim=True)
    projection: Tensor = blocks.flatten(0, 1)[:features] * length
    return projection.to(torch.get_default_dtype())


class RandomFeatures(nn.Module):
    """Owns W (features d), drawn once; it is no parameter but is saved with the model.

    Args:
        dim: d, of queries and keys.
        features: R, how many features.
        generator: the global one unless given.

    Raises:
        ValueError: `dim` or `features` is below 1.
        TypeError: one of them is not a whole number.
    """

    projection: Tensor

    def __init__(self, dim: int, features: int = 256, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("projection", orthogonal_projection(features, dim, generator=generator))

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw W again, in place; a network in training then no longer fits itself to one W."""
        self.projection.copy_(orthogonal_projection(*self.projection.shape, generator=generator))

    def project(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """W x / d^(1/4)."""
        projected: Tensor = F.linear(x, (self.projection * x.shape[-1] ** -0.25).to(x.dtype))
        return projected

    def extra_repr(self) -> str:
        features, dim = self.projection.shape
        return f"dim={dim}, features={features}"


class ReLUFeatures(RandomFeatures):
    """phi(x) = ReLU(W x / d^(1/4)) + eps: the map of the published MIMOFormer (Choromanski et al., 2021, with f = ReLU).

    Args:
        eps: keeps denominators above 0; 0.001 in the published runs. Otherwise as for `RandomFeatures`.

    >>> import torch
    >>> ReLUFeatures(64, 256)(torch.randn(5, 64)).shape
    torch.Size([5, 256])
    """

    def __init__(self, dim: int, features: int = 256, *, eps: float = 1e-3, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, features, generator=generator)
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """The same for queries and keys."""
        return F.relu(self.project(x)) + self.eps


class RunningKeys(NamedTuple):
    """Key features of causal attention: what `features` stands for is `features * exp(log_scale)`, token by token."""

    features: Tensor
    """(b m h l r)."""
    log_scale: Tensor
    """(b h l), never falling along l: a running maximum, so that no token depends on later ones."""


class PositiveFeatures(RandomFeatures):
    """phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(R), x' = x / d^(1/4): E phi(k) . phi(q) = exp(<k, q> / sqrt(d)) (FAVOR+, Eq. 7).

    Attention normalises, so factors that all keys of a sum share, and any factor of a query, cancel. They are chosen so that
    nothing overflows: every query's largest feature is 1, and so is the largest one over all real keys of a head. In causal
    attention the largest one *so far* is. There is no eps, so the answer depends on the stabilisers only where numbers
    underflow: a token whose denominator does gives 0. Its weights span many orders of magnitude, which superposition does not
    forgive: a slot whose weights are small beside its neighbours' drowns in their noise. ReLU is the milder choice.
    """

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """The definition, without stabilisers: overflows for long vectors."""
        phi: Tensor = self.exponent(x).exp() * self.projection.shape[0] ** -0.5
        return phi

    def exponent(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """W x' - |x'|^2 / 2."""
        half_norm: Tensor = x.square().sum(-1, keepdim=True) / (2 * x.shape[-1] ** 0.5)
        return self.project(x) - half_norm

    def query(self, x: Float[Tensor, "b n h l d"]) -> Float[Tensor, "b n h l r"]:
        """Features of queries, divided by the largest of each."""
        projected: Tensor = self.project(x)
        return (projected - projected.detach().amax(-1, keepdim=True)).exp()

    def key(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None) -> Float[Tensor, "b m h l r"]:
        """Features of keys, divided by the largest one of a head over slots and real tokens; 0 for tokens that are not real."""
        exponent = self.masked_exponent(x, mask)
        return (exponent - finite(exponent.detach().amax((1, 3, 4), keepdim=True))).exp()

    def running_key(
        self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None, start: Float[Tensor, "b h"] | None = None
    ) -> RunningKeys:
        """Features of keys, divided by the largest one of a head over slots and the real tokens up to their own.

        Args:
            start: `log_scale` of the last token before these.
        """
        exponent = self.masked_exponent(x, mask)
        log_scale = finite(exponent.detach().amax((1, 4)).cummax(-1).values)
        if start is not None:
            log_scale = torch.maximum(log_scale, start[..., None])
        return RunningKeys((exponent - log_scale[:, None, :, :, None]).exp(), log_scale)

    def masked_exponent(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None) -> Float[Tensor, "b m h l r"]:
        """The exponent, minus infinity for tokens that are not real."""
        exponent: Tensor = self.exponent(x)
        return exponent if mask is None else exponent.masked_fill(~mask[:, :, None, :, None], -torch.inf)


def lowest(dtype: torch.dtype) -> float:
    """The logarithm of nothing: so low that its exponential is 0, and finite, so that differences are defined."""
    return torch.finfo(dtype).min / 4


def finite(maximum: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """A maximum, or `lowest` where it is over nothing."""
    return maximum.clamp_min(lowest(maximum.dtype))


class DPFPFeatures(nn.Module):
    """Deterministic parameter-free projection (Schlag et al., 2021): r = ReLU([x'; -x']), phi = r * roll(r, s) for s = 1..nu.

    Args:
        nu: how many rolls; there are 2 nu d features.
        eps: added to every feature, so that denominators stay above 0; the published map has none.

    Raises:
        ValueError: `nu` is below 1.
        TypeError: `nu` is not a whole number.
    """

    def __init__(self, nu: int = 3, *, eps: float = 1e-3) -> None:
        super().__init__()
        checks.positive(nu=nu)
        self.nu, self.eps = nu, eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """The same for queries and keys."""
        x = x * x.shape[-1] ** -0.25
        r = F.relu(torch.cat([x, -x], -1))
        return torch.cat([r * r.roll(s, -1) for s in range(1, self.nu + 1)], -1) + self.eps

    def extra_repr(self) -> str:
        return f"nu={self.nu}, eps={self.eps}"
