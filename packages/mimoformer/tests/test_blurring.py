"""Superposed softmax gives all slots the same attention weights; FAVOR+S gives each its own, the better the larger the dim.

Attention keys are rows of a Hadamard matrix, the same in all slots: orthogonal, and with evenly spread coordinates. The query of
token i is a copy of the key of the token that it looks for, i + 1 in the first slot, i + 2 in the second, and so on. Exact
attention then gives that token 0.89 at every dim, and the other seven 0.02 each.
"""

import math

import loops
import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from mimoformer.attention import favor_s, favor_s_blurry, linear_attention, softmax_attention
from mimoformer.blurring import superposed_softmax
from mimoformer.bundles import bind_real_tokens
from vsa_core import hadamard

TOKENS, SCORE = 8, 4.0
"""Of a sequence, and <q, k> / sqrt(dim) of a query and the key it looks for."""
SHARE = (math.exp(SCORE) - 1) / (math.exp(SCORE) + TOKENS - 1)
"""Total variation between the exact weights of two slots: 0.87, what one gives to its token more than the other does."""


def sequences(m, n, dim, seed):
    """Queries and keys (1 m n 1 l d), and binding keys (m n d); dim a power of 2."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.ones(TOKENS, 1, dtype=torch.float64)
    number = torch.randperm(dim, generator=generator)[:TOKENS, None]
    while rows.shape[1] < dim:
        rows = torch.cat([rows, torch.where(number & rows.shape[1] == 0, rows, -rows)], 1)
    k = math.sqrt(SCORE) * dim**-0.25 * rows
    q = torch.stack([k.roll(-slot - 1, 0) for slot in range(m * n)]).unflatten(0, (m, n))
    keys = hadamard.random_keys(m * n, dim, generator=generator, dtype=torch.float64).unflatten(0, (m, n))
    return q[None, :, :, None], k.expand_as(q)[None, :, :, None], keys


def weights(attend, q, k):
    """The map from a slot's own values to its own output (m n l l): values are the unit vectors there and 0 in other slots."""
    _, m, n, _, tokens, dim = q.shape
    out = torch.empty(m, n, tokens, tokens, dtype=q.dtype)
    for slot in [(row, column) for row in range(m) for column in range(n)]:
        v = torch.zeros_like(q)
        v[0, *slot, 0] = torch.eye(tokens, dim)
        out[slot] = attend(q, k, v)[0, *slot, 0, :, :tokens]
    return out


def exact_features(landmarks):
    """A map with phi(x) . phi(z) = exp(<x, z> / sqrt(d)) for any x and each landmark z: no error of the kernel."""
    scale = landmarks.shape[-1] ** -0.5
    inverse_root = torch.linalg.inv(torch.linalg.cholesky((landmarks @ landmarks.T * scale).exp()))
    return lambda x: (x @ landmarks.T * scale).exp() @ inverse_root.T


def kernel(q, k, keys):
    """Features for the bundles of FAVOR+S and for every sequence alone."""
    return exact_features(torch.cat([bind_real_tokens(q, k, k, keys, None)[1].sum(2).flatten(0, -2), k[0, 0, 0, 0]]))


def alone(q, k, phi):
    """Weights of every sequence alone, with the feature map phi (m n l l)."""
    _, m, n, _, tokens, dim = q.shape
    q, k = (rearrange(x, "1 m n 1 l d -> (m n) 1 l d") for x in (q, k))
    out = linear_attention(q, k, torch.eye(tokens, dim, dtype=q.dtype).expand_as(q), phi)
    return rearrange(out[..., :tokens], "(m n) 1 i j -> m n i j", m=m, n=n)


def distance(one, other):
    """Total variation between rows of weights: what share would have to move from token to token."""
    return (one - other).abs().sum(-1) / 2


def test_the_feature_map_is_exact_for_a_sequence_alone():
    """So that what is left of the error in superposition comes from the other slots."""
    q, k, keys = sequences(2, 2, 64, seed=0)
    assert_close(alone(q, k, kernel(q, k, keys)), weights(softmax_attention, q, k))


@pytest.mark.parametrize("sharpness", [0.25, 1, 4])
@pytest.mark.parametrize("dim", [64, 256, 1024])
@pytest.mark.parametrize(("m", "n"), [(2, 1), (1, 2), (2, 2)])
def test_superposed_softmax_blurs_at_every_dim(m, n, dim, sharpness):
    """One map for all slots. A map is at least half as far from two maps, on average, as these are from each other.

    So no dim and no sharpness (m n means for sums: 1 / (m n)^2) brings the mean error below SHARE / 2 = 0.43. No chance in it.
    """
    q, k, keys = sequences(m, n, dim, seed=0)
    exact = weights(softmax_attention, q, k)
    found = weights(lambda q, k, v: superposed_softmax(sharpness * q, k, v, keys), q, k)
    assert_close(found, found[:1, :1].expand_as(found))
    assert_close(distance(exact[0, 0], exact[-1, -1]), torch.full((TOKENS,), SHARE).double())
    assert distance(found, exact).mean() > SHARE / 2 - 1e-9


def test_blurry_attention_with_an_exact_kernel_is_superposed_softmax():
    q, k, keys = sequences(2, 2, 64, seed=0)
    phi = exact_features(bind_real_tokens(q, k, k, keys, None)[1].sum((1, 2))[0, 0])
    v = torch.randn_like(q)
    assert_close(favor_s_blurry(q, k, v, keys, phi), superposed_softmax(q, k, v, keys))


def error_of_favor_s(m, n, dim, seeds=50):
    """Mean distance of the weights from those of each sequence alone."""
    errors = []
    for seed in range(seeds):
        q, k, keys = sequences(m, n, dim, seed)
        phi = kernel(q, k, keys)
        found = weights(lambda q, k, v, keys=keys, phi=phi: favor_s(q, k, v, keys, phi), q, k)
        errors.append(distance(found, alone(q, k, phi)).mean())
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize(("m", "n"), [(2, 1), (1, 2), (2, 2)])
def test_favor_s_keeps_slots_apart_the_better_the_larger_the_dim(m, n):
    """Scores are off by noise of s.d. sigma = SCORE sqrt((m n - 1) / dim), and weights by at most half the largest of a row.

    The largest of l sub-Gaussian numbers is below sigma sqrt(2 ln 2l) on average. Errors of single seeds scatter by 15 to 70 %
    (measured), so means over 50 by up to 10 %, and the fall from dim 64 to 512, to 0.35, by up to 13 %: a third is allowed.
    """
    errors = {dim: error_of_favor_s(m, n, dim) for dim in (64, 512)}
    for dim, error in errors.items():
        assert error < math.sqrt(2 * math.log(2 * TOKENS)) / 2 * SCORE * math.sqrt((m * n - 1) / dim)
    assert errors[512] / errors[64] == pytest.approx(1 / math.sqrt(8), rel=1 / 3)
    assert errors[512] < SHARE / 2 / 10


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3)])
def test_superposed_softmax_is_its_definition(m, n, masked, causal):
    """With masks: tokens real in some slots only, in none, a slot with none, and what stands there is not a number."""
    q, k, v = torch.randn(3, 2, m, n, 2, 5, 4, dtype=torch.float64)
    keys = hadamard.random_keys(m * n, 4, dtype=torch.float64).unflatten(0, (m, n))
    mask = torch.ones(2, m, n, 5, dtype=torch.bool)
    if masked:
        mask = torch.rand(2, m, n, 5) < 0.6
        mask[0, ..., 0], mask[1, ..., 3], mask[1, -1, -1] = False, False, False
    expected = loops.blurry(q, k, v, keys, lambda query, key: (query @ key / 2).exp(), mask, causal=causal)
    padding = rearrange(~mask, "b m n l -> b m n 1 l 1")
    q, k, v = q.masked_fill(padding, torch.nan), k.masked_fill(padding, torch.nan), v.masked_fill(padding, torch.nan)
    assert_close(superposed_softmax(q, k, v, keys, mask if masked else None, causal=causal), expected)


def test_superposed_softmax_of_low_scores_is_not_lost_beside_padding():
    """A score of -50 would weigh nothing beside padding's 0."""
    q, v = torch.full((1, 1, 1, 1, 4, 4), 5.0), torch.randn(1, 1, 1, 1, 4, 4)
    mask = torch.tensor([True, True, False, False]).expand(1, 1, 1, 4)
    expected = v[..., :2, :].mean(-2, keepdim=True)
    assert_close(superposed_softmax(q, -q, v, torch.ones(1, 1, 4), mask)[..., :2, :], expected.expand(1, 1, 1, 1, 2, 4))


def test_superposed_softmax_has_gradients_where_nothing_is_real():
    q, k, v = torch.randn(3, 1, 2, 1, 1, 3, 4).unbind()
    mask = torch.tensor([[[[False, True, True]], [[False, True, False]]]])
    q.requires_grad_()
    superposed_softmax(q, k, v, torch.ones(2, 1, 4), mask, causal=True).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_superposed_softmax_of_half_types_returns_the_type_of_v():
    q, k, v = torch.randn(3, 1, 2, 2, 1, 3, 4).bfloat16()
    keys = hadamard.random_keys(4, 4).unflatten(0, (2, 2))
    out = superposed_softmax(q, k, v, keys)
    assert out.dtype == torch.bfloat16
    assert_close(out, superposed_softmax(q.float(), k.float(), v.float(), keys).bfloat16())


@pytest.mark.unchecked
def test_superposed_softmax_refuses_keys_that_do_not_fit():
    q = torch.randn(1, 2, 2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"keys have shape \(2, 1, 4\)"):
        superposed_softmax(q, q, q, torch.ones(2, 1, 4))
