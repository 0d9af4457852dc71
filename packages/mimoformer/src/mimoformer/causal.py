"""Causal FAVOR+S: in chunks, with memory linear in the length, or step by step, with memory that does not grow."""

from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from mimoformer.bundles import (
    any_real,
    bind_real_tokens,
    check_operands,
    check_scale,
    divide_or_zero,
    query_features,
    sum_own_tokens,
    unbind_slots,
    zero_padding,
)
from mimoformer.dispatch import Form, Implementation, steps_by_triton
from mimoformer.features import AnyFeatureMap, CausalFeatureMap, RunningKeys, as_feature_map, log_of_zero
from vsa_core import checks
from vsa_core.autocast import autocast_off

__all__ = ["AttentionState", "KeySums", "favor_s_blurry_step", "favor_s_shared_step", "favor_s_step"]


class KeySums(NamedTuple):
    """Sums over the tokens so far."""

    context: Float[Tensor, "b h r d"]
    """A of Eq. 19: features of bundled keys times bundled values."""
    own: Float[Tensor, "b m n h r"]
    """Key features at each slot's own real tokens."""
    whole: Float[Tensor, "b h r"]
    """Key features of everything in the context."""


class AttentionState(NamedTuple):
    """What causal attention remembers of the tokens so far; its size does not depend on their number."""

    sums: KeySums
    """Sums over all of them."""
    log_scale: Float[Tensor, "b h"]
    """Logarithm of what the sums were divided by: 0, or the running stabiliser of the feature map."""


class Quotients(NamedTuple):
    """Numerators and denominators of attention."""

    numerator: Float[Tensor, "b #n h l d"]
    """Weighted sums of values, still bound and bundled."""
    denominator: Float[Tensor, "b m n h l"]
    """Weight of each slot's own real tokens."""
    whole: Float[Tensor, "b #n h l"]
    """Weight of everything in a numerator."""


def favor_s_step(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    state: AttentionState | None = None,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "b m n h l d"], AttentionState]:
    """Attend from the next tokens, one or more, to themselves and to the tokens that `state` holds: causal `favor_s` in parts.

    Any split of a sequence into steps gives what `favor_s(..., causal=True)` gives for the whole. Time and memory of a step do
    not depend on how many tokens came before.

    Args:
        q: queries of the new tokens.
        k: attention keys of the new tokens.
        v: values of the new tokens.
        keys: bipolar binding keys.
        feature_map: phi, a plain function or a `mimoformer.features.CausalFeatureMap`.
        state: what the previous step returned; None before the first token.
        mask: True where a new token is real; all are real by default.
        chunk: tokens per chunk; all pairs of tokens within a chunk are compared.
        scale: what queries and keys are multiplied by.
        implementation: "plain" PyTorch, or "triton" for one fused kernel that takes a single new token and computes no gradients,
            on NVIDIA GPUs from Ampere on; "auto" takes the kernel where `mimoformer.dispatch.why_plain_step` knows no reason
            against it. Either goes on from the states of the other.

    Returns:
        Attention of the new tokens, and the state after them.

    Raises:
        ValueError: the state has other sizes, `chunk` is below 1, shapes do not fit, or the implementation that is asked for
            cannot compute this.
        TypeError: the state is not an `AttentionState` or of another dtype, or for the reasons of `favor_s`.
    """
    check_operands(q, k, v, keys, mask)
    if steps_by_triton(implementation, q, k, v, keys, feature_map, tensors_of(state), mask):
        return step_by_kernel(q, k, v, keys, feature_map, state, mask, chunk, scale, "grid")
    dtype = v.dtype
    with autocast_off(q):
        parts, state = attend_in_grid(q, k, v, keys, feature_map, state, mask, chunk, scale)
        out = divide_or_zero(parts.numerator[:, None], parts.denominator, parts.whole[:, None])
        return unbind_slots(out, keys, mask).to(dtype), state


def favor_s_shared_step(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    state: AttentionState | None = None,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "b n h l d"], AttentionState]:
    """Take the next tokens of causal `favor_s_shared`; arguments and errors are those of `favor_s_step`."""
    check_operands(q, k, v, keys, mask)
    if steps_by_triton(implementation, q, k, v, keys, feature_map, tensors_of(state), mask):
        return step_by_kernel(q, k, v, keys, feature_map, state, mask, chunk, scale, "shared")
    dtype = v.dtype
    with autocast_off(q):
        parts, state = attend_in_grid(q, k, v, keys, feature_map, state, mask, chunk, scale)
        return divide_or_zero(parts.numerator, parts.denominator.sum(1), parts.whole).to(dtype), state


def favor_s_blurry_step(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    state: AttentionState | None = None,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "b m n h l d"], AttentionState]:
    """Take the next tokens of causal `favor_s_blurry`; arguments and errors are those of `favor_s_step`."""
    check_operands(q, k, v, keys, mask)
    if steps_by_triton(implementation, q, k, v, keys, feature_map, tensors_of(state), mask):
        return step_by_kernel(q, k, v, keys, feature_map, state, mask, chunk, scale, "blurry")
    dtype = v.dtype
    with autocast_off(q):
        q, k, v = (x.sum((1, 2))[:, None] for x in bind_real_tokens(q, k, v, keys, mask, scale))
        real = None if mask is None else mask.any(1).any(1, keepdim=True)
        parts, state = attend_in_chunks(
            query_features(feature_map, q, real),
            running_key_features(feature_map, k, real, state),
            *(v, mask, keys.shape[:2], state, chunk),
        )
        out = divide_or_zero(parts.numerator[:, None], parts.denominator, parts.whole[:, None])
        return unbind_slots(out, keys, mask).to(dtype), state


def tensors_of(state: AttentionState | None) -> tuple[Tensor, ...]:
    """Return the tensors of a state: none before the first token."""
    if state is None:
        return ()
    if not isinstance(state, AttentionState):
        raise TypeError(f"state is a {type(state).__name__}; expected the AttentionState that the previous step returned")
    return (*state.sums, state.log_scale)


def step_by_kernel(
    q: Float[Tensor, "b m n h 1 d"],
    k: Float[Tensor, "b m n h 1 d"],
    v: Float[Tensor, "b m n h 1 d"],
    keys: Float[Tensor, "m n d"],
    feature_map: Any,
    state: AttentionState | None,
    mask: Bool[Tensor, "b m n 1"] | None,
    chunk: int,
    scale: float,
    form: Form,
) -> tuple[Float[Tensor, "b *slots h 1 d"], AttentionState]:
    """Take a step by the kernel of `mimoformer.kernels.step`; features are `ReLUFeatures`."""
    from mimoformer.kernels.step import favor_step

    check_scale(scale)
    checks.positive(chunk=chunk)
    phi = getattr(feature_map, "_orig_mod", feature_map)  # compiled or not
    scale *= keys.shape[-1] ** -0.25
    out, context, own, whole, log_scale = favor_step(q, k, v, keys, phi.projection, scale, phi.eps, mask, tensors_of(state), form)
    return out, AttentionState(KeySums(context, own, whole), log_scale)


def attend_in_grid(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    state: AttentionState | None,
    mask: Bool[Tensor, "b m n l"] | None,
    chunk: int,
    scale: float,
) -> tuple[Quotients, AttentionState]:
    """Bind, bundle queries over m, keys and values over n, and attend in chunks; arguments are those of `favor_s_step`."""
    q, k, v = bind_real_tokens(q, k, v, keys, mask, scale)
    return attend_in_chunks(
        query_features(feature_map, q.sum(1), any_real(mask, 1)),
        running_key_features(feature_map, k.sum(2), any_real(mask, 2), state),
        *(v.sum(2), mask, keys.shape[:2], state, chunk),
    )


def running_key_features(
    feature_map: AnyFeatureMap,
    k: Float[Tensor, "b m h l d"],
    real: Bool[Tensor, "b m l"] | None,
    state: AttentionState | None,
) -> RunningKeys:
    """Features of bundled keys, 0 where no token of a bundle is real, with the logarithm of what each token was divided by."""
    if state is not None and state.log_scale.shape != (k.shape[0], k.shape[2]):
        expected = (k.shape[0], k.shape[2])
        raise ValueError(f"the state has (b, h) = {tuple(state.log_scale.shape)}; these tokens have {expected}")
    phi = as_feature_map(feature_map)
    if not isinstance(phi, CausalFeatureMap):
        raise TypeError(f"{type(phi).__name__} stabilises keys over all tokens; causal attention needs its running_key")
    phi_k, log_scale = phi.running_key(k, real, None if state is None else state.log_scale)
    return RunningKeys(zero_padding(phi_k, real), log_scale)


def attend_in_chunks(
    phi_q: Float[Tensor, "b #n h l r"],
    running: RunningKeys,
    v: Float[Tensor, "b #m h l d"],
    mask: Bool[Tensor, "b m n l"] | None,
    grid: tuple[int, ...],
    state: AttentionState | None,
    chunk: int,
) -> tuple[Quotients, AttentionState]:
    """Numerators and denominators of every token, and the state after the last, chunk by chunk."""
    checks.positive(chunk=chunk)
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        raise RuntimeError("torch.jit.trace fixes the number of chunks of causal attention: use torch.export or torch.compile")
    phi_k, log_scale = running
    b, _, h, _, r = phi_k.shape
    shapes = ((b, h, r, v.shape[-1]), (b, *grid, h, r), (b, h, r))
    if state is None:
        state = AttentionState(KeySums(*map(v.new_zeros, shapes)), v.new_full((b, h), log_of_zero(v.dtype)))
    elif (found := tuple(tuple(x.shape) for x in state.sums)) != shapes:
        raise ValueError(f"the state's sums have shapes {found}; these tokens need {shapes}: (b h r d), (b m n h r), (b h r)")
    elif dtypes := {x.dtype for x in state.sums} - {v.dtype}:
        raise TypeError(f"the state has {dtypes.pop()}; these tokens need {v.dtype}: convert the state, or start a new one")
    parts = []
    for start in range(0, v.shape[-2], chunk):
        here = slice(start, start + chunk)
        own = None if mask is None else mask[..., here]
        part, state = attend_in_chunk(phi_q[..., here, :], phi_k[..., here, :], log_scale[..., here], v[..., here, :], own, state)
        parts.append(part)
    numerator, denominator, whole = zip(*parts, strict=True)
    return Quotients(torch.cat(numerator, -2), torch.cat(denominator, -1), torch.cat(whole, -1)), state


def attend_in_chunk(
    phi_q: Float[Tensor, "b #n h l r"],
    phi_k: Float[Tensor, "b #m h l r"],
    log_scale: Float[Tensor, "b h l"],
    v: Float[Tensor, "b #m h l d"],
    mask: Bool[Tensor, "b m n l"] | None,
    state: AttentionState,
) -> tuple[Quotients, AttentionState]:
    """Compare all pairs of tokens of one chunk, and add what came before from the sums, at the scale of the query's token.

    In blurry attention the grid's axes have length 1 in `phi_q`, `phi_k` and `v`, and einsum broadcasts them.
    """
    context, own, whole = state.sums
    fade = (log_scale[..., None, :] - log_scale[..., None]).tril().exp().tril()  # twice: above the diagonal it may be infinite
    scores = einsum(phi_q, phi_k, "b n h i r, b m h j r -> b m n h i j") * fade[:, None, None]
    rows = scores.sum(-1)
    numerator = einsum(scores, v, "b m n h i j, b m h j d -> b n h i d")
    denominator = rows if mask is None else einsum(scores, mask.to(scores.dtype), "b m n h i j, b m n j -> b m n h i")
    fade = (state.log_scale[..., None] - log_scale).exp()[:, None]
    quotients = Quotients(
        numerator + einsum(phi_q, context, "b n h l r, b h r d -> b n h l d") * fade[..., None],
        denominator + einsum(phi_q, own, "b n h l r, b m n h r -> b m n h l") * fade[:, None],
        rows.sum(1) + einsum(phi_q, whole, "b n h l r, b h r -> b n h l") * fade,
    )
    last = log_scale[..., -1].clone()  # a view would keep the scales of all tokens alive
    phi_k = phi_k * (log_scale - last[..., None]).exp()[:, None, ..., None]
    fade = (state.log_scale - last).exp()[..., None]
    total = phi_k.sum(-2)
    sums = KeySums(
        einsum(phi_k, v, "b m h l r, b m h l d -> b h r d") + context * fade[..., None],
        sum_own_tokens(phi_k, total, mask, own.shape[1:3]) + own * fade[:, None, None],
        total.sum(1) + whole * fade,
    )
    return quotients, AttentionState(sums, last)
