"""Muon against its definition, written layer by layer, and against torch's where torch has one."""

import copy

import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.training.muon import Muon, orthogonalize

SHAPES = [(6, 4, 3, 3), (6, 4, 3, 3), (20, 2, 1, 3), (5, 12), (12, 5), (12, 5), (7, 7), (9, 1)]
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}


def weights(dtype=torch.float64, shapes=SHAPES):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)


def plain_step(weight, gradient, buffer, lr, momentum, weight_decay):
    """Weight and momentum after a step (Jordan et al., 2024)."""
    buffer = momentum * buffer + (1 - momentum) * gradient
    x = (momentum * buffer + (1 - momentum) * gradient).reshape(len(weight), -1)
    rows, cols = x.shape
    x = x / x.square().sum().sqrt()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    step = lr * max(1, rows / cols) ** 0.5
    return (1 - lr * weight_decay) * weight - step * x.reshape(weight.shape), buffer


def test_hidden_weights_move_as_defined():
    parameters = weights()
    expected = [(p.detach().clone(), torch.zeros_like(p)) for p in parameters]
    optimizer = Muon(parameters, **OPTIONS, hidden=True)
    for step in range(3):
        set_gradients(parameters, step)
        expected = [plain_step(*pair[:1], p.grad, *pair[1:], **OPTIONS) for p, pair in zip(parameters, expected, strict=True)]
        optimizer.step()
    assert_close([p.detach() for p in parameters], [weight for weight, _ in expected])
    assert_close([optimizer.state[p]["momentum_buffer"] for p in parameters], [buffer for _, buffer in expected])


def test_the_layout_in_memory_changes_nothing():
    """Of weights, of gradients, or of some of those of one shape."""
    plain, other = weights(), weights()
    for number, parameter in enumerate(other):
        if parameter.dim() == 4 and number != 1:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    optimizers = [Muon(parameters, **OPTIONS, hidden=True) for parameters in (plain, other)]
    for step in range(3):
        for parameters, optimizer in zip((plain, other), optimizers, strict=True):
            set_gradients(parameters, step)
            if parameters is other and step < 2:
                for parameter in parameters:
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
    assert other[0].stride() != plain[0].stride()
    assert_close([p.detach() for p in other], [p.detach() for p in plain])


def test_the_rest_moves_as_in_sgd():
    """In the same optimizer, with options of its own, vectors among them."""
    shapes = [*SHAPES, (3,), ()]
    ours, theirs, hidden = weights(shapes=shapes), weights(shapes=shapes), weights()
    optimizer = Muon(
        [{"params": hidden, "hidden": True}, {"params": ours, "lr": 0.02, "weight_decay": 0.1}], lr=0.1, momentum=0.8
    )
    sgd = torch.optim.SGD(theirs, lr=0.02, momentum=0.8, weight_decay=0.1)
    for step in range(3):
        for parameters in (ours, theirs, hidden):
            set_gradients(parameters, step)
        optimizer.step()
        sgd.step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (1, 1, 9)])
def test_singular_values_become_about_one(shape):
    """The iterations end at 0.681 to 1.135 for singular values from 1 % of the norm on; their vectors stay."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    assert (s / x.norm(dim=(1, 2))[:, None]).min() > 0.01
    new = u.mT @ orthogonalize(x) @ v.mT
    values = new.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.681
    assert values.max() < 1.135
    assert_close(new, torch.diag_embed(values), atol=1e-5, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this release of torch has no Muon")
def test_matrices_move_as_in_torch():
    """As far as its bf16 goes, of 8 bits, in 15 products one after the other."""
    shapes = [shape for shape in SHAPES if len(shape) == 2]
    ours, theirs, start = (weights(torch.float32, shapes) for _ in range(3))
    optimizers = Muon(ours, **OPTIONS, hidden=True), torch.optim.Muon(theirs, **OPTIONS)
    for step in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(parameters, step)
            optimizer.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - first).norm()
        assert_close(*(opt.state[p]["momentum_buffer"] for opt, p in zip(optimizers, (one, other), strict=True)))


def test_resumes_from_its_state():
    kept, options = weights(torch.float32), {**OPTIONS, "hidden": True}
    optimizer = Muon(kept, **options)
    for step in range(2):
        set_gradients(kept, step)
        optimizer.step()
    resumed = [p.detach().clone().requires_grad_() for p in kept]
    second = Muon(resumed, lr=9.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, opt in ((kept, optimizer), (resumed, second)):
        set_gradients(parameters, 2)
        opt.step()
    assert all(map(torch.equal, kept, resumed))


def test_parameters_without_gradient_stay():
    used, unused = weights()[:2]
    before = unused.detach().clone()
    optimizer = Muon([used, unused], **OPTIONS, hidden=True)
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state


def test_closure_is_called_with_gradients():
    (weight,) = weights(shapes=[(2, 2)])
    optimizer = Muon([weight], lr=0.1)

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    assert_close(optimizer.step(closure), before.sum())
    assert_close(weight.detach(), before - 0.1)


def test_vectors_are_no_hidden_weights():
    with pytest.raises(ValueError, match=r"\(3,\) is not a matrix: set hidden=False"):
        Muon([torch.zeros(3, requires_grad=True)], lr=0.1, hidden=True)


@pytest.mark.parametrize("hidden", [False, True])
def test_scaled_gradients_are_scaled_back(hidden):
    """By a GradScaler's scale, where it has not done so itself."""
    ours, expected = weights(torch.float32), weights(torch.float32)
    for parameters, scale in ((expected, 1.0), (ours, 2.0**10)):
        optimizer, scaler = Muon(parameters, **OPTIONS, hidden=hidden), torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(()))  # sets the scale up
        set_gradients(parameters, 0)
        for parameter in parameters:
            parameter.grad *= scale
        scaler.step(optimizer)
    assert all(map(torch.equal, ours, expected))
