"""Causal FAVOR+S: prefix sums in chunks, in memory linear in the length, and step by step in memory that does not grow."""

from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mimoformer.bundles import (
    Bundles,
    FeatureMap,
    Quotients,
    Sums,
    query_features,
    read,
    real_bundles,
    summed,
    without_padding,
)
from mimoformer.features import RunningKeys, lowest

CHUNK = 64
"""Tokens that are taken at a time: within a chunk every pair is compared, what lies before it is in sums."""


class State(NamedTuple):
    """All that causal attention keeps of the tokens so far: its size does not depend on how many there were."""

    sums: Sums
    """Over all of them."""
    log_scale: Float[Tensor, "b h"]
    """Logarithm of what the sums were divided by: 0, or the running stabiliser of the feature map."""


def scan(bundles: Bundles, feature_map: FeatureMap, state: State | None) -> tuple[Quotients, State]:
    """Numerators and denominators of every token, and the state after the last, chunk by chunk."""
    k, v, real = bundles.k, bundles.v, bundles.real
    if state is not None and not isinstance(state, State):
        raise TypeError(f"the state is a {type(state).__name__}; it must be what a step returned")
    if state is not None and state.log_scale.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"the state is of (b, h) = {tuple(state.log_scale.shape)}; these tokens are of {k.shape[0], k.shape[2]}")
    phi_q, (phi_k, log_scale) = query_features(bundles, feature_map), causal_key_features(bundles, feature_map, state)
    first = beginning(phi_q, phi_k, v)
    if state is not None and [x.shape for x in state.sums] != [x.shape for x in first.sums]:
        shapes, expected = ([tuple(x.shape) for x in sums] for sums in (state.sums, first.sums))
        raise ValueError(f"the state's sums have shapes {shapes}; these tokens need {expected}: (b h r d), (b m n h r), (b h r)")
    state, parts = state or first, []
    for start in range(0, k.shape[-2], CHUNK):
        here = slice(start, start + CHUNK)
        reals = None if real is None else real[..., here]
        part, state = advance(state, phi_q[..., here, :], phi_k[..., here, :], v[..., here, :], log_scale[..., here], reals)
        parts.append(part)
    value, weight, whole = zip(*parts, strict=True)
    return Quotients(torch.cat(value, -2), torch.cat(weight, -1), torch.cat(whole, -1)), state


def beginning(phi_q: Float[Tensor, "b n h l r"], phi_k: Float[Tensor, "b m h l r"], v: Float[Tensor, "b m h l d"]) -> State:
    """The state before any token."""
    b, m, h, _, r = phi_k.shape
    context, total, whole = (v.new_zeros(shape) for shape in ((b, h, r, v.shape[-1]), (b, m, phi_q.shape[1], h, r), (b, h, r)))
    return State(Sums(context, total, whole), v.new_full((b, h), lowest(v.dtype)))


def advance(
    state: State,
    phi_q: Float[Tensor, "b n h l r"],
    phi_k: Float[Tensor, "b m h l r"],
    v: Float[Tensor, "b m h l d"],
    log_scale: Float[Tensor, "b h l"],
    real: Float[Tensor, "b m n l"] | None,
) -> tuple[Quotients, State]:
    """One chunk: every pair of its tokens, and the sums over those before it, all brought to the scale of the query's token."""
    fade = (log_scale[..., None, :] - log_scale[..., None]).tril().exp().tril()  # twice: above the diagonal it may be infinite
    scores = einsum(phi_q, phi_k, "b n h i r, b m h j r -> b m n h i j") * fade[:, None, None]
    rows = scores.sum(-1)
    value = einsum(scores, v, "b m n h i j, b m h j d -> b n h i d")
    weight = rows if real is None else einsum(scores, real, "b m n h i j, b m n j -> b m n h i")
    before = read(phi_q, state.sums)
    fade = (state.log_scale[..., None] - log_scale).exp()[:, None]
    quotients = Quotients(
        value + before.value * fade[..., None], weight + before.weight * fade[:, None], rows.sum(1) + before.whole * fade
    )
    last = log_scale[..., -1].clone()  # a view would keep those of all tokens alive
    here = summed(phi_k * (log_scale - last[..., None]).exp()[:, None, ..., None], v, real, phi_q.shape[1])
    fade = (state.log_scale - last).exp()[..., None]
    context, total, whole = state.sums
    sums = Sums(here.context + context * fade[..., None], here.total + total * fade[:, None, None], here.whole + whole * fade)
    return quotients, State(sums, last)


def causal_key_features(bundles: Bundles, feature_map: FeatureMap, state: State | None) -> RunningKeys:
    """phi of the bundled keys, 0 where none of a bundle is real, and the logarithm of what each token's were divided by."""
    k, real = bundles.k, real_bundles(bundles)
    if hasattr(feature_map, "running_key"):
        phi_k, log_scale = feature_map.running_key(k, real, None if state is None else state.log_scale)
    elif hasattr(feature_map, "key"):
        raise TypeError(f"{type(feature_map).__name__} stabilises keys over all tokens: causal attention needs its running_key")
    else:
        phi_k, log_scale = feature_map(k), k.new_zeros(k.shape[0], k.shape[2], k.shape[3])
    return RunningKeys(without_padding(phi_k, real), log_scale)
