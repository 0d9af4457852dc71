"""FAVOR+S: linear attention over a grid of m x n sequences in superposition (Menet et al., 2023, section 4.1).

Axes: `b` groups, `m n` slots, `h` heads, `l` tokens, `d` dimension of a head, `r` features. Queries are bundled over m, keys and
values over n, so that one matrix A of Eq. 19 serves all slots. Everything is computed in float32 at least, also under autocast.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mimoformer.bundles import (
    FeatureMap,
    Sums,
    bind_and_bundle,
    check,
    check_mask,
    divide,
    exact,
    query_features,
    read,
    sums,
    unbind,
)
from mimoformer.causal import State, scan
from vsa_core import checks


def favor_s(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: FeatureMap,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b m n h l d"]:
    """Attention of m x n sequences in superposition, Eq. 19 with a denominator for every slot (Menet et al., 2023).

    A token that is not real contributes nothing, whatever q, k and v hold there (NaN too), also where it shares a bundle with
    real tokens; its own output is 0. So is that of a token whose denominator is 0, or lost to rounding beside its bundle's.

    Args:
        q, k, v: queries, keys and values of every slot, not yet bound.
        keys: binding keys, bipolar.
        feature_map: phi, see `mimoformer.features`.
        mask: True where a token is real; all are unless given.
        causal: whether a token sees only itself and those before it. Memory then grows with l as without.

    Returns:
        Attention of every slot, unbound, in the type of v.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: q, k, v or keys are not floating point, the mask is not boolean, or the feature map has a stabiliser for
            keys but none for causal attention.
    """
    if causal:
        return step(q, k, v, keys, feature_map, mask=mask)[0]
    check(q, k, v, keys, mask)
    with exact(q):
        bundles = bind_and_bundle(q, k, v, keys, mask)
        return unbind(read(query_features(bundles, feature_map), sums(bundles, feature_map)), keys, mask).to(v.dtype)


def favor_s_shared(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: FeatureMap,
    mask: Bool[Tensor, "b m n l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b n h l d"]:
    """The same, still bound and bundled over m: one denominator for each n, the sum of those of its slots.

    So what `keys` unbind from it is about 1/m of each slot's attention, as in the published att.+MLP variant. Arguments and
    errors as for `favor_s`; the output is 0 where no token of a bundle is real.
    """
    if causal:
        return step_shared(q, k, v, keys, feature_map, mask=mask)[0]
    check(q, k, v, keys, mask)
    with exact(q):
        bundles = bind_and_bundle(q, k, v, keys, mask)
        context, total, whole = sums(bundles, feature_map)
        shared = Sums(context, total.sum(1, keepdim=True), whole)
        value, weight, whole = read(query_features(bundles, feature_map), shared)
        return divide(value, weight[:, 0], whole).to(v.dtype)


def step(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: FeatureMap,
    state: State | None = None,
    mask: Bool[Tensor, "b m n l"] | None = None,
) -> tuple[Float[Tensor, "b m n h l d"], State]:
    """Causal `favor_s` of the next tokens, one or more, after those that `state` holds.

    Any split of a sequence into steps gives what `favor_s(..., causal=True)` gives for the whole. Time and memory of a step
    do not depend on how many tokens came before.

    Args:
        state: what the last step returned; none for the first tokens.
        mask: of these tokens. Otherwise as for `favor_s`.

    Returns:
        Attention of these tokens, and the state after them.

    Raises:
        ValueError: the state is of other sizes; and all that `favor_s` raises.
        TypeError: the state is none; and all that `favor_s` raises.
    """
    check(q, k, v, keys, mask)
    with exact(q):
        quotients, state = scan(bind_and_bundle(q, k, v, keys, mask), feature_map, state)
        return unbind(quotients, keys, mask).to(v.dtype), state


def step_shared(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    feature_map: FeatureMap,
    state: State | None = None,
    mask: Bool[Tensor, "b m n l"] | None = None,
) -> tuple[Float[Tensor, "b n h l d"], State]:
    """Causal `favor_s_shared` of the next tokens; everything else as in `step`."""
    check(q, k, v, keys, mask)
    with exact(q):
        (value, weight, whole), state = scan(bind_and_bundle(q, k, v, keys, mask), feature_map, state)
        return divide(value, weight.sum(1), whole).to(v.dtype), state


def linear_attention(
    q: Float[Tensor, "b h l d"],
    k: Float[Tensor, "b h l d"],
    v: Float[Tensor, "b h l d"],
    feature_map: FeatureMap,
    mask: Bool[Tensor, "b l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "b h l d"]:
    """Attention of one sequence alone (FAVOR+, Choromanski et al., 2021, Eq. 10 of the paper): `favor_s` on a grid of 1 x 1.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: q, k or v is not floating point, or the mask is not boolean.

    >>> import torch
    >>> from mimoformer.features import ReLUFeatures
    >>> q, k, v = torch.randn(3, 2, 8, 100, 64).unbind()
    >>> linear_attention(q, k, v, ReLUFeatures(64), causal=True).shape
    torch.Size([2, 8, 100, 64])
    """
    checks.vectors(q=q, k=k, v=v)
    check_alike(q, k, v, q.dim() == 4, "b, h, l, d")
    if mask is not None:
        check_mask(mask, (q.shape[0], q.shape[2]), "b, l")
    q, k, v = (x[:, None, None] for x in (q, k, v))
    real = None if mask is None else mask[:, None, None]
    return favor_s(q, k, v, q.new_ones(1, 1, q.shape[-1]), feature_map, real, causal=causal)[:, 0, 0]


def softmax_attention(
    q: Float[Tensor, "*b h l d"],
    k: Float[Tensor, "*b h l d"],
    v: Float[Tensor, "*b h l d"],
    mask: Bool[Tensor, "*b l"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "*b h l d"]:
    """Exact attention of sequences that share nothing (Vaswani et al., 2017): the baseline.

    What is not real contributes nothing and gives 0, as in `favor_s`.

    Raises:
        ValueError: q, k and v, or the mask, differ in shape.
        TypeError: q, k or v is not floating point, or the mask is not boolean.
    """
    checks.floating(q=q, k=k, v=v)
    check_alike(q, k, v, q.dim() >= 3, "..., h, l, d")
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    check_mask(mask, (*q.shape[:-3], q.shape[-2]), "..., l")
    padding = ~mask[..., None, :, None]
    q, k, v = q.masked_fill(padding, 0), k.masked_fill(padding, 0), v.masked_fill(padding, 0)
    seen = mask[..., None, None, :]
    if causal:
        seen = seen & torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    # a query that sees nothing may see all: its value is 0 or dropped; of nothing, CUDA's half-precision gradient is no number
    seen = seen | ~seen.any(-1, keepdim=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).masked_fill(padding, 0)


def check_alike(q: Tensor, k: Tensor, v: Tensor, fits: bool, axes: str) -> None:
    """Raise ValueError unless the number of axes fits and all three have one shape."""
    if not fits or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}: all must be ({axes}), the same")
