"""A penalty that keeps convolutions near-isometric, so that superposed signals stay apart (Qi et al., 2020)."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mimoconv.superposed import network_of
from vsa_core.autocast import autocast_off
from vsa_core.gpu import runs_triton

__all__ = ["convolution_isometry", "isometry_penalty"]


def isometry_penalty(model: nn.Module) -> Float[Tensor, ""]:
    """Sum `convolution_isometry` over the convolutions of the body, as a penalty to add to the loss.

    The stem, binding and unbinding do not count. The caller weights the sum by gamma, 1e-4 in the published runs (Menet et al.,
    2023, Eq. 8 and 9).

    Raises:
        ValueError: a convolution is dilated.
        TypeError: the model is neither a `Superposed` nor a `WideResNet`, nor one of these in a wrapper of torch.

    >>> from mimoconv import WideResNet, WideResNetConfig
    >>> round(isometry_penalty(WideResNet(WideResNetConfig(depth=10, width=1, init="delta"))).item(), 9)
    0.0
    """
    layers = [layer for layer in network_of(model).body.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        if set(layer.dilation) != {1}:
            raise ValueError(f"a convolution has dilation {layer.dilation}; the penalty is defined for dilation 1 only")
    return sum_of_distances([layer.weight for layer in layers], [(layer.stride, layer.groups) for layer in layers])


def convolution_isometry(
    weight: Float[Tensor, "out c kh kw"], stride: tuple[int, ...] = (1, 1), *, groups: int = 1
) -> Float[Tensor, ""]:
    """Measure how far a convolution is from isometric: half the squared distance of Conv(W, W) from the identity.

    Conv(W, W) holds the inner products of all pairs of filters, shifted by each offset that is a multiple of the stride. The
    target is 1 for a filter with itself at offset 0 and 0 otherwise; at the target the convolution keeps all inner products.
    Where there are fewer input than output channels, so that the filters cannot all be orthogonal, the two change places (Menet
    et al., 2023, Eq. 8 and 9, gamma = 1; Qi et al., 2020).

    Computed in the weight's precision, under autocast too. On GPUs float32 weights are rounded to float16, which has as many
    digits as TF32, and products are added up in float32: value and gradient are accurate to about 2e-3 for filters with norms
    between 1e-5 and 1e2, in compiled code between 1e-2 and 1e1, and infinite or NaN for much larger ones.

    Args:
        weight: weight of the convolution.
        stride: stride along h and w.
        groups: groups of the convolution; each is a convolution of its own, and their values add up.
    """
    return sum_of_distances([weight], [(stride, groups)])


def sum_of_distances(weights: Sequence[Tensor], layers: Sequence[tuple[tuple[int, ...], int]]) -> Float[Tensor, ""]:
    """Sum `convolution_isometry` over weights (out c kh kw), each with its stride and groups, all of one shape at once."""
    if weights and not torch.compiler.is_compiling() and all(map(has_kernels, weights)):
        from mimoconv.fast_isometry import SumOfDistances

        value: Tensor = SumOfDistances.apply(layers, *weights)
        return value
    if not weights:
        return torch.zeros(())
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    with autocast_off(weights[0]):
        for weight, (stride, groups) in zip(weights, layers, strict=True):
            filters = strided_filters(weight, stride, groups)
            by_shape[filters.shape[1:]].append(filters)
        value, *others = (distance_from_isometry(torch.cat(alike)) for alike in by_shape.values())
        return sum(others, value)


def has_kernels(weight: Tensor) -> bool:
    """Return whether the Triton kernels take a weight; they leave out subclasses of tensors, such as shards, and many taps."""
    plain = weight.is_cuda and weight.dtype == torch.float32 and type(weight) in (Tensor, nn.Parameter)
    return plain and max(weight.shape[2:]) <= 7 and runs_triton(weight.device)


def strided_filters(weight: Float[Tensor, "out c kh kw"], stride: tuple[int, ...], groups: int) -> Float[Tensor, "g a b kh2 kw2"]:
    """Return filters of stride 1 with the same inner products, at least as many channels b as filters a, for each group.

    Taps whose distance is not a multiple of the stride never meet, so they may as well be taps of different channels.
    """
    filters = rearrange(weight, "(g out) c kh kw -> g out c kh kw", g=groups)
    if filters.shape[2] < filters.shape[1]:
        filters = filters.transpose(1, 2)
    kh, kw = filters.shape[3:]
    sh, sw = min(stride[0], kh), min(stride[1], kw)
    filters = F.pad(filters, (0, -kw % sw, 0, -kh % sh))
    return rearrange(filters, "g a b (kh sh) (kw sw) -> g a (b sh sw) kh kw", sh=sh, sw=sw)


def distance_from_isometry(filters: Float[Tensor, "g a b kh kw"]) -> Float[Tensor, ""]:
    """Sum over g half the squared distance of all shifted inner products of filters from those of orthonormal filters.

    By Parseval's theorem it is the mean over the frequencies of a Fourier transform that no offset wraps around. There the inner
    products of all offsets are one product of matrices for each frequency, and so is their gradient.
    """
    dtype = torch.float16 if filters.is_cuda and filters.dtype == torch.float32 else filters.dtype
    value: Tensor = SpectralDistance.apply(filters, dtype)
    return value


class SpectralDistance(torch.autograd.Function):
    """`distance_from_isometry`, with a gradient that is computed together with the value: a third of autograd's work."""

    @staticmethod
    def forward(ctx: Any, filters: Tensor, dtype: torch.dtype) -> Tensor:
        transform, share = half_spectrum(filters)
        real, imaginary = einsum(filters, transform, "g a b kh kw, part f kh kw -> part f g a b").to(dtype)
        # The complex matrix Z = real + i imaginary as a real one: its first rows are [real, imaginary], and times their transpose
        # all rows give the real and the imaginary part of Z Z^H.
        rows = torch.cat([torch.cat([real, imaginary], -1), torch.cat([imaginary, -real], -1)], -2).flatten(0, 1)
        first, target = (
            rows[:, : filters.shape[1]],
            torch.eye(2 * filters.shape[1], filters.shape[1], dtype=dtype, device=rows.device),
        )
        distance = torch.baddbmm(target, rows, first.mT, beta=-1)
        squares = torch.linalg.vector_norm(distance, dim=(1, 2), dtype=filters.dtype).square()
        if ctx.needs_input_grad[0]:
            gradient = torch.bmm(distance.mT, rows).to(filters.dtype)
            gradient = rearrange(gradient, "(f g) a (part b) -> part f g a b", f=len(share), part=2)
            weighted = 2 * share[:, None, None] * transform
            ctx.save_for_backward(einsum(gradient, weighted, "part f g a b, part f kh kw -> g a b kh kw"))
        value: Tensor = share @ rearrange(squares, "(f g) -> f g", f=len(share)).sum(1) / 2
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def half_spectrum(filters: Float[Tensor, "g a b kh kw"]) -> tuple[Float[Tensor, "2 f kh kw"], Float[Tensor, " f"]]:
    """Return the real and imaginary part of a Fourier transform of filters at one of each two opposite frequencies, and weights.

    The transform has 2 kh - 1 by 2 kw - 1 frequencies. The weights of the frequencies add up to 1.
    """
    kh, kw = filters.shape[3:]
    height, width = 2 * kh - 1, 2 * kw - 1
    place = torch.arange(height * width // 2, height * width, device=filters.device)  # frequency 0, then those beyond it
    rows, columns = place // width - (kh - 1), place % width - (kw - 1)
    y, x = (torch.arange(k, device=filters.device, dtype=filters.dtype) for k in (kh, kw))
    turns = rows[:, None, None] * y[:, None] / height + columns[:, None, None] * x / width
    share = torch.where(place == height * width // 2, 1, 2).to(filters.dtype) / (height * width)
    return torch.stack([torch.cos(2 * math.pi * turns), -torch.sin(2 * math.pi * turns)]), share
