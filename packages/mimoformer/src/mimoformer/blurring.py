"""What FAVOR+S avoids: one softmax attention over bundles, whose weights all slots have to share (Menet et al., 2023, section 4).

Here for comparison only: a network that attends like this blurs its slots, whatever their dimension.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mimoformer.bundles import bind_and_bundle, check, exact


def superposed_softmax(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b m n h l d"]:
    """Softmax attention over the sum of all slots, unbound with every slot's key, as in DataMUX (Murahari et al., 2022).

    With Q_i, K_j, V_j the **sums** over all slots s of q_i^s a^s, k_j^s a^s, v_j^s a^s, slot s gets
    a^s sum_j V_j w_ij, where w_i = softmax_j(<Q_i, K_j> / sqrt(d)): one scalar for each pair of tokens, the same for all s.
    With sums a slot's own score enters the exponent, and its own value the output, at full size, as in `favor_s`. DataMUX has
    **means**, which divide exponents by (m n)^2 and outputs by m n: another sharpness of the weights, but still one for all.

    Masks are as in `favor_s`: a token that is not real contributes nothing, and every slot is divided by the sum of w_ij over
    its own real tokens. Without masks that is 1. A token that is not real gives 0, and so does a sum that is lost to rounding.

    Args:
        q, k, v: queries, keys and values of every slot, not yet bound.
        keys: binding keys a, bipolar.
        mask: True where a token is real; all are unless given.
        causal: whether a token sees only itself and those before it.

    Returns:
        Attention of every slot, unbound, in the type of v.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: q, k, v or keys are not floating point, or the mask is not boolean.
    """
    check(q, k, v, keys, mask)
    with exact(q):
        bundles = bind_and_bundle(q, k, v, keys, mask)
        sum_q, sum_k, sum_v = bundles.q.sum(1), bundles.k.sum(1), bundles.v.sum(1)
        b, m, n, heads, length, d = q.shape
        real = sum_v.new_ones(b, m, n, length) if bundles.real is None else bundles.real
        seen = rearrange(real.any(1).any(1), "b l -> b 1 1 l")
        if causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        # a query that sees nothing may see all: it is not real, so its output is dropped; the softmax of nothing is not a number
        seen = seen | ~seen.any(-1, keepdim=True)
        marks = rearrange(real, "b m n l -> b 1 l (m n)").expand(-1, heads, -1, -1)
        attended = F.scaled_dot_product_attention(sum_q, sum_k, torch.cat([sum_v, marks], -1), attn_mask=seen)
        value, share = attended[..., :d], rearrange(attended[..., d:], "b h l (m n) -> b m n h l 1", m=m)
        # as in favor_s: where a slot's share is lost to rounding, so is what the sum holds of its values
        share = share.masked_fill(share <= 8 * torch.finfo(share.dtype).eps, torch.inf)
        out = value[:, None, None] / share * rearrange(keys.to(value.dtype), "m n d -> m n 1 1 d")
        return (out if mask is None else out.masked_fill(rearrange(~mask, "b m n l -> b m n 1 l 1"), 0)).to(v.dtype)
