"""When attention is computed by Triton kernels; the kernels themselves, interpreted."""

import os
import re
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
from compiled_kernels import Gpu, compile_only
from torch import nn

from mimoformer import dispatch
from mimoformer.attention import favor_s, favor_s_blurry, favor_s_blurry_step, favor_s_shared, favor_s_shared_step, favor_s_step
from mimoformer.causal import tensors_of
from mimoformer.dispatch import uses_triton, why_plain, why_plain_step
from mimoformer.features import DPFPFeatures, PositiveFeatures, ReLUFeatures
from mimoformer.layers import SuperposedAttention
from vsa_core import hadamard


@pytest.mark.once
@pytest.mark.parametrize("cases", ["kernel_cases.py", "step_cases.py"])
def test_the_kernels_in_tritons_interpreter(cases):
    """The interpreter replaces Triton's compiler when it is imported, so it needs a process of its own."""
    pytest.importorskip("triton")
    path = Path(__file__).with_name(cases)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", path],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.fixture
def offered(monkeypatch):
    """Every device passes for one with kernels."""
    monkeypatch.setattr(dispatch, "kernels_run", lambda device: True)


def operands(m=2, n=2, d=8, dtype=torch.float32):
    q, k, v = torch.randn(3, 2, m, n, 1, 5, d, dtype=dtype)
    return q, k, v, hadamard.random_keys(m * n, d).unflatten(0, (m, n)), ReLUFeatures(d, 16)


def test_the_kernels_take_what_they_were_made_for(offered):
    for dtype in dispatch.DTYPES:
        assert why_plain(*operands(dtype=dtype)) is None
    assert why_plain(*operands(4, 4, 128)) is None
    assert why_plain(*operands(), causal=True) is None
    for dtype, causal in product(dispatch.DTYPES, (False, True)):
        assert why_plain(*operands(dtype=dtype)[:4], PositiveFeatures(8, 16), causal) is None


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("memory", "m", "n", "d", "dtype", "fits"),
    [
        (101376, 4, 4, 128, torch.bfloat16, True),
        (101376, 2, 2, 64, torch.float32, True),
        (101376, 2, 2, 128, torch.float32, False),
        (232448, 2, 2, 128, torch.float32, True),
        (232448, 4, 4, 128, torch.float32, False),
        (232448, 1, 16, 16, torch.float32, True),
        (101376, 1, 16, 16, torch.float32, False),
    ],
)
def test_causal_attention_needs_shared_memory_for_its_tiles(memory, m, n, d, dtype, fits, monkeypatch):
    monkeypatch.setattr(dispatch, "shared_memory", lambda device: memory)
    q = mock.Mock(shape=(1, m, n, 1, 5, d), dtype=dtype, device=torch.device("cuda"))
    assert dispatch.tile_fits(q) == fits


class Own(ReLUFeatures):
    """A class of its own."""


class LinearFeatures(nn.Module):
    """Features whose projection is a layer."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(8, 16)


def test_plain_attention_takes_everything_else(offered):
    q, k, v, keys, phi = operands()
    hooked, trained, changed = ReLUFeatures(8, 16), ReLUFeatures(8, 16), PositiveFeatures(8, 16)
    projected, lifted = ReLUFeatures(8, 16), ReLUFeatures(8, 16)
    changed.query = projected.project = torch.relu
    del lifted.eps
    lifted.eps = nn.Parameter(torch.tensor(0.1))
    hooked.register_forward_hook(lambda *_: None)
    trained.projection.requires_grad_()
    found = {
        "several devices": why_plain(q, k, v, keys.to("meta"), phi),
        "float64": why_plain(*operands(dtype=torch.float64)),
        "dtypes": why_plain(q, k, v.bfloat16(), keys, phi),
        "builtin_function": why_plain(q, k, v, keys, torch.relu),
        "DPFP": why_plain(q, k, v, keys, DPFPFeatures()),
        "Own": why_plain(q, k, v, keys, Own(8, 16)),
        "features are Positive": why_plain(q, k, v, keys, changed),
        "features are ReLU": why_plain(q, k, v, keys, projected),
        "unchanged": why_plain(q, k, v, keys, lifted),
        "hooks": why_plain(q, k, v, keys, hooked),
        "binding keys": why_plain(q, k, v, keys.clone().requires_grad_(), phi),
        "projection": why_plain(q, k, v, keys.detach(), trained),
        "dimensions": why_plain(*operands(d=129)),
        "grid": why_plain(*operands(17, 1)),
        "take vectors of 16": why_plain(q, k, v, keys, ReLUFeatures(16, 16)),
        "features are Linear": why_plain(q, k, v, keys, LinearFeatures()),
        "no tokens": why_plain(q[:0], k[:0], v[:0], keys.detach(), phi),
        "are no tokens": why_plain(q[..., :0, :], k[..., :0, :], v[..., :0, :], keys.detach(), phi),
        "transformed": reason_under_vmap(q, k, v, keys.detach(), phi),
        "heads": why_plain(*(x.expand(70_000, *x.shape[1:]) for x in (q[:1], k[:1], v[:1])), keys.detach(), phi),
        "2**31": why_plain(
            *[torch.empty(1, device="meta").expand(1, 2, 2, 2, 2**27, 8)] * 3, keys.detach().to("meta"), phi.to("meta")
        ),
    }
    for word, reason in found.items():
        assert word in reason, (word, reason)


def reason_under_vmap(q, *others, why=why_plain):
    reasons = []
    torch.func.vmap(lambda q: [q, reasons.append(why(q, *others))][0])(q[None])
    return reasons[0]


def one_token(m=2, n=2, d=8, dtype=torch.float32):
    q, k, v, keys, phi = operands(m, n, d, dtype)
    return q[..., :1, :], k[..., :1, :], v[..., :1, :], keys, phi


def test_the_kernel_of_a_step_takes_what_it_was_made_for(offered):
    for dtype in dispatch.DTYPES:
        assert why_plain_step(*one_token(dtype=dtype)) is None
    q, k, v, keys, phi = one_token(4, 4, 128)
    mask = torch.ones(2, 4, 4, 1, dtype=torch.bool)
    _, state = favor_s_step(q, k, v, keys, phi, implementation="plain")
    assert why_plain_step(q, k, v, keys, phi, tensors_of(state), mask) is None
    trained = [x.clone().requires_grad_() for x in (q, k, v)]
    with torch.no_grad():
        assert why_plain_step(*trained, keys, phi) is None


def test_all_other_steps_are_plain(offered):
    q, k, v, keys, phi = one_token()
    hooked = ReLUFeatures(8, 16)
    hooked.register_forward_hook(lambda *_: None)
    _, state = favor_s_step(q, k, v, keys, phi, implementation="plain")
    state = tensors_of(state)
    found = {
        "5 new tokens": why_plain_step(*operands()),
        "several devices": why_plain_step(q, k, v, keys, phi, (), torch.ones(2, 2, 2, 1, dtype=torch.bool, device="meta")),
        "q, k and v": why_plain_step(*one_token(dtype=torch.float64)),
        "are not all in one": why_plain_step(q, k, v.bfloat16(), keys, phi),
        "builtin_function": why_plain_step(q, k, v, keys, torch.relu),
        "DPFP": why_plain_step(q, k, v, keys, DPFPFeatures()),
        "Positive": why_plain_step(q, k, v, keys, PositiveFeatures(8, 16)),
        "Own": why_plain_step(q, k, v, keys, Own(8, 16)),
        "hooks": why_plain_step(q, k, v, keys, hooked),
        "gradient": why_plain_step(q, k, v.clone().requires_grad_(), keys, phi),
        "a gradient": why_plain_step(q, k, v, keys, phi, (state[0].clone().requires_grad_(), *state[1:])),
        "dimensions": why_plain_step(*one_token(d=129)),
        "grid": why_plain_step(*one_token(17, 1)),
        "take vectors of 16": why_plain_step(q, k, v, keys, ReLUFeatures(16, 16)),
        "features are Linear": why_plain_step(q, k, v, keys, LinearFeatures()),
        "no sequences": why_plain_step(q[:0], k[:0], v[:0], keys, phi),
        "not of these tokens": why_plain_step(q[:1], k[:1], v[:1], keys, phi, state),
        "not in float32": why_plain_step(q, k, v, keys, phi, tuple(part.double() for part in state)),
        "transformed": reason_under_vmap(q, k, v, keys, phi, why=why_plain_step),
    }
    for word, reason in found.items():
        assert word in reason, (word, reason)


@pytest.mark.unchecked
@pytest.mark.parametrize("step", [favor_s_step, favor_s_shared_step, favor_s_blurry_step])
def test_a_step_whose_implementation_is_asked_for_never_falls_back(step):
    with pytest.raises(ValueError, match="'triton' cannot compute this: the tensors are on cpu"):
        step(*one_token(), implementation="triton")
    with pytest.raises(ValueError, match="'triton' cannot compute this: there are 5 new tokens"):
        step(*operands(), implementation="triton")
    with pytest.raises(ValueError, match="implementation is 'cuda'; expected auto, plain or triton"):
        step(*one_token(), implementation="cuda")
    layer = SuperposedAttention(16, 2, 2, 2, causal=True, implementation="triton")
    with pytest.raises(ValueError, match="cannot compute this"):
        layer.step(torch.randn(1, 2, 2, 1, 16))


@pytest.mark.parametrize("watch", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("compiled", [False, True])
def test_features_that_somebody_watches_are_computed_in_plain_pytorch(offered, watch, compiled):
    q, k, v, keys, phi = operands()
    phi = torch.compile(phi) if compiled else phi
    assert why_plain(q, k, v, keys, phi) is None
    getattr(phi, f"register_{watch}_hook")(lambda *_: None)
    assert "hooks" in why_plain(q, k, v, keys, phi)


@pytest.mark.unchecked
@pytest.mark.parametrize("strict", [False, True])
def test_networks_are_exported_in_plain_pytorch(offered, strict):
    layer = SuperposedAttention(16, 2, 2, 2, features=16)
    exported = torch.export.export(layer, (torch.randn(1, 2, 2, 5, 16),), strict=strict)
    assert "ops.mimoformer" not in str(exported.graph_module.code)


@pytest.mark.unchecked
@pytest.mark.parametrize("function", [favor_s, favor_s_shared, favor_s_blurry])
def test_an_implementation_that_is_asked_for_never_falls_back(function):
    with pytest.raises(ValueError, match="'triton' cannot compute this: the tensors are on cpu"):
        function(*operands(), implementation="triton")
    with pytest.raises(ValueError, match="implementation is 'cuda'; expected auto, plain or triton"):
        function(*operands(), implementation="cuda")
    layer = SuperposedAttention(16, 2, 2, 2, implementation="triton")
    with pytest.raises(ValueError, match="cannot compute this"):
        layer(torch.randn(1, 2, 2, 5, 16))


def test_plain_is_never_replaced(offered):
    assert not uses_triton("plain", *operands(), causal=False)
    assert uses_triton("auto", *operands(), causal=True)


@pytest.mark.unchecked
def test_attention_of_its_own_decides_itself_what_computes():
    class Own(SuperposedAttention):
        attend = staticmethod(partial(favor_s))

    layer = Own(16, 2, 2, 2, implementation="triton")
    with pytest.raises(ValueError, match="'triton' cannot compute this: the tensors are on cpu"):
        layer(torch.randn(1, 2, 2, 5, 16))


class Halved(SuperposedAttention):
    """Attention of its own."""

    attend = staticmethod(lambda *operands, implementation, **options: favor_s(*operands, **options) / 2)


class Doubled(SuperposedAttention):
    """An output of its own."""

    def merge_heads(self, attended):
        return 2 * super().merge_heads(attended)


def test_layers_that_change_a_part_keep_it():
    torch.manual_seed(0)
    plain, halved, doubled = (kind(16, 2, 2, 2, features=16) for kind in (SuperposedAttention, Halved, Doubled))
    for each in (halved, doubled):
        each.load_state_dict(plain.state_dict())
    nn.init.zeros_(plain.out.bias), nn.init.zeros_(halved.out.bias), nn.init.zeros_(doubled.out.bias)
    x = torch.randn(1, 2, 2, 5, 16)
    torch.testing.assert_close(halved(x), plain(x) / 2)
    torch.testing.assert_close(doubled(x), plain(x) * 2)


def test_a_scale_multiplies_queries_and_keys():
    q, k, v, keys, phi = operands()
    for causal in (False, True):
        found = favor_s(q, k, v, keys, phi, causal=causal, scale=0.5)
        torch.testing.assert_close(found, favor_s(q / 2, k / 2, v, keys, phi, causal=causal))


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("capability", "memory", "dtype", "dim", "grid", "eps"),
    [
        (90, 232448, torch.bfloat16, 64, (2, 2), 1e-3),
        (80, 166912, torch.float16, 128, (2, 1), 1e-3),
        (89, 101376, torch.bfloat16, 128, (2, 1), 1e-3),
        (89, 101376, torch.float32, 64, (2, 2), 1e-3),
        (89, 101376, torch.bfloat16, 64, (2, 2), None),
    ],
)
def test_the_kernels_compile_and_fit_the_memory_of_gpus(capability, memory, dtype, dim, grid, eps, monkeypatch):
    """Shared memory of a program, in bytes, as of H100 and H200, A100, and the GPUs of GeForce and of workstations since 2020.

    Features are ReLU's, or positive where there is no eps.
    """
    pytest.importorskip("triton")
    from mimoformer.kernels import causal, favor, operator

    kernels = [favor.weights_kernel, favor.sum_kernel, favor.add_up_kernel, favor.attend_kernel, favor.backward_kernel]
    kernels += [causal.sum_kernel, causal.scan_kernel, causal.attend_kernel, causal.backward_kernel]
    used = compile_only(kernels, Gpu(capability), monkeypatch)
    monkeypatch.setattr(favor, "shared_memory", lambda device: memory)
    slots = grid[0] * grid[1]
    mask = torch.ones(1, slots, 100, dtype=torch.bool)
    x = torch.empty(1, slots, 100, 3, 8, dim, dtype=dtype)
    for is_causal in (False, True):
        options = (torch.ones(slots, dim), torch.empty(256, dim), 1.0, mask, eps, list(grid), "grid", is_causal)
        out, *saved = operator.compute._init_fn([x], *options)
        operator.differentiate._init_fn(out, [x], [out, *saved], *options)
    assert len(used) == len(kernels)
    assert max(used.values()) <= memory, used


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("grid", "form", "eps"), [((1, 4), "grid", 1e-3), ((4, 4), "grid", 1e-3), ((3, 2), "blurry", None)])
def test_causal_kernels_without_loops_have_no_narrow_right_operands(grid, form, eps, monkeypatch):
    """Of operands with rows of fewer than 64 numbers, and more than one instruction takes, ptxas 12.8 can lose the address."""
    pytest.importorskip("triton")
    from mimoformer.kernels import causal, favor, operator

    texts, slots = [], grid[0] * grid[1]
    kernels = [favor.weights_kernel, causal.sum_kernel, causal.scan_kernel, causal.attend_kernel, causal.backward_kernel]
    compile_only(kernels, Gpu(90), monkeypatch, texts)
    monkeypatch.setattr(favor, "shared_memory", lambda device: 232448)
    x = torch.empty(1, slots, 100, 3, 2, 64, dtype=torch.bfloat16)
    options = (torch.ones(slots, 64), torch.empty(24, 64), 1.0, None, eps, list(grid), form, True)
    out, *saved = operator.compute._init_fn([x], *options)
    operator.differentiate._init_fn(out, [x], [out, *saved], *options)
    products = 0
    for text in (text for text in texts if "scf.for" not in text):
        widths = dict(re.findall(r"^(#\w+) = #ttg\.nvmma_shared<\{swizzlingByteWidth = (\d+)", text, re.MULTILINE))
        for rows, layout in re.findall(r"warp_group_dot .* \* !ttg\.memdesc<(\d+)x\d+x\w+, (#\w+)", text):
            products += 1
            assert int(rows) <= 16 or int(widths[layout]) == 128, text[:300]
    assert products > 5


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("capability", "memory", "dtype", "dim", "grid", "form", "heads"),
    [
        (90, 232448, torch.bfloat16, 64, (2, 2), "grid", 8),
        (90, 232448, torch.bfloat16, 64, (2, 2), "grid", 512),
        (80, 166912, torch.float16, 128, (3, 2), "shared", 8),
        (89, 101376, torch.bfloat16, 64, (2, 2), "grid", 8),
        (89, 101376, torch.float32, 128, (4, 4), "grid", 8),
    ],
)
def test_the_kernel_of_a_step_compiles_and_fits_the_memory_of_gpus(
    capability, memory, dtype, dim, grid, form, heads, monkeypatch
):
    """For few heads and many, without a state and with one."""
    pytest.importorskip("triton")
    from mimoformer.kernels import step

    used = compile_only([step.step_kernel], Gpu(capability), monkeypatch)
    monkeypatch.setattr(step, "shared_memory", lambda device: memory)
    step.constants.cache_clear()
    x = torch.empty(1, *grid, heads, 1, dim, dtype=dtype)
    mask = torch.ones(1, *grid, 1, dtype=torch.bool)
    options = (torch.ones(*grid, dim), torch.empty(200, dim), 1.0, 1e-3, mask)
    _, *state = step.compute(x, x, x, *options, (), form)
    step.compute(x, x, x, *options, state, form)
    step.constants.cache_clear()
    assert 0 < used["mimoformer.kernels.step.step_kernel"] <= memory, used


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_kernel_of_a_step_compiles_for_keys_and_features_in_float64(monkeypatch):
    pytest.importorskip("triton")
    from mimoformer.kernels import step

    used = compile_only([step.step_kernel], Gpu(90), monkeypatch)
    x, keys, projection = torch.empty(1, 2, 1, 2, 1, 16), torch.ones(2, 1, 16).double(), torch.empty(32, 16).double()
    step.compute(x, x, x, keys, projection, 1.0, 1e-3, None, (), "grid")
    assert used


def test_blocks_of_a_step_are_powers_of_two_for_any_grid():
    pytest.importorskip("triton")
    from mimoformer.kernels import step

    grids = [(m, n) for m in range(1, 17) for n in range(1, 17) if m * n <= 16]
    for many, (m, n), d in product((False, True), grids, (1, 5, 64, 128)):
        block = step.constants(many, m, n, 1, 256, d, "grid", torch.device("cpu"))["BLOCK_R"]
        assert block.bit_count() == 1, (m, n, d)
