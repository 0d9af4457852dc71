"""Muon against its definition, written layer by layer, and against torch's where torch has one."""

import copy

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

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
    step = lr * max(1, rows / cols) ** 0.5
    return (1 - lr * weight_decay) * weight - step * plain_iterations(x).reshape(weight.shape), buffer


def plain_iterations(x, dtype=None):
    """Five Newton-Schulz iterations with all rows and columns; each result rounded to a type."""
    x = (x / x.square().sum().sqrt().clamp(min=1e-7)).to(dtype or x.dtype)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


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


@pytest.mark.parametrize("hidden", [True, False])
def test_the_layout_in_memory_changes_nothing(hidden):
    """Of weights, of gradients, or of some of those of one shape, nor does one that weights are given between steps."""
    plain, other = weights(), weights()
    for number, parameter in enumerate(other):
        if parameter.dim() == 4 and number != 1:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    optimizers = [Muon(parameters, **OPTIONS, hidden=hidden) for parameters in (plain, other)]
    other[4].data = other[4].data.T.contiguous().T
    for step in range(4):
        if step == 3:
            other[1].data = other[1].data.to(memory_format=torch.channels_last)
        for parameters, optimizer in zip((plain, other), optimizers, strict=True):
            set_gradients(parameters, step)
            if parameters is other and step < 2:
                for parameter in parameters:
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
    assert all(other[number].stride() != plain[number].stride() for number in (0, 1, 4))
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
    new = u.mT @ orthogonalize([x], torch.float32)[0] @ v.mT
    values = new.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.681
    assert values.max() < 1.135
    assert_close(new, torch.diag_embed(values), atol=1e-5, rtol=0)


def spectrum(rows, cols, values):
    """A matrix with these singular values."""
    u, _, v = torch.linalg.svd(torch.randn(rows, cols, dtype=torch.float64), full_matrices=False)
    return u * torch.as_tensor(values, dtype=torch.float64) @ v


MATRICES = {
    "random": lambda: torch.randn(96, 400),
    "tall": lambda: torch.randn(400, 96),
    "square": lambda: torch.randn(96, 96),
    "ill-conditioned": lambda: spectrum(96, 400, torch.logspace(0, -4, 96)),
    "extremely so": lambda: spectrum(96, 400, torch.logspace(0, -8, 96)),
    "half small": lambda: spectrum(96, 400, [1.0] * 48 + [1e-3] * 48),
    "one large": lambda: spectrum(96, 400, [1.0] + [1e-3] * 95),
    "low rank": lambda: torch.randn(96, 8) @ torch.randn(8, 400),
    "rank one": lambda: torch.randn(96, 1) @ torch.randn(1, 400),
    "nearly rank one": lambda: 1 + 0.01 * torch.randn(96, 400),
    "rows of all sizes": lambda: torch.randn(96, 400) * torch.logspace(0, -4, 96)[:, None],
    "tiny": lambda: 1e-12 * torch.randn(96, 400),
    "huge": lambda: 1e12 * torch.randn(96, 400),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_half_precision_is_closer_than_plain_iterations_in_bf16(kind):
    """In the norm of the error and in its largest singular value. bf16 is what Muon is published with."""
    torch.manual_seed(0)
    x = MATRICES[kind]().float()
    exact = plain_iterations(x.double())
    (ours,), plain = orthogonalize([x[None]], torch.float16)[0], plain_iterations(x, torch.bfloat16)
    for order in ("fro", 2):
        error, usual = (torch.linalg.matrix_norm(out.double() - exact, order) for out in (ours, plain))
        assert error < 0.6 * usual


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_matrices_of_all_shapes_and_of_zeros_together(dtype):
    torch.manual_seed(0)
    stacks = [torch.randn(2, 6, 9), torch.zeros(1, 6, 9), torch.randn(3, 30, 6), torch.randn(1, 6, 6)]
    for stack, out in zip(stacks, orthogonalize(stacks, dtype), strict=True):
        expected = torch.stack([plain_iterations(x.double()) for x in stack])
        assert_close(out.double(), expected, rtol=0, atol=0.02 if dtype == torch.float16 else 1e-4)


class Count(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += not function.is_view
        return function(*args, **(kwargs or {}))


def test_more_layers_take_no_more_operations():
    counts = []
    for layers in (1, 9):
        parameters = weights(shapes=[(6, 4, 3, 3), (6, 8)] * layers + [(3,)])
        optimizer = Muon([{"params": parameters[:-1], "hidden": True}, {"params": parameters[-1:]}], lr=0.1)
        for step in range(2):
            set_gradients(parameters, step)
            with Count() as counted:
                optimizer.step()
        counts.append(counted.operations)
    assert counts[0] == counts[1] < 80


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


def test_parameters_with_gaps_in_memory_are_refused():
    with pytest.raises(ValueError, match=r"strides \(4, 2\) has gaps"):
        Muon([torch.zeros(3, 4)[:, ::2].requires_grad_()], lr=0.1)


@pytest.mark.parametrize("hidden", [False, True])
def test_scaled_gradients_are_scaled_back(hidden):
    """By a GradScaler's scale, which changes, where it has not done so itself."""
    ours, expected = weights(torch.float32), weights(torch.float32)
    for parameters, scales in ((expected, (1.0, 1.0)), (ours, (2.0**10, 2.0**5))):
        optimizer, scaler = Muon(parameters, **OPTIONS, hidden=hidden), torch.amp.GradScaler("cpu")
        scaler.scale(torch.zeros(()))  # sets the scale up
        for step, scale in enumerate(scales):
            set_gradients(parameters, step)
            for parameter in parameters:
                parameter.grad *= scale
            scaler.update(scale)
            scaler.step(optimizer)
            scaler.update()
    assert all(map(torch.equal, ours, expected))
