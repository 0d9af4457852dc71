"""Triton kernels of BatchNorm with an activation, over images as a matrix of rows (b h w) and channels.

Every kernel cuts the matrix into tiles whose sizes are powers of two. Where the columns of a tile do not divide the number of
channels C, k rows count as one row of k C columns, and the channel of a column is the column modulo C. A program takes the tiles
of one slice of the rows in turn. Sums over all rows are sums over slices, of which each program of the next kernel adds up those
of its columns, in a fixed order, so the same input gives the same result. Everything is computed in float32.
"""

from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["SETTINGS", "Batch", "Setting", "backward", "gradient_sums", "normalize", "slice_statistics"]


@dataclass(frozen=True)
class Setting:
    """How a kernel cuts its matrix: rows and columns of a tile, warps per program, and about how many programs there are.

    With more than one stage, tiles are fetched into shared memory while earlier ones are computed. Tiles of float32 have half as
    many rows, so that they take no more of it.
    """

    rows: int
    columns: int
    warps: int
    programs: int
    stages: int = 1


SETTINGS = {
    "statistics": Setting(rows=128, columns=32, warps=4, programs=132, stages=6),
    "normalize": Setting(rows=64, columns=64, warps=4, programs=264, stages=4),
    "normalize, statistics given": Setting(rows=32, columns=64, warps=4, programs=2112, stages=3),
    "sums": Setting(rows=64, columns=32, warps=4, programs=132, stages=6),
    "backward": Setting(rows=64, columns=64, warps=4, programs=264, stages=4),
}
"""The setting of each kernel, best for MIMOConv-28-10 with 128 passes on an H200 among those tried: few programs with much in
flight, as each program of one kernel adds up the slices of another, and many where statistics are given."""

COMBINED_PIECES = 32
"""Sums over slices that a program adds up at once, for each of its columns."""


def pieces_at_once(pieces: int) -> int:
    """Return how many pieces a program adds up at once."""
    return min(COMBINED_PIECES, int(triton.next_power_of_2(max(1, pieces))))


@dataclass(frozen=True)
class Grid:
    """A matrix cut into slices: its rows and columns as the kernel sees them, the rows of a slice, and the size of a tile."""

    rows: int
    columns: int
    slice_rows: int
    tile_rows: int
    tile_columns: int

    @classmethod
    def of(cls, x: Tensor, setting: Setting) -> "Grid":
        """Cut images (b c h w) whose channels are contiguous."""
        channels = x.shape[1]
        rows = x.numel() // channels
        merged, columns = setting.columns // gcd(channels, setting.columns), setting.columns
        if rows % merged:
            merged, columns = 1, min(columns, triton.next_power_of_2(channels))
        rows, width = rows // merged, channels * merged
        tile_rows = max(1, setting.rows * 2 // x.element_size())
        tiles, slices = triton.cdiv(rows, tile_rows), max(1, setting.programs // triton.cdiv(width, columns))
        return cls(rows, width, triton.cdiv(tiles, slices) * tile_rows, tile_rows, columns)

    @property
    def slices(self) -> int:
        """Number of slices, none of which is empty."""
        return int(triton.cdiv(self.rows, self.slice_rows))

    @property
    def programs(self) -> tuple[int]:
        """Programs, those of one slice beside each other."""
        return (self.slices * triton.cdiv(self.columns, self.tile_columns),)


class Batch(NamedTuple):
    """Statistics of the pieces of a batch, and the running statistics that they update; nothing where statistics are given."""

    parts: Tensor | None = None
    """Mean and sum of squared deviations of each channel, (2 pieces c)."""
    pieces: int = 0
    merged: int = 0
    """Pieces that have the same rows."""
    part_rows: int = 0
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    batches: Tensor | None = None
    momentum: float = 0.0


GIVEN = Batch()


def slice_statistics(
    x: Tensor,
    branch: Tensor | None,
    total: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    momentum: float,
    setting: Setting | None = None,
) -> Batch:
    """Compute statistics over slices of the images, for `normalize`, which combines them and updates running statistics.

    With a branch they are those of `x + branch`, which is written to `total`.
    """
    setting = setting or SETTINGS["statistics"]
    grid = Grid.of(x, setting)
    merged = grid.columns // x.shape[1]
    parts = torch.empty(2, grid.slices * merged, x.shape[1], device=x.device)
    with torch.cuda.device_of(x):
        statistics_kernel[grid.programs](
            x,
            branch,
            total,
            parts,
            grid.rows,
            grid.columns,
            grid.slice_rows,
            grid.tile_rows,
            grid.tile_columns,
            setting.stages,
            num_warps=setting.warps,
        )
    return Batch(parts, grid.slices * merged, merged, grid.slice_rows, running_mean, running_var, batches, momentum)


def normalize(
    x: Tensor,
    branch: Tensor | None,
    total: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    eps: float,
    activation: str,
    dtype: torch.dtype,
    batch: Batch = GIVEN,
    setting: Setting | None = None,
) -> Tensor:
    """Compute the activation of the normalised images, in a dtype; with a branch those of `x + branch`, written to `total`.

    With a batch, its mean and biased variance are written to `mean` and `var`, and update the running statistics as
    `nn.BatchNorm2d` does.
    """
    setting = setting or SETTINGS["normalize, statistics given" if batch is GIVEN else "normalize"]
    grid, out = Grid.of(x, setting), torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        normalize_kernel[grid.programs](
            x, branch, total, out, mean, var, weight, bias, slope, eps, grid.rows, grid.columns, grid.slice_rows, x.shape[1],
            *batch, activation, grid.tile_rows, grid.tile_columns, setting.stages, pieces_at_once(batch.pieces),
            num_warps=setting.warps,
        )  # fmt: skip
    return out


def gradient_sums(
    x: Tensor,
    gradient: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    eps: float,
    activation: str,
    setting: Setting | None = None,
) -> Tensor:
    """Compute the gradients of weight, bias and, with slopes, slope, over pieces of the images: (2 pieces c) or (3 pieces c)."""
    setting = setting or SETTINGS["sums"]
    grid, channels = Grid.of(x, setting), x.shape[1]
    parts = torch.empty(2 if slope is None else 3, grid.slices * grid.columns // channels, channels, device=x.device)
    with torch.cuda.device_of(x):
        sums_kernel[grid.programs](
            x, gradient, parts, mean, var, weight, bias, slope, eps, grid.rows, grid.columns, grid.slice_rows, channels,
            activation, grid.tile_rows, grid.tile_columns, setting.stages, num_warps=setting.warps,
        )  # fmt: skip
    return parts


def backward(
    x: Tensor,
    gradient: Tensor,
    skip: Tensor | None,
    parts: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    eps: float,
    activation: str,
    setting: Setting | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the gradient of the images, plus that of a skip connection.

    With the `parts` of `gradient_sums` the statistics were those of the batch, and the sums over all images are returned too.
    """
    setting = setting or SETTINGS["backward"]
    grid, out = Grid.of(x, setting), torch.empty_like(x)
    sums = None if parts is None else torch.empty_like(parts[:, 0])
    pieces = 0 if parts is None else parts.shape[1]
    with torch.cuda.device_of(x):
        backward_kernel[grid.programs](
            x, gradient, skip, out, parts, sums, mean, var, weight, bias, slope, eps, 1 / prod((x.shape[0], *x.shape[2:])),
            grid.rows, grid.columns, grid.slice_rows, x.shape[1], pieces, activation, grid.tile_rows, grid.tile_columns,
            setting.stages, pieces_at_once(pieces), num_warps=setting.warps,
        )  # fmt: skip
    return out, sums


@triton.jit
def tile(rows, columns, slice_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return this program's slice, its first row and the row after its last, its columns, and the offsets in a tile."""
    blocks = tl.cdiv(columns, COLUMNS)
    piece = (tl.program_id(0) // blocks).to(tl.int64)  # int64: offsets of large tensors do not fit in int32
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    first = piece * slice_rows
    offsets = tl.arange(0, ROWS)[:, None] * columns + column[None, :]
    return piece, first, tl.minimum(first + slice_rows, rows), column, offsets


@triton.jit
def inside(row, last, column, columns, ROWS: tl.constexpr):
    """Tell which elements of the tile that starts at a row are part of the slice."""
    return (row + tl.arange(0, ROWS) < last)[:, None] & (column < columns)[None, :]


@triton.jit
def added(x, branch, offsets, mask):
    """Load a tile, plus the same tile of a branch if there is one, rounded as torch rounds the sum."""
    value = tl.load(x + offsets, mask, other=0.0)
    if branch is not None:
        value = (value.to(tl.float32) + tl.load(branch + offsets, mask, other=0.0).to(tl.float32)).to(x.dtype.element_ty)
    return value


@triton.jit(do_not_specialize=["rows", "slice_rows"])
def statistics_kernel(
    x, branch, out, parts, rows, columns, slice_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr
):
    """Compute each column's mean and sum of squared deviations over a slice.

    Sums are those of differences from the mean of the slice's first tile, so that a mean much larger than the deviation is fine.
    """
    piece, first, last, column, offsets = tile(rows, columns, slice_rows, ROWS, COLUMNS)
    head = added(x, branch, first * columns + offsets, inside(first, last, column, columns, ROWS)).to(tl.float32)
    shift = tl.sum(head, 0) / tl.minimum(last - first, ROWS).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        mask = inside(row, last, column, columns, ROWS)
        value = added(x, branch, row * columns + offsets, mask)
        if branch is not None:
            tl.store(out + row * columns + offsets, value, mask)
        difference = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += difference
        squares += difference * difference
    offset = tl.sum(total, 0) / (last - first).to(tl.float32)
    deviation = tl.sum(squares, 0) - offset * offset * (last - first).to(tl.float32)
    out = parts + piece * columns + column
    tl.store(out, shift + offset, column < columns)
    tl.store(out + tl.cdiv(rows, slice_rows) * columns, tl.where(deviation < 0, 0.0, deviation), column < columns)


@triton.jit
def batch_statistics(
    parts, pieces, merged, part_rows, count, channels, channel, mask, PIECES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Combine the mean and variance of slices (Chan et al., 1983), with the first one's mean as the origin."""
    origin = tl.load(parts + channel, mask, other=0.0)
    total = tl.zeros((PIECES, COLUMNS), tl.float32)
    squares = tl.zeros((PIECES, COLUMNS), tl.float32)
    for start in range(0, pieces, PIECES):
        piece = start + tl.arange(0, PIECES)
        known = (piece < pieces)[:, None] & mask[None, :]
        rows = tl.minimum(part_rows, count // merged - piece // merged * part_rows).to(tl.float32)[:, None]
        source = parts + piece[:, None] * channels + channel[None, :]
        difference = tl.load(source, known, other=0.0) - origin[None, :]
        deviation = tl.load(source + pieces * channels, known, other=0.0)
        total += tl.where(known, rows * difference, 0.0)
        squares += tl.where(known, deviation + rows * difference * difference, 0.0)
    offset = tl.sum(total, 0) / count.to(tl.float32)
    var = tl.sum(squares, 0) / count.to(tl.float32) - offset * offset
    return origin + offset, tl.where(var < 0, 0.0, var)


@triton.jit
def sum_pieces(parts, pieces, channels, channel, mask, PIECES: tl.constexpr, COLUMNS: tl.constexpr):
    """Add up the sums over slices."""
    total = tl.zeros((PIECES, COLUMNS), tl.float32)
    for start in range(0, pieces, PIECES):
        piece = start + tl.arange(0, PIECES)
        known = (piece < pieces)[:, None] & mask[None, :]
        total += tl.load(parts + piece[:, None] * channels + channel[None, :], known, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def given_statistics(mean, var, channel, mask):
    """Load the mean and variance of each column."""
    return tl.load(mean + channel, mask, other=0.0), tl.load(var + channel, mask, other=1.0)


@triton.jit
def column_parameters(center, variance, weight, bias, slope, eps, channel, mask, ACTIVATION: tl.constexpr):
    """Return what each column needs, as rows: mean, 1 / deviation, scale, bias and slope."""
    inverse = tl.rsqrt(variance + eps)
    scale = tl.load(weight + channel, mask, other=0.0) * inverse
    slopes = tl.load(slope + channel, mask, other=0.0) if ACTIVATION == "prelu" else scale
    return (
        center[None, :],
        inverse[None, :],
        scale[None, :],
        tl.load(bias + channel, mask, other=0.0)[None, :],
        slopes[None, :],
    )


@triton.jit(do_not_specialize=["rows", "slice_rows", "pieces", "merged", "part_rows"])
def normalize_kernel(
    x, branch, total, out, mean, var, weight, bias, slope, eps, rows, columns, slice_rows, channels,
    parts, pieces, merged, part_rows, running_mean, running_var, batches, momentum,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Normalise a slice and apply the activation; the programs of the first slice write what they know of the batch."""
    piece, first, last, column, offsets = tile(rows, columns, slice_rows, ROWS, COLUMNS)
    channel, known = column % channels, column < columns
    if parts is None:
        center, variance = given_statistics(mean, var, channel, known)
    else:
        count = rows * (columns // channels)
        center, variance = batch_statistics(parts, pieces, merged, part_rows, count, channels, channel, known, PIECES, COLUMNS)
        own = column < tl.where(piece == 0, channels, 0)
        tl.store(mean + channel, center, own)
        tl.store(var + channel, variance, own)
        old_mean, old_var = tl.load(running_mean + channel, own), tl.load(running_var + channel, own)
        tl.store(running_mean + channel, (1 - momentum) * old_mean + momentum * center, own)
        unbiased = variance * (count.to(tl.float32) / (count - 1).to(tl.float32))
        tl.store(running_var + channel, (1 - momentum) * old_var + momentum * unbiased, own)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)
    center, _, scale, shift, slopes = column_parameters(center, variance, weight, bias, slope, eps, channel, known, ACTIVATION)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        mask = inside(row, last, column, columns, ROWS)
        value = added(x, branch, row * columns + offsets, mask)
        if branch is not None:
            tl.store(total + row * columns + offsets, value, mask)
        z = (value.to(tl.float32) - center) * scale + shift
        if ACTIVATION == "relu":
            z = tl.where(z <= 0, 0.0, z)  # NaN stays NaN
        elif ACTIVATION == "prelu":
            z = tl.where(z > 0, z, slopes * z)
        tl.store(out + row * columns + offsets, z.to(out.dtype.element_ty), mask)


@triton.jit
def before_activation(gradient, z, slopes, ACTIVATION: tl.constexpr):
    """Compute the gradient of what the activation was applied to."""
    if ACTIVATION == "relu":
        gradient = tl.where(z <= 0, 0.0, gradient)
    elif ACTIVATION == "prelu":
        gradient = tl.where(z > 0, gradient, slopes * gradient)
    return gradient


@triton.jit(do_not_specialize=["rows", "slice_rows"])
def sums_kernel(
    x, gradient, parts, mean, var, weight, bias, slope, eps, rows, columns, slice_rows, channels,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of weight, bias and slope over a slice."""
    piece, first, last, column, offsets = tile(rows, columns, slice_rows, ROWS, COLUMNS)
    channel, known = column % channels, column < columns
    center, variance = given_statistics(mean, var, channel, known)
    center, inverse, scale, shift, slopes = column_parameters(
        center, variance, weight, bias, slope, eps, channel, known, ACTIVATION
    )
    weights = tl.zeros((ROWS, COLUMNS), tl.float32)
    biases = tl.zeros((ROWS, COLUMNS), tl.float32)
    negatives = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        mask = inside(row, last, column, columns, ROWS)
        value = tl.load(x + row * columns + offsets, mask, other=0.0).to(tl.float32) - center
        upper = tl.load(gradient + row * columns + offsets, mask, other=0.0).to(tl.float32)  # 0 outside, so that sums are right
        z = value * scale + shift
        inner = before_activation(upper, z, slopes, ACTIVATION)
        weights += inner * value
        biases += inner
        if ACTIVATION == "prelu":
            negatives += tl.where(z > 0, 0.0, upper * z)
    out, mask = parts + piece * columns + column, column < columns
    size = tl.cdiv(rows, slice_rows) * columns
    tl.store(out, tl.sum(weights * inverse, 0), mask)
    tl.store(out + size, tl.sum(biases, 0), mask)
    if ACTIVATION == "prelu":
        tl.store(out + 2 * size, tl.sum(negatives, 0), mask)


@triton.jit(do_not_specialize=["rows", "slice_rows", "pieces"])
def backward_kernel(
    x, gradient, skip, out, parts, sums, mean, var, weight, bias, slope, eps, share, rows, columns, slice_rows, channels, pieces,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a slice; `share` is 1 / count of what the statistics are over.

    The programs of the first slice write the sums over all images.
    """
    piece, first, last, column, offsets = tile(rows, columns, slice_rows, ROWS, COLUMNS)
    channel, known = column % channels, column < columns
    center, variance = given_statistics(mean, var, channel, known)
    center, inverse, scale, shift, slopes = column_parameters(
        center, variance, weight, bias, slope, eps, channel, known, ACTIVATION
    )
    if parts is not None:
        kind, own = pieces * channels, column < tl.where(piece == 0, channels, 0)
        weights = sum_pieces(parts, pieces, channels, channel, known, PIECES, COLUMNS)
        biases = sum_pieces(parts + kind, pieces, channels, channel, known, PIECES, COLUMNS)
        tl.store(sums + channel, weights, own)
        tl.store(sums + channels + channel, biases, own)
        if ACTIVATION == "prelu":  # noqa: SIM102 (the compiler knows only this condition)
            if piece == 0:
                negatives = sum_pieces(parts + 2 * kind, pieces, channels, channel, known, PIECES, COLUMNS)
                tl.store(sums + 2 * channels + channel, negatives, own)
        by_value, constant = weights[None, :] * share * inverse, biases[None, :] * share
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        mask = inside(row, last, column, columns, ROWS)
        value = tl.load(x + row * columns + offsets, mask, other=0.0).to(tl.float32) - center
        result = tl.load(gradient + row * columns + offsets, mask, other=0.0).to(tl.float32)
        result = before_activation(result, value * scale + shift, slopes, ACTIVATION)
        if parts is not None:
            result -= constant + by_value * value
        result *= scale
        if skip is not None:
            result += tl.load(skip + row * columns + offsets, mask, other=0.0).to(tl.float32)
        tl.store(out + row * columns + offsets, result.to(out.dtype.element_ty), mask)
