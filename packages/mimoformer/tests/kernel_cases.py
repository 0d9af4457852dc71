"""The Triton kernels against plain attention in float64, on a GPU or in Triton's interpreter; run by test_kernels.py."""

import os

import pytest
import torch
from addresses import no_number_outside  # noqa: F401 (used by every test)

from mimoformer.attention import favor_s, favor_s_blurry, favor_s_shared, favor_s_step, linear_attention
from mimoformer.dispatch import why_plain
from mimoformer.features import PositiveFeatures, ReLUFeatures
from mimoformer.layers import BlurryAttention, SharedAttention, SuperposedAttention
from vsa_core import hadamard

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FORMS = {"grid": favor_s, "shared": favor_s_shared, "blurry": favor_s_blurry}
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = [torch.float32] if INTERPRETED else list(TOLERANCES)  # the interpreter multiplies all in float32
GRIDS = [(2, 2, dtype) for dtype in DTYPES] + [(*grid, DTYPES[-1]) for grid in ((1, 1), (3, 1), (1, 2), (4, 3))]
if not INTERPRETED:
    GRIDS += [(*grid, torch.bfloat16) for grid in ((1, 4), (4, 1), (2, 4), (4, 4), (6, 1), (1, 16))]
SHORT = [(length, DTYPES[0], masked) for length in (1, 63, 64, 65) for masked in (False, True)]
LONG = [(4095, torch.bfloat16, True), (4095, torch.float32, False), (65536, torch.bfloat16, False), (65536, torch.float32, False)]
LENGTHS = SHORT if INTERPRETED else SHORT + LONG


def distance(found, expected, left_out=0.0):
    """Relative distance, without a share of the vectors: those that are furthest apart."""
    apart, size = ((x**2).sum(-1).flatten() for x in (found.double() - expected, expected))
    kept = apart.argsort()[: round(len(apart) * (1 - left_out))]
    return (apart[kept].sum() / size[kept].sum().clamp_min(1e-60)).sqrt().item()


def operands(shape, dtype, masked=False, d=64, features=64, kind=ReLUFeatures):
    """Queries, keys and values (3 b m n h l d), binding keys, features and a mask; padding is poisoned."""
    b, m, n, h, length = shape
    x = torch.randn(3, b, m, n, h, length, d, device=DEVICE).to(dtype)
    keys = hadamard.random_keys(m * n, d, device=DEVICE).unflatten(0, (m, n))
    mask = None
    if masked:
        mask = torch.rand(b, m, n, length, device=DEVICE) < 0.7
        mask[:, -1, -1] = False  # a slot without real tokens
        mask[-1] &= b == 1  # a group without any, and tokens of which no slot is real
        mask[:, :, :, -1] = False
        x[:, ~mask[:, :, :, None].expand(b, m, n, h, length)] = torch.nan
    return x.requires_grad_(), keys, kind(d, features).to(DEVICE), mask


def compare(form, x, keys, phi, mask=None, scale=0.7, causal=False):
    """Output and gradients of the kernels beside those of plain attention in float64."""
    exact = x.detach().double().requires_grad_()
    expected = FORMS[form](*exact, keys.double(), phi.double(), mask, scale=scale, causal=causal, implementation="plain")
    found = FORMS[form](*x, keys, phi.float(), mask, scale=scale, causal=causal, implementation="triton")
    assert (found.dtype, found.shape) == (x.dtype, expected.shape)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream.double())
    half = x.dtype != torch.float32  # where small gradients are differences of rounded numbers
    tolerance = TOLERANCES[x.dtype] * (1.5 if half and isinstance(phi, PositiveFeatures) else 1)
    assert found.isfinite().all()
    assert distance(found, expected) < tolerance
    for number, (one, other) in enumerate(zip(x.grad, exact.grad, strict=True)):
        assert one.isfinite().all(), number
        assert distance(one, other, 1e-3 if half else 0.0) < tolerance, number


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n", "dtype"), GRIDS)
def test_values_and_gradients_are_those_of_plain_attention(m, n, dtype, form, masked, causal):
    shape, d = ((2, m, n, 1, 40 if causal else 20), 16) if INTERPRETED else ((2, m, n, 2, 350), 64)
    compare(form, *operands(shape, dtype, masked, d=d, features=24), causal=causal)


@pytest.mark.parametrize(("length", "dtype", "masked"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_any_length(length, dtype, masked, causal):
    sizes = (16, 32) if INTERPRETED else (64, 256)
    compare("grid", *operands((1, 2, 1, 1, length), dtype, masked, *sizes), causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "features"), [(32, 40), (64, 24), (128, 100), (5, 7)])
@pytest.mark.parametrize("causal", [False, True])
def test_any_size_of_a_head(d, features, dtype, causal):
    compare(
        "grid", *operands((1, 2, 2, 1, 20), dtype, masked=True, d=d, features=features if INTERPRETED else 256), causal=causal
    )


@pytest.mark.skipif(INTERPRETED, reason="how a GPU multiplies depends on the sizes of matrices, and the interpreter takes long")
@pytest.mark.parametrize(("d", "features"), [(32, 256), (128, 256), (64, 24), (16, 24)])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (4, 1), (4, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_any_size_of_a_head_on_any_grid(m, n, d, features, causal):
    compare("grid", *operands((1, m, n, 2, 200), torch.bfloat16, True, d, features), causal=causal)


POSITIVE = [(dtype, causal) for dtype in DTYPES for causal in (False, True)]


@pytest.mark.parametrize(("dtype", "causal"), POSITIVE)
@pytest.mark.parametrize("masked", [True] if INTERPRETED else [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_positive_features(form, masked, causal, dtype):
    shape, d = ((2, 3, 2, 1, 40 if causal else 20), 16) if INTERPRETED else ((2, 3, 2, 2, 350), 64)
    compare(form, *operands(shape, dtype, masked, d, 24, PositiveFeatures), causal=causal)


@pytest.mark.parametrize(("falling", "causal"), [(False, True), (True, False)])
def test_positive_features_of_many_orders_of_magnitude(falling, causal):
    """Of keys that grow or shrink from tile to tile and slice to slice, beyond the exponents that float32 has."""
    x, keys, phi, _ = operands((1, 1, 2, 1, 96), torch.float32, d=16, features=24, kind=PositiveFeatures)
    keys[..., 0], phi.projection[:, 0] = 1, 30
    size = torch.tensor([-5.0, 0.0, 5.0], device=DEVICE).repeat_interleave(32)
    x.data[1, ..., 0] = size.flip(0) if falling else size
    largest = phi.exponent(0.7 * hadamard.bind(x[1], keys[:, :, None, None]).sum(2)).amax(-1)
    assert largest.max() - largest.min() > 89
    assert largest.max() > 89
    compare("grid", x, keys, phi, causal=causal)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes long")
@pytest.mark.parametrize(("d", "features"), [(32, 256), (64, 256), (128, 256), (5, 7)])
@pytest.mark.parametrize(("dtype", "causal"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, True)])
def test_positive_features_of_any_size(d, features, dtype, causal):
    compare("grid", *operands((1, 4, 3, 2, 200), dtype, True, d, features, PositiveFeatures), causal=causal)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_without_keys_give_zeros(causal):
    x, keys, phi, _ = operands((1, 2, 1, 1, 20), torch.float32, d=16, features=24, kind=PositiveFeatures)
    mask = torch.zeros(1, 2, 1, 20, dtype=torch.bool, device=DEVICE)
    out = favor_s(*x, keys, phi, mask, causal=causal, implementation="triton")
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


@pytest.mark.parametrize("part", range(3))
def test_a_token_that_is_not_finite_changes_no_earlier_tile(part):
    x, keys, phi, _ = operands((1, 1, 2, 1, 200), torch.float32)
    x.data[part, 0, 0, 0, 0, 150] = torch.nan
    out = favor_s(*x, keys, phi, causal=True, implementation="triton")
    assert out[..., :64, :].isfinite().all()
    assert not out[..., 150:, :].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_a_chunk_has_a_token(form):
    x, keys, phi, _ = operands((1, 1, 2, 1, 3), torch.float32)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        FORMS[form](*x, keys, phi, causal=True, chunk=0, implementation="triton")


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(SuperposedAttention, "relu"), (SharedAttention, "relu"), (BlurryAttention, "relu"), (SuperposedAttention, "positive")],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_layers(layer, kind, masked, causal):
    """Gradients of the weights too; queries, keys and values are not taken apart."""
    options = {"feature_map": kind, "features": 24, "causal": causal}
    ours = layer(32, 2, 3, 2, **options, implementation="triton").to(DEVICE)
    plain = layer(32, 2, 3, 2, **options, implementation="plain").to(DEVICE)
    plain.load_state_dict(ours.state_dict())
    x, mask = torch.randn(1, 3, 2, 20, 32, device=DEVICE), None
    if masked:
        mask = torch.rand(1, 3, 2, 20, device=DEVICE) < 0.7
        x[~mask] = torch.nan
    for each in (ours, plain):
        each(x, mask).square().sum().backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            assert distance(one.grad, other.grad.double()) < 1e-3
    assert distance(ours(x, mask), plain(x, mask).double()) < 1e-3


def test_any_strides():
    x, keys, phi, _ = operands((2, 2, 2, 2, 20), torch.float32)
    expected = favor_s(*x, keys, phi, implementation="triton")
    q, k, v = (part.transpose(-1, -3).contiguous().transpose(-1, -3) for part in x)
    torch.testing.assert_close(favor_s(q, k, v, keys, phi, implementation="triton"), expected)


def test_sequences_that_share_nothing():
    x, _, phi, mask = operands((2, 1, 1, 2, 20), torch.float32, masked=True)
    q, k, v = x[:, :, 0, 0]
    found = linear_attention(q, k, v, phi, mask[:, 0, 0], implementation="triton")
    torch.testing.assert_close(found, linear_attention(q, k, v, phi, mask[:, 0, 0], implementation="plain"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_input_gives_the_same_numbers(causal):
    x, keys, phi, mask = operands((1, 2, 2, 1, 100), torch.bfloat16, masked=True, d=16, features=32)
    found = []
    for _ in range(2):
        x.grad = None
        out = favor_s(*x, keys, phi, mask, causal=causal, implementation="triton")
        out.sum().backward()
        found.append((out, x.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered", "ignore:invalid value encountered")  # in the interpreter
@pytest.mark.parametrize("kind", [ReLUFeatures, PositiveFeatures])
@pytest.mark.parametrize("part", range(3))
def test_numbers_that_are_not_finite_are_not_hidden(part, kind):
    x, keys, phi, _ = operands((1, 2, 2, 1, 20), torch.float32, kind=kind)
    x.data[part, 0, 0, 0, 0, 3] = torch.nan
    assert not favor_s(*x, keys, phi, implementation="triton").isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_a_large_eps(form):
    """Also where the number of features is no power of two."""
    x, keys, phi, mask = operands((1, 2, 2, 1, 20), torch.float32, masked=True, d=16, features=24)
    phi.eps = 0.3
    compare(form, x, keys, phi, mask)


def test_a_slot_with_little_weight_beside_another():
    x, keys, phi, _ = operands((1, 1, 2, 1, 20), torch.float32, d=16, features=32)
    mask = torch.zeros(1, 1, 2, 20, dtype=torch.bool, device=DEVICE)
    mask[:, :, 0], mask[:, :, 1, 0] = True, True
    x.data[1, :, :, 0] *= 1e4
    compare("shared", x, keys, phi, mask)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered", "ignore:invalid value encountered")  # in the interpreter
@pytest.mark.parametrize("kind", [ReLUFeatures, PositiveFeatures])
@pytest.mark.parametrize("part", range(2))
def test_gradients_that_are_not_finite_are_not_hidden(part, kind):
    x, keys, phi, _ = operands((1, 2, 2, 1, 20), torch.float32, kind=kind)
    x.data[part, 0, 0, 0, 0, 3] = torch.nan
    favor_s(*x, keys, phi, implementation="triton").sum().backward()
    assert not x.grad[part, 0, 0, 0, 0, 3].isfinite().all()


@pytest.mark.unchecked
@pytest.mark.parametrize("implementation", ["plain", "triton"])
def test_a_scale_is_a_number(implementation):
    x, keys, phi, _ = operands((1, 1, 2, 1, 1), torch.float32)
    scale = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match="scale is a tensor; it must be a number: multiply q and k by the tensor instead"):
        favor_s(*x, keys, phi, scale=scale, implementation=implementation)
    with pytest.raises(TypeError, match="scale is a tensor"):
        favor_s_step(*x.detach(), keys, phi, scale=scale, implementation=implementation)


@pytest.mark.parametrize("kind", [ReLUFeatures, PositiveFeatures])
@pytest.mark.parametrize("causal", [False, True])
def test_a_scale_of_zero_averages_values(kind, causal):
    x, keys, phi, mask = operands((1, 2, 2, 1, 20), torch.float32, True, 16, 24, kind)
    found = favor_s(*x, keys, phi, mask, scale=0.0, causal=causal, implementation="triton")
    expected = favor_s(*x, keys, phi, mask, scale=0.0, causal=causal, implementation="plain")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [ReLUFeatures, PositiveFeatures])
@pytest.mark.parametrize("causal", [False, True])
def test_pytorchs_default_dtype_does_not_matter(kind, causal):
    x, keys, phi, mask = operands((1, 2, 2, 1, 20), torch.float32, True, 16, 24, kind)
    torch.set_default_dtype(torch.bfloat16)
    try:
        compare("grid", x, keys, phi, mask, causal=causal)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_empty_weight_gives_zeros():
    """Where ReLU leaves nothing and there is no eps, denominators are 0."""
    x, keys, phi, _ = operands((1, 2, 2, 1, 20), torch.float32)
    phi.eps = 0.0
    phi.projection.zero_()
    out = favor_s(*x, keys, phi, implementation="triton")
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


def test_gradients_are_not_differentiated_again():
    x, keys, phi, _ = operands((1, 2, 2, 1, 20), torch.float32)
    out = favor_s(*x, keys, phi, implementation="triton")
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="favor_backward"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(("form", "eps"), [*((form, 1e-3) for form in FORMS), ("shared", None)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_operator_is_registered_as_it_should_be(form, eps, causal):
    x, keys, phi, mask = operands((1, 2, 3, 1, 20), torch.float32, masked=True)
    parts = [part.transpose(3, 4).flatten(1, 2).detach().nan_to_num().requires_grad_() for part in x]
    arguments = (parts, keys.flatten(0, 1), phi.projection, 0.5, mask.flatten(1, 2), eps, [2, 3], form, causal)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mimoformer.favor, arguments, test_utils=tests)


@pytest.mark.skipif(INTERPRETED, reason="no GPU")
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # Inductor's advice on GPUs
@pytest.mark.parametrize("layer", [SuperposedAttention, SharedAttention])
def test_compiled_without_a_graph_break(layer):
    torch.compiler.reset()
    ours = layer(64, 2, 2, 2).to(DEVICE)
    x = torch.randn(2, 2, 2, 100, 64, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        expected = ours(x)
        found = torch.compile(ours, fullgraph=True)(x)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    found.sum().backward()


def test_nothing_speaks_against_the_kernels():
    x, keys, phi, _ = operands((1, 2, 2, 1, 20), torch.float32)
    assert why_plain(*x, keys, phi) is None
