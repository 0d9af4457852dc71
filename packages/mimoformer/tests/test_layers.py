"""SuperposedAttention in networks of one's own."""

from functools import partial

import loops
import published
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mimoformer import SuperposedAttention
from mimoformer.layers import BlurryAttention, SharedAttention, SoftmaxAttention

LAYERS = {"per slot": SuperposedAttention, "shared": SharedAttention, "blurry": BlurryAttention}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def layer(kind="per slot", **options):
    return LAYERS[kind](12, 2, 2, 3, **{"head_dim": 4, "features": 8, **options}).double()


def heads(attention, x):
    """Queries, keys and values (b m n h l d) as they are projected."""
    return (part.unflatten(-1, (2, 4)).movedim(-2, 3) for part in attention.qkv(x).split(8, -1))


@pytest.mark.parametrize(("m", "n"), [(2, 3), (1, 2), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", ["relu", "dpfp"])
@every_layer
def test_a_layer_is_its_projections_around_the_loops(kind, feature_map, causal, m, n):
    """On any grid, with the first keys; q and k are divided by sqrt(m n), and before ReLU features by d^(1/4) too."""
    attention, x = layer(kind, causal=causal, feature_map=feature_map), torch.randn(2, m, n, 5, 12, dtype=torch.float64)
    mask = torch.rand(2, m, n, 5) < 0.7
    q, k, v = heads(attention, x)
    scale = (m * n) ** -0.5 * (4**-0.25 if feature_map == "relu" else 1)
    q, k, keys, phi = q * scale, k * scale, attention.keys[:m, :n], attention.feature_map
    if feature_map == "dpfp":
        phi = partial(loops.dpfp, nu=3, eps=1e-3)
    if kind == "blurry":
        attended = loops.blurry(q, k, v, keys, lambda query, key: phi(key) @ phi(query), mask, causal=causal)
    else:
        attended = loops.favor_s(q, k, v, keys, phi, mask, causal=causal, shared=kind == "shared")
    expected = attended.movedim(-3, -2).flatten(-2) @ attention.out.weight.mT + attention.out.bias
    assert_close(attention(x, mask), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_a_nan_reaches_its_own_pass_alone(causal):
    """All sequences of it, and with causal attention all their tokens but the earlier ones."""
    attention, x = layer(causal=causal), torch.randn(3, 2, 3, 5, 12, dtype=torch.float64)
    expected = attention(x)
    x[1, 0, 1, 2, 4] = torch.nan
    found = attention(x)
    assert found[1, :, :, 2 * causal :].isnan().all()
    for place in (0, 2):
        assert_close(found[place], expected[place])


@pytest.mark.parametrize("side", [1, 2])
@every_layer
def test_relu_features_are_scaled_as_published(kind, side):
    """1/sqrt(sqrt(d) m n) before binding and d^(-1/4) in the map, beside which 0.001 is what it is in the authors' code."""
    attention, x = layer(kind), torch.randn(2, side, side, 4, 12, dtype=torch.float64)
    q, k, v = heads(attention, x)
    keys, projection = attention.keys[:side, :side], attention.feature_map.projection
    if kind == "blurry":  # which they do not have
        scale = (2 * side * side) ** -0.5
        real, phi = torch.ones(x.shape[:-1], dtype=torch.bool), partial(published.features, projection=projection)
        attended = loops.blurry(q * scale, k * scale, v, keys, lambda query, key: phi(key) @ phi(query), real, causal=False)
    else:
        attended = published.attention(q, k, v, keys, projection, shared=kind == "shared")
    expected = attended.movedim(-3, -2).flatten(-2) @ attention.out.weight.mT + attention.out.bias
    assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3)])
def test_softmax_attention_has_its_own_temperature(m, n):
    """softmax(q k / sqrt(d)) of sequences that share nothing, however many there are."""
    attention, x = SoftmaxAttention(12, 2, head_dim=4).double(), torch.randn(2, m, n, 5, 12, dtype=torch.float64)
    q, k, v = heads(attention, x)
    weights = (q @ k.mT / 2).softmax(-1)
    expected = (weights @ v).movedim(-3, -2).flatten(-2) @ attention.out.weight.mT + attention.out.bias
    assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


@every_layer
def test_steps_give_the_whole(kind):
    attention, x = layer(kind, causal=True), torch.randn(2, 2, 3, 6, 12, dtype=torch.float64)
    mask, state, outs = torch.rand(2, 2, 3, 6) < 0.7, None, []
    for part in torch.arange(6).split([1, 3, 2]):
        out, state = attention.step(x[..., part, :], state, mask[..., part])
        outs.append(out)
    assert_close(torch.cat(outs, -2), attention(x, mask), rtol=1e-10, atol=1e-10)


def test_feature_maps_of_ones_own():
    """A plain function, and a module, whose parameters are then the layer's."""
    x = torch.randn(2, 2, 3, 5, 12, dtype=torch.float64)
    plain = layer(feature_map=torch.exp)
    assert plain(x).isfinite().all()

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, x):
            return self.linear(x).exp()

    learned = layer(feature_map=Learned())
    learned(x).square().sum().backward()
    assert learned.feature_map.linear.weight.grad.abs().sum() > 0


def test_projections_of_a_trained_network_are_taken_over():
    trained = SoftmaxAttention(12, 2)
    attention = SuperposedAttention(12, 2, 1, 1, features=4096, feature_map="positive", projections=(trained.qkv, trained.out))
    assert attention.qkv is trained.qkv
    assert attention.keys.shape == (1, 1, 6)
    x = torch.randn(2, 1, 1, 7, 12) / 4
    assert (attention(x) - trained(x)).norm() < 0.05 * trained(x).norm()  # so many features are close to softmax


PROJECTIONS = nn.Linear(12, 24), nn.Linear(8, 12)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"m": 0}, ValueError, "m must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, r"n must be a whole number, got 2\.0"),
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"heads": 5}, ValueError, "embed_dim 12 is not divisible by heads 5; change either, or give head_dim"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"features": 2.0, "feature_map": "dpfp"}, TypeError, r"features must be a whole number, got 2\.0"),
        ({"nu": 0}, ValueError, "nu must be at least 1, got 0"),
        ({"causal": 1}, TypeError, "causal"),
        ({"trainable_keys": None}, TypeError, "trainable_keys"),
        ({"feature_map": 3}, TypeError, "feature_map is 3; expected a name, a function or a module"),
        ({"projections": PROJECTIONS, "heads": True}, TypeError, "heads must be a whole number, got True"),
        ({"projections": PROJECTIONS, "heads": 3}, ValueError, r"projections map \[\(12, 24\), \(8, 12\)\]; expected 12 to 36"),
        (
            {"feature_map": "softmax"},
            ValueError,
            "feature_map is 'softmax'; expected relu, positive, dpfp, a function or a module",
        ),
    ],
)
def test_layers_that_cannot_be_made(options, error, named):
    with pytest.raises(error, match=named):
        SuperposedAttention(**{"embed_dim": 12, "heads": 2, "m": 2, "n": 3, **options})


@pytest.mark.unchecked
@every_layer
def test_embeddings_that_do_not_fit(kind):
    attention = layer(kind)
    for shape in [(2, 2, 3, 5, 8), (2, 3, 5, 12)]:
        with pytest.raises(ValueError, match=r"x has shape .*; expected embeddings \(b, m, n, l, 12\)"):
            attention(torch.zeros(shape).double())
    with pytest.raises(ValueError, match="a grid of 3 x 3 sequences is too large; there are keys for 2 x 3"):
        attention(torch.zeros(2, 3, 3, 5, 12).double())
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2, 3, 4\)"):
        attention(torch.zeros(2, 2, 3, 5, 12).double(), torch.ones(2, 2, 3, 4).bool())
    for x, found in ((torch.zeros(2, 2, 3, 5, 12).long(), "int64"), ([1.0], "list")):
        with pytest.raises(TypeError, match=f"x is .*{found}; it must be a tensor of floating-point embeddings"):
            attention(x)


@every_layer
def test_steps_need_causal_attention(kind):
    with pytest.raises(ValueError, match="make the layer with causal=True"):
        layer(kind, causal=False).step(torch.zeros(2, 2, 3, 1, 12).double())


@pytest.mark.parametrize("causal", [False, True])
@every_layer
def test_padding_of_nan_leaves_gradients_alone(kind, causal):
    """They are those with padding of 0."""
    attention = layer(kind, causal=causal)
    mask = torch.rand(2, 2, 3, 5) < 0.7
    mask[..., 0] = True
    x, gradients = torch.randn(2, 2, 3, 5, 12).double(), []
    for padding in (float("nan"), 0.0):
        attention.zero_grad()
        out = attention(x.masked_fill(~mask[..., None], padding), mask)
        out[mask.any(1) if out.dim() == 4 else mask].square().sum().backward()
        gradients.append([parameter.grad for parameter in attention.parameters() if parameter.grad is not None])
    for with_nan, with_zeros in zip(*gradients, strict=True):
        assert_close(with_nan, with_zeros)
