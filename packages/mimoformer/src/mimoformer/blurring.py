"""What FAVOR+S avoids: one softmax attention for all sequences, whose weights they have to share (Menet et al., 2023, section 4).

For comparison only; a network that attends like this blurs its slots, whatever their dimension. `mimoformer.attention.
favor_s_blurry` is the same with linear attention.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mimoformer.bundles import bind_real_tokens, check_operands, mark_padding, unbind_slots
from vsa_core.autocast import autocast_off

__all__ = ["superposed_softmax"]


def superposed_softmax(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b m n h l d"]:
    """Attend by softmax over the sum of all slots, and unbind with each slot's key, as DataMUX does (Murahari et al., 2022).

    With Q_i, K_j, V_j the **sums** over all slots s of q_i^s a^s, k_j^s a^s, v_j^s a^s, slot s gets
    a^s sum_j V_j w_ij, where w_i = softmax_j(<Q_i, K_j> / sqrt(d)): one weight for each pair of tokens, the same for all s.
    With sums, a slot's own score enters the exponent, and its own value the output, at full size, as in `favor_s`. DataMUX takes
    **means**, which divide exponents by (m n)^2 and outputs by m n: weights of another sharpness, but still shared by all slots.

    Masks act as in `favor_s`: padding contributes nothing and gives 0, and each slot is divided by the sum of w_ij over its own
    real tokens, which is 1 without masks. The output is 0 where that sum is lost to rounding.

    Args:
        q: queries of every slot, not yet bound.
        k: attention keys of every slot, not yet bound.
        v: values of every slot, not yet bound.
        keys: bipolar binding keys a.
        mask: True where a token is real; all tokens are real by default.
        causal: whether a token sees only itself and earlier tokens.

    Returns:
        Attention of every slot, unbound, in the dtype of v.

    Raises:
        ValueError: shapes do not fit.
        TypeError: q, k, v or keys are not floating point, or the mask is not boolean.
    """
    check_operands(q, k, v, keys, mask)
    dtype, (b, m, n, heads, length, d) = v.dtype, q.shape
    with autocast_off(q):
        q, k, v = (x.sum((1, 2)) for x in bind_real_tokens(q, k, v, keys, mask))
        real = v.new_ones(b, m, n, length) if mask is None else mask.to(v.dtype)
        if mask is not None:
            q, k = mark_padding(q, k, mask.any(1).any(1))
        marks = rearrange(real, "b m n l -> b 1 l (m n)").expand(-1, heads, -1, -1)
        attended = F.scaled_dot_product_attention(q, k, torch.cat([v, marks], -1), is_causal=causal, scale=d**-0.5)
        value, share = attended[..., :d], rearrange(attended[..., d:], "b h l (m n) -> b m n h l 1", m=m)
        # As in favor_s, where a slot's share is lost to rounding, so is what the sum holds of its values.
        share = share.masked_fill(share <= 8 * torch.finfo(share.dtype).eps, torch.inf)
        return unbind_slots(value[:, None, None] / share, keys, mask).to(dtype)
