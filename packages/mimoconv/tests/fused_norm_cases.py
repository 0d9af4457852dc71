"""The fused kernels against the modules in float64; `test_fused_norm.py` runs this file with Triton's interpreter.

On an NVIDIA GPU, `pytest packages/mimoconv/tests/fused_norm_cases.py` runs them as they are compiled.
"""

import copy
import os

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mimoconv import MIMOConv, MIMOConvConfig, fused_norm

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ACTIVATIONS = {"none": lambda c: None, "relu": lambda c: nn.ReLU(), "prelu": nn.PReLU}
ODD = [(3, 10, 4, 7), (2, 7, 3, 3), (3, 1, 1, 2), (2, 160, 4, 4), (1, 40, 3, 5)]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of which these images have several in a slice, as large images have of those that are shipped."""
    from mimoconv import norm_kernels

    small = norm_kernels.Setting(rows=4, columns=8, warps=1, programs=15)
    monkeypatch.setattr(norm_kernels, "SETTINGS", dict.fromkeys(norm_kernels.SETTINGS, small))
    monkeypatch.setattr(norm_kernels, "COMBINED_PIECES", 4)


def make(channels, activation, *, training=True):
    """BatchNorm and activation with random parameters and statistics."""
    norm, act = nn.BatchNorm2d(channels, momentum=0.3), ACTIVATIONS[activation](channels)
    for parameter in (norm.weight, norm.bias, norm.running_mean, *(act.parameters() if act else ())):
        nn.init.normal_(parameter)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    norm.train(training)
    return nn.ModuleList([norm, act] if act else [norm]).to(DEVICE)


def images(*shape, mean=3.0, dtype=torch.float32):
    """Random images, channels last, each channel with a mean of its own."""
    x = torch.randn(shape) + mean * torch.randn(1, shape[1], 1, 1)
    return x.to(DEVICE, dtype, memory_format=torch.channels_last)


def results(compute, layers, x, gradients):
    """Name all that a pass and its gradients compute."""
    norm, act = layers[0], layers[1] if len(layers) > 1 else None
    x = x.detach().requires_grad_()
    outs = compute(norm, act, x)
    torch.autograd.backward(outs, [gradient.to(out.dtype) for gradient, out in zip(gradients, outs, strict=False)])
    found = {"out": outs[0].detach(), "x": x.grad}
    found |= {name: parameter.grad for name, parameter in layers.named_parameters()}
    return found | dict(copy.deepcopy(layers).named_buffers())


def ours(norm, act, x):
    return (fused_norm.fused(norm, act, x),)


def ours_with_skip(norm, act, x):
    return fused_norm.fused(norm, act, x, skip=True)


def ours_with_branch(norm, act, x):
    """Of a sum of two, whose gradients add up to those of the images."""
    return fused_norm.fused(norm, act, (0.25 * x).contiguous(memory_format=torch.channels_last), 0.75 * x, skip=True)


def plain(norm, act, x):
    return fused_norm.plain(norm, act, x), x * 1


def both(compute, layers, x):
    """Results of the kernels and of the modules in float64."""
    gradients = [torch.randn(x.shape, device=DEVICE) for _ in range(1 if compute is ours else 2)]
    gradients += [torch.zeros(x.shape, device=DEVICE)] * (2 - len(gradients))
    exact = results(plain, copy.deepcopy(layers).double(), x.double(), gradients)
    return results(compute, layers, x, gradients), exact


@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("compute", [ours_with_skip, ours_with_branch])
def test_kernels_are_the_modules(shape, activation, training, compute):
    found, exact = both(compute, make(shape[1], activation, training=training), images(*shape))
    assert found["0.num_batches_tracked"] == training
    assert_close(found, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("compute", [ours, ours_with_branch])
@pytest.mark.usefixtures("small_tiles")
def test_kernels_are_the_modules_with_several_tiles_in_a_slice(shape, activation, compute):
    found, exact = both(compute, make(shape[1], activation), images(*shape))
    assert_close(found, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_one_row_in_eval_mode():
    found, exact = both(ours_with_skip, make(160, "prelu", training=False), images(1, 160, 1, 1))
    assert_close(found, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_precision_rounds_only_what_it_writes(dtype, activation):
    """Images are rounded to a neighbouring number of their dtype, sums not at all."""
    with torch.autocast(DEVICE, dtype):
        layers, x = make(10, activation), images(4, 10, 6, 6, dtype=dtype)
        gradients = [images(4, 10, 6, 6, dtype=dtype) for _ in range(2)]
        exact = results(plain, copy.deepcopy(layers).double(), x.double(), [g.double() for g in gradients])
    found = results(ours_with_skip, layers, x, gradients)
    assert (found["out"].dtype, found["x"].dtype) == (dtype, dtype)
    for name in ("out", "x"):
        assert_close(found.pop(name).double(), exact.pop(name), rtol=1.01 * torch.finfo(dtype).eps, atol=1e-5)
    assert_close(found, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_returns_the_dtypes_of_the_modules(activation):
    layers, x, dtypes = make(10, activation), images(2, 10, 3, 3).requires_grad_(), []
    for compute in (ours, plain):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = compute(layers[0], *layers[1:] or [None], x)[0]
        dtypes.append((out.dtype, torch.autograd.grad(out.float().square().sum(), x)[0].dtype))
    assert dtypes[0] == dtypes[1]


@pytest.mark.usefixtures("small_tiles")
def test_a_mean_much_larger_than_the_deviation_is_fine():
    """Sums of squares would lose the variance, 1e-8 of the squared mean."""
    layers, x = make(10, "none"), images(4, 10, 6, 6, mean=1e4)
    found, exact = both(ours, layers, x)
    assert_close(found, exact, rtol=2e-3, atol=2e-3, check_dtype=False)
    assert_close(found["0.running_var"].double(), exact["0.running_var"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_at_zero_the_gradient_is_that_of_torch(activation):
    layers = make(10, activation)
    nn.init.zeros_(layers[0].weight)
    nn.init.zeros_(layers[0].bias)
    found, exact = both(ours_with_skip, layers, images(2, 10, 3, 3))
    assert_close(found, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("frozen", [{"x"}, {"0.weight"}, {"0.bias", "1.weight"}, {"0.weight", "0.bias", "1.weight"}], ids=str)
def test_what_is_frozen_has_no_gradient_and_changes_no_other(training, frozen):
    layers, x = make(10, "prelu", training=training), images(2, 10, 3, 3)
    found, gradients = {}, [images(2, 10, 3, 3) for _ in range(2)]
    for kept in (frozen, set()):
        some, inputs = copy.deepcopy(layers), x.clone().requires_grad_("x" not in kept)
        for name, parameter in some.named_parameters():
            parameter.requires_grad_(name not in kept)
        torch.autograd.backward(ours_with_skip(*some, inputs), gradients)
        found[not kept] = {"x": inputs.grad} | {name: parameter.grad for name, parameter in some.named_parameters()}
    assert {name for name, gradient in found[False].items() if gradient is None} == frozen
    assert_close(found[False], {name: None if name in frozen else g for name, g in found[True].items()}, rtol=0, atol=0)


def test_gradients_may_have_any_layout_or_be_missing():
    layers, x = make(10, "prelu"), images(2, 10, 3, 3)
    inputs = [x.clone().requires_grad_() for _ in range(4)]
    out, skip = ours_with_skip(*layers, inputs[0])
    (out.mean((2, 3)).sum() + skip.sum(1).square().mean()).backward()
    out, skip = plain(*layers, inputs[1])
    (out.mean((2, 3)).sum() + skip.sum(1).square().mean()).backward()
    assert_close(inputs[0].grad, inputs[1].grad)
    ours_with_skip(*layers, inputs[2])[0].square().sum().backward()  # the skip connection is not used
    ours(*layers, inputs[3])[0].square().sum().backward()
    assert torch.equal(inputs[2].grad, inputs[3].grad)
    inputs[3].grad = None
    ours_with_skip(*layers, inputs[3])[1].backward(x)  # only the skip connection is used
    assert torch.equal(inputs[3].grad, x)


def test_nan_is_not_hidden_by_relu():
    for training in (True, False):
        layers, x = make(10, "relu", training=training), images(2, 10, 3, 3)
        x[0, 4, 1, 1] = torch.nan
        assert torch.equal(ours(*layers, x)[0].isnan(), plain(*copy.deepcopy(layers), x)[0].isnan())


@pytest.mark.usefixtures("small_tiles")
def test_without_gradients_and_twice_the_same():
    layers, x = make(10, "prelu"), images(2, 10, 3, 3)
    outs = []
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            outs.append(ours(*copy.deepcopy(layers), x)[0])
    assert [out.requires_grad for out in outs] == [False, True, False]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_checkpointing_and_no_second_derivative():
    layers, x = make(10, "prelu"), images(2, 10, 3, 3)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    checkpoint(lambda x: ours(*layers, x)[0], inputs[0], use_reentrant=False).square().sum().backward()
    (gradient,) = torch.autograd.grad(ours(*layers, inputs[1])[0].square().sum(), inputs[1], create_graph=True)
    assert torch.equal(inputs[0].grad, gradient)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_statistics_that_change_before_the_backward_pass_are_noticed():
    layers, x = make(10, "relu", training=False), images(2, 10, 3, 3)
    out = ours(*layers, x.clone().requires_grad_())[0]
    ours(*layers.train(), x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("stem", ["conv-norm-relu", "conv-norm"])
@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_a_network_trains_and_answers_alike(monkeypatch, stem, activation):
    """All its layers with statistics are fused, and keep them for each n."""
    config = MIMOConvConfig(
        capacity=2, depth=10, width=1, stem_channels=8, in_channels=2, stem=stem, activation=activation, final_norm=True
    )
    model = MIMOConv(config).to(DEVICE, memory_format=torch.channels_last)
    fast, exact = copy.deepcopy(model), model.double()
    calls = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(fused_norm, "has_kernels", lambda x: x.dtype != torch.float64)
    monkeypatch.setattr(
        fused_norm, "fused", lambda *args, run=fused_norm.fused, **kwargs: calls.append(run) or run(*args, **kwargs)
    )
    for n in (1, 2):
        x = torch.randn(3, n, 2, 8, 8, device=DEVICE)
        fast(x).square().sum().backward()
        exact(x.double()).square().sum().backward()
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert len(calls) == 2 * norms
    assert_close(dict(fast.named_buffers()), dict(exact.named_buffers()), rtol=1e-3, atol=1e-4, check_dtype=False)
    for name, parameter in fast.named_parameters():
        expected = exact.get_parameter(name).grad
        assert (parameter.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-5, name
    assert_close(fast.eval()(x), exact.eval()(x.double()), rtol=1e-3, atol=1e-3, check_dtype=False)
    assert len(calls) > 2 * norms + 5
