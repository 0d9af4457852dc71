"""FAVOR+S, linear attention over a grid of m x n sequences in superposition (Menet et al., 2023, section 4.1).

Axes: `b` groups, `m n` slots, `h` heads, `l` tokens, `d` dimension of a head, `r` random features. Plain PyTorch computes in
float32 at least, also under autocast; on GPUs Triton kernels compute the same where they can. Causal attention and its steps are
in `mimoformer.causal`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mimoformer.bundles import (
    any_real,
    bind_real_tokens,
    check_alike,
    check_mask,
    check_operands,
    check_scale,
    divide_or_zero,
    key_features,
    mark_padding,
    query_features,
    sum_own_tokens,
    unbind_slots,
)
from mimoformer.causal import favor_s_blurry_step, favor_s_shared_step, favor_s_step
from mimoformer.dispatch import Form, Implementation, uses_triton
from mimoformer.features import AnyFeatureMap, ReLUFeatures
from vsa_core import checks
from vsa_core.autocast import autocast_off

__all__ = [
    "favor_s",
    "favor_s_blurry",
    "favor_s_blurry_step",
    "favor_s_shared",
    "favor_s_shared_step",
    "favor_s_step",
    "linear_attention",
    "softmax_attention",
]


def favor_s(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b m n h l d"]:
    """Attend within m x n sequences in superposition: Eq. 19 with one denominator per slot (Menet et al., 2023).

    Padding contributes nothing, whatever q, k and v hold there (NaN too), also where it shares a bundle with real tokens; its
    own output is 0. The output is also 0 where a denominator is 0, or lost to rounding beside the weight of its bundle.

    Args:
        q: queries of every slot, not yet bound.
        k: attention keys of every slot, not yet bound.
        v: values of every slot, not yet bound.
        keys: bipolar binding keys.
        feature_map: phi, a plain function or a `mimoformer.features.FeatureMap`.
        mask: True where a token is real; all tokens are real by default.
        causal: whether a token sees only itself and earlier tokens. Memory grows linearly with l either way.
        chunk: tokens per chunk of plain causal attention, which compares all pairs of tokens within a chunk.
        scale: what queries and keys are multiplied by.
        implementation: "plain" PyTorch, or "triton" for fused kernels, on NVIDIA GPUs from Ampere on; "auto" takes the kernels
            where `mimoformer.dispatch.why_plain` knows no reason against it. They keep no features in memory, multiply numbers
            in the precision of q (`mimoformer.kernels.favor`), and are one operator to autograd: gradients cannot be
            differentiated again or computed in a batch (`is_grads_batched`), and neither the output nor the feature map may be
            changed in place before the backward pass.

    Returns:
        Attention of every slot, unbound, in the dtype of v.

    Raises:
        ValueError: shapes do not fit, or the implementation that is asked for cannot compute this.
        TypeError: q, k, v or keys are not floating point, the mask is not boolean, the scale is a tensor, or causal attention is
            asked of a feature map that stabilises keys over all tokens.
    """
    check_operands(q, k, v, keys, mask)
    if uses_triton(implementation, q, k, v, keys, feature_map, causal):
        return attend_by_kernels([x.transpose(3, 4) for x in (q, k, v)], keys, feature_map, mask, scale, "grid", causal, chunk)
    if causal:
        return favor_s_step(q, k, v, keys, feature_map, mask=mask, chunk=chunk, scale=scale, implementation="plain")[0]
    dtype = v.dtype
    with autocast_off(q):
        q, k, v = bind_real_tokens(q, k, v, keys, mask, scale)
        q, k, v = q.sum(1), k.sum(2), v.sum(2)  # bundle queries over m, keys and values over n
        phi_q, phi_k = query_features(feature_map, q, any_real(mask, 1)), key_features(feature_map, k, any_real(mask, 2))
        context = einsum(phi_k, v, "b m h l r, b m h l d -> b h r d")  # A of Eq. 19
        total = phi_k.sum(-2)
        own = sum_own_tokens(phi_k, total, mask, keys.shape[:2])
        numerator = einsum(phi_q, context, "b n h l r, b h r d -> b n h l d")
        denominator = einsum(phi_q, own, "b n h l r, b m n h r -> b m n h l")
        whole = einsum(phi_q, total.sum(1), "b n h l r, b h r -> b n h l")
        return unbind_slots(divide_or_zero(numerator[:, None], denominator, whole[:, None]), keys, mask).to(dtype)


def attend_by_kernels(
    parts: Sequence[Float[Tensor, "b m n l ..."]],
    keys: Float[Tensor, "m n d"],
    feature_map: Any,
    mask: Bool[Tensor, "b m n l"] | None,
    scale: float,
    form: Form,
    causal: bool,
    chunk: int = 64,
) -> Float[Tensor, "b *slots h l d"]:
    """Attend by Triton kernels, which take the parts of `mimoformer.kernels.operator.favor` and features that they know."""
    from mimoformer.kernels.operator import favor

    check_scale(scale)
    if causal:
        checks.positive(chunk=chunk)
    phi = getattr(feature_map, "_orig_mod", feature_map)  # compiled or not
    eps = phi.eps if isinstance(phi, ReLUFeatures) else None
    return favor(parts, keys, phi.projection, scale * keys.shape[-1] ** -0.25, mask, eps, form, causal).transpose(-3, -2)


def favor_s_shared(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b n h l d"]:
    """Attend as `favor_s` does, but stay bound and bundled over m: one denominator per n, the sum over its slots.

    What `keys` unbind from the output is therefore about 1/m of each slot's attention, as in the published att.+MLP variant.
    Arguments and errors are those of `favor_s`; the output is 0 where no token of a bundle is real.
    """
    check_operands(q, k, v, keys, mask)
    if uses_triton(implementation, q, k, v, keys, feature_map, causal):
        return attend_by_kernels([x.transpose(3, 4) for x in (q, k, v)], keys, feature_map, mask, scale, "shared", causal, chunk)
    if causal:
        return favor_s_shared_step(q, k, v, keys, feature_map, mask=mask, chunk=chunk, scale=scale, implementation="plain")[0]
    dtype = v.dtype
    with autocast_off(q):
        q, k, v = bind_real_tokens(q, k, v, keys, mask, scale)
        q, k, v = q.sum(1), k.sum(2), v.sum(2)  # bundle queries over m, keys and values over n
        phi_q, phi_k = query_features(feature_map, q, any_real(mask, 1)), key_features(feature_map, k, any_real(mask, 2))
        context = einsum(phi_k, v, "b m h l r, b m h l d -> b h r d")
        total = phi_k.sum(-2)
        own = sum_own_tokens(phi_k, total, mask, keys.shape[:2])
        numerator = einsum(phi_q, context, "b n h l r, b h r d -> b n h l d")
        denominator = einsum(phi_q, own.sum(1, keepdim=True), "b n h l r, b m n h r -> b m n h l")[:, 0]  # m is 1
        whole = einsum(phi_q, total.sum(1), "b n h l r, b h r -> b n h l")
        return divide_or_zero(numerator, denominator, whole).to(dtype)


def favor_s_blurry(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: AnyFeatureMap,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b m n h l d"]:
    """Attend once for all m x n sequences ("blurry attention"): queries, keys and values are each bundled over the whole grid.

    This divides the cost of attention by m n, where `favor_s` divides it by about the side of the grid. The price is that two
    tokens have one weight, which all slots share, as in `mimoformer.blurring.superposed_softmax`. Denominators, masks, arguments
    and errors are those of `favor_s`: each slot divides by the weight of its own real tokens.
    """
    check_operands(q, k, v, keys, mask)
    if uses_triton(implementation, q, k, v, keys, feature_map, causal):
        return attend_by_kernels([x.transpose(3, 4) for x in (q, k, v)], keys, feature_map, mask, scale, "blurry", causal, chunk)
    if causal:
        return favor_s_blurry_step(q, k, v, keys, feature_map, mask=mask, chunk=chunk, scale=scale, implementation="plain")[0]
    dtype = v.dtype
    with autocast_off(q):
        q, k, v = (x.sum((1, 2))[:, None] for x in bind_real_tokens(q, k, v, keys, mask, scale))  # bundle over the whole grid
        real = None if mask is None else mask.any(1).any(1, keepdim=True)
        phi_q, phi_k = query_features(feature_map, q, real), key_features(feature_map, k, real)  # m and n have length 1 from here
        context = einsum(phi_k, v, "b m h l r, b m h l d -> b h r d")
        total = phi_k.sum(-2)
        numerator = einsum(phi_q, context, "b n h l r, b h r d -> b n h l d")
        denominator = whole = einsum(phi_q, total.sum(1), "b n h l r, b h r -> b n h l")[:, None]
        if mask is not None:
            own = sum_own_tokens(phi_k, total, mask, keys.shape[:2])
            denominator = einsum(phi_q[:, 0], own, "b h l r, b m n h r -> b m n h l")
        return unbind_slots(divide_or_zero(numerator[:, None], denominator, whole), keys, mask).to(dtype)


def linear_attention(
    q: Float[Tensor, "b h l d"],
    k: Float[Tensor, "b h l d"],
    v: Float[Tensor, "b h l d"],
    feature_map: AnyFeatureMap,
    mask: Bool[Tensor, "b l"] | None = None,
    *,
    causal: bool = False,
    chunk: int = 64,
    scale: float = 1.0,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b h l d"]:
    """Attend within sequences that share nothing: FAVOR+ (Choromanski et al., 2021), which is `favor_s` on a grid of 1 x 1.

    Arguments are those of `favor_s` without the grid.

    Raises:
        ValueError: shapes do not fit.
        TypeError: q, k or v is not floating point, or the mask is not boolean.

    >>> import torch
    >>> from mimoformer.features import ReLUFeatures
    >>> q, k, v = torch.randn(3, 2, 8, 100, 64).unbind()
    >>> linear_attention(q, k, v, ReLUFeatures(64), causal=True).shape
    torch.Size([2, 8, 100, 64])
    """
    checks.vectors(q=q, k=k, v=v)
    check_alike(q, k, v, q.dim() == 4, "(b, h, l, d)")
    if mask is not None:
        check_mask(mask, (q.shape[0], q.shape[2]), "b, l")
    q, k, v = (x[:, None, None] for x in (q, k, v))
    real = None if mask is None else mask[:, None, None]
    keys = q.new_ones(1, 1, q.shape[-1])
    out = favor_s(q, k, v, keys, feature_map, real, causal=causal, chunk=chunk, scale=scale, implementation=implementation)
    return out[:, 0, 0]


def softmax_attention(
    q: Float[Tensor, "*b h l d"],
    k: Float[Tensor, "*b h l d"],
    v: Float[Tensor, "*b h l d"],
    mask: Bool[Tensor, "*b l"] | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "*b h l d"]:
    """Attend exactly, by softmax, within sequences that share nothing (Vaswani et al., 2017): the baseline.

    Masks and causality leave PyTorch's fused kernels possible, whose memory is linear in l. Padding contributes nothing and gives
    0, as in `favor_s`. Weights are set to 0 with probability `dropout`, after the softmax; the others are divided by
    1 - dropout. The output has the promoted type of q, k and v, or that of autocast.

    On CPUs and GPUs second derivatives and forward-mode differentiation need PyTorch's kernel for them:
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Raises:
        ValueError: q, k and v differ in shape, or the mask does not fit them.
        TypeError: q, k or v is not floating point, or the mask is not boolean.
    """
    checks.floating(q=q, k=k, v=v)
    check_alike(q, k, v, q.dim() >= 3, "(..., h, l, d)")
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    shape, d, padding = v.shape, v.shape[-1], None
    if mask is not None:
        check_mask(mask, (*shape[:-3], shape[-2]), "..., l")
        padding = rearrange(~mask, "... l -> ... 1 l 1")
        q, k, v = q.masked_fill(padding, 0), k.masked_fill(padding, 0), v.masked_fill(padding, 0)
        q, k = mark_padding(q, k, mask)
        v = F.pad(v, (0, q.shape[-1] - d))  # the flash kernel wants q, k and v of one size
    # PyTorch leaves its fused kernels for more than four axes, and for a causal mask that hides padding too.
    q, k, v = (rearrange(x, "... h l d -> (...) h l d") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout, scale=d**-0.5)
    out = out[..., :d].reshape(shape)
    return out if padding is None else out.masked_fill(padding, 0)
