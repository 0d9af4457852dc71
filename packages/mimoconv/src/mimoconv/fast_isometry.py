"""The isometry penalty of float32 weights on GPUs: the sums of `isometry` in the frequency domain, by kernels in Triton.

Layers alike, however many, take four launches: `spectrum` reads weights and writes their Fourier transforms, `gram` multiplies
the transformed filters with each other and subtracts the identity, a batched matrix product gives the gradient in the frequency
domain, and `inverse` brings it back into the layout of the weights.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimoconv.isometry_kernels import gram, inverse, spectrum

__all__ = ["SumOfDistances"]


@dataclass(frozen=True)
class Geometry:
    """Sizes and strides of a convolution's filters, at least as many channels as filters; layers alike have the same."""

    filters: int
    channels: int
    height: int
    width: int
    group_stride: int
    filter_stride: int
    channel_stride: int
    y_stride: int
    x_stride: int
    groups: int
    step_y: int
    step_x: int

    @classmethod
    def of(cls, weight: Tensor, stride: tuple[int, ...], groups: int) -> "Geometry":
        """Describe the filters of a weight (out c kh kw); taps whose distance is no multiple of the stride never meet."""
        out, channels, height, width = weight.shape
        out //= groups
        out_stride, channel_stride, y_stride, x_stride = weight.stride()
        sides = ((out, channels), (out_stride, channel_stride))
        (a, c), (a_stride, c_stride) = sides if out <= channels else (side[::-1] for side in sides)
        steps = min(stride[0], height), min(stride[1], width)
        return cls(a, c, height, width, out * out_stride, a_stride, c_stride, y_stride, x_stride, groups, *steps)

    @property
    def taps(self) -> tuple[int, int]:
        """Taps along y and x that are a multiple of the stride apart."""
        return -(-self.height // self.step_y), -(-self.width // self.step_x)

    @property
    def parts(self) -> int:
        """2 for a real and an imaginary part, 1 for kernels of one tap."""
        return 1 if self.taps == (1, 1) else 2

    @property
    def frequencies(self) -> int:
        """Frequencies of the transform, without the opposite of each."""
        return (2 * self.taps[0] - 1) * (2 * self.taps[1] - 1) // 2 + 1

    @property
    def padded(self) -> tuple[int, int]:
        """Filters and channels, as multiples of the 8 numbers to which products of matrices are aligned."""
        return -(-self.filters // 8) * 8, -(-self.channels // 8) * 8

    @property
    def columns(self) -> int:
        """Length of the rows: the channels of all phases of the stride, for each part."""
        return self.parts * self.step_y * self.step_x * self.padded[1]

    def launch(self, kernel: Any, layers: int, *tensors: Any, **options: Any) -> None:
        """Launch `spectrum` or `inverse` for all layers."""
        a, c = tile(self)
        strides = (self.group_stride, self.filter_stride, self.channel_stride, self.y_stride, self.x_stride)
        (kh, kw), steps = self.taps, (self.step_y, self.step_x)
        kernel[tiles(self) * layers * self.groups, self.step_y * self.step_x](
            *tensors, self.filters, self.channels, *self.padded, *strides, self.groups, self.height, self.width, *steps, kh, kw,
            *waves(kh), *waves(kw), a, c, **options,
        )  # fmt: skip


def tile(geometry: Geometry) -> tuple[int, int]:
    """Return filters and channels of a tile of `spectrum` and `inverse`, longer along what is contiguous in memory."""
    return (4, 128) if geometry.channel_stride <= geometry.filter_stride else (32, 16)


def tiles(geometry: Geometry) -> int:
    """Count the tiles of a layer, for each phase of the stride."""
    return math.prod(-(-size // block) for size, block in zip(geometry.padded, tile(geometry), strict=True))


def waves(k: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return cosines and sines of the frequencies 0 .. k - 1 of 2 k - 1 for the first half of k taps around 0, as flat tuples."""
    turns = [2 * math.pi * f * ((k - 1) / 2 - tap) / (2 * k - 1) for f in range(k) for tap in range(k // 2)]
    return tuple(map(math.cos, turns)), tuple(map(math.sin, turns))


class SumOfDistances(torch.autograd.Function):
    """Sum of `convolution_isometry` over float32 weights; the gradient is taken back to the weights in the backward pass.

    Nothing waits for the host, so that the kernels can be captured in a CUDA graph. Value and gradient of a layer
    as a whole are accurate to about 2e-3 if its filters have like norms between 1e-5 and 1e2; filters that are much smaller than
    others of their layer lose digits, and filters that are too large for float16 make both infinite or NaN.
    """

    @staticmethod
    def forward(ctx: Any, layers: Sequence[tuple[tuple[int, ...], int]], *weights: Tensor) -> Tensor:
        """Return the sum; layers holds stride and groups of the convolution of each weight (out c kh kw)."""
        alike: dict[Geometry, list[int]] = {}
        for index, (weight, layer) in enumerate(zip(weights, layers, strict=True)):
            alike.setdefault(Geometry.of(weight, *layer), []).append(index)
        with device(weights[0]), torch.autocast(weights[0].device.type, enabled=False):
            found = [
                distances(geometry, [weights[i] for i in indices], any(ctx.needs_input_grad))
                for geometry, indices in alike.items()
            ]
            value = torch.cat([squares for squares, *_ in found]).sum()
        ctx.layers, ctx.alike = layers, list(alike.values())
        ctx.like = [torch.empty_like(weight, device="meta") for weight in weights]
        ctx.save_for_backward(*(tensor for _, *kept in found for tensor in kept))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each weight."""
        weights = [torch.empty_like(weight, device=factor.device) for weight in ctx.like]
        saved = iter(ctx.saved_tensors)
        with device(factor):
            for indices, gradient, energy in zip(ctx.alike, saved, saved, strict=True):
                geometry = Geometry.of(weights[indices[0]], *ctx.layers[indices[0]])
                geometry.launch(
                    inverse,
                    len(indices),
                    gradient,
                    tuple(weights[i] for i in indices),
                    energy,
                    factor,
                    energy.shape[1],
                    ENERGY_BLOCK=triton.next_power_of_2(energy.shape[1]),
                )
        return None, *weights


def device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the one on which kernels run."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def distances(geometry: Geometry, weights: Sequence[Tensor], needs_gradient: bool) -> list[Tensor]:
    """Return summands of the value for weights alike; with a gradient, also that in the frequency domain, and the energies."""
    (a, _), parts, g, f = geometry.padded, geometry.parts, len(weights) * geometry.groups, geometry.frequencies
    new = weights[0].new_empty
    rows = new(f * g, parts * a, geometry.columns, dtype=torch.float16)
    energy = new(g, geometry.step_y * geometry.step_x * tiles(geometry))
    geometry.launch(spectrum, len(weights), tuple(weights), rows, energy)
    error = new(f * g, a, parts * a, dtype=torch.float16)
    block = 128 if a > 320 else 64
    count = -(-a // block)
    squares = new(f * g * parts * count * (count + 1) // 2)
    share = 1 / math.prod(2 * k - 1 for k in geometry.taps)
    gram[squares.shape](
        rows, error, squares, energy, energy.shape[1], geometry.filters, a, geometry.columns, g, share, parts, block, 64,
        geometry.columns % 64 == 0, triton.next_power_of_2(energy.shape[1]), num_warps=8 if block == 128 else 4,
    )  # fmt: skip
    return [squares, torch.bmm(error, rows), energy] if needs_gradient else [squares]
