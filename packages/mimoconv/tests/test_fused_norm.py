"""When BatchNorm and activation run as fused kernels, and that they run as they are otherwise; the kernels, interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_kernels import Gpu, compile_only
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mimoconv import fused_norm
from mimoconv.blocks import Block, Layers
from mimoconv.config import MIMOConvConfig


class Own(nn.BatchNorm2d):
    """A class of its own."""


def make(activation="prelu", channels=8):
    """Layers, and images, that fit the kernels."""
    acts = {"prelu": nn.PReLU(channels), "relu": nn.ReLU()}
    layers = nn.ModuleDict({"norm": nn.BatchNorm2d(channels), "act": acts[activation]})
    return layers, torch.randn(2, channels, 3, 3).to(memory_format=torch.channels_last)


def fits(layers, x):
    return fused_norm.fits_kernels(layers["norm"], layers["act"], x)


@pytest.fixture
def offered(monkeypatch):
    """Every tensor passes for one on a GPU; the list of what the kernels were asked to compute, which the modules then do."""
    calls = []

    def fused(norm, act, x, branch=None, *, skip=False):
        calls.append((norm, act) if branch is None else (norm, act, branch))
        x = x if branch is None else x + branch
        return (fused_norm.plain(norm, act, x), x) if skip else fused_norm.plain(norm, act, x)

    monkeypatch.setattr(fused_norm, "has_kernels", lambda x: True)
    monkeypatch.setattr(fused_norm, "fused", fused)
    return calls


@pytest.mark.once
def test_the_kernels_in_tritons_interpreter():
    """The interpreter replaces Triton's compiler when it is imported, so it needs a process of its own."""
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("fused_norm_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", cases],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_kernels_compile_and_fit_the_memory_of_gpus(dtype, monkeypatch):
    """Shared memory of a program, in bytes, as the GPUs of GeForce and of workstations have since 2020, the least of all."""
    pytest.importorskip("triton")
    from mimoconv import norm_kernels

    kernels = [norm_kernels.statistics_kernel, norm_kernels.normalize_kernel]
    kernels += [norm_kernels.sums_kernel, norm_kernels.backward_kernel]
    used = compile_only(kernels, Gpu(89), monkeypatch)
    layers, x = make(channels=64)
    x = x.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for training in (False, True):
            layers.train(training)
            out, total = fused_norm.fused(layers["norm"], layers["act"], x, x.detach(), skip=True)
            (out + total).sum().backward()
    assert len(used) == len(kernels)
    assert 0 < max(used.values()) <= 101376, used


def test_the_package_does_not_import_triton():
    subprocess.run([sys.executable, "-c", "import sys, mimoconv; assert 'triton' not in sys.modules"], check=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_what_fits_is_offered_to_the_kernels(offered, training):
    for layers, x in (make("prelu"), make("relu")):
        layers.train(training)
        assert fits(layers, x)
        for act in (layers["act"], None):
            fused_norm.norm_act(layers["norm"], act, x)
            assert fused_norm.norm_act_skip(layers["norm"], act, x)[1] is x
            assert offered[-2:] == [(layers["norm"], act)] * 2
    assert len(offered) == 8


CHANGES = {
    "another class of BatchNorm": lambda layers, x: layers.update({"norm": Own(8)}),
    "SyncBatchNorm": lambda layers, x: layers.update({"norm": nn.SyncBatchNorm(8)}),
    "no affine parameters": lambda layers, x: layers.update({"norm": nn.BatchNorm2d(8, affine=False)}),
    "no statistics": lambda layers, x: layers.update({"norm": nn.BatchNorm2d(8, track_running_stats=False)}),
    "a cumulative average": lambda layers, x: layers.update({"norm": nn.BatchNorm2d(8, momentum=None)}),
    "no count of batches": lambda layers, x: setattr(layers["norm"], "num_batches_tracked", None),
    "another number of channels": lambda layers, x: layers.update({"norm": nn.BatchNorm2d(9), "act": nn.ReLU()}),
    "another activation": lambda layers, x: layers.update({"act": nn.LeakyReLU()}),
    "one slope for all channels": lambda layers, x: layers.update({"act": nn.PReLU()}),
    "parameters in double precision": lambda layers, x: layers.double(),
    "parameters in half precision": lambda layers, x: layers.half(),
    "statistics in double precision": lambda layers, x: setattr(
        layers["norm"], "running_var", torch.ones(8, dtype=torch.float64)
    ),
    "the count of batches elsewhere": lambda layers, x: setattr(
        layers["norm"], "num_batches_tracked", torch.tensor(0, device="meta")
    ),
    "slopes elsewhere": lambda layers, x: layers["act"].to("meta"),
    "a forward of its own": lambda layers, x: setattr(layers["act"], "forward", lambda x: x),
    "a hook on BatchNorm": lambda layers, x: layers["norm"].register_forward_hook(lambda *_: None),
    "a hook before the activation": lambda layers, x: layers["act"].register_forward_pre_hook(lambda *_: None),
    "a hook on gradients": lambda layers, x: layers["act"].register_full_backward_hook(lambda *_: None),
    "a hook before gradients": lambda layers, x: layers["norm"].register_full_backward_pre_hook(lambda *_: None),
    "parametrised": lambda layers, x: nn.utils.parametrize.register_parametrization(layers["norm"], "weight", nn.Identity()),
    "images in another layout": lambda layers, x: x.contiguous(),
    "a part of the channels": lambda layers, x: torch.cat([x, x], 1)[:, :8],
    "images in double precision": lambda layers, x: layers.update({"act": nn.ReLU()}) or x.double(),
    "slopes in another precision": lambda layers, x: x.bfloat16(),
    "one number per channel in training": lambda layers, x: x[:1, :, :1, :1],
    "no images": lambda layers, x: x[:0],
    "three axes": lambda layers, x: x[0],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_does_not_fit_is_left_to_the_modules(change):
    layers, x = make()
    changed = change(layers, x)
    assert not fits(layers, changed if isinstance(changed, torch.Tensor) else x)


def test_half_precision_fits_as_far_as_prelu_takes_it():
    layers, x = make()
    for dtype in (torch.bfloat16, torch.float16):
        assert fused_norm.fits_kernels(layers["norm"], None, x.to(dtype))
        with torch.autocast("cpu", dtype):
            assert fits(layers, x.to(dtype))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_transforms_traces_and_modes_get_the_modules(offered):
    layers, x = make("relu")
    norm, act = layers["norm"].eval().requires_grad_(False), layers["act"]  # a trace takes no parameters with gradients

    def loss(x):
        return fused_norm.norm_act(norm, act, x).square().sum()

    grad(loss)(x)
    vmap(loss)(x[:, None])
    with forward_ad.dual_level():
        loss(forward_ad.make_dual(x, x))
    torch.jit.trace(loss, x, check_trace=False)  # the check would also call it without a trace
    make_fx(loss)(x)
    torch.compile(loss, backend="eager", fullgraph=True)(x)
    torch.fx.symbolic_trace(Block(8, 8, 1, MIMOConvConfig()))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss(mode.from_tensor(x))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    loss(x)
    handle.remove()
    assert not offered
    loss(x)
    assert len(offered) == 1


@pytest.mark.parametrize(("c_out", "stride", "kernels"), [(8, 1, 2), (16, 2, 3)])
def test_blocks_and_layers_offer_every_norm_with_its_activation(offered, c_out, stride, kernels):
    block = Block(8, c_out, stride, MIMOConvConfig(activation="prelu")).to(memory_format=torch.channels_last)
    block(make()[1])
    expected = [(block.norm1, block.act1), (block.norm2, block.act2)]
    assert offered == expected + ([(block.shortcut.norm, None)] if kernels == 3 else [])


def test_blocks_in_a_row_leave_their_sums_to_the_next(offered):
    """All but the last, whose sum no kernel reads."""
    config = MIMOConvConfig()
    blocks = [Block(8, 16, 2, config), Block(16, 16, 1, config), Block(16, 16, 1, config)]
    row = Layers(*blocks).to(memory_format=torch.channels_last).eval()
    x = make()[1]
    assert torch.equal(row(x), nn.Sequential(*blocks)(x))
    assert [call[:2] for call in offered if len(call) == 3] == [(block.norm1, block.act1) for block in blocks[1:]]


@pytest.mark.parametrize("everywhere", [False, True], ids=["on the blocks", "on all modules"])
def test_hooks_see_the_output_of_each_block(offered, everywhere):
    row, seen = Layers(*(Block(8, 8, 1, MIMOConvConfig()) for _ in range(3))), []

    def see(module, inputs, output):
        seen.extend([output] * isinstance(module, Block))

    handles = [nn.modules.module.register_module_forward_hook(see)] if everywhere else []
    handles += [] if everywhere else [block.register_forward_hook(see) for block in row]
    out = row(make()[1])
    for handle in handles:
        handle.remove()
    assert len(seen) == 3
    assert torch.equal(seen[-1], out)


def test_a_block_that_is_compiled_runs_so(offered):
    row, seen = Layers(*(Block(8, 8, 1, MIMOConvConfig()) for _ in range(3))), []
    row[1]._compiled_call_impl = lambda x: seen.append(x) or row[1].forward(x)  # as Module.compile sets it
    x = make()[1]
    assert torch.equal(row(x), nn.Sequential(*row)(x))
    assert len(seen) == 2


def test_layers_without_kernels_are_a_plain_sequence(monkeypatch):
    """Whoever puts another forward into the class of blocks, as tracers do, sees it called."""
    seen = []
    monkeypatch.setattr(Block, "forward", lambda self, x: seen.append(x) or x)
    Layers(*(Block(8, 8, 1, MIMOConvConfig()) for _ in range(2)))(make()[1])
    assert len(seen) == 2


@pytest.mark.parametrize(
    "change", [torch.Tensor.bfloat16, torch.Tensor.contiguous, lambda x: x[:1], lambda x: x.to("meta"), nn.Parameter],
    ids=["another precision", "another layout", "another shape", "another device", "another class"],
)  # fmt: skip
def test_sums_of_unlike_images_are_left_to_torch(change):
    x = make()[1]
    assert fused_norm.is_alike(x, x.clone())
    assert not fused_norm.is_alike(x, change(x))


def test_layers_compute_as_in_a_row(offered):
    """A norm before another layer, at the end, and two activations after one."""
    parts = [nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.PReLU(8), nn.ReLU(), nn.BatchNorm2d(8)]
    x = make()[1]
    assert torch.equal(Layers(*parts)(x), nn.Sequential(*parts)(x))
    assert offered == [(parts[0], None), (parts[2], parts[3]), (parts[6], None)]


def test_cpu_is_left_alone(monkeypatch):
    monkeypatch.setattr(fused_norm, "fused", None)
    layers, x = make()
    assert torch.equal(fused_norm.norm_act(layers["norm"], layers["act"], x), layers["act"](layers["norm"](x)))
    out, same = fused_norm.norm_act_skip(layers["norm"], None, x)
    assert torch.equal(out, layers["norm"](x))
    assert same is x
