"""FAVOR+S against loops, with masks that hide garbage, causal and step by step."""

import itertools
import math
from functools import partial

import loops
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from mimoformer import attention
from mimoformer.attention import softmax_attention
from mimoformer.features import DPFPFeatures, PositiveFeatures, ReLUFeatures, RunningKeys
from vsa_core import hadamard

DIM = 4
MAPS = {
    "relu": lambda: ReLUFeatures(DIM, 6),
    "positive": lambda: PositiveFeatures(DIM, 6),
    "dpfp": lambda: DPFPFeatures(2),
}
GRIDS = list(itertools.product((1, 2, 3), repeat=2))
every_map = pytest.mark.parametrize("name", MAPS)
either = pytest.mark.parametrize("is_causal", [False, True])
CHUNK = 3  # tokens, so that short sequences have several chunks, the last one shorter
favor_s, favor_s_step, linear_attention = (
    partial(function, chunk=CHUNK) for function in (attention.favor_s, attention.favor_s_step, attention.linear_attention)
)
FORMS = {
    "per slot": (favor_s, favor_s_step),
    "shared": (partial(attention.favor_s_shared, chunk=CHUNK), partial(attention.favor_s_shared_step, chunk=CHUNK)),
    "blurry": (partial(attention.favor_s_blurry, chunk=CHUNK), partial(attention.favor_s_blurry_step, chunk=CHUNK)),
}
every_form = pytest.mark.parametrize("form", FORMS)


def by_loops(form, q, k, v, keys, phi, mask, *, causal):
    if form == "blurry":
        return loops.blurry(q, k, v, keys, lambda query, key: phi(key) @ phi(query), mask, causal=causal)
    return loops.favor_s(q, k, v, keys, phi, mask, causal=causal, shared=form == "shared")


def inputs(m, n, length=5, b=2, h=2, dtype=torch.float64):
    q, k, v = torch.randn(3, b, m, n, h, length, DIM, dtype=dtype).unbind()
    keys = hadamard.random_keys(m * n, DIM, dtype=dtype).unflatten(0, (m, n))
    return q, k, v, keys


def some_mask(m, n, length=5, b=2):
    """Sequences of every length, holes, a slot without a token, and a token that no slot of the first group has."""
    mask = torch.rand(b, m, n, length) < 0.7
    mask[-1, 0, 0] = False
    mask[0, ..., 1] = False
    return mask


def garbage(x, mask, value=float("nan")):
    return x.masked_fill(~mask[:, :, :, None, :, None], value)


@pytest.mark.parametrize(("m", "n"), GRIDS)
@pytest.mark.parametrize("masked", [False, True])
@either
@every_map
def test_equals_the_loops(m, n, masked, is_causal, name):
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(m, n)
    mask = some_mask(m, n) if masked else None
    real = torch.ones(2, m, n, 5, dtype=torch.bool) if mask is None else mask
    given = [q, k, v] if mask is None else [garbage(x, mask) for x in (q, k, v)]
    for form, (function, _) in FORMS.items():
        expected = by_loops(form, q, k, v, keys, phi, real, causal=is_causal)
        assert_close(function(*given, keys, phi, mask, causal=is_causal), expected, rtol=1e-9, atol=1e-9)


@either
@every_map
@every_form
def test_gradients_equal_those_of_the_loops(is_causal, name, form):
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(2, 3, b=1, h=1)
    mask = some_mask(2, 3, b=2)[:1]
    leaves = [x.clone().requires_grad_() for x in (q, k, v, keys)]
    expected = by_loops(form, *leaves, phi, mask, causal=is_causal)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    leaves = [garbage(x, mask).requires_grad_() for x in (q, k, v)] + [keys.clone().requires_grad_()]
    out = FORMS[form][0](*leaves, phi, mask, causal=is_causal)
    assert_close(torch.autograd.grad((out * weights).sum(), leaves), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@either
@every_map
@every_form
def test_padding_to_twice_the_length_changes_nothing(value, is_causal, name, form):
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(2, 3)
    mask = some_mask(2, 3)
    longer = [torch.cat([x, torch.full_like(x, value)], -2).requires_grad_() for x in (q, k, v)]
    out = FORMS[form][0](*longer, keys, phi, torch.cat([mask, torch.zeros_like(mask)], -1), causal=is_causal)
    assert_close(out[..., :5, :], FORMS[form][0](q, k, v, keys, phi, mask, causal=is_causal), rtol=1e-10, atol=1e-10)
    assert torch.equal(out[..., 5:, :], torch.zeros_like(out[..., 5:, :]))
    out.sum().backward()
    for x in longer:
        assert x.grad.isfinite().all()
        assert torch.equal(x.grad[..., 5:, :], torch.zeros_like(q))


@either
@every_map
def test_a_full_mask_is_no_mask(is_causal, name):
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(2, 3)
    mask = torch.ones(2, 2, 3, 5, dtype=torch.bool)
    for function, _ in FORMS.values():
        out = function(q, k, v, keys, phi, mask, causal=is_causal)
        assert_close(out, function(q, k, v, keys, phi, causal=is_causal), rtol=1e-12, atol=1e-12)


@either
@every_map
@every_form
def test_rows_without_a_real_token_give_zeros_and_finite_gradients(is_causal, name, form):
    phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, dtype=torch.float32)
    leaves = [torch.full_like(x, float("nan")).requires_grad_() for x in (q, k, v)]
    out = FORMS[form][0](*leaves, keys, phi, torch.zeros(2, 2, 2, 5, dtype=torch.bool), causal=is_causal)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in leaves)


@every_map
@pytest.mark.parametrize("masked", [False, True])
@every_form
@pytest.mark.parametrize("sizes", [[1] * 10, [4, 1, 5], [7, 3]])
def test_any_split_into_steps_gives_the_whole(name, masked, form, sizes):
    whole, next_step = FORMS[form]
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(2, 3, length=10)
    mask = some_mask(2, 3, length=10) if masked else None
    state, outs = None, []
    for part in torch.arange(10).split(sizes):
        here = [x[..., part, :] for x in (q, k, v)]
        out, state = next_step(*here, keys, phi, state, None if mask is None else mask[..., part])
        outs.append(out)
    assert_close(torch.cat(outs, -2), whole(q, k, v, keys, phi, mask, causal=True), rtol=1e-10, atol=1e-10)


def numbers(state):
    return [*state.sums, state.log_scale]


@every_map
def test_the_state_does_not_grow(name):
    phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, length=50, dtype=torch.float32)
    _, short = favor_s_step(*(x[..., :1, :] for x in (q, k, v)), keys, phi)
    _, long = favor_s_step(q, k, v, keys, phi)
    assert [part.shape for part in numbers(short)] == [part.shape for part in numbers(long)]


@every_map
def test_a_step_keeps_nothing_else_alive(name):
    """Every tensor of the state owns its memory: a view of the whole sequence's features would grow with it."""
    phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, length=50, dtype=torch.float32)
    _, state = favor_s_step(q, k, v, keys, phi)
    assert all(part.untyped_storage().nbytes() <= 2 * part.numel() * part.element_size() for part in numbers(state))


@every_map
@every_form
def test_no_token_depends_on_later_ones(name, form):
    """Not even where a later key is so long that one stabiliser for all would make those before it vanish."""
    phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, length=9, dtype=torch.float32)
    before = FORMS[form][0](q, k, v, keys, phi, causal=True)
    for x in (q, k, v):
        x[..., 4:, :] *= 1e3
    after = FORMS[form][0](q, k, v, keys, phi, causal=True)
    assert torch.equal(before[..., :4, :], after[..., :4, :])
    assert after.isfinite().all()


@pytest.mark.parametrize("name", ["relu", "positive"])
def test_memory_of_causal_attention_is_linear_in_the_length(name):
    """Bytes kept for the backward pass of twice the tokens: at most 2.1 times as many; all pairs of tokens would be four."""

    def kept(length):
        phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, length=length, dtype=torch.float32)
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            favor_s(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), keys, phi, causal=True, chunk=8)
        return total

    assert kept(512) <= 2.1 * kept(256)


@pytest.mark.parametrize("masked", [False, True])
@either
@pytest.mark.parametrize("axis", [1, 2])
@every_map
def test_permuting_whole_rows_or_columns_with_their_keys_permutes_outputs(masked, is_causal, axis, name):
    phi, (q, k, v, keys) = MAPS[name]().double(), inputs(3, 3)
    mask = some_mask(3, 3) if masked else None
    order = torch.tensor([2, 0, 1])
    expected = favor_s(q, k, v, keys, phi, mask, causal=is_causal).index_select(axis, order)
    moved = [x.index_select(axis, order) for x in (q, k, v)]
    moved_mask = None if mask is None else mask.index_select(axis, order)
    out = favor_s(*moved, keys.index_select(axis - 1, order), phi, moved_mask, causal=is_causal)
    assert_close(out, expected, rtol=1e-10, atol=1e-10)


@either
@every_map
def test_linear_attention_is_the_sequence_alone(is_causal, name):
    """Of every sequence sum_j phi(k_j).phi(q_i) v_j / sum_j phi(k_j).phi(q_i), with no key in sight."""
    phi, (q, k, v, _) = MAPS[name]().double(), inputs(1, 1)
    q, k, v = q[:, 0, 0], k[:, 0, 0], v[:, 0, 0]
    mask = some_mask(1, 1)[:, 0, 0]
    weights = phi(q) @ phi(k).mT * mask[:, None, None, :] * mask[:, None, :, None]
    weights = weights.tril() if is_causal else weights
    expected = weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    assert_close(linear_attention(q, k, v, phi, mask, causal=is_causal), expected, rtol=1e-10, atol=1e-10)


def test_a_single_slot_with_a_bipolar_key_sees_only_itself():
    """With one slot, binding is a change of signs: of a map that does not see signs nothing is left of it."""
    q, k, v, keys = inputs(1, 1)

    def phi(x):
        return x.square()

    assert_close(favor_s(q, k, v, keys, phi)[:, 0, 0], linear_attention(q[:, 0, 0], k[:, 0, 0], v[:, 0, 0], phi))


def padded_sequences(*shape, length=5, dtype=torch.float64):
    """Queries, keys and values (*shape 2 l d), and a mask with holes; the last of several sequences has no token."""
    q, k, v = torch.randn(3, *shape, 2, length, DIM, dtype=dtype).unbind()
    mask = torch.rand(*shape, length) < 0.7
    rows = mask.view(-1, length)
    rows[0, :2], rows[1:][-1:] = False, False
    return q, k, v, mask


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 1, 3), (2, 2, 1, 2)])
@pytest.mark.parametrize("masked", [False, True])
@either
def test_softmax_attention_and_its_gradients_equal_the_loops(shape, masked, is_causal):
    q, k, v, mask = padded_sequences(*shape)
    real = mask if masked else torch.ones_like(mask)
    given = [x.masked_fill(~real[..., None, :, None], float("nan")).requires_grad_() for x in (q, k, v)]
    out = softmax_attention(*given, mask if masked else None, causal=is_causal)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    flat = [x.view(-1, *x.shape[-3:]) for x in leaves]
    expected = loops.softmax(*flat, real.view(-1, 5), causal=is_causal).view_as(q)
    assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(out)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    assert_close(torch.autograd.grad((out * weights).sum(), given), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@either
def test_softmax_attention_of_half_types_has_finite_gradients(dtype, is_causal):
    """With more padding in front than a block of a fused kernel holds, and scores of some hundred; relative to float64."""
    *half, mask = padded_sequences(3, length=1100, dtype=dtype)
    mask[0, :1050] = False
    half = [(scale * x).requires_grad_() for x, scale in zip(half, (10, 10, 1), strict=True)]
    out = softmax_attention(*half, mask, causal=is_causal)
    exact = [x.detach().double().requires_grad_() for x in half]
    expected = softmax_attention(*exact, mask, causal=is_causal)
    assert out.dtype == dtype
    assert torch.equal(out[-1], torch.zeros_like(out[-1]))
    assert (out.double() - expected).norm() < 1e-2 * expected.norm()
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for x, reference in zip(half, exact, strict=True):
        assert (x.grad.double() - reference.grad).norm() < 3e-2 * reference.grad.norm()


@pytest.mark.parametrize("masked", [False, True])
@either
def test_dropout_of_softmax_attention_takes_and_scales_weights(masked, is_causal):
    """With one-hot values outputs are weights: each is 0 or doubled, and about half are 0."""
    q, k, _, mask = padded_sequences(4, length=64)
    mask = mask if masked else None
    v = torch.eye(64, dtype=q.dtype).expand(4, 2, -1, -1)
    q, k = F.pad(q, (0, 60)), F.pad(k, (0, 60))
    weights = softmax_attention(q, k, v, mask, causal=is_causal)
    dropped = softmax_attention(q, k, v, mask, causal=is_causal, dropout=0.5)
    kept = dropped != 0
    assert_close(dropped, (2 * weights).masked_fill(~kept, 0))
    assert 0.47 < kept[weights != 0].double().mean() < 0.53


@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 3)])
@pytest.mark.parametrize("masked", [False, True])
@either
def test_softmax_attention_leaves_fused_kernels_possible(shape, masked, is_causal, monkeypatch):
    """They need four axes, heads of one size, and no mask beside causality."""
    calls, compute = [], F.scaled_dot_product_attention

    def called(q, k, v, **options):
        calls.append(([x.shape for x in (q, k, v)], options))
        return compute(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", called)
    q, k, v, mask = padded_sequences(*shape)
    softmax_attention(q, k, v, mask if masked else None, causal=is_causal)
    ((shapes, options),) = calls
    assert shapes == [(math.prod(shape), 2, 5, 8 if masked else DIM)] * 3
    assert options.get("attn_mask") is None
    assert options["is_causal"] == is_causal


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the flash kernel needs a GPU")
@pytest.mark.parametrize("masked", [False, True])
@either
def test_the_flash_kernel_takes_softmax_attention_in_linear_memory(masked, is_causal):
    def peak(length):
        q, k, v = torch.randn(3, 2, 1, 2, 4, length, 64, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind()
        mask = torch.rand(2, 1, 2, length, device="cuda") < 0.9
        mask[0, :, :, length // 2 :], mask[1, :, :, : length // 2] = False, False
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            out = softmax_attention(q, k, v, mask if masked else None, causal=is_causal)
            grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        peak = torch.cuda.max_memory_allocated() - before
        assert all(x.isfinite().all() for x in (out, *grads))
        if length == 1024:
            exact = softmax_attention(q.double(), k.double(), v.double(), mask if masked else None, causal=is_causal)
            assert (out.double() - exact).norm() < 1e-2 * exact.norm()
        return peak

    peak(1024)
    assert peak(8192) < 3 * peak(4096)


def test_an_overflow_is_not_hidden():
    q, k, v, keys = inputs(2, 2, dtype=torch.float32)
    for function, _ in FORMS.values():
        assert function(1e20 * q, 1e20 * k, v, keys, MAPS["relu"]()).isnan().any()


def test_a_denominator_of_zero_gives_zero():
    """Features that share no dimension: nothing is similar to anything."""
    q, k, v, keys = inputs(2, 2)

    def phi(x):
        return 0 * x

    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = favor_s(*leaves, keys, phi)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@every_map
@either
@every_form
def test_bf16_is_within_a_hundredth(name, is_causal, form):
    """Relative to float64 on the same rounded inputs, and the type comes back; gradients as well."""
    phi, (q, k, v, keys) = MAPS[name](), inputs(2, 2, length=20, dtype=torch.bfloat16)
    function = FORMS[form][0]
    half = [x.requires_grad_() for x in (q, k, v)]
    out = function(*half, keys, phi, causal=is_causal)
    assert out.dtype == torch.bfloat16
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = function(*exact, keys.double(), phi.double(), causal=is_causal)
    assert (out.double() - expected).norm() < 1e-2 * expected.norm()
    out.float().sum().backward()
    expected.sum().backward()
    for x, reference in zip(half, exact, strict=True):
        assert (x.grad.double() - reference.grad).norm() < 1e-2 * reference.grad.norm()


@every_form
def test_autocast_changes_nothing(form):
    phi, (q, k, v, keys) = MAPS["relu"](), inputs(2, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = FORMS[form][0](q, k, v, keys, phi)
    assert torch.equal(out, FORMS[form][0](q, k, v, keys, phi))


@either
def test_any_strides(is_causal):
    phi, (q, k, v, keys) = MAPS["relu"]().double(), inputs(2, 3)
    expected = favor_s(q, k, v, keys, phi, causal=is_causal)
    strided = [x.transpose(-1, -3).contiguous().transpose(-1, -3) for x in (q, k, v)]
    assert_close(favor_s(*strided, keys.mT.contiguous().mT, phi, causal=is_causal), expected)


@either
@every_form
def test_an_empty_batch(is_causal, form):
    q, k, v, keys = inputs(2, 3, b=0)
    assert FORMS[form][0](q, k, v, keys, MAPS["positive"]().double(), causal=is_causal).shape[0] == 0


class StabilisedOverAll(torch.nn.Module):
    def query(self, x):
        return x.exp()

    def key(self, x, mask):
        return (x - x.amax((1, 3, 4), keepdim=True)).exp()


def test_a_stabiliser_for_whole_sequences_is_used_and_refused_for_causal_attention():
    q, k, v, keys = inputs(2, 2)
    assert_close(favor_s(q, k, v, keys, StabilisedOverAll()), favor_s(q, k, v, keys, torch.exp))
    with pytest.raises(TypeError, match=r"StabilisedOverAll stabilises keys over all tokens; .* running_key"):
        favor_s(q, k, v, keys, StabilisedOverAll(), causal=True)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"q": lambda x: x[:, :1]}, ValueError, r"q, k and v have shapes \(2, 1, 3, 2, 5, 4\), \(2, 2, 3, 2, 5, 4\)"),
        ({"q": lambda x: x[0], "k": lambda x: x[0], "v": lambda x: x[0]}, ValueError, r"expected one shape \(b, m, n, h, l, d\)"),
        ({name: lambda x: x[..., :0, :] for name in "qkv"}, ValueError, "all axes but b at least 1"),
        ({"keys": lambda x: x[:1]}, ValueError, r"keys have shape \(1, 3, 4\); expected \(2, 3, 4\)"),
        ({"q": lambda x: x.int()}, TypeError, "q has dtype torch.int32"),
        ({"keys": lambda x: x.int()}, TypeError, "keys has dtype torch.int32"),
        ({"mask": lambda x: x.int()}, TypeError, r"mask is torch.int32; expected torch.bool"),
        ({"mask": lambda x: x.tolist()}, TypeError, "mask is list"),
        ({"mask": lambda x: x[..., :4]}, ValueError, r"mask has shape \(2, 2, 3, 4\); expected \(2, 2, 3, 5\)"),
    ],
)
@either
def test_what_does_not_fit(change, error, named, is_causal):
    q, k, v, keys = inputs(2, 3)
    arguments = {"q": q, "k": k, "v": v, "keys": keys, "mask": torch.ones(2, 2, 3, 5, dtype=torch.bool)}
    arguments |= {name: altered(arguments[name]) for name, altered in change.items()}
    for function, _ in FORMS.values():
        with pytest.raises(error, match=named):
            function(**arguments, feature_map=MAPS["relu"]().double(), causal=is_causal)


@pytest.mark.unchecked
@every_form
@pytest.mark.parametrize(("chunk", "error", "named"), [(0, ValueError, "chunk must be .*, got 0"), (2.0, TypeError, "got 2.0")])
def test_chunks_that_cannot_be(form, chunk, error, named):
    q, k, v, keys = inputs(2, 3)
    with pytest.raises(error, match=named):
        FORMS[form][0](q, k, v, keys, torch.exp, causal=True, chunk=chunk)


@pytest.mark.unchecked
@every_form
def test_a_state_of_something_else_is_refused(form):
    step, phi, (q, k, v, keys) = FORMS[form][1], MAPS["relu"]().double(), inputs(2, 2)
    _, state = step(q, k, v, keys, phi)
    for other in ((q[:1], k[:1], v[:1], keys), inputs(2, 3), inputs(1, 4), inputs(2, 2, h=3)):
        named = r"the state has \(b, h\) = \(2, 2\)" if other[0].shape[0] != 2 or other[0].shape[3] != 2 else r"the state's sums"
        with pytest.raises(ValueError, match=named):
            step(*other, MAPS["positive"]().double(), step(q, k, v, keys, MAPS["positive"]().double())[1])
        with pytest.raises(ValueError, match=named):
            step(*other, phi, state)
    with pytest.raises(ValueError, match="the state's sums have shapes"):
        step(q, k, v, keys, MAPS["dpfp"](), state)
    with pytest.raises(TypeError, match=r"the state has torch\.float64; these tokens need torch\.float32: convert"):
        step(q.float(), k.float(), v.float(), keys, phi.float(), state)
    with pytest.raises(TypeError, match="state is a tuple; expected the AttentionState"):
        step(q, k, v, keys, phi, tuple(state))


@either
@every_form
def test_padding_does_not_reach_a_map_that_is_undefined_at_zero(is_causal, form):
    q, k, v, keys = inputs(2, 2, b=1)
    mask = torch.tensor([True, False, True, True, False]).expand(1, 2, 2, 5)
    real = mask[0, 0, 0]

    def phi(x):
        return torch.relu(x / x.norm(dim=-1, keepdim=True)) + 1e-3

    out = FORMS[form][0](q, k, v, keys, phi, mask, causal=is_causal)
    assert_close(out[..., real, :], FORMS[form][0](*(x[..., real, :] for x in (q, k, v)), keys, phi, causal=is_causal))
    assert torch.equal(out[..., ~real, :], torch.zeros_like(out[..., ~real, :]))


class AttachedScale(PositiveFeatures):
    """A stabiliser through which gradients flow: they cancel, unless something is infinite on their way."""

    def running_key(self, x, mask=None, start=None):
        exponent = self.exponent(x)
        log_scale = exponent.amax((1, 4)).cummax(-1).values
        return RunningKeys((exponent - log_scale[:, None, :, :, None]).exp(), log_scale)


def test_gradients_through_a_stabiliser_cancel():
    q, k, v, keys = inputs(2, 2)
    k = 40 * k * torch.arange(5)[:, None]
    grads = []
    for phi in (AttachedScale(DIM, 6).double(), PositiveFeatures(DIM, 6).double()):
        phi.redraw(torch.Generator().manual_seed(0))
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        grads.append(torch.autograd.grad(favor_s(*leaves, keys, phi, causal=True).square().sum(), leaves))
    assert all(g.isfinite().all() for g in grads[0])
    assert_close(*grads, rtol=1e-6, atol=1e-9)


@pytest.mark.unchecked
def test_what_softmax_and_linear_attention_refuse():
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind()
    for function in (softmax_attention, lambda *arguments: linear_attention(*arguments[:3], torch.exp, *arguments[3:])):
        with pytest.raises(ValueError, match=r"q, k and v have shapes \(2, 2, 5, 4\), \(2, 2, 4, 4\), \(2, 2, 5, 4\)"):
            function(q, k[:, :, :4], v)
        with pytest.raises(ValueError, match=r"mask has shape \(1, 5\); expected \(2, 5\)"):
            function(q, k, v, torch.ones(1, 5).bool())
        with pytest.raises(TypeError, match=r"mask is torch\.int64"):
            function(q, k, v, torch.ones(2, 5).long())
        with pytest.raises(TypeError, match=r"q has dtype torch\.int64"):
            function(q.long(), k, v)
