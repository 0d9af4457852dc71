"""Steps that are refused were never there, for every optimizer, bare, in accelerate's and with a GradScaler."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training import optimizers
from mimoconv import MIMOConv, MIMOConvConfig

OPTIMIZERS = ("adamw", "sgd", "muon")


def settings(optimizer, **changes):
    return OptimConfig(**{"optimizer": optimizer, "lr": 0.1, "weight_decay": 0.01} | changes)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return request.param


@pytest.fixture(params=["bare", "accelerate", "fp16"])
def wrap(request, device):
    """An optimizer as it is, in accelerate's, or in that with a GradScaler, as in fp16."""
    if request.param == "bare":
        return lambda optimizer: optimizer
    Accelerator(cpu=device == "cpu")
    scaler = torch.amp.GradScaler(device, init_scale=8.0) if request.param == "fp16" else None
    return lambda optimizer: AcceleratedOptimizer(optimizer, scaler=copy.deepcopy(scaler))


def network_on(device):
    torch.manual_seed(0)
    return MIMOConv(MIMOConvConfig(capacity=2, depth=10, width=0.25, stem_channels=8)).to(device)


def images(seed):
    return torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(network, optimizer, seed, ok=True, factor=1.0):
    """A training step on images of a seed, its loss multiplied by a factor."""
    device = next(network.parameters()).device
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]
    loss = network(images(seed).to(device)).square().mean() * factor
    scaler = getattr(optimizer, "scaler", None)
    (scaler.scale(loss) if scaler else loss).backward()
    if scaler:
        scaler.unscale_(optimizer.optimizer)
    ok = torch.tensor(ok, device=device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        optimizers.step_if(ok, optimizer, buffers, before)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    optimizer.zero_grad()


def values(network, optimizer):
    """All of a network's and its optimizer's numbers, as bytes."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{name}": value for i, moments in state.items() for name, value in moments.items()} | network.state_dict()
    return {name: (tensor.dtype, tensor.cpu().numpy().tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("factor", [1.0, float("nan")])
@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_refused_step_was_never_there(optimizer, when, factor, wrap, device):
    config = settings(optimizer, steps=9, momentum=(0.95, 0.95 if optimizer == "adamw" else 0.85))
    ends = []
    for refusing in (True, False):
        network = network_on(device)
        inner = optimizers.build_optimizer(network, config)
        schedule, outer = optimizers.build_schedule(inner, config), wrap(inner)
        for number in range(1, 5):
            if number == when:
                before = values(network, outer)
                if refusing:
                    step(network, outer, seed=99, ok=False, factor=factor)
                    after = values(network, outer)
                    assert {name: after[name] for name in before} == before
                    assert not any(value.isnan().any() for moments in inner.state.values() for value in moments.values())
            step(network, outer, seed=number)
            schedule.step()
        assert values(network, outer) != before
        ends.append(values(network, outer))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_taken_is_the_optimizers_own(optimizer, wrap, device):
    networks = [network_on(device) for _ in range(2)]
    optims = [optimizers.build_optimizer(network, settings(optimizer)) for network in networks]
    step(networks[0], wrap(optims[0]), seed=1)
    networks[1](images(1).to(device)).square().mean().backward()
    optims[1].step()
    assert values(networks[0], optims[0]) == values(networks[1], optims[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scaler_refuses_by_itself_and_lowers_its_scale_for_that_alone(optimizer, device):
    """A gradient that overflowed, though nobody else minds; one that is refused for its size is no overflow."""
    Accelerator(cpu=device == "cpu")
    network = network_on(device)
    inner = optimizers.build_optimizer(network, settings(optimizer))
    schedule = optimizers.build_schedule(inner, settings(optimizer))
    outer = AcceleratedOptimizer(inner, scaler=torch.amp.GradScaler(device, init_scale=8.0))
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    step(network, outer, seed=1, factor=float("inf"))
    schedule.step()  # which would warn if no step had been taken before
    assert outer.scaler.get_scale() == 4
    step(network, outer, seed=1, ok=False)
    assert outer.scaler.get_scale() == 4
    assert all(map(torch.equal, weights, network.parameters()))
    step(network, outer, seed=1)
    assert not any(map(torch.equal, weights, network.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_refusal_ends_with_its_step(optimizer):
    """The next step, whoever takes it, is taken."""
    network = network_on("cpu")
    inner = optimizers.build_optimizer(network, settings(optimizer))
    step(network, inner, seed=1, ok=False)
    before = values(network, inner)
    network(images(1)).square().mean().backward()
    inner.step()
    assert values(network, inner) != before


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_goes_on_from_its_state(optimizer, device):
    config, runs = settings(optimizer, steps=9), []
    for _ in range(2):
        network = network_on(device)
        inner = optimizers.build_optimizer(network, config)
        runs.append((network, inner, optimizers.build_schedule(inner, config)))
    for number in (1, 2):
        step(*runs[0][:2], seed=number)
        runs[0][2].step()
    for mine, theirs in zip(*runs, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    for number in (3, 4):
        for network, inner, schedule in runs:
            step(network, inner, seed=number)
            schedule.step()
    assert values(*runs[0][:2]) == values(*runs[1][:2])


def test_buffers_lie_end_to_end():
    """One tensor for each type; a buffer that two layers share stays shared, and saving and loading see no difference."""
    network = network_on("cpu")
    network.body.module.stage1[0].norm2.running_mean = network.body.module.stage1[0].norm1.running_mean
    before = copy.deepcopy(network.state_dict())
    whole = optimizers.lay_end_to_end(network)
    assert [tensor.dtype for tensor in whole] == [torch.float32, torch.int64]
    assert_equal(network.state_dict(), before)
    norms = network.body.module.stage1[0]
    assert norms.norm1.running_mean is norms.norm2.running_mean
    for tensor in whole:
        tensor.fill_(7)
    assert all((buffer == 7).all() for buffer in network.buffers())
    network.load_state_dict(before)
    assert_equal(network.state_dict(), before)
    assert sum(map(len, whole)) == sum(buffer.numel() for buffer in network.buffers())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
