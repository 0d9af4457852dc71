"""FAVOR+S with ReLU or positive features as one operator of torch with a gradient, computed by `mimoformer.kernels.favor`."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mimoformer.dispatch import Form, tile_of
from mimoformer.kernels import causal as tiles
from mimoformer.kernels.favor import (
    Bundles,
    Inputs,
    Sums,
    Upstream,
    attend,
    backward,
    new_weights,
    padded_sizes,
    precision_of,
    sum_tokens,
)

__all__ = ["favor"]


def favor(
    parts: Sequence[Float[Tensor, "b m n l ..."]],
    keys: Float[Tensor, "m n d"],
    projection: Float[Tensor, "r d"],
    scale: float,
    mask: Bool[Tensor, "b m n l"] | None,
    eps: float | None,
    form: Form,
    causal: bool = False,
) -> Float[Tensor, "b *slots l h d"]:
    """Attend within m x n sequences in superposition.

    Args:
        parts: queries, keys and values (b m n l h d); or one tensor (b m n l 3 h d) that holds them side by side, whose gradient
            then is one tensor too.
        keys: bipolar binding keys.
        projection: W: phi(x) = ReLU(scale W x) + eps, or exp(scale W x - |scale x|^2 / 2) if eps is None.
        scale: what queries and keys are multiplied by, in all.
        mask: True where a token is real; all are real by default.
        eps: added to every feature, of ReLU; None for positive features.
        form: which function is computed.
        causal: whether a token sees only itself and earlier tokens.
    """
    grid = list(keys.shape[:2])
    slots = [(part if part.stride(-1) == 1 else part.contiguous()).flatten(1, 2) for part in parts]
    real = None if mask is None else mask.flatten(1, 2).contiguous()
    options = (keys.flatten(0, 1).float(), projection.float(), scale, real, eps, grid, form, causal)
    out: Tensor = torch.ops.mimoformer.favor(slots, *options)[0]
    return out if form == "shared" else rearrange(out, "b (m n) l h d -> b m n l h d", m=grid[0])


def split(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return queries, keys and values (b s l h d)."""
    return list(parts[0].unbind(3)) if len(parts) == 1 else list(parts)


def bundles_of(grid: Sequence[int], form: str) -> tuple[Bundles, Bundles]:
    """Return the bundles of queries, and those of keys and values."""
    m, n = grid
    if form == "blurry":
        return Bundles(1, m * n, 0, 1), Bundles(1, m * n, 0, 1)
    return Bundles(n, m, 1, n), Bundles(m, n, n, 1)


def inputs_of(
    parts: Sequence[Tensor], keys: Tensor, projection: Tensor, scale: float, mask: Tensor | None, eps: float | None, form: str
) -> Inputs:
    """Collect what all kernels read."""
    weights = new_weights(projection.contiguous(), scale, parts[0].dtype)
    real, square = None if mask is None else mask.to(torch.int32), scale**2 if eps is None else -1.0
    return Inputs(keys.contiguous(), projection.shape[0], weights, real, eps or 0.0, form == "shared", square)


@torch.library.custom_op("mimoformer::favor", mutates_args=())
def compute(
    parts: Sequence[Tensor], keys: Tensor, projection: Tensor, scale: float, mask: Tensor | None, eps: float | None,
    grid: Sequence[int], form: str, causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output (b s l h d), and what the backward pass needs: reciprocals of denominators, u, A, z and t."""
    (q, k, v), (of_queries, of_keys) = split(parts), bundles_of(grid, form)
    inputs = inputs_of(parts, keys, projection, scale, mask, eps, form)
    if causal:
        sums = tiles.sum_tiles([q, k, v], inputs, of_queries, of_keys)
        return *tiles.attend([q, k, v], inputs, of_queries, of_keys, sums), *sums
    sums = sum_tokens(k, v, inputs, of_keys)
    return *attend(q, inputs, of_queries, sums), *sums


@torch.library.custom_op("mimoformer::favor_backward", mutates_args=())
def differentiate(
    gradient: Tensor, parts: Sequence[Tensor], saved: Sequence[Tensor], keys: Tensor, projection: Tensor, scale: float,
    mask: Tensor | None, eps: float | None, grid: Sequence[int], form: str, causal: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the parts."""
    found = new_like(parts)
    (q, k, v), (found_q, found_k, found_v), (of_queries, of_keys) = split(parts), split(found), bundles_of(grid, form)
    inputs, (out, reciprocals, shifts, *sums) = inputs_of(parts, keys, projection, scale, mask, eps, form), saved
    gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
    if causal:
        options = ([q, k, v], inputs, of_queries, of_keys)
        above = [gradient, out, reciprocals, shifts]
        tiles.backward(*options, Sums(*sums), above, found_q)
        tiles.backward(*options, tiles.sum_tiles(*options, above, sums[2]), above, found_k, found_v)
        return found
    upstream = Upstream(gradient, out, reciprocals, shifts, sums[2], torch.empty_like(reciprocals))
    gradients = sum_tokens(q, upstream, inputs, of_queries)
    backward(q, upstream, inputs, of_queries, Sums(*sums), found_q)
    backward(k, v, inputs, of_keys, gradients, found_k, found_v)
    return found


def new_like(parts: Sequence[Tensor]) -> list[Tensor]:
    """Make room for the gradients of the parts."""
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts]


@compute.register_fake
def _(
    parts: Sequence[Tensor], keys: Tensor, projection: Tensor, scale: float, mask: Tensor | None, eps: float | None,
    grid: Sequence[int], form: str, causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q = split(parts)[0]
    b, s, length, heads, dim = q.shape
    ends = grid[1] if form == "shared" else s
    (r, d), dtype = padded_sizes(projection, q.dtype), precision_of(q.dtype)
    bundles = (1, 1) if form == "blurry" else grid
    count = [-(-length // tile_of(q.dtype, max(bundles)))] if causal else []
    return (
        q.new_empty(b, ends, length, heads, dim),
        q.new_empty(b, heads, ends, length, dtype=torch.float32),
        q.new_empty((b, heads, bundles[1], length) if eps is None else (0,), dtype=torch.float32),
        q.new_empty(b, heads, *count, r, d, dtype=dtype),
        q.new_empty(b, heads, *count, s + 1, r, dtype=dtype),
        q.new_empty((b, heads, *count, r) if eps is None else (0,), dtype=torch.float32),
    )


@differentiate.register_fake
def _(gradient: Tensor, parts: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return new_like(parts)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward pass needs."""
    parts, keys, projection, ctx.scale, mask, *ctx.options = inputs
    ctx.count, ctx.has_mask = len(parts), mask is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*parts, *output, keys, projection, *([mask] if ctx.has_mask else []))


def take_back(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
    """Compute the gradients of the parts."""
    nothing = (None,) * 8
    if gradient is None:
        return [None] * ctx.count, *nothing
    saved = list(ctx.saved_tensors)
    parts, output, (keys, projection, *mask) = saved[: ctx.count], saved[ctx.count : ctx.count + 6], saved[ctx.count + 6 :]
    found = torch.ops.mimoformer.favor_backward(
        gradient, parts, output, keys, projection, ctx.scale, mask[0] if mask else None, *ctx.options
    )
    return found, *nothing


compute.register_autograd(take_back, setup_context=keep)
