"""Feature maps phi of linear attention: phi(k) . phi(q) stands in for the weight that query q gives to key k.

A feature map is a plain function from vectors (... d) to non-negative features (... r). Where queries and keys need different
stabilisers, it is an object with the methods of `FeatureMap`, or of `CausalFeatureMap` for causal attention. The maps here scale
their vectors by d^(-1/4), so that products are divided by sqrt(d).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vsa_core import checks, mbat
from vsa_core.autocast import autocast_off
from vsa_core.float64 import float64_device

__all__ = [
    "AnyFeatureMap",
    "CausalFeatureMap",
    "DPFPFeatures",
    "FeatureMap",
    "PositiveFeatures",
    "RandomFeatures",
    "ReLUFeatures",
    "RunningKeys",
    "UnstabilisedMap",
    "as_feature_map",
    "orthogonal_projection",
]


class RunningKeys(NamedTuple):
    """Key features of causal attention: each token stands for `features * exp(log_scale)`."""

    features: Float[Tensor, "b m h l r"]
    """Features of bundled keys, divided by exp(log_scale) of their token."""
    log_scale: Float[Tensor, "b h l"]
    """Logarithm of the stabiliser, never falling along l: a running maximum, so that no token depends on later ones."""


@runtime_checkable
class FeatureMap(Protocol):
    """A feature map whose queries and keys need different stabilisers."""

    def query(self, x: Float[Tensor, "b n h l d"]) -> Float[Tensor, "b n h l r"]:
        """Features of bundled queries, up to a factor for each query."""
        ...

    def key(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None) -> Float[Tensor, "b m h l r"]:
        """Features of bundled keys, up to a factor that all keys of a head share; `mask` is True where a bundle is real."""
        ...


@runtime_checkable
class CausalFeatureMap(FeatureMap, Protocol):
    """A feature map that also serves causal attention, where a key's factor must not depend on later tokens."""

    def running_key(
        self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None, start: Float[Tensor, "b h"] | None = None
    ) -> RunningKeys:
        """Features of bundled keys with the scale of each token; `start` is the scale of the last token before these."""
        ...


class UnstabilisedMap:
    """Use a plain function phi as a `CausalFeatureMap`: the same features for queries and keys, no stabilisers."""

    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        self.phi = phi

    def query(self, x: Float[Tensor, "b n h l d"]) -> Float[Tensor, "b n h l r"]:
        """phi of queries."""
        return self.phi(x)

    def key(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None) -> Float[Tensor, "b m h l r"]:
        """phi of keys."""
        return self.phi(x)

    def running_key(
        self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None, start: Float[Tensor, "b h"] | None = None
    ) -> RunningKeys:
        """phi of keys, at scale 1."""
        return RunningKeys(self.phi(x), x.new_zeros(x.shape[0], x.shape[2], x.shape[3]))


AnyFeatureMap: TypeAlias = FeatureMap | Callable[[Tensor], Tensor]
"""What the attention functions take as phi."""


def as_feature_map(phi: AnyFeatureMap) -> FeatureMap:
    """The feature map itself, or a plain function wrapped as one."""
    return phi if isinstance(phi, FeatureMap) else UnstabilisedMap(phi)


def orthogonal_projection(features: int, dim: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "features dim"]:
    """Draw W of FAVOR+ (Choromanski et al., 2021): rows are orthogonal in blocks of `dim` and as long as Gaussian vectors.

    Each row by itself is N(0, I). Rows of a block do not repeat each other's directions, which lowers the variance.

    Raises:
        ValueError: `features` or `dim` is below 1.
        TypeError: `features` or `dim` is not a whole number.
    """
    checks.positive(features=features, dim=dim)
    device = torch.get_default_device() if generator is None else generator.device
    options: dict[str, Any] = {"generator": generator, "device": float64_device(device), "dtype": torch.float64}
    blocks = mbat.random_keys(-(-features // dim), dim, **options)
    length = torch.randn(features, dim, **options).norm(dim=-1, keepdim=True)
    projection: Tensor = blocks.flatten(0, 1)[:features] * length
    return projection.to(device, torch.get_default_dtype())


class RandomFeatures(nn.Module):
    """Base class of random feature maps: draws W (features dim) once; W is not trained, but saved with the model.

    Args:
        dim: d, the dimension of queries and keys.
        features: R, the number of features.
        generator: source of the random numbers; torch's global one by default.

    Raises:
        ValueError: `dim` or `features` is below 1.
        TypeError: `dim` or `features` is not a whole number.
    """

    projection: Tensor

    def __init__(self, dim: int, features: int = 256, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("projection", orthogonal_projection(features, dim, generator=generator))

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw W again, in place. Redrawing during training keeps a network from fitting itself to one W."""
        self.projection.copy_(orthogonal_projection(*self.projection.shape, generator=generator))

    def project(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """Project vectors: W x / d^(1/4)."""
        projected: Tensor = F.linear(x, (self.projection * x.shape[-1] ** -0.25).to(x.dtype))
        return projected

    def extra_repr(self) -> str:
        features, dim = self.projection.shape
        return f"dim={dim}, features={features}"


class ReLUFeatures(RandomFeatures):
    """phi(x) = ReLU(W x / d^(1/4)) + eps: the map of the published MIMOFormer (Choromanski et al., 2021, with f = ReLU).

    Args:
        dim: d, the dimension of queries and keys.
        features: R, the number of features.
        eps: added to every feature to keep denominators above 0; 0.001 in the published runs.
        generator: source of the random numbers; torch's global one by default.

    >>> import torch
    >>> ReLUFeatures(64, 256)(torch.randn(5, 64)).shape
    torch.Size([5, 256])
    """

    def __init__(self, dim: int, features: int = 256, *, eps: float = 1e-3, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, features, generator=generator)
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """Features of queries or keys."""
        return F.relu(self.project(x)) + self.eps


class PositiveFeatures(RandomFeatures):
    """phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(R), x' = x / d^(1/4): E phi(k) . phi(q) = exp(<k, q> / sqrt(d)) (FAVOR+, Eq. 7).

    `ReLUFeatures` are the safer choice in superposition. Weights of this map span many orders of magnitude, and a slot whose
    weights are small beside its neighbours' drowns in their noise.

    `query` and `key` rescale features so that nothing overflows; attention divides the factors out again. The largest feature of
    each query is 1, and so is the largest over all real keys of a head (in causal attention, over the keys so far). There is no
    eps: a token whose denominator underflows gives 0.
    """

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """Features by the definition, without stabilisers; long vectors overflow."""
        phi: Tensor = self.exponent(x).exp() * self.projection.shape[0] ** -0.5
        return phi

    def exponent(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """Logarithm of the features, up to a constant: W x' - |x'|^2 / 2."""
        half_norm: Tensor = x.square().sum(-1, keepdim=True) / (2 * x.shape[-1] ** 0.5)
        return self.project(x) - half_norm

    def query(self, x: Float[Tensor, "b n h l d"]) -> Float[Tensor, "b n h l r"]:
        """Features of queries, each divided by its largest."""
        projected: Tensor = self.project(x)
        return (projected - projected.detach().amax(-1, keepdim=True)).exp()

    def key(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None) -> Float[Tensor, "b m h l r"]:
        """Features of keys, divided by the largest of a head over slots and real tokens; 0 for padding."""
        exponent = self.masked_exponent(x, mask)
        return (exponent - finite_maximum(exponent.detach().amax((1, 3, 4), keepdim=True))).exp()

    def running_key(
        self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None = None, start: Float[Tensor, "b h"] | None = None
    ) -> RunningKeys:
        """Features of keys, each divided by the largest of a head over slots and the real tokens up to its own.

        Args:
            x: bundled keys.
            mask: True where a bundle holds a real token; all do by default.
            start: `log_scale` of the last token before these; None at the beginning.
        """
        exponent = self.masked_exponent(x, mask)
        log_scale = finite_maximum(exponent.detach().amax((1, 4)).cummax(-1).values)
        if start is not None:
            log_scale = torch.maximum(log_scale, start[..., None])
        return RunningKeys((exponent - log_scale[:, None, :, :, None]).exp(), log_scale)

    def masked_exponent(self, x: Float[Tensor, "b m h l d"], mask: Bool[Tensor, "b m l"] | None) -> Float[Tensor, "b m h l r"]:
        """Exponent of the features; minus infinity for padding."""
        exponent: Tensor = self.exponent(x)
        return exponent if mask is None else exponent.masked_fill(~mask[:, :, None, :, None], -torch.inf)


def log_of_zero(dtype: torch.dtype) -> float:
    """A logarithm so low that its exponential is 0, yet finite, so that differences are defined."""
    return torch.finfo(dtype).min / 4


def finite_maximum(maximum: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Replace a maximum over nothing, minus infinity, by `log_of_zero`."""
    return maximum.clamp_min(log_of_zero(maximum.dtype))


class DPFPFeatures(nn.Module):
    """Deterministic parameter-free projection (Schlag et al., 2021): r = ReLU([x'; -x']), phi = r * roll(r, s) for s = 1..nu.

    Args:
        nu: number of rolls; there are 2 nu d features.
        eps: added to every feature to keep denominators above 0; the published map adds none.

    Raises:
        ValueError: `nu` is below 1.
        TypeError: `nu` is not a whole number.
    """

    def __init__(self, nu: int = 3, *, eps: float = 1e-3) -> None:
        super().__init__()
        checks.positive(nu=nu)
        self.nu, self.eps = nu, eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b r"]:
        """Features of queries or keys."""
        x = x * x.shape[-1] ** -0.25
        with autocast_off(x):  # which refuses to join another half type than its own
            r = F.relu(torch.cat([x, -x], -1))
            return torch.cat([r * r.roll(s, -1) for s in range(1, self.nu + 1)], -1) + self.eps

    def extra_repr(self) -> str:
        return f"nu={self.nu}, eps={self.eps}"
