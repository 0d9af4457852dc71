"""Causal FAVOR+S: prefix sums in chunks, in memory linear in the length, and step by step in memory that does not grow."""

from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mimoformer.bundles import Bundles, FeatureMap, query_features, read, real_bundles, summed
from mimoformer.features import RunningKeys, lowest

CHUNK = 64
"""Tokens that are taken at a time: within a chunk every pair is compared, what lies before it is in sums."""


class State(NamedTuple):
    """All that causal attention keeps of the tokens so far: its size does not depend on how many there were."""

    context: Float[Tensor, "b h r d"]
    """A of Eq. 19: the sum of bundled values times the features of bundled keys."""
    total: Float[Tensor, "b m #n h r"]
    """Sum of the key features at each slot's own real tokens; without masks that is the same for all n, and kept once."""
    log_scale: Float[Tensor, "b h"]
    """Logarithm of what both were divided by: 0, or the running stabiliser of the feature map."""


def scan(
    bundles: Bundles, feature_map: FeatureMap, state: State | None
) -> tuple[Float[Tensor, "b n h l d"], Float[Tensor, "b m n h l"], State]:
    """Numerators, denominators and the state after the last token, chunk by chunk."""
    k, v, real = bundles.k, bundles.v, bundles.real
    phi_q, (phi_k, log_scale) = query_features(bundles, feature_map), causal_key_features(bundles, feature_map, state)
    shape = (k.shape[0], k.shape[2], phi_k.shape[-1], k.shape[-1])
    if state is None:
        b, m, h, r = k.shape[0], k.shape[1], k.shape[2], phi_k.shape[-1]
        state = State(k.new_zeros(shape), k.new_zeros(b, m, 1, h, r), k.new_full((b, h), lowest(k.dtype)))
    elif state.context.shape != shape:
        raise ValueError(f"the state is of (b, h, r, d) = {tuple(state.context.shape)}, but these tokens are of {shape}")
    values, weights = [], []
    for start in range(0, k.shape[-2], CHUNK):
        here = slice(start, start + CHUNK)
        reals = None if real is None else real[..., here]
        value, weight, state = advance(
            state, phi_q[..., here, :], phi_k[..., here, :], v[..., here, :], log_scale[..., here], reals
        )
        values.append(value)
        weights.append(weight)
    return torch.cat(values, -2), torch.cat(weights, -1), state


def advance(
    state: State,
    phi_q: Float[Tensor, "b n h l r"],
    phi_k: Float[Tensor, "b m h l r"],
    v: Float[Tensor, "b m h l d"],
    log_scale: Float[Tensor, "b h l"],
    real: Float[Tensor, "b m n l"] | None,
) -> tuple[Float[Tensor, "b n h l d"], Float[Tensor, "b m n h l"], State]:
    """One chunk: every pair of its tokens, and the sums over those before it, all brought to the scale of the query's token."""
    fade = (log_scale[..., None, :] - log_scale[..., None]).exp().tril()
    scores = einsum(phi_q, phi_k, "b n h i r, b m h j r -> b m n h i j") * fade[:, None, None]
    value = einsum(scores, v, "b m n h i j, b m h j d -> b n h i d")
    weight = scores.sum(-1) if real is None else einsum(scores, real, "b m n h i j, b m n j -> b m n h i")
    value_before, weight_before = read(phi_q, state.context, state.total)
    fade = (state.log_scale[..., None] - log_scale).exp()
    value, weight = value + value_before * fade[:, None, ..., None], weight + weight_before * fade[:, None, None]

    last = log_scale[..., -1].clone()  # a view would keep those of all tokens alive
    context, total = summed(phi_k * (log_scale - last[..., None]).exp()[:, None, ..., None], v, real)
    fade = (state.log_scale - last).exp()[..., None]
    return value, weight, State(context + state.context * fade[..., None], total + state.total * fade[:, None, None], last)


def causal_key_features(bundles: Bundles, feature_map: FeatureMap, state: State | None) -> RunningKeys:
    """phi of the bundled keys, and the logarithm of what each token's were divided by."""
    k = bundles.k
    if hasattr(feature_map, "running_key"):
        running: RunningKeys = feature_map.running_key(k, real_bundles(bundles), None if state is None else state.log_scale)
        return running
    if hasattr(feature_map, "key"):
        raise TypeError(f"{type(feature_map).__name__} stabilises keys over all tokens: causal attention needs its running_key")
    return RunningKeys(feature_map(k), k.new_zeros(k.shape[0], k.shape[2], k.shape[3]))
