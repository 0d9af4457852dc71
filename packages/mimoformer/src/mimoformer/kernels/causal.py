"""Triton kernels of causal FAVOR+S with ReLU or positive features, forward and backward; words and numerics are those of `favor`.

Tokens are cut into tiles. `sum_kernel` computes phi v^T and phi of every tile, which `scan_kernel` replaces by their sums over
all tiles before it; from there on tiles do not depend on each other. Within a tile `attend_kernel` and `backward_kernel` compare
all pairs of tokens. Backward, phi of queries and the gradients are summed in the same way over the tiles after a tile.

Of positive features, t of a tile is the largest exponent of the keys up to its end, so sums are divided anew from tile to tile.

A tile holds the tokens of all bundles of queries, or of keys, one bundle below another: its rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimoformer.dispatch import tile_of
from mimoformer.kernels.favor import (
    LOWEST,
    Bundles,
    Inputs,
    Sums,
    features,
    half_norm,
    new_shifts,
    operand,
    positive,
    precision_of,
    raised,
    reciprocal,
    slot_of,
    stages_that_fit,
    strides,
)

__all__ = ["attend", "backward", "sum_tiles"]


class Setting(NamedTuple):
    """How a kernel cuts its work: features of a block, warps, blocks that are fetched ahead."""

    features: int
    warps: int
    stages: int


SETTINGS = {
    "sum": Setting(64, 4, 1),
    "attend": Setting(64, 4, 3),
    "backward queries": Setting(128, 4, 1),
    "backward keys": Setting(32, 4, 3),
}
"""The setting of each kernel, for an H200; `tile_of` says how many tokens a tile has."""


def sizes(x: Tensor, inputs: Inputs, queries: Bundles, keys: Bundles, setting: Setting) -> dict[str, Any]:
    """Return what every kernel has to know as constants."""
    kinds, r, d = inputs.weights.shape
    large, half = (2 if d > 64 else 1), precision_of(x.dtype) == torch.bfloat16
    block = min(max(32, setting.features // large // (1 if half else 2)), r)
    columns, tokens = triton.next_power_of_2(x.shape[1] + 1), tile_of(x.dtype, max(queries.groups, keys.groups))
    return {
        "HEADS": x.shape[3], "SLOTS": x.shape[1], "FEATURES": inputs.features, "R": r, "BLOCK_R": block,
        "DIM": x.shape[4], "D": d, "COLUMNS": max(16, columns), "TILE": tokens,
        "HALF": half, "PRECISION": "tf32" if x.dtype == torch.float16 else "tf32x3",
        "SHARED": inputs.shared, "POSITIVE": inputs.square >= 0, "num_warps": min(8, setting.warps * (large if half else 1)),
        "STAGES": stages_that_fit(setting.stages, x, block * (kinds + 1) * d, inputs.weights.element_size()),
    }  # fmt: skip


def sum_tiles(
    parts: list[Tensor], inputs: Inputs, queries: Bundles, keys: Bundles, upstream: list[Tensor] | None = None,
    tops: Tensor | None = None,
) -> Sums:  # fmt: skip
    """Compute the sums over all tiles before each, from keys and values (b s l h d); or over all after it, of gradients.

    Args:
        parts: queries, keys and values.
        inputs: what all kernels read.
        queries: bundles of queries.
        keys: bundles of keys and values.
        upstream: for sums of gradients, the gradient of the output, the output, the reciprocals of its denominators and u.
        tops: for sums of gradients, t.

    Returns:
        A (b h tiles R D), z (b h tiles s+1 R) and t (b h tiles R), which is empty if features are ReLU's.
    """
    (b, s, length, heads, _), options = parts[0].shape, sizes(parts[0], inputs, queries, keys, SETTINGS["sum"])
    r, d, tiles, of_keys = options["R"], options["D"], triton.cdiv(length, options["TILE"]), upstream is None
    dtype, device, block = precision_of(parts[0].dtype), parts[0].device, 1024
    of_tops = (b, heads, tiles, r) if inputs.square >= 0 else 0
    own_tops = parts[0].new_empty(of_tops, dtype=torch.float32) if tops is None else tops
    sums = Sums(
        torch.empty(b, heads, tiles, r, d, dtype=dtype, device=device),
        torch.empty(b, heads, tiles, s + 1, r, dtype=dtype, device=device),
        torch.empty_like(own_tops) if tops is None else tops,
    )
    operands: list[Any] = [*parts[1:], parts[2], None, None] if upstream is None else [parts[0], *upstream]
    with torch.cuda.device_of(parts[0]):
        sum_kernel[tiles, b * heads](
            *operands, inputs.keys, inputs.mask, inputs.weights, *sums[:2], own_tops, *strides(*operands[:3]), length,
            inputs.eps, inputs.square, BUNDLES=tuple(keys if of_keys else queries), OF_KEYS=of_keys, **options,
        )  # fmt: skip
        scan_kernel[b * heads, triton.cdiv(r * d, block) + triton.cdiv((s + 1) * r, block)](
            *sums[:2], own_tops, sums.tops, tiles, (s + 1) * r, r, d, not of_keys, block, inputs.square >= 0, num_warps=4
        )
    return sums


def attend(parts: list[Tensor], inputs: Inputs, queries: Bundles, keys: Bundles, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the output from queries, keys and values (b s l h d), reciprocals of denominators, 0 where they are lost, and u."""
    (q, k, v), (b, s, length, heads, dim) = parts, parts[0].shape
    options, ends = sizes(q, inputs, queries, keys, SETTINGS["attend"]), queries.groups if inputs.shared else s
    out = q.new_empty(b, ends, length, heads, dim)
    reciprocals, shifts = q.new_empty(b, heads, ends, length, dtype=torch.float32), new_shifts(q, inputs, queries)
    with torch.cuda.device_of(q):
        attend_kernel[triton.cdiv(length, options["TILE"]), b * heads](
            q, k, v, inputs.keys, inputs.mask, inputs.weights, *sums, out, reciprocals, shifts, *strides(q, k, v, out),
            length, inputs.eps, inputs.square, QUERIES=tuple(queries), KEYS=tuple(keys), **options,
        )  # fmt: skip
    return out, reciprocals, shifts


def backward(
    parts: list[Tensor], inputs: Inputs, queries: Bundles, keys: Bundles, sums: Sums, upstream: list[Tensor], *found: Tensor
) -> None:
    """Write the gradients of queries, from A and z; or of keys and values, from the sums of gradients."""
    (q, k, v), (y, out, *of_queries), of_keys = parts, upstream, len(found) == 2
    options = sizes(q, inputs, queries, keys, SETTINGS["backward keys" if of_keys else "backward queries"])
    with torch.cuda.device_of(q):
        backward_kernel[triton.cdiv(q.shape[2], options["TILE"]), q.shape[0] * q.shape[3]](
            q, k, v, y, out, *of_queries, inputs.keys, inputs.mask, inputs.weights, *sums, found[0], found[-1],
            *strides(q, k, v, y, out, found[0], found[-1]), q.shape[2], inputs.eps, inputs.square,
            QUERIES=tuple(queries), KEYS=tuple(keys), OF_KEYS=of_keys, **options,
        )  # fmt: skip


@triton.jit
def rows_of(tile, length, BUNDLES: tl.constexpr, TILE: tl.constexpr):
    """Return the bundles (g) and the tokens (t) of a tile, and which of their pairs (g t) there are."""
    bundle, token = tl.arange(0, triton.next_power_of_2(BUNDLES[0])), tile * TILE + tl.arange(0, TILE)
    return bundle, token, (bundle < BUNDLES[0])[:, None] & (token < length)[None, :]


@triton.jit
def row_by_row(x):
    """Put bundles one below another: (g t) to (rows), (g t D) to (rows D)."""
    if len(x.shape) == 2:
        return tl.reshape(x, (x.shape[0] * x.shape[1],))
    else:
        return tl.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]))


@triton.jit
def keys_of(keys, slot, dim, SLOTS: tl.constexpr, DIM: tl.constexpr):
    """Return the binding keys of slots, (g 1 D)."""
    return tl.load(keys + slot[:, None] * DIM + dim[None, :], (slot < SLOTS)[:, None] & (dim < DIM)[None, :], other=0.0)[
        :, None, :
    ]


@triton.jit
def places(slot, token, dim, stride_s, stride_l):
    """Return where the numbers of slots lie, (g t D)."""
    return slot[:, None, None] * stride_s + token[None, :, None] * stride_l + dim[None, None, :]


@triton.jit
def is_real(mask, slot, token, inside, length):
    """Tell which tokens of slots are real, (g t)."""
    if mask is None:
        return inside
    else:
        return inside & (tl.load(mask + slot[:, None] * length + token[None, :], inside, other=0) != 0)


@triton.jit
def bundled(
    x, keys, mask, bundle, token, inside, dim, stride_s, stride_l, length,
    BUNDLES: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Bind the real tokens of the slots of each bundle, and add them up, in float32: (rows D)."""
    total = tl.zeros((bundle.shape[0], token.shape[0], dim.shape[0]), tl.float32)
    for item in tl.static_range(tl.constexpr(BUNDLES[1])):
        slot = slot_of(bundle, item, BUNDLES[2], BUNDLES[3])
        real = is_real(mask, slot, token, inside, length)[:, :, None] & (dim < DIM)[None, None, :]
        value = tl.load(x + places(slot, token, dim, stride_s, stride_l), real, other=0.0)
        total += value.to(tl.float32) * keys_of(keys, slot, dim, SLOTS, DIM)
    return row_by_row(total)


@triton.jit
def is_of(bundle, token, column, BUNDLES: tl.constexpr, SLOTS: tl.constexpr):
    """Tell which slots (columns) are of the bundle of a row, (columns rows)."""
    row = row_by_row(tl.broadcast_to(bundle[:, None], (bundle.shape[0], token.shape[0])))
    apart = column[:, None] - row[None, :] * BUNDLES[2]
    return (apart >= 0) & (apart % BUNDLES[3] == 0) & (apart // BUNDLES[3] < BUNDLES[1]) & (column < SLOTS)[:, None]


@triton.jit
def marks_of(
    mask, bundle, token, inside, length, BUNDLES: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Return 1 where the token of a slot (column) of a row's bundle is real, and in column SLOTS where any of them is.

    Marks are only ever multiplied from the left: Triton 3.6 computes wrong products with narrow matrices on the right.
    """
    column = tl.arange(0, COLUMNS)
    items = row_by_row(inside)[None, :] & is_of(bundle, token, column, BUNDLES, SLOTS)
    if mask is None:
        marks = items.to(tl.float32)
    else:
        at = row_by_row(tl.broadcast_to(token[None, :], (bundle.shape[0], token.shape[0])))
        marks = tl.load(mask + column[:, None] * length + at[None, :], items, other=0).to(tl.float32)
    return tl.where((column == SLOTS)[:, None], tl.max(marks, 0)[None, :], marks)


@triton.jit
def upstream_of(
    y, out, reciprocals, keys, bundle, token, inside, dim, y_s, y_l, out_s, out_l, length,
    BUNDLES: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return the gradients of each row's numerator (rows D), and of its denominators (columns rows)."""
    column = tl.arange(0, COLUMNS)
    numerator = tl.zeros((bundle.shape[0], token.shape[0], dim.shape[0]), tl.float32)
    denominators = tl.zeros((COLUMNS, bundle.shape[0] * token.shape[0]), tl.float32)
    for item in tl.static_range(tl.constexpr(1 if SHARED else BUNDLES[1])):
        end = bundle if SHARED else slot_of(bundle, item, BUNDLES[2], BUNDLES[3])
        share = tl.load(reciprocals + end[:, None] * length + token[None, :], inside, other=0.0)
        real = (share != 0)[:, :, None] & (dim < DIM)[None, None, :]
        upper = tl.load(y + places(end, token, dim, y_s, y_l), real, other=0.0).to(tl.float32)
        lower = tl.load(out + places(end, token, dim, out_s, out_l), real, other=0.0).to(tl.float32)
        loss = row_by_row(-share * tl.sum(upper * lower, 2))
        if SHARED:
            numerator += upper * share[:, :, None]
            own = is_of(bundle, token, column, BUNDLES, SLOTS)
        else:
            numerator += upper * share[:, :, None] * keys_of(keys, end, dim, SLOTS, DIM)
            own = column[:, None] == row_by_row(tl.broadcast_to(end[:, None], (bundle.shape[0], token.shape[0])))[None, :]
        denominators += tl.where(own, loss[None, :], 0.0)
    return row_by_row(numerator), denominators


@triton.jit
def shifts_of(shifts, bundle, token, inside, length):
    """Return u of each row of queries; infinity where there is no token."""
    return row_by_row(tl.load(shifts + bundle[:, None] * length + token[None, :], inside, other=float("inf")))


@triton.jit
def sum_kernel(
    x, y, out, reciprocals, shifts, keys, mask, weights, context, own, tops,
    x_b, x_s, x_l, x_h, y_b, y_s, y_l, y_h, out_b, out_s, out_l, out_h, length, eps, square,
    BUNDLES: tl.constexpr, OF_KEYS: tl.constexpr,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, FEATURES: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    SHARED: tl.constexpr, POSITIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute phi y^T and phi of a tile."""
    tile, head = tl.program_id(0), tl.program_id(1)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    x += group * x_b + h * x_h
    y += group * y_b + h * y_h
    if mask is not None:
        mask += group * SLOTS * length
    place = head.to(tl.int64) * tl.num_programs(0) + tile
    context, own = context + place * R * D, own + place * (SLOTS + 1) * R
    dim, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    bundle, token, inside = rows_of(tile, length, BUNDLES, TILE)
    vector = bundled(x, keys, mask, bundle, token, inside, dim, x_s, x_l, length, BUNDLES, SLOTS, DIM)
    if OF_KEYS:
        value = bundled(y, keys, mask, bundle, token, inside, dim, y_s, y_l, length, BUNDLES, SLOTS, DIM)
        marks = marks_of(mask, bundle, token, inside, length, BUNDLES, SLOTS, COLUMNS)
    else:
        out += group * out_b + h * out_h
        reciprocals += head.to(tl.int64) * (BUNDLES[0] if SHARED else SLOTS) * length
        value, marks = upstream_of(
            y, out, reciprocals, keys, bundle, token, inside, dim, y_s, y_l, out_s, out_l, length,
            BUNDLES, SLOTS, DIM, COLUMNS, SHARED,
        )  # fmt: skip
    if POSITIVE:
        tops += place * R
        if OF_KEYS:
            offset = half_norm(vector, tl.max(marks, 0) > 0, square)[None, :]
        else:
            offset = -shifts_of(shifts + head.to(tl.int64) * BUNDLES[0] * length, bundle, token, inside, length)[None, :]
    value, marks = operand(value, HALF), operand(marks, HALF)
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        feature = block + tl.arange(0, BLOCK_R)
        w = tl.load(weights + feature[:, None] * D + dim[None, :])
        phi = tl.dot(w, tl.trans(vector.to(w.dtype)), input_precision="tf32x3")
        if POSITIVE:
            if OF_KEYS:
                top = tl.where(feature < FEATURES, tl.maximum(tl.max(phi + offset, 1), LOWEST), LOWEST)
                tl.store(tops + feature, top)
            else:
                top = tl.load(tops + feature)
            phi = operand(positive(phi, top[:, None], offset, OF_KEYS), HALF)
        else:
            phi = features(phi, eps, HALF)
            if FEATURES < R:
                phi = tl.where((feature < FEATURES)[:, None], phi, 0.0)
        total = tl.dot(phi, value, input_precision=PRECISION)
        tl.store(context + feature[:, None] * D + dim[None, :], total.to(context.dtype.element_ty))
        sums = tl.dot(marks, tl.trans(phi), input_precision=PRECISION)
        tl.store(own + column[:, None] * R + feature[None, :], sums.to(own.dtype.element_ty), (column <= SLOTS)[:, None])


@triton.jit(do_not_specialize=["tiles"])
def scan_kernel(
    context, own, own_tops, tops, tiles,
    OWN: tl.constexpr, R: tl.constexpr, D: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, POSITIVE: tl.constexpr,
):  # fmt: skip
    """Replace the numbers of each tile by their sum over the tiles before it, or after it."""
    head, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own_tops, tops = own_tops + head * tiles * R, tops + head * tiles * R
    first: tl.constexpr = (R * D + BLOCK - 1) // BLOCK
    if block < first:
        offset = block * BLOCK + tl.arange(0, BLOCK)
        scan(context + head * tiles * R * D, own_tops, tops, offset, offset // D, tiles, R * D, R, REVERSE, POSITIVE, False)
    else:
        offset = (block - first) * BLOCK + tl.arange(0, BLOCK)
        scan(own + head * tiles * OWN, own_tops, tops, offset, offset % R, tiles, OWN, R, REVERSE, POSITIVE, True)


@triton.jit
def scan(
    x, own_tops, tops, offset, feature, tiles,
    SIZE: tl.constexpr, R: tl.constexpr, REVERSE: tl.constexpr, POSITIVE: tl.constexpr, OF_OWN: tl.constexpr,
):  # fmt: skip
    """Replace some numbers of each tile; of positive features, divided by exp(t) of the tile, which is written beside z."""
    inside, last = offset < SIZE, (tiles - 1).to(tl.int64)
    place, at = x + offset, feature.to(tl.int64)
    if REVERSE:
        place, at = place + last * SIZE, at + last * R
    total = tl.zeros(offset.shape, tl.float32)
    top = tl.full(offset.shape, LOWEST, tl.float32)
    for _ in tl.range(0, tiles, num_stages=4):
        own = tl.load(place, inside, other=0.0).to(tl.float32)
        if POSITIVE:
            here = tl.load(own_tops + at, inside, other=LOWEST)
            if REVERSE:
                total *= tl.exp(tl.minimum(here - top, 0.0))  # above 0 for the last tile alone
                top = here
            else:
                before, top = top, tl.maximum(top, here)
                total, own = total * tl.exp(before - top), own * tl.exp(here - top)
                if OF_OWN:
                    tl.store(tops + at, top, inside & (offset < R))
            at += -R if REVERSE else R
        tl.store(place, total.to(x.dtype.element_ty), inside)
        total += own
        place += -SIZE if REVERSE else SIZE


@triton.jit
def projected_keys(w, vector, HALF: tl.constexpr):
    """Return W k (features rows), in memory row by row or, where these would be short, column by column; see `padded_sizes`."""
    if HALF and vector.shape[0] < 64:
        return tl.trans(tl.dot(vector, tl.trans(w), input_precision="tf32x3"))
    else:
        return tl.dot(w, tl.trans(vector), input_precision="tf32x3")


@triton.jit
def attend_kernel(
    q, k, v, keys, mask, weights, context, own, tops, out, reciprocals, shifts,
    q_b, q_s, q_l, q_h, k_b, k_s, k_l, k_h, v_b, v_s, v_l, v_h, out_b, out_s, out_l, out_h, length, eps, square,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, FEATURES: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    SHARED: tl.constexpr, POSITIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the output of a tile."""
    tile, head = tl.program_id(0), tl.program_id(1)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    q, k, v = q + group * q_b + h * q_h, k + group * k_b + h * k_h, v + group * v_b + h * v_h
    out += group * out_b + h * out_h
    if mask is not None:
        mask += group * SLOTS * length
    place = head.to(tl.int64) * tl.num_programs(0) + tile
    context, own = context + place * R * D, own + place * (SLOTS + 1) * R
    reciprocals += head.to(tl.int64) * (QUERIES[0] if SHARED else SLOTS) * length
    dim, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    bundle, token, inside = rows_of(tile, length, QUERIES, TILE)
    other_bundle, other, other_inside = rows_of(tile, length, KEYS, TILE)
    query = bundled(q, keys, mask, bundle, token, inside, dim, q_s, q_l, length, QUERIES, SLOTS, DIM)
    vector = bundled(k, keys, mask, other_bundle, other, other_inside, dim, k_s, k_l, length, KEYS, SLOTS, DIM)
    if POSITIVE:
        tops += place * R
        shift = tl.full((query.shape[0],), float("-inf"), tl.float32)
        real = tl.max(marks_of(mask, other_bundle, other, other_inside, length, KEYS, SLOTS, COLUMNS), 0) > 0
        offset = half_norm(vector, real, square)
    scores = tl.zeros((query.shape[0], vector.shape[0]), tl.float32)
    numerator, denominators = tl.zeros((query.shape[0], D), tl.float32), tl.zeros((query.shape[0], COLUMNS), tl.float32)
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        feature = block + tl.arange(0, BLOCK_R)
        w = tl.load(weights + feature[:, None] * D + dim[None, :])
        a = tl.load(context + feature[:, None] * D + dim[None, :])
        z = tl.load(own + column[:, None] * R + feature[None, :], (column <= SLOTS)[:, None], other=0.0)
        phi = tl.dot(query.to(w.dtype), tl.trans(w), input_precision="tf32x3")
        phi_k = projected_keys(w, vector.to(w.dtype), HALF)
        if POSITIVE:
            top = tl.load(tops + feature)
            shift, fade = raised(shift, phi, top[None, :])
            scores, numerator, denominators = scores * fade, numerator * fade, denominators * fade
            phi = operand(positive(phi, top[None, :], -shift[:, None], False), HALF)
            phi_k = operand(positive(phi_k, top[:, None], offset[None, :], True), HALF)
        else:
            phi, phi_k = features(phi, eps, HALF), features(phi_k, eps, HALF)
            if FEATURES < R:
                phi = tl.where((feature < FEATURES)[None, :], phi, 0.0)
        scores = tl.dot(phi, phi_k, scores, input_precision=PRECISION)
        numerator = tl.dot(phi, a, numerator, input_precision=PRECISION)
        denominators = tl.dot(phi, tl.trans(z), denominators, input_precision=PRECISION)
    value = operand(bundled(v, keys, mask, other_bundle, other, other_inside, dim, v_s, v_l, length, KEYS, SLOTS, DIM), HALF)
    marks = operand(marks_of(mask, other_bundle, other, other_inside, length, KEYS, SLOTS, COLUMNS), HALF)
    scores = operand(tl.where(is_seen(other_bundle, other, bundle, token), scores, 0.0), HALF)
    numerator = tl.dot(scores, value, numerator, input_precision=PRECISION)
    denominators += tl.trans(tl.dot(marks, tl.trans(scores), input_precision=PRECISION))
    if POSITIVE:
        place = shifts + head.to(tl.int64) * QUERIES[0] * length + bundle[:, None] * length + token[None, :]
        tl.store(place, tl.reshape(shift, (bundle.shape[0], token.shape[0])), inside)
    write_output(
        numerator, denominators, out, reciprocals, keys, mask, bundle, token, inside, dim, out_s, out_l, length,
        QUERIES, SLOTS, DIM, COLUMNS, SHARED,
    )  # fmt: skip


@triton.jit
def write_output(
    numerator, denominators, out, reciprocals, keys, mask, bundle, token, inside, dim, out_s, out_l, length,
    QUERIES: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Divide, unbind, and write the output and the reciprocals of denominators."""
    column = tl.arange(0, COLUMNS)
    numerator = tl.reshape(numerator, (bundle.shape[0], token.shape[0], dim.shape[0]))
    whole = tl.sum(tl.where((column == SLOTS)[None, :], denominators, 0.0), 1)
    both = inside[:, :, None] & (dim < DIM)[None, None, :]
    for item in tl.static_range(tl.constexpr(1 if SHARED else QUERIES[1])):
        end = bundle if SHARED else slot_of(bundle, item, QUERIES[2], QUERIES[3])
        if SHARED:
            own = is_of(bundle, token, column, QUERIES, SLOTS)
            marks = marks_of(mask, bundle, token, inside, length, QUERIES, SLOTS, COLUMNS)
            real = tl.reshape(tl.max(marks, 0), (bundle.shape[0], token.shape[0])) != 0
        else:
            own = column[:, None] == row_by_row(tl.broadcast_to(end[:, None], (bundle.shape[0], token.shape[0])))[None, :]
            real = is_real(mask, end, token, inside, length)
        share = reciprocal(tl.sum(tl.where(tl.trans(own), denominators, 0.0), 1), whole)
        share = tl.where(real, tl.reshape(share, (bundle.shape[0], token.shape[0])), 0.0)
        tl.store(reciprocals + end[:, None] * length + token[None, :], share, inside)
        result = numerator * share[:, :, None]
        if not SHARED:
            result *= keys_of(keys, end, dim, SLOTS, DIM)
        result = tl.where((share == 0)[:, :, None], 0.0, result).to(out.dtype.element_ty)
        tl.store(out + places(end, token, dim, out_s, out_l), result, both)


@triton.jit
def is_seen(bundle, token, other_bundle, other):
    """Tell which rows of keys (bundle, token) rows of queries (other_bundle, other) see, (queries keys)."""
    key = row_by_row(tl.broadcast_to(token[None, :], (bundle.shape[0], token.shape[0])))
    query = row_by_row(tl.broadcast_to(other[None, :], (other_bundle.shape[0], other.shape[0])))
    return key[None, :] <= query[:, None]


@triton.jit
def unbind(
    result, found, keys, mask, bundle, token, inside, dim, stride_s, stride_l, length,
    BUNDLES: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write each row's gradient to each of its slots, bound to its key; 0 for padding."""
    result = tl.reshape(result, (bundle.shape[0], token.shape[0], dim.shape[0]))
    both = inside[:, :, None] & (dim < DIM)[None, None, :]
    for item in tl.static_range(tl.constexpr(BUNDLES[1])):
        slot = slot_of(bundle, item, BUNDLES[2], BUNDLES[3])
        value = tl.where(
            is_real(mask, slot, token, inside, length)[:, :, None], result * keys_of(keys, slot, dim, SLOTS, DIM), 0.0
        )
        tl.store(found + places(slot, token, dim, stride_s, stride_l), value.to(found.dtype.element_ty), both)


@triton.jit
def backward_kernel(
    q, k, v, y, out, reciprocals, shifts, keys, mask, weights, context, own, tops, found_x, found_y,
    q_b, q_s, q_l, q_h, k_b, k_s, k_l, k_h, v_b, v_s, v_l, v_h, y_b, y_s, y_l, y_h, out_b, out_s, out_l, out_h,
    fx_b, fx_s, fx_l, fx_h, fy_b, fy_s, fy_l, fy_h, length, eps, square,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, OF_KEYS: tl.constexpr,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, FEATURES: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    DIM: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    SHARED: tl.constexpr, POSITIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile's queries, or of its keys and values."""
    tile, head = tl.program_id(0), tl.program_id(1)
    group, h = (head // HEADS).to(tl.int64), head % HEADS
    q, k, v = q + group * q_b + h * q_h, k + group * k_b + h * k_h, v + group * v_b + h * v_h
    y, out = y + group * y_b + h * y_h, out + group * out_b + h * out_h
    found_x, found_y = found_x + group * fx_b + h * fx_h, found_y + group * fy_b + h * fy_h
    if mask is not None:
        mask += group * SLOTS * length
    place = head.to(tl.int64) * tl.num_programs(0) + tile
    context, own = context + place * R * D, own + place * (SLOTS + 1) * R
    reciprocals += head.to(tl.int64) * (QUERIES[0] if SHARED else SLOTS) * length
    dim = tl.arange(0, D)
    bundle_q, token_q, inside_q = rows_of(tile, length, QUERIES, TILE)
    bundle_k, token_k, inside_k = rows_of(tile, length, KEYS, TILE)
    query = bundled(q, keys, mask, bundle_q, token_q, inside_q, dim, q_s, q_l, length, QUERIES, SLOTS, DIM)
    vector = bundled(k, keys, mask, bundle_k, token_k, inside_k, dim, k_s, k_l, length, KEYS, SLOTS, DIM)
    value = operand(bundled(v, keys, mask, bundle_k, token_k, inside_k, dim, v_s, v_l, length, KEYS, SLOTS, DIM), HALF)
    marks = marks_of(mask, bundle_k, token_k, inside_k, length, KEYS, SLOTS, COLUMNS)
    offset, other_offset = None, None
    if POSITIVE:
        tops += place * R
        offset = half_norm(vector, tl.max(marks, 0) > 0, square)
        other_offset = -shifts_of(shifts + head.to(tl.int64) * QUERIES[0] * length, bundle_q, token_q, inside_q, length)
        if not OF_KEYS:
            offset, other_offset = other_offset, offset
    marks = operand(marks, HALF)
    upper, losses = upstream_of(
        y, out, reciprocals, keys, bundle_q, token_q, inside_q, dim, y_s, y_l, out_s, out_l, length,
        QUERIES, SLOTS, DIM, COLUMNS, SHARED,
    )  # fmt: skip
    upper, losses = operand(upper, HALF), operand(losses, HALF)
    if OF_KEYS:
        mine, other, mine_value, mine_marks, other_value, other_marks = vector, query, value, marks, upper, losses
        seen = tl.trans(is_seen(bundle_k, token_k, bundle_q, token_q))
    else:
        mine, other, mine_value, mine_marks, other_value, other_marks = query, vector, upper, losses, value, marks
        seen = is_seen(bundle_k, token_k, bundle_q, token_q)
    mine_marks = tl.trans(mine_marks)
    pairs = tl.dot(mine_value, tl.trans(other_value), input_precision=PRECISION)
    pairs = tl.dot(mine_marks, other_marks, pairs, input_precision=PRECISION)
    pairs = operand(tl.where(seen, pairs, 0.0), HALF)
    result_x, result_y, scores = through_features(
        mine, other, mine_value, mine_marks, pairs, weights, context, own, tops, offset, other_offset, dim, eps, square,
        SLOTS, FEATURES, R, BLOCK_R, D, COLUMNS, HALF, PRECISION, OF_KEYS, POSITIVE, STAGES,
    )  # fmt: skip
    if OF_KEYS:
        scores = operand(tl.where(seen, scores, 0.0), HALF)
        result_y = tl.dot(scores, other_value, result_y, input_precision=PRECISION)
        unbind(result_x, found_x, keys, mask, bundle_k, token_k, inside_k, dim, fx_s, fx_l, length, KEYS, SLOTS, DIM)
        unbind(result_y, found_y, keys, mask, bundle_k, token_k, inside_k, dim, fy_s, fy_l, length, KEYS, SLOTS, DIM)
    else:
        unbind(result_x, found_x, keys, mask, bundle_q, token_q, inside_q, dim, fx_s, fx_l, length, QUERIES, SLOTS, DIM)


@triton.jit
def through_features(
    mine, other, value, marks, pairs, weights, context, own, tops, offset, other_offset, dim, eps, square,
    SLOTS: tl.constexpr, FEATURES: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, OF_KEYS: tl.constexpr, POSITIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return gradients of queries or keys; for keys also those of values by other tiles, and the products of all features."""
    column = tl.arange(0, COLUMNS)
    rest = (mine - mine.to(tl.float16).to(tl.float32)).to(tl.float16)
    scores = tl.zeros((mine.shape[0], other.shape[0]), tl.float32)
    result_x, result_y = tl.zeros((mine.shape[0], D), tl.float32), tl.zeros((mine.shape[0], D), tl.float32)
    total = tl.zeros((mine.shape[0],), tl.float32)
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        feature = block + tl.arange(0, BLOCK_R)
        weight = weights + feature[:, None] * D + dim[None, :]
        w = tl.load(weight)
        a = tl.load(context + feature[:, None] * D + dim[None, :])
        z = tl.load(own + column[:, None] * R + feature[None, :], (column <= SLOTS)[:, None], other=0.0)
        phi = tl.dot(other.to(w.dtype), tl.trans(w), input_precision="tf32x3")
        projected = tl.dot(mine.to(w.dtype), tl.trans(w), input_precision="tf32x3")
        if POSITIVE:
            top = tl.load(tops + feature)[None, :]
            phi = operand(positive(phi, top, other_offset[:, None], not OF_KEYS), HALF)
            projected = positive(projected, top, offset[:, None], OF_KEYS)
        else:
            phi = features(phi, eps, HALF)
            if FEATURES < R:
                phi = tl.where((feature < FEATURES)[None, :], phi, 0.0)
        if HALF:
            if not POSITIVE:
                projected = tl.dot(rest, tl.trans(w), projected)
                projected = tl.dot(mine.to(w.dtype), tl.trans(tl.load(weight + R * D)), projected)
            w = tl.load(weight + 2 * R * D).to(tl.bfloat16, bitcast=True)
        if OF_KEYS:
            own_phi = operand(projected, HALF) if POSITIVE else features(projected, eps, HALF)
            scores = tl.dot(own_phi, tl.trans(phi), scores, input_precision=PRECISION)
            result_y = tl.dot(own_phi, a, result_y, input_precision=PRECISION)
        inner = tl.dot(value, tl.trans(a), input_precision=PRECISION)
        inner = tl.dot(marks, z, inner, input_precision=PRECISION)
        inner = tl.dot(pairs, phi, inner, input_precision=PRECISION)
        inner = inner * projected if POSITIVE else tl.where(projected <= 0, 0.0, inner)
        if POSITIVE and OF_KEYS:
            total += tl.sum(inner, 1)
        result_x = tl.dot(operand(inner, HALF), w, result_x, input_precision=PRECISION)
    if POSITIVE and OF_KEYS:
        result_x -= square * total[:, None] * mine
    return result_x, result_y, scores
