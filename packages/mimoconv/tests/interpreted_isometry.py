"""The kernels of the isometry penalty against float64; `test_fast_isometry` runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from test_isometry import by_loops
from torch import nn
from torch.testing import assert_close

from mimoconv import WideResNet, WideResNetConfig, isometry, isometry_penalty
from mimoconv.fast_isometry import SumOfDistances
from mimoconv.isometry import convolution_isometry


def filters(*shape, norm=1.0, memory_format=torch.channels_last):
    """Random weights (out c kh kw) whose filters have this norm in the mean."""
    weight = torch.randn(shape) * norm / (shape[1] * shape[2] * shape[3]) ** 0.5
    return weight.to(memory_format=memory_format).requires_grad_()


def assert_accurate(weights, layers, tolerance=2e-3):
    """Hold value, and gradient of three times the value, against float64."""
    value = SumOfDistances.apply(layers, *weights)
    exact_weights = [weight.detach().double().requires_grad_() for weight in weights]
    exact = sum(convolution_isometry(w, stride, groups=groups) for w, (stride, groups) in zip(exact_weights, layers, strict=True))
    assert_close(value.double(), exact, rtol=tolerance, atol=1e-12)
    found, expected = torch.autograd.grad(3 * value, weights), torch.autograd.grad(3 * exact, exact_weights)
    for weight, gradient, exact_gradient in zip(weights, found, expected, strict=True):
        assert (gradient - exact_gradient).norm() <= tolerance * exact_gradient.norm()
        assert gradient.stride() == weight.stride()


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3), (2, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize("channels", [(5, 4), (4, 9)], ids=["more inputs", "more outputs"])
def test_value_and_gradient(kernel, stride, channels):
    c_in, c_out = channels
    assert_accurate([filters(c_out, c_in, *kernel)], [(stride, 1)])


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("channels", [(5, 4), (4, 9)], ids=["more inputs", "more outputs"])
def test_contiguous_weights(stride, channels):
    c_in, c_out = channels
    assert_accurate([filters(c_out, c_in, 3, 3, memory_format=torch.contiguous_format)], [(stride, 1)])


def test_the_definition():
    weight = filters(3, 4, 3, 3)
    value, expected = SumOfDistances.apply([((2, 2), 1)], weight), by_loops(weight.double(), (2, 2))
    assert_close(value.double(), expected, rtol=2e-3, atol=0)
    for found, exact in zip(*(torch.autograd.grad(v, weight) for v in (value, expected)), strict=True):
        assert_close(found, exact, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (4, 7, 3, 3)], ids=["more outputs", "more inputs"])
def test_groups(shape):
    assert_accurate([filters(*shape)], [((2, 1), 2)])


def test_layers_alike_share_launches_and_others_do_not():
    """The fourth differs in its layout alone, the fifth in its stride; the last is the first once more."""
    weights = [filters(5, 6, 3, 3, norm=norm) for norm in (1, 2, 3)]
    weights += [filters(5, 6, 3, 3, memory_format=torch.contiguous_format), filters(5, 6, 3, 3), filters(9, 6, 1, 1)]
    layers = [((1, 1), 1)] * 4 + [((2, 2), 1)] * 2
    assert_accurate(weights, layers)
    twice = torch.autograd.grad(SumOfDistances.apply(layers[:2], weights[0], weights[0]), weights[0])[0]
    once = torch.autograd.grad(SumOfDistances.apply(layers[:1], weights[0]), weights[0])[0]
    assert_close(twice, 2 * once)


@pytest.mark.parametrize("shape", [(66, 70, 2, 3), (150, 66, 2, 1), (322, 324, 1, 1)])
def test_several_tiles(shape):
    assert_accurate([filters(*shape)], [((1, 1), 1)])


@pytest.mark.parametrize("norm", [1e-5, 1e-4, 1e-2, 10, 100])
@pytest.mark.parametrize("kernel", [1, 3])
def test_small_and_large_filters(norm, kernel):
    assert_accurate([filters(8, 24, kernel, kernel, norm=norm)], [((1, 1), 1)])


def test_large_filters_that_are_all_the_same():
    weight = filters(1, 24, 3, 3, norm=100).detach().expand(8, 24, 3, 3).contiguous()
    assert_accurate([weight.requires_grad_()], [((1, 1), 1)])


def test_values_near_zero():
    weight = torch.zeros(16, 16, 3, 3)
    nn.init.dirac_(weight)
    weight.requires_grad_()
    value = SumOfDistances.apply([((1, 1), 1)], weight)
    assert value.item() < 1e-8
    assert torch.autograd.grad(value, weight)[0].abs().max() < 1e-4
    assert_accurate([(weight + 0.01 * torch.randn_like(weight)).detach().requires_grad_()], [((1, 1), 1)])


def test_filters_of_zeros_have_no_gradient():
    weight = torch.zeros(3, 4, 3, 3, requires_grad=True)
    value = SumOfDistances.apply([((1, 1), 1)], weight)
    assert value.item() == 1.5
    assert torch.autograd.grad(value, weight)[0].abs().max() == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of overflow
def test_filters_too_large_are_no_silent_error():
    weight = filters(3, 4, 3, 3, norm=1e6)
    value = SumOfDistances.apply([((1, 1), 1)], weight)
    assert not value.isfinite()
    assert not torch.autograd.grad(value, weight)[0].isfinite().all()


def test_without_gradient_and_under_autocast():
    weight = filters(5, 6, 3, 3)
    value = SumOfDistances.apply([((1, 1), 1)], weight)
    with torch.no_grad():
        assert SumOfDistances.apply([((1, 1), 1)], weight) == value
    with torch.autocast("cpu", torch.bfloat16):
        other = SumOfDistances.apply([((1, 1), 1)], weight)
    assert_close(*(torch.autograd.grad(v, weight)[0] for v in (other, value)), rtol=0, atol=0)


def test_the_penalty_of_a_network(monkeypatch):
    model = WideResNet(WideResNetConfig(depth=10, width=0.25))
    expected = isometry_penalty(model)
    monkeypatch.setattr(isometry, "has_kernels", lambda weight: True)
    value = isometry_penalty(model)
    assert "SumOfDistances" in value.grad_fn.name()
    assert_close(value, expected, rtol=2e-3, atol=0)
