"""A step of causal FAVOR+S with ReLU features and one new token, as one Triton kernel that reads the state once.

In the words of `mimoformer.kernels.favor`, a program adds phi v^T and phi of the new token to A and z of a head, a block of
features at a time, and takes the numerators and denominators of the new queries from the sums while it has them. It writes a new
state and computes in float32, W x too: the time of a step is that of moving the state.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mimoformer.dispatch import Form, shared_memory
from mimoformer.kernels.favor import bundled, features, reciprocal, slot_of

__all__ = ["favor_step"]


class Setting(NamedTuple):
    """How the kernel cuts its work."""

    numbers: int
    """Numbers of A in a block of features, of a head of a small grid."""
    warps: int
    """Warps of a program."""
    stages: int
    """Blocks that are computed or on their way."""


FEW, MANY = Setting(2048, 4, 4), Setting(1024, 4, 4)
"""Settings where heads are few, so that a multiprocessor has one program or none, and where they are many."""
MANY_HEADS = 133
"""Heads in all groups from which on they are many: more than an H200 has multiprocessors."""
NOTHING = (None,) * 4
"""The state before the first token."""


def favor_step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, projection: Tensor, scale: float, eps: float, mask: Tensor | None,
    state: Sequence[Tensor], form: Form,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Attend from one new token to itself and to all before it.

    Args:
        q: queries (b m n h 1 d).
        k: attention keys.
        v: values.
        keys: bipolar binding keys (m n d).
        projection: W (r d): phi(x) = ReLU(scale W x) + eps.
        scale: what queries and keys are multiplied by, in all.
        eps: added to every feature.
        mask: True where the new token is real (b m n 1); all are real by default.
        state: A (b h r d), z of every slot (b m n h r) and of everything (b h r), and the logarithm of what they were divided by
            (b h), all in float32; nothing before the first token.
        form: which function is computed.

    Returns:
        The output, in the form "shared" (b n h 1 d) and else (b m n h 1 d); and the four tensors of the new state.
    """
    # The dispatcher takes longer than the kernel of a small state; a compiler needs it.
    step = torch.ops.mimoformer.favor_step if torch.compiler.is_compiling() else compute
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = step(q, k, v, keys, projection, scale, eps, mask, state, form)
    return found


def compute(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, projection: Tensor, scale: float, eps: float, mask: Tensor | None,
    state: Sequence[Tensor], form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output and the new state; the operator `mimoformer::favor_step`, without torch's dispatcher."""
    b, m, n, heads, _, dim = q.shape
    state, stride = [x.contiguous() for x in state], q.stride()
    found = new_tensors(q, projection, state, form)
    between = stride[2] if n > 1 else stride[1]
    if not (stride == k.stride() == v.stride() and stride[5] == 1 and (m == 1 or stride[1] == n * between) and between < 2**27):
        q, k, v = (x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))
        stride, between = q.stride(), heads * dim
    with torch.cuda.device_of(q):
        step_kernel[(b * heads,)](
            q, k, v, keys.contiguous(), None if mask is None else mask.contiguous().view(torch.uint8), projection.contiguous(),
            *(state or NOTHING), *found, stride[0], between, stride[3], scale, eps,
            **constants(b * heads >= MANY_HEADS, m, n, heads, projection.shape[0], dim, form, q.device),
        )  # fmt: skip
    return found


@cache
def constants(many: bool, m: int, n: int, heads: int, r: int, dim: int, form: str, device: torch.device) -> dict[str, int | bool]:
    """Return what the kernel has to know as constants; blocks are smaller where a grid has many bundles."""
    setting, d, (of_keys, of_queries) = MANY if many else FEW, padded(dim), (1, 1) if form == "blurry" else (m, n)
    block = min(max(1, setting.numbers // d // padded(max(1, max(of_keys, of_queries) // 2))), padded(r))
    return {
        "HEADS": heads, "SLOTS": m * n, "KEYS": of_keys, "QUERIES": of_queries, "ROWS": padded(m * n + of_queries), "R": r,
        "BLOCK_R": block, "DIM": dim, "D": d, "SHARED": form == "shared", "EVEN": r % block == 0 and dim == d,
        "STAGES": max(1, min(setting.stages, shared_memory(device) // 2 // (8 * block * d))), "num_warps": setting.warps,
    }  # fmt: skip


def padded(size: int) -> int:
    """Return a size as a power of two."""
    return 1 << (size - 1).bit_length()


def new_tensors(
    q: Tensor, projection: Tensor, state: Sequence[Tensor], form: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make room for the output and the new state."""
    (b, m, n, heads, _, dim), r = q.shape, projection.shape[0]
    out = q.new_empty((b, n, heads, 1, dim) if form == "shared" else (b, m, n, heads, 1, dim))
    if state:
        context, own, whole, log_scale = map(torch.empty_like, state)
    else:
        shapes = ((b, heads, r, dim), (b, m, n, heads, r), (b, heads, r), (b, heads))
        context, own, whole, log_scale = (q.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return out, context, own, whole, log_scale


torch.library.custom_op("mimoformer::favor_step", compute, mutates_args=()).register_fake(
    lambda q, k, v, keys, projection, scale, eps, mask, state, form: new_tensors(
        q, projection, [x.contiguous() for x in state], form
    )
)


@triton.jit
def vectors_of(
    x, keys, mask, dim, x_s, scale, SLOTS: tl.constexpr, BUNDLES: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr,
    DIM: tl.constexpr,
):  # fmt: skip
    """Return what each bundle holds of the new token (1 D), multiplied by a number."""
    vectors = ()
    for bundle in tl.static_range(BUNDLES):
        vector = bundled(x, keys, mask, bundle, tl.arange(0, 1), 1, dim, x_s, 0, 1, SLOTS // BUNDLES, STEP, ITEM_STEP, DIM)
        vectors = vectors + (vector * scale,)
    return vectors


@triton.jit
def limits_of(mask, SLOTS: tl.constexpr, BUNDLES: tl.constexpr, STEP: tl.constexpr, ITEM_STEP: tl.constexpr, R: tl.constexpr):
    """Return how many features each bundle has: R, or 0 where none of its slots is real."""
    limits = ()
    for bundle in tl.static_range(BUNDLES):
        limit = tl.full((), R, tl.int32)
        if mask is not None:
            limit = tl.full((), 0, tl.int32)
            for item in tl.static_range(SLOTS // BUNDLES):
                limit = tl.where(tl.load(mask + slot_of(bundle, item, STEP, ITEM_STEP)) != 0, R, limit)
        limits = limits + (limit,)
    return limits


@triton.jit
def phi_of(w, x, eps, feature, limit, WHOLE: tl.constexpr):
    """Return a block of the features of a bundle; 0 from the limit on, which a whole block does not reach."""
    phi = features(tl.sum(w * x, 1), eps, False)
    return phi if WHOLE else tl.where(feature < limit, phi, 0.0)


@triton.jit
def write(
    out, keys, mask, numerator, weights, group, h, row, dim,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Divide numerators (D) of bundles of queries by their weights (rows), unbind, and write the output."""
    for bundle in tl.static_range(QUERIES):
        whole = tl.sum(tl.where(row == SLOTS + bundle, weights, 0.0), 0)
        if SHARED:
            share = reciprocal(tl.sum(tl.where((row < SLOTS) & (row % QUERIES == bundle), weights, 0.0), 0), whole)
            bound = tl.where(share == 0, 0.0, numerator[bundle] * share)
            tl.store(out + ((group * QUERIES + bundle) * HEADS + h) * DIM + dim, bound.to(out.dtype.element_ty), dim < DIM)
        else:
            for slot in tl.static_range(bundle, SLOTS, QUERIES):
                share = reciprocal(tl.sum(tl.where(row == slot, weights, 0.0), 0), whole)
                if mask is not None:
                    share = tl.where(tl.load(mask + slot) != 0, share, 0.0)
                key = tl.load(keys + slot * DIM + dim, dim < DIM, other=0.0)
                unbound = tl.where(share == 0, 0.0, numerator[bundle] * share * key)
                tl.store(out + ((group * SLOTS + slot) * HEADS + h) * DIM + dim, unbound.to(out.dtype.element_ty), dim < DIM)


@triton.jit
def step_kernel(
    q, k, v, keys, mask, projection, context, own, whole, log_scale,
    out, new_context, new_own, new_whole, new_log_scale, x_b, x_s, x_h, scale, eps,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr,
    BLOCK_R: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take the step of a head.

    Slot s is in bundle s // (SLOTS / KEYS) of keys and values, and in bundle s % QUERIES of queries. Sums of features, and the
    weights that queries give them, have rows: z of each slot, then for each bundle of queries z of everything.
    """
    items: tl.constexpr = SLOTS // KEYS
    head = tl.program_id(0).to(tl.int64)
    group, h = head // HEADS, head % HEADS
    place, own_place = group * x_b + h * x_h, (group * SLOTS * HEADS + h) * R
    row, feature, dim = tl.arange(0, ROWS), tl.arange(0, BLOCK_R), tl.arange(0, D)
    marks = tl.full((ROWS,), 1.0, tl.float32)
    if mask is not None:
        mask += group * SLOTS
        marks = tl.load(mask + row, row < SLOTS, other=1).to(tl.float32)
    query = vectors_of(q + place, keys, mask, dim, x_s, scale, SLOTS, QUERIES, 1, QUERIES, DIM)
    key = vectors_of(k + place, keys, mask, dim, x_s, scale, SLOTS, KEYS, items, 1, DIM)
    value = vectors_of(v + place, keys, mask, dim, x_s, 1.0, SLOTS, KEYS, items, 1, DIM)
    query_limit, key_limit = limits_of(mask, SLOTS, QUERIES, 1, QUERIES, R), limits_of(mask, SLOTS, KEYS, items, 1, R)

    # Places within a block, and what shifts them from block to block, stay apart: the loop then has no layouts to convert.
    a_place = feature[:, None] * DIM + dim[None, :]
    z_place = row.to(tl.int64)[:, None] * (HEADS * R) + feature[None, :]
    slot_row, asking = (row < SLOTS)[:, None], tl.where(row < SLOTS, row, row - SLOTS) % QUERIES
    new_z = tl.where(slot_row, new_own + own_place + z_place, new_whole + head * R + feature[None, :])
    tl.store(new_log_scale + head, 0.0)
    fade = 1.0
    if context is not None:
        fade = tl.exp(tl.load(log_scale + head))
        old_z = tl.where(slot_row, own + own_place + z_place, whole + head * R + feature[None, :])
    numerator = (tl.zeros((BLOCK_R, D), tl.float32),) * QUERIES
    weight = tl.zeros((ROWS, BLOCK_R), tl.float32)
    used = (row < SLOTS + QUERIES)[:, None] & (feature < BLOCK_R)[None, :]
    for block in tl.range(0, R, BLOCK_R, num_stages=STAGES):
        inside, within = tl.full((BLOCK_R, D), True, tl.int1), used
        if not EVEN:
            inside, within = (a_place < (R - block) * DIM) & (dim < DIM)[None, :], used & (feature < R - block)[None, :]
        w = tl.load(projection + block * DIM + a_place, inside, other=0.0).to(tl.float32)
        a = tl.zeros((BLOCK_R, D), tl.float32)
        z = tl.zeros((ROWS, BLOCK_R), tl.float32)
        if context is not None:
            a = fade * tl.load(context + head * R * DIM + block * DIM + a_place, inside, other=0.0)
            z = fade * tl.load(old_z + block, within, other=0.0)
        for bundle in tl.static_range(KEYS):
            phi = phi_of(w, key[bundle], eps, feature, key_limit[bundle] - block, EVEN and mask is None)
            a += phi[:, None] * value[bundle]
            z += tl.where(((row // items == bundle) | (row >= SLOTS))[:, None], phi[None, :] * marks[:, None], 0.0)
        numerators = ()
        for bundle in tl.static_range(QUERIES):
            phi = phi_of(w, query[bundle], eps, feature, query_limit[bundle] - block, EVEN and mask is None)
            numerators = numerators + (numerator[bundle] + phi[:, None] * a,)
            weight += tl.where((asking == bundle)[:, None], phi[None, :] * z, 0.0)
        numerator = numerators
        tl.store(new_context + head * R * DIM + block * DIM + a_place, a, inside)
        tl.store(new_z + block, z, within & (row <= SLOTS)[:, None])

    attended = ()
    for bundle in tl.static_range(QUERIES):
        attended = attended + (tl.sum(numerator[bundle], 0),)
    write(out, keys, mask, attended, tl.sum(weight, 1), group, h, row, dim, HEADS, SLOTS, QUERIES, DIM, SHARED)
