"""Triton kernels of FAVOR+S with ReLU or positive features, forward and backward; features never reach memory.

A grid has M N slots. Its queries are added up in bundles, and so are its keys and values in bundles of their own, each slot bound
to its key: `Bundles` says which slots those are. Of a head, W k are the projected keys, phi = relu(W k) + eps their features,
A (R, D) the sum over all tokens and bundles of phi v^T, and z (R) of a slot the sum of phi over its own real tokens, both divided
by a number that cancels. A query has phi^T A for a numerator and phi^T z for the denominator of a slot.

Positive features are exp(W k - |k|^2 / 2 - t), where t, of each feature, is the largest exponent of all keys of a head. A query
has exp(W q + t - u), where u is the largest exponent of its own. Both cancel, and nothing overflows.

Two kernels do the work of both directions. `sum_kernel` adds up phi v^T and phi over tokens: forward those of keys, backward
those of queries, which give the gradients of A and z. `backward_kernel` takes gradients back through phi. Sums over tokens are
split into slices, which `add_up_kernel` adds up in a fixed order, so the same input gives the same result.

Products are of bfloat16, TF32 or three times TF32, for inputs in bfloat16, float16 or float32, and are added up in float32. W x
has more digits, since the sign of each number in it decides whether a gradient passes: it is of float16, backward with what that
drops of W and x, or of three times TF32.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimoformer.dispatch import shared_memory

__all__ = [
    "Bundles",
    "Inputs",
    "Sums",
    "Upstream",
    "attend",
    "backward",
    "new_weights",
    "padded_sizes",
    "precision_of",
    "sum_tokens",
]


class Bundles(NamedTuple):
    """Which slots are added up: `items` slots for each of `groups` bundles, slot `bundle * step + item * item_step`."""

    groups: int
    items: int
    step: int
    item_step: int


@dataclass(frozen=True)
class Setting:
    """How a kernel cuts its work: tokens and features of a tile, warps, about how many programs, tiles that are fetched ahead."""

    tokens: int
    features: int
    warps: int
    programs: int
    stages: int = 2


SETTINGS = {
    "sum keys": Setting(64, 256, 8, 528, 3),
    "sum queries": Setting(64, 128, 4, 528, 3),
    "attend": Setting(64, 32, 4, 0, 5),
    "backward keys": Setting(64, 32, 4, 0, 3),
    "backward queries": Setting(64, 32, 4, 0, 2),
}
"""The setting of each kernel, for an H200."""


class Inputs(NamedTuple):
    """What all kernels read beside queries, keys and values."""

    keys: Tensor
    """Binding keys in float32, (s d)."""
    features: int
    """r, the number of features."""
    weights: Tensor
    """W, as `new_weights` rounds it, (k R D)."""
    mask: Tensor | None
    """1 where a token is real, int32 (b s l), as numbers of 8 bits change how Triton lays out products that depend on them."""
    eps: float
    """Added to every feature."""
    shared: bool
    """Whether all slots of a bundle of queries have one denominator, and one output, still bound."""
    square: float
    """What W was multiplied by, squared, if features are positive; below 0 if they are ReLU's."""


class Sums(NamedTuple):
    """A and z of every head, divided by the number of slots and tokens, in the precision of products."""

    context: Tensor
    """A (b h R D)."""
    own: Tensor
    """z (b h s+1 R) of each slot, and of everything."""
    tops: Tensor
    """t (b h R), the logarithm of what positive features of keys were divided by; empty if they are ReLU's."""


class Upstream(NamedTuple):
    """What the gradients of queries come from."""

    gradient: Tensor
    """Gradient of the output (b s l h d)."""
    out: Tensor
    """The output."""
    reciprocals: Tensor
    """Of denominators (b h s l), 0 where they are lost."""
    shifts: Tensor
    """u (b h bundles l), the logarithm of what positive features of queries were divided by; empty if they are ReLU's."""
    tops: Tensor
    """t, as in `Sums`."""
    losses: Tensor
    """Gradients of denominators (b h s l), which `sum_tokens` writes and `backward` reads."""


def padded_sizes(projection: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Return R and D, the number of features and the dimension as powers of two.

    For bfloat16 R is 64 at least, and so is the longer side of right operands in causal kernels: where a tensor core reads an
    operand whose rows have fewer numbers, ptxas 12.8 sometimes adds up its address wrongly.
    """
    least = 64 if precision_of(dtype) == torch.bfloat16 else 16
    return max(least, triton.next_power_of_2(projection.shape[0])), max(16, triton.next_power_of_2(projection.shape[1]))


def precision_of(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of what is multiplied; Triton's interpreter cannot multiply bfloat16."""
    compiled = isinstance(attend_kernel, triton.runtime.JITFunction)
    return torch.bfloat16 if dtype == torch.bfloat16 and compiled else torch.float32


def new_weights(projection: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Scale W (r d), and round it for inputs of a dtype: (1 R D) in float32; or float16, what that drops, and bfloat16."""
    r, d = padded_sizes(projection, dtype)
    half = precision_of(dtype) == torch.bfloat16
    out = torch.empty(3 if half else 1, r, d, dtype=torch.float16 if half else torch.float32, device=projection.device)
    with torch.cuda.device_of(projection):
        weights_kernel[(triton.cdiv(r, 16),)](projection, out, scale, *projection.shape, r, d, half)
    return out


def sizes(x: Tensor, inputs: Inputs, bundles: Bundles, setting: Setting) -> dict[str, Any]:
    """Return what every kernel has to know as constants; tiles are smaller where numbers take four bytes or vectors are long."""
    half, (_, r, d) = precision_of(x.dtype) == torch.bfloat16, inputs.weights.shape
    features = min(setting.features if half else setting.features // 2, 2**15 // (d * (2 if half else 8)))  # 32 KB of W
    return {
        "HEADS": x.shape[3], "SLOTS": x.shape[1], "ITEMS": bundles.items, "STEP": bundles.step, "ITEM_STEP": bundles.item_step,
        "R": r, "BLOCK_R": min(features, r), "DIM": x.shape[4], "D": d,
        "COLUMNS": max(16, triton.next_power_of_2(bundles.items + 1)), "BLOCK_L": tile_of(x, inputs, setting), "HALF": half,
        "PRECISION": "tf32" if x.dtype == torch.float16 else "tf32x3", "SHARED": inputs.shared, "num_warps": setting.warps,
        "POSITIVE": inputs.square >= 0,
    }  # fmt: skip


def stages_that_fit(most: int, x: Tensor, numbers: int, size: int) -> int:
    """Return how many tiles may be fetched ahead, given the numbers of a tile and their size: what fills half of the memory."""
    return max(1, min(most, shared_memory(x.device) // 2 // (numbers * size)))


def tile_of(x: Tensor, inputs: Inputs, setting: Setting) -> int:
    """Return how many tokens a tile has: fewer where numbers have four bytes or vectors are long."""
    wide = inputs.weights.shape[-1] > 64 or precision_of(x.dtype) == torch.float32
    return max(16, setting.tokens // 2 if wide else setting.tokens)


def strides(*tensors: Tensor) -> list[int]:
    """Return the strides along b, s, l and h of each."""
    return [stride for tensor in tensors for stride in tensor.stride()[:4]]


def slices(x: Tensor, inputs: Inputs, bundles: Bundles, setting: Setting, blocks: int) -> tuple[int, int]:
    """Return how many slices the tokens of a bundle are cut into, and the tokens of a slice."""
    tile = tile_of(x, inputs, setting)
    tiles = triton.cdiv(x.shape[2], tile)
    count = min(tiles, max(1, round(setting.programs / (x.shape[0] * x.shape[3] * bundles.groups * blocks))))
    tokens = triton.cdiv(tiles, count) * tile
    return int(triton.cdiv(x.shape[2], tokens)), tokens


def sum_tokens(x: Tensor, y: Tensor | Upstream, inputs: Inputs, bundles: Bundles) -> Sums:
    """Compute A and z from keys and values (b s l h d), or their gradients from queries and what is upstream of them."""
    of_keys = isinstance(y, Tensor)
    setting, (b, s, length, heads, _) = SETTINGS["sum keys" if of_keys else "sum queries"], x.shape
    options = sizes(x, inputs, bundles, setting)
    r, d, columns, blocks = options["R"], options["D"], options["COLUMNS"], options["R"] // options["BLOCK_R"]
    count, tokens = slices(x, inputs, bundles, setting, blocks)
    stages = stages_that_fit(setting.stages, x, 2 * bundles.items * options["BLOCK_L"] * d, x.element_size())
    contexts = x.new_empty(b * heads, count, bundles.groups, r, d, dtype=torch.float32)
    owns = x.new_empty(b * heads, count, bundles.groups, columns, r, dtype=torch.float32)
    dtype, block, positive = precision_of(x.dtype), min(32, r), inputs.square >= 0
    if isinstance(y, Tensor):
        tops = x.new_empty((b, heads, r) if positive else 0, dtype=torch.float32)
        part_tops = x.new_empty((b * heads, count, bundles.groups, r) if positive else 0, dtype=torch.float32)
        up: Any = (y, None, None, None, part_tops, None)
    else:
        tops, part_tops, up = y.tops, None, y
    sums = Sums(
        torch.empty(b, heads, r, d, dtype=dtype, device=x.device),
        torch.empty(b, heads, s + 1, r, dtype=dtype, device=x.device),
        tops,
    )
    with torch.cuda.device_of(x):
        sum_kernel[count * blocks, bundles.groups, b * heads](
            x, *up, inputs.keys, inputs.mask, inputs.weights, contexts, owns, *strides(x, up[0], x if of_keys else up[1]),
            length, tokens, inputs.eps, inputs.square, OF_KEYS=of_keys, STAGES=stages, **options,
        )  # fmt: skip
        add_up_kernel[b * heads, r // block](
            contexts, owns, part_tops, *sums, count, bundles.groups, 1 / (length * s), s, *bundles[1:], inputs.features, r, d,
            columns, block, of_keys and positive, num_warps=4,
        )  # fmt: skip
    return sums


def attend(q: Tensor, inputs: Inputs, bundles: Bundles, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the output from queries (b s l h d), the reciprocals of denominators, 0 where they are lost, and u."""
    setting, (b, s, length, heads, dim) = SETTINGS["attend"], q.shape
    options = sizes(q, inputs, bundles, setting)
    tile = options["BLOCK_R"] * (2 * options["D"] + options["COLUMNS"])
    stages = stages_that_fit(setting.stages, q, tile, inputs.weights.element_size())
    ends = bundles.groups if inputs.shared else s
    out = q.new_empty(b, ends, length, heads, dim)
    reciprocals, shifts = q.new_empty(b, heads, ends, length, dtype=torch.float32), new_shifts(q, inputs, bundles)
    with torch.cuda.device_of(q):
        attend_kernel[triton.cdiv(length, options["BLOCK_L"]), bundles.groups, b * heads](
            q, inputs.keys, inputs.mask, inputs.weights, *sums, out, reciprocals, shifts, *strides(q, out), length, inputs.eps,
            float(length * s), STAGES=stages, **options,
        )  # fmt: skip
    return out, reciprocals, shifts


def new_shifts(q: Tensor, inputs: Inputs, bundles: Bundles) -> Tensor:
    """Make room for u (b h bundles l) of queries (b s l h d); for nothing if features are ReLU's."""
    shape = (q.shape[0], q.shape[3], bundles.groups, q.shape[2]) if inputs.square >= 0 else 0
    return q.new_empty(shape, dtype=torch.float32)


def backward(x: Tensor, y: Tensor | Upstream, inputs: Inputs, bundles: Bundles, sums: Sums, *found: Tensor) -> None:
    """Write the gradients of queries, from A and z; or of keys and values, from the gradients of A and z."""
    of_keys = isinstance(y, Tensor)
    setting, (b, _, length, heads, _) = SETTINGS["backward keys" if of_keys else "backward queries"], x.shape
    options = sizes(x, inputs, bundles, setting)
    tile = options["BLOCK_R"] * ((1 + len(inputs.weights)) * options["D"] + options["COLUMNS"])
    stages = stages_that_fit(setting.stages, x, tile, inputs.weights.element_size())
    up: Any = (y, None, None, None) if isinstance(y, Tensor) else (y.gradient, y.reciprocals, y.losses, y.shifts)
    found_y = found[1] if of_keys else None
    with torch.cuda.device_of(x):
        backward_kernel[triton.cdiv(length, options["BLOCK_L"]), bundles.groups, b * heads](
            x, *up, inputs.keys, inputs.mask, inputs.weights, *sums, found[0], found_y, *strides(x, up[0], found[0], found[-1]),
            length, inputs.eps, inputs.square, OF_KEYS=of_keys, STAGES=stages, **options,
        )  # fmt: skip


@triton.jit
def slot_of(bundle, item, STEP: tl.constexpr, ITEM_STEP: tl.constexpr):
    """Return the slot of an item of a bundle."""
    return bundle * STEP + item * ITEM_STEP


@triton.jit
def bundled(
    x, keys, mask, bundle, row, last, dim, stride_s, stride_l, length,
    ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Bind the real tokens of the slots of a bundle, and add them up, in float32."""
    total = tl.zeros((row.shape[0], dim.shape[0]), tl.float32)
    for item in tl.static_range(ITEMS):
        slot = slot_of(bundle, item, STEP, ITEM_STEP)
        real = row < last
        if mask is not None:
            real = real & (tl.load(mask + slot * length + row, real, other=0) != 0)
        key = tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)
        value = tl.load(
            x + slot * stride_s + row[:, None] * stride_l + dim[None, :], real[:, None] & (dim < DIM)[None, :], other=0.0
        )
        total += value.to(tl.float32) * key.to(tl.float32)[None, :]
    return total


@triton.jit
def marks_of(
    mask, bundle, row, last, length, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return 1 where a token (row) of an item (column) of a bundle is real, and in column ITEMS where any item's is."""
    column = tl.arange(0, COLUMNS)
    if mask is None:
        marks = ((row < last)[:, None] & (column <= ITEMS)[None, :]).to(tl.float32)
    else:
        slot = slot_of(bundle, column, STEP, ITEM_STEP)
        items = (row < last)[:, None] & (column < ITEMS)[None, :]
        marks = tl.load(mask + slot[None, :] * length + row[:, None], items, other=0).to(tl.float32)
        marks = tl.where((column == ITEMS)[None, :], tl.max(marks, 1)[:, None], marks)
    return marks


@triton.jit
def own_sums(
    own, bundle, feature, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Load z of each item of a bundle (columns), and of everything in column ITEMS, as (columns features)."""
    column = tl.arange(0, COLUMNS)
    slot = tl.where(column == ITEMS, SLOTS, slot_of(bundle, column, STEP, ITEM_STEP))
    return tl.load(own + slot[:, None] * R + feature[None, :], (column <= ITEMS)[:, None], other=0.0)


@triton.jit
def weights_kernel(
    projection, out, scale, FEATURES: tl.constexpr, DIM: tl.constexpr, R: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr
):
    """Scale and round W; see `new_weights`."""
    feature, dim = tl.program_id(0) * 16 + tl.arange(0, 16), tl.arange(0, D)
    inside = (feature < FEATURES)[:, None] & (dim < DIM)[None, :]
    weights = tl.load(projection + feature[:, None] * DIM + dim[None, :], inside, other=0.0) * scale
    place = out + feature[:, None] * D + dim[None, :]
    if HALF:
        high = weights.to(tl.float16)
        tl.store(place, high)
        tl.store(place + R * D, (weights - high.to(tl.float32)).to(tl.float16))
        tl.store(place + 2 * R * D, weights.to(tl.bfloat16).to(tl.float16, bitcast=True))
    else:
        tl.store(place, weights)


@triton.jit
def operand(x, HALF: tl.constexpr):
    """Round to the precision of products."""
    return x.to(tl.bfloat16) if HALF else x.to(tl.float32)


@triton.jit
def features(projected, eps, HALF: tl.constexpr):
    """ReLU, plus eps."""
    return operand(tl.where(projected <= 0, 0.0, projected) + eps, HALF)  # NaN stays NaN


LOWEST = tl.constexpr(-8.5e37)
"""t of a feature without keys: its exponential is 0, and differences are defined."""


@triton.jit
def positive(projected, top, offset, OF_KEYS: tl.constexpr):
    """Positive features of keys, or of queries, given t and their `offsets`."""
    exponent = tl.where(top > LOWEST, projected - top + offset, float("-inf")) if OF_KEYS else projected + top + offset
    return tl.exp(exponent)


@triton.jit
def half_norm(vector, real, square):
    """Return -|k|^2 / 2 of keys, scaled as W is, and minus infinity for those that are not real."""
    return tl.where(real, -0.5 * square * tl.sum(vector * vector, 1), float("-inf"))


@triton.jit
def offsets(
    vector, shifts, mask, bundle, bundles, head, row, last, length, square,
    ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, OF_KEYS: tl.constexpr,
):  # fmt: skip
    """Return -|k|^2 / 2 of a bundle's keys, or -u of queries; minus infinity where none is real."""
    if OF_KEYS:
        real = row < last
        if mask is not None:
            found = tl.zeros((row.shape[0],), tl.int32)
            for item in tl.static_range(ITEMS):
                found |= tl.load(mask + slot_of(bundle, item, STEP, ITEM_STEP) * length + row, real, other=0)
            real = found != 0
        return half_norm(vector, real, square)
    else:
        return -tl.load(shifts + (head.to(tl.int64) * bundles + bundle) * length + row, row < last, other=float("inf"))


@triton.jit
def raised(shift, projected, top):
    """Return u with a block of features more, and what sums over the features before are multiplied by."""
    found = tl.maximum(shift, tl.max(projected + top, 1))
    return found, tl.exp(shift - found)[:, None]


@triton.jit
def upstream(
    gradient, reciprocals, losses, keys, bundle, row, last, dim, g_s, g_l, length,
    ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """Return the gradients of the numerators, and of the denominators (columns), of a bundle of queries."""
    column = tl.arange(0, COLUMNS)
    if SHARED:
        share = tl.load(reciprocals + bundle * length + row, row < last, other=0.0)
        real = (share != 0)[:, None] & (dim < DIM)[None, :]
        upper = tl.load(gradient + bundle * g_s + row[:, None] * g_l + dim[None, :], real, other=0.0).to(tl.float32)
        numerator = upper * share[:, None]
        loss = tl.load(losses + bundle * length + row, row < last, other=0.0)
        denominators = tl.where((column < ITEMS)[None, :], loss[:, None], 0.0)
    else:
        numerator = tl.zeros((row.shape[0], dim.shape[0]), tl.float32)
        for item in tl.static_range(ITEMS):
            slot = slot_of(bundle, item, STEP, ITEM_STEP)
            share = tl.load(reciprocals + slot * length + row, row < last, other=0.0)
            real = (share != 0)[:, None] & (dim < DIM)[None, :]
            upper = tl.load(gradient + slot * g_s + row[:, None] * g_l + dim[None, :], real, other=0.0).to(tl.float32)
            key = tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)
            numerator += upper * share[:, None] * key[None, :]
        slots = slot_of(bundle, column, STEP, ITEM_STEP)
        known = (row < last)[:, None] & (column < ITEMS)[None, :]
        denominators = tl.load(losses + slots[None, :] * length + row[:, None], known, other=0.0)
    return numerator, denominators


@triton.jit
def upstream_of(y, out, reciprocals, slot, row, last, dim, y_s, y_l, out_s, out_l, length, DIM: tl.constexpr):
    """Return the gradient of an output's numerator, still unbound, and that of its denominator."""
    share = tl.load(reciprocals + slot * length + row, row < last, other=0.0)
    real = (share != 0)[:, None] & (dim < DIM)[None, :]
    upper = tl.load(y + slot * y_s + row[:, None] * y_l + dim[None, :], real, other=0.0).to(tl.float32)
    lower = tl.load(out + slot * out_s + row[:, None] * out_l + dim[None, :], real, other=0.0).to(tl.float32)
    return upper * share[:, None], -share * tl.sum(upper * lower, 1)


@triton.jit
def sum_of_real(phi, mask, bundle, row, last, length, column, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr):
    """Add up features (R l) over the real tokens of each item of a bundle, and in column ITEMS over those of any: (R columns)."""
    own = tl.zeros((phi.shape[0], column.shape[0]), tl.float32)
    if mask is None:
        own += tl.sum(tl.where((row < last)[None, :], phi, 0.0), 1)[:, None]
    else:
        whole = tl.zeros((row.shape[0],), tl.float32)
        for item in tl.static_range(ITEMS):
            slot = slot_of(bundle, item, STEP, ITEM_STEP)
            mark = tl.load(mask + slot * length + row, row < last, other=0).to(tl.float32)
            whole = tl.maximum(whole, mark)
            own += tl.where((column == item)[None, :], tl.sum(phi * mark[None, :], 1)[:, None], 0.0)
        own += tl.where((column == ITEMS)[None, :], tl.sum(phi * whole[None, :], 1)[:, None], 0.0)
    return own


@triton.jit
def sum_of_upstream(
    phi, y, out, reciprocals, losses, keys, bundle, row, last, dim, column, y_s, y_l, out_s, out_l, length,
    ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, DIM: tl.constexpr, SHARED: tl.constexpr, writes,
):  # fmt: skip
    """Return the gradients of a bundle's numerators (l D), and features times those of denominators (R columns)."""
    value = tl.zeros((row.shape[0], dim.shape[0]), tl.float32)
    own = tl.zeros((phi.shape[0], column.shape[0]), tl.float32)
    for item in tl.static_range(1 if SHARED else ITEMS):
        slot = bundle if SHARED else slot_of(bundle, item, STEP, ITEM_STEP)
        upper, loss = upstream_of(y, out, reciprocals, slot, row, last, dim, y_s, y_l, out_s, out_l, length, DIM)
        if writes:
            tl.store(losses + slot * length + row, loss, row < last)
        if SHARED:
            value += upper
            own += tl.sum(phi * loss[None, :], 1)[:, None]
        else:
            key = tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)
            value += upper * key[None, :]
            own += tl.where((column == item)[None, :], tl.sum(phi * loss[None, :], 1)[:, None], 0.0)
    return value, own


@triton.jit
def sum_kernel(
    x, y, out, reciprocals, shifts, tops, losses, keys, mask, weights, contexts, owns,
    x_b, x_s, x_l, x_h, y_b, y_s, y_l, y_h, out_b, out_s, out_l, out_h, length, tokens, eps, square,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr,
    R: tl.constexpr, BLOCK_R: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_L: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, SHARED: tl.constexpr, STAGES: tl.constexpr, OF_KEYS: tl.constexpr,
    POSITIVE: tl.constexpr,
):  # fmt: skip
    """Add up phi y^T and phi over a slice of a bundle, for a block of features."""
    blocks: tl.constexpr = R // BLOCK_R
    piece, block, bundle, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1), tl.program_id(2)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    x += group * x_b + h * x_h
    y += group * y_b + h * y_h
    if mask is not None:
        mask += group * SLOTS * length
    if not OF_KEYS:
        out += group * out_b + h * out_h
        ends = tl.num_programs(1) if SHARED else SLOTS
        reciprocals += head.to(tl.int64) * ends * length
        losses += head.to(tl.int64) * ends * length
    feature, dim, column = block * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, D), tl.arange(0, COLUMNS)
    w = tl.load(weights + feature[:, None] * D + dim[None, :])
    context = tl.zeros((BLOCK_R, D), tl.float32)
    own = tl.zeros((BLOCK_R, COLUMNS), tl.float32)
    part = (head.to(tl.int64) * (tl.num_programs(0) // blocks) + piece) * tl.num_programs(1) + bundle
    top = tl.full((BLOCK_R,), LOWEST, tl.float32)
    if POSITIVE and not OF_KEYS:
        top = tl.load(tops + head.to(tl.int64) * R + feature)
    first, last = piece * tokens, tl.minimum(piece * tokens + tokens, length)
    for start in tl.range(first, last, BLOCK_L, num_stages=STAGES):
        row = start + tl.arange(0, BLOCK_L)
        vector = bundled(x, keys, mask, bundle, row, last, dim, x_s, x_l, length, ITEMS, STEP, ITEM_STEP, DIM)
        phi = tl.dot(w, tl.trans(vector.to(w.dtype)), input_precision="tf32x3")
        if POSITIVE:
            offset = offsets(
                vector, shifts, mask, bundle, tl.num_programs(1), head, row, last, length, square, ITEMS, STEP, ITEM_STEP, OF_KEYS
            )[None, :]
            if OF_KEYS:
                top, fade = raised(top, phi, offset)
                context, own = context * fade, own * fade
            phi = positive(phi, top[:, None], offset, OF_KEYS)
        else:
            phi = tl.where(phi <= 0, 0.0, phi) + eps  # NaN stays NaN
        if OF_KEYS:
            value = bundled(y, keys, mask, bundle, row, last, dim, y_s, y_l, length, ITEMS, STEP, ITEM_STEP, DIM)
            own += sum_of_real(phi, mask, bundle, row, last, length, column, ITEMS, STEP, ITEM_STEP)
        else:
            value, losses_of_phi = sum_of_upstream(
                phi, y, out, reciprocals, losses, keys, bundle, row, last, dim, column, y_s, y_l, out_s, out_l, length,
                ITEMS, STEP, ITEM_STEP, DIM, SHARED, block == 0,
            )  # fmt: skip
            own += losses_of_phi
        context = tl.dot(operand(phi, HALF), operand(value, HALF), context, input_precision=PRECISION)
    if POSITIVE and OF_KEYS:
        tl.store(tops + part * R + feature, top)
    tl.store(contexts + part * R * D + feature[:, None] * D + dim[None, :], context)
    tl.store(owns + part * R * COLUMNS + column[None, :] * R + feature[:, None], own)


@triton.jit(do_not_specialize=["slices", "bundles"])
def add_up_kernel(
    contexts, owns, part_tops, context, own, tops, slices, bundles, share,
    SLOTS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr,
    FEATURES: tl.constexpr, R: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Add up slices in their order, and multiply by `share`; features beyond FEATURES are padding, and count 0.

    If they are SCALED, each slice was divided by its own exp(t), and all are now divided by the largest.
    """
    head, feature = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    dim, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    total = tl.zeros((BLOCK_R, D), tl.float32)
    whole = tl.zeros((BLOCK_R,), tl.float32)
    context += head * R * D
    own += head * (SLOTS + 1) * R
    first, top = head * slices * bundles, tl.full((BLOCK_R,), LOWEST, tl.float32)
    if SCALED:
        for number in range(0, slices * bundles):
            top = tl.maximum(top, tl.load(part_tops + (first + number) * R + feature))
        tl.store(tops + head * R + feature, tl.where(feature < FEATURES, top, LOWEST))
    for bundle in range(0, bundles):
        marks = tl.zeros((COLUMNS, BLOCK_R), tl.float32)
        for piece in range(0, slices):
            part = first + piece * bundles + bundle
            found = tl.load(contexts + part * R * D + feature[:, None] * D + dim[None, :])
            found_marks = tl.load(owns + part * R * COLUMNS + column[:, None] * R + feature[None, :])
            if SCALED:
                fade = tl.exp(tl.load(part_tops + part * R + feature) - top)
                found, found_marks = found * fade[:, None], found_marks * fade[None, :]
            total += found
            marks += found_marks
        marks = tl.where((feature < FEATURES)[None, :], marks * share, 0.0)
        whole += tl.sum(tl.where((column == ITEMS)[:, None], marks, 0.0), 0)
        slot = slot_of(bundle, column, STEP, ITEM_STEP)
        tl.store(own + slot[:, None] * R + feature[None, :], marks.to(own.dtype.element_ty), (column < ITEMS)[:, None])
    total = tl.where((feature < FEATURES)[:, None], total * share, 0.0)
    tl.store(context + feature[:, None] * D + dim[None, :], total.to(context.dtype.element_ty))
    tl.store(own + SLOTS * R + feature, whole.to(own.dtype.element_ty))


@triton.jit
def column_of(x, item, COLUMNS: tl.constexpr):
    """Return a column of a matrix as a vector."""
    return tl.sum(tl.where((tl.arange(0, COLUMNS) == item)[None, :], x, 0.0), 1)


@triton.jit
def reciprocal(denominator, whole):
    """1 / denominator, and 0 where `divide_or_zero` gives 0; an infinite denominator gives NaN, as there."""
    lost = denominator <= tl.minimum(tl.maximum(8 * 1.1920929e-07 * whole, 8.271806e-25), 3.4028234e38)
    found = tl.where(denominator < float("inf"), 1 / tl.where(lost, 1.0, denominator), float("nan"))
    return tl.where(lost, 0.0, found)


@triton.jit
def attend_kernel(
    q, keys, mask, weights, context, own, tops, out, reciprocals, shifts,
    q_b, q_s, q_l, q_h, out_b, out_s, out_l, out_h, length, eps, count,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr,
    R: tl.constexpr, BLOCK_R: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_L: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, SHARED: tl.constexpr, STAGES: tl.constexpr, POSITIVE: tl.constexpr,
):  # fmt: skip
    """Compute the output of a tile of tokens of a bundle of queries."""
    bundle, head = tl.program_id(1), tl.program_id(2)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    q += group * q_b + h * q_h
    out += group * out_b + h * out_h
    if mask is not None:
        mask += group * SLOTS * length
    context += head.to(tl.int64) * R * D
    own += head.to(tl.int64) * (SLOTS + 1) * R
    ends = tl.num_programs(1) if SHARED else SLOTS
    reciprocals += head.to(tl.int64) * ends * length
    dim = tl.arange(0, D)
    row = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    query = bundled(q, keys, mask, bundle, row, length, dim, q_s, q_l, length, ITEMS, STEP, ITEM_STEP, DIM)
    numerator, denominators = tl.zeros((BLOCK_L, D), tl.float32), tl.zeros((BLOCK_L, COLUMNS), tl.float32)
    shift = tl.full((BLOCK_L,), float("-inf"), tl.float32)
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        feature = block + tl.arange(0, BLOCK_R)
        w = tl.load(weights + feature[:, None] * D + dim[None, :])
        a = tl.load(context + feature[:, None] * D + dim[None, :])
        z = own_sums(own, bundle, feature, ITEMS, STEP, ITEM_STEP, SLOTS, COLUMNS, R)
        phi = tl.dot(query.to(w.dtype), tl.trans(w), input_precision="tf32x3")
        if POSITIVE:
            top = tl.load(tops + head.to(tl.int64) * R + feature)[None, :]
            shift, fade = raised(shift, phi, top)
            numerator, denominators = numerator * fade, denominators * fade
            phi = operand(positive(phi, top, -shift[:, None], False), HALF)
        else:
            phi = features(phi, eps, HALF)
        numerator = tl.dot(phi, a, numerator, input_precision=PRECISION)
        denominators = tl.dot(phi, tl.trans(z), denominators, input_precision=PRECISION)
    if POSITIVE:
        tl.store(shifts + (head.to(tl.int64) * tl.num_programs(1) + bundle) * length + row, shift, row < length)
    inside = (row < length)[:, None] & (dim < DIM)[None, :]
    whole = column_of(denominators, ITEMS, COLUMNS) * count
    if SHARED:
        real = column_of(marks_of(mask, bundle, row, length, length, ITEMS, STEP, ITEM_STEP, COLUMNS), ITEMS, COLUMNS)
        slots = tl.sum(tl.where((tl.arange(0, COLUMNS) < ITEMS)[None, :], denominators, 0.0), 1)
        share = reciprocal(slots * count * real, whole) * count
        tl.store(reciprocals + bundle * length + row, share, row < length)
        bound = tl.where(share[:, None] == 0, 0.0, numerator * share[:, None])
        tl.store(out + bundle * out_s + row[:, None] * out_l + dim[None, :], bound.to(out.dtype.element_ty), inside)
    else:
        for item in tl.static_range(ITEMS):
            slot = slot_of(bundle, item, STEP, ITEM_STEP)
            share = reciprocal(column_of(denominators, item, COLUMNS) * count, whole) * count
            if mask is not None:
                share = tl.where(tl.load(mask + slot * length + row, row < length, other=0) != 0, share, 0.0)
            tl.store(reciprocals + slot * length + row, share, row < length)
            key = tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)
            unbound = tl.where(share[:, None] == 0, 0.0, numerator * share[:, None] * key[None, :])
            tl.store(out + slot * out_s + row[:, None] * out_l + dim[None, :], unbound.to(out.dtype.element_ty), inside)


@triton.jit
def unbind(
    result, found, keys, mask, bundle, row, dim, stride_s, stride_l, length,
    ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write a bundle's gradient to each of its slots, bound to its key; 0 for padding."""
    inside = (row < length)[:, None] & (dim < DIM)[None, :]
    for item in tl.static_range(ITEMS):
        slot = slot_of(bundle, item, STEP, ITEM_STEP)
        value = result * tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)[None, :]
        if mask is not None:
            real = tl.load(mask + slot * length + row, row < length, other=0) != 0
            value = tl.where(real[:, None], value, 0.0)
        tl.store(found + slot * stride_s + row[:, None] * stride_l + dim[None, :], value.to(found.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    x, y, reciprocals, losses, shifts, keys, mask, weights, context, own, tops, found_x, found_y,
    x_b, x_s, x_l, x_h, y_b, y_s, y_l, y_h, fx_b, fx_s, fx_l, fx_h, fy_b, fy_s, fy_l, fy_h, length, eps, square,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr,
    R: tl.constexpr, BLOCK_R: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_L: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, SHARED: tl.constexpr, STAGES: tl.constexpr, OF_KEYS: tl.constexpr,
    POSITIVE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of tokens of a bundle of queries, or of keys and values."""
    bundle, head = tl.program_id(1), tl.program_id(2)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    x += group * x_b + h * x_h
    y += group * y_b + h * y_h
    found_x += group * fx_b + h * fx_h
    if mask is not None:
        mask += group * SLOTS * length
    if OF_KEYS:
        found_y += group * fy_b + h * fy_h
    else:
        ends = tl.num_programs(1) if SHARED else SLOTS
        reciprocals += head.to(tl.int64) * ends * length
        losses += head.to(tl.int64) * ends * length
    context += head.to(tl.int64) * R * D
    own += head.to(tl.int64) * (SLOTS + 1) * R
    dim = tl.arange(0, D)
    row = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    vector = bundled(x, keys, mask, bundle, row, length, dim, x_s, x_l, length, ITEMS, STEP, ITEM_STEP, DIM)
    if OF_KEYS:
        value = bundled(y, keys, mask, bundle, row, length, dim, y_s, y_l, length, ITEMS, STEP, ITEM_STEP, DIM)
        marks = marks_of(mask, bundle, row, length, length, ITEMS, STEP, ITEM_STEP, COLUMNS)
        marks = tl.where((tl.arange(0, COLUMNS) < ITEMS)[None, :], marks, 0.0)
    else:
        value, marks = upstream(
            y, reciprocals, losses, keys, bundle, row, length, dim, y_s, y_l, length, ITEMS, STEP, ITEM_STEP, DIM, COLUMNS, SHARED
        )  # fmt: skip
    offset = None
    if POSITIVE:
        offset = offsets(
            vector, shifts, mask, bundle, tl.num_programs(1), head, row, length, length, square, ITEMS, STEP, ITEM_STEP, OF_KEYS
        )[:, None]
    result_x, result_y = through_features(
        vector, operand(value, HALF), operand(marks, HALF), weights, context, own, tops + head.to(tl.int64) * R, offset, bundle,
        dim, eps, square, SLOTS, ITEMS, STEP, ITEM_STEP, R, BLOCK_R, D, COLUMNS, HALF, PRECISION, OF_KEYS, POSITIVE, STAGES,
    )  # fmt: skip
    unbind(result_x, found_x, keys, mask, bundle, row, dim, fx_s, fx_l, length, ITEMS, STEP, ITEM_STEP, DIM)
    if OF_KEYS:
        unbind(result_y, found_y, keys, mask, bundle, row, dim, fy_s, fy_l, length, ITEMS, STEP, ITEM_STEP, DIM)


@triton.jit
def through_features(
    vector, value, marks, weights, context, own, tops, offset, bundle, dim, eps, square,
    SLOTS: tl.constexpr, ITEMS: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    D: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, OF_KEYS: tl.constexpr,
    POSITIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return gradients of queries or keys; for keys also those of values."""
    rest = (vector - vector.to(tl.float16).to(tl.float32)).to(tl.float16)
    result_x, result_y = tl.zeros((vector.shape[0], D), tl.float32), tl.zeros((vector.shape[0], D), tl.float32)
    total = tl.zeros((vector.shape[0],), tl.float32)
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        feature = block + tl.arange(0, BLOCK_R)
        place = weights + feature[:, None] * D + dim[None, :]
        w = tl.load(place)
        a = tl.load(context + feature[:, None] * D + dim[None, :])
        z = own_sums(own, bundle, feature, ITEMS, STEP, ITEM_STEP, SLOTS, COLUMNS, R)
        projected = tl.dot(vector.to(w.dtype), tl.trans(w), input_precision="tf32x3")
        if HALF:
            if not POSITIVE:
                projected = tl.dot(rest, tl.trans(w), projected)
                projected = tl.dot(vector.to(w.dtype), tl.trans(tl.load(place + R * D)), projected)
            w = tl.load(place + 2 * R * D).to(tl.bfloat16, bitcast=True)
        if POSITIVE:
            projected = positive(projected, tl.load(tops + feature)[None, :], offset, OF_KEYS)
        if OF_KEYS:
            phi = operand(projected, HALF) if POSITIVE else features(projected, eps, HALF)
            result_y = tl.dot(phi, a, result_y, input_precision=PRECISION)
        inner = tl.dot(value, tl.trans(a), input_precision=PRECISION)
        inner = tl.dot(marks, z, inner, input_precision=PRECISION)
        inner = inner * projected if POSITIVE else tl.where(projected <= 0, 0.0, inner)
        if POSITIVE and OF_KEYS:
            total += tl.sum(inner, 1)
        result_x = tl.dot(operand(inner, HALF), w, result_x, input_precision=PRECISION)
    if POSITIVE and OF_KEYS:
        result_x -= square * total[:, None] * vector
    return result_x, result_y
