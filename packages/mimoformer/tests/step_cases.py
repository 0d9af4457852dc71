"""The Triton kernel of a step against plain steps in float64, on a GPU or in Triton's interpreter; run by test_kernels.py."""

import os

import pytest
import torch
from addresses import no_number_outside  # noqa: F401 (used by every test)

from mimoformer import MIMOFormer, MIMOFormerConfig, causal
from mimoformer.attention import favor_s, favor_s_blurry_step, favor_s_shared_step, favor_s_step
from mimoformer.causal import AttentionState
from mimoformer.dispatch import why_plain_step
from mimoformer.features import ReLUFeatures
from mimoformer.kernels import step
from mimoformer.layers import BlurryAttention, SharedAttention, SuperposedAttention
from vsa_core import hadamard

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FORMS = {"grid": favor_s_step, "shared": favor_s_shared_step, "blurry": favor_s_blurry_step}
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GRIDS = [(1, 1), (2, 2), (1, 3), (6, 1)]
if not INTERPRETED:
    GRIDS += [(3, 1), (1, 2), (4, 3), (4, 4), (1, 16), (2, 7), (1, 12)]
SIZES = {} if INTERPRETED else {"d": 64, "features": 256, "length": 20, "h": 8}
"""Of the tests that a GPU can do with more."""

pytestmark = pytest.mark.filterwarnings("ignore:.*invalid value encountered:RuntimeWarning")  # NaN, in the interpreter


def distance(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def operands(m, n, dtype=torch.float32, masked=False, d=16, features=24, length=2, b=2, h=1):
    """Queries, keys and values (3 b m n h l d), binding keys, features and a mask; padding is poisoned."""
    x = torch.randn(3, b, m, n, h, length, d, device=DEVICE).to(dtype)
    keys = hadamard.random_keys(m * n, d, device=DEVICE).unflatten(0, (m, n))
    mask = None
    if masked:
        mask = torch.rand(b, m, n, length, device=DEVICE) < 0.6
        mask[:, -1, -1] &= m * n == 1  # a slot without real tokens
        mask[-1, ..., 0] = False  # a group whose first token is padding in every slot
        x[:, ~mask[:, :, :, None].expand(b, m, n, h, length)] = torch.nan
    return x, keys, ReLUFeatures(d, features).to(DEVICE), mask


def steps(form, x, keys, phi, mask=None, state=None, implementations=("triton",), scale=0.7):
    """Outputs of all steps, and the state after each."""
    outs, states = [], []
    for place in range(x.shape[-2]):
        q, k, v = x[..., place, None, :]
        real = None if mask is None else mask[..., place, None]
        implementation = implementations[place % len(implementations)]
        out, state = FORMS[form](q, k, v, keys, phi, state, real, scale=scale, implementation=implementation)
        outs.append(out)
        states.append(state)
    return outs, states


def flat(state):
    return [*state.sums, state.log_scale]


def compare(form, x, keys, phi, mask=None, **options):
    """All outputs and states of kernels beside those of plain steps in float64."""
    found, states = steps(form, x, keys, phi, mask, **options)
    options |= {"implementations": ("plain",)}
    if options.get("state"):
        sums, log_scale = options["state"]
        options["state"] = AttentionState(type(sums)(*(part.double() for part in sums)), log_scale.double())
    expected, exact = steps(form, x.double(), keys.double(), phi.double(), mask, **options)
    phi.float()
    for place in range(x.shape[-2]):
        assert (found[place].dtype, found[place].shape) == (x.dtype, expected[place].shape)
        assert found[place].isfinite().all()
        assert distance(found[place], expected[place]) < TOLERANCES[x.dtype], place
        for one, other in zip(flat(states[place]), flat(exact[place]), strict=True):
            assert (one.dtype, one.shape, one.isfinite().all()) == (torch.float32, other.shape, True)
            assert distance(one, other) < TOLERANCES[x.dtype], place


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n"), GRIDS)
def test_outputs_and_states_are_those_of_plain_steps(m, n, form, masked):
    compare(form, *operands(m, n, masked=masked, **SIZES))


@pytest.mark.parametrize("form", ["grid"] if INTERPRETED else FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, form):
    compare(form, *operands(2, 2, dtype, masked=True, **SIZES))


def test_twenty_steps_of_an_uneven_grid():
    compare("grid", *operands(3, 2, masked=True, length=20, b=1))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("d", "features"), [(32, 40), (32, 64), (128, 100)] if INTERPRETED else [(32, 40), (64, 100), (128, 256), (128, 300), (5, 7)]
)
def test_any_size_of_a_head(d, features, many, monkeypatch):
    """With the setting for few heads, and with that for many."""
    monkeypatch.setattr(step, "MANY_HEADS", 1 if many else 2**20)
    for masked in (False, True):
        compare("grid", *operands(2, 2, masked=masked, **SIZES | {"d": d, "features": features}))


@pytest.mark.parametrize("form", FORMS)
def test_each_implementation_goes_on_from_the_others_states(form):
    compare(form, *operands(2, 3, masked=True, length=4), implementations=("plain", "triton", "triton", "plain"))


def test_it_goes_on_from_a_prompt_of_many_tokens():
    x, keys, phi, _ = operands(2, 2, length=6)
    _, state = favor_s_step(*x[..., :5, :], keys, phi, implementation="plain")
    q, k, v = x[..., 5:, :]
    out, _ = favor_s_step(q, k, v, keys, phi, state, implementation="triton")
    torch.testing.assert_close(out, favor_s(*x, keys, phi, causal=True, implementation="plain")[..., 5:, :], atol=1e-4, rtol=1e-3)


def test_a_state_is_left_as_it_was():
    x, keys, phi, _ = operands(2, 2, length=2)
    _, (state, _) = steps("grid", x, keys, phi)
    before = [part.clone() for part in flat(state)]
    again, states = steps("grid", x[..., 1:, :], keys, phi, state=state)
    for one, other in zip(flat(state), before, strict=True):
        assert torch.equal(one, other)
    repeated, _ = steps("grid", x[..., 1:, :], keys, phi, state=state)
    assert torch.equal(again[0], repeated[0])
    assert not any(one.data_ptr() == other.data_ptr() for one, other in zip(flat(state), flat(states[0]), strict=True))


def test_a_state_at_another_scale():
    """As a stabilised feature map leaves it."""
    x, keys, phi, _ = operands(2, 2)
    _, states = steps("grid", x, keys, phi)
    compare("grid", x, keys, phi, state=AttentionState(states[-1].sums, torch.full_like(states[-1].log_scale, -0.5)))


def test_any_strides():
    """Operands side by side, of unlike strides, and one token of a long sequence; keys of a part of the grid."""
    x, keys, phi, mask = operands(2, 2, masked=True, h=2)
    expected = steps("grid", x, keys, phi, mask)[0][-1]
    _, states = steps("grid", x, keys, phi, mask)
    last = [part[..., -1:, :] for part in x]
    beside = torch.stack([part.transpose(3, 4) for part in last], 4).unbind(4)
    larger = torch.zeros(3, 5, keys.shape[-1], device=DEVICE)
    larger[:2, :2] = keys
    unlike = [
        last[0].contiguous(),
        last[1].transpose(1, 2).contiguous().transpose(1, 2),
        last[2].transpose(-1, 3).contiguous().transpose(-1, 3),
    ]
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in last]
    for parts in ([part.transpose(3, 4) for part in beside], last, unlike, turned):
        found, _ = favor_s_step(*parts, larger[:2, :2], phi, states[-2], mask[..., -1:], scale=0.7, implementation="triton")
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_weight_gives_zeros(form):
    """Where ReLU leaves nothing and there is no eps, denominators are 0."""
    x, keys, phi, _ = operands(2, 2)
    phi.eps = 0.0
    phi.projection.zero_()
    for out in steps(form, x, keys, phi)[0]:
        assert not out.any()


@pytest.mark.parametrize("part", range(3))
def test_numbers_that_are_not_finite_are_not_hidden(part):
    x, keys, phi, _ = operands(2, 2)
    x[part, 0, 0, 0, 0, 1, 3] = torch.nan
    outs, _ = steps("grid", x, keys, phi)
    assert outs[0].isfinite().all()
    assert not outs[1].isfinite().all()


def test_a_large_eps():
    """Features that fill a block up count nothing."""
    x, keys, phi, mask = operands(2, 2, masked=True)
    phi.eps = 0.3
    compare("shared", x, keys, phi, mask)


@pytest.mark.parametrize("layer", [SuperposedAttention, SharedAttention, BlurryAttention])
def test_layers_and_half_precision_take_it_by_default(layer, monkeypatch):
    taken = []
    by_kernel = causal.step_by_kernel
    monkeypatch.setattr(causal, "step_by_kernel", lambda *operands: [taken.append(1), by_kernel(*operands)][1])
    ours = layer(32, 2, 2, 2, features=24, causal=True).to(DEVICE)
    x = torch.randn(2, 2, 2, 3, 32, device=DEVICE)
    with torch.no_grad():
        expected, state = ours(x), None
        for place in range(3):
            out, state = ours.step(x[..., place, None, :], state)
            torch.testing.assert_close(out[..., 0, :], expected[..., place, :], atol=1e-4, rtol=1e-3)
        ours.bfloat16().step(x[..., :1, :].bfloat16())
    assert len(taken) == 4
    ours.float().step(x[..., :1, :])  # with gradients
    assert len(taken) == 4


@torch.no_grad()
def test_a_network_step_by_step():
    config = MIMOFormerConfig(
        m=2,
        n=2,
        vocab_size=11,
        embed_dim=16,
        heads=2,
        mlp_dim=16,
        layers=2,
        features=24,
        head="tokens",
        attention="relu",
        max_length=8,
    )
    model = MIMOFormer(config).to(DEVICE).eval()
    tokens = torch.randint(11, (2, 2, 2, 3), device=DEVICE)
    expected, state = model(tokens), None
    for place in range(3):
        logits, state = model.step(tokens[..., place], state)
        torch.testing.assert_close(logits, expected[..., place, :], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_the_operator_is_registered_as_it_should_be(form):
    x, keys, phi, mask = operands(2, 3, masked=True, length=1)
    q, k, v = x.nan_to_num()
    for state in ((), step.favor_step(q, k, v, keys, phi.projection, 0.5, 1e-3, mask, (), form)[1:]):
        arguments = (q, k, v, keys, phi.projection, 0.5, 1e-3, mask, list(state), form)
        torch.library.opcheck(torch.ops.mimoformer.favor_step, arguments, test_utils=("test_schema", "test_faketensor"))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # Inductor's advice on GPUs
def test_compiled_without_a_graph_break():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    ours = SharedAttention(16, 2, 2, 2, features=24, causal=True).to(DEVICE)
    compiled = torch.compile(ours.step, fullgraph=True, backend=backend if INTERPRETED else "inductor")
    x, state, kept = torch.randn(2, 2, 2, 3, 16, device=DEVICE), None, None
    for place in range(3):
        out, state = compiled(x[..., place, None, :], state)
        expected, kept = ours.step(x[..., place, None, :], kept)
        torch.testing.assert_close(out, expected)
    assert all("favor_step" in code for code in graphs)


def test_nothing_speaks_against_the_kernel():
    x, keys, phi, mask = operands(2, 2, masked=True, length=1)
    assert why_plain_step(*x, keys, phi, (), mask) is None
