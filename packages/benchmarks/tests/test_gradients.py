"""Gradients of a step, recorded and replayed or not; what is compiled; lengths that sequences are padded to."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.image_task import ImageTask
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.training import loop, state
from mimo_benchmarks.training.compilers import compiled
from mimo_benchmarks.training.feed import Feed, rounded_up
from mimo_benchmarks.training.gradients import CastTogether, CudaGraphs, Gradients, shapes
from mimo_benchmarks.training.state import Training, is_compiled
from mimoconv import MIMOConvConfig, isometry_penalty
from mimoformer import MIMOFormerConfig

CONV = MIMOConvConfig(capacity=4, depth=10, width=0.25, stem_channels=8, image_size=8)
FORMER = MIMOFormerConfig(
    m=2, n=2, vocab_size=20, max_length=100, layers=1, embed_dim=16, heads=1, mlp_dim=16, features=16, num_classes=3, dropout=0.1
)
OPTIM = OptimConfig(steps=9, groups=4, optimizer="sgd", lr=0.1, momentum=(0.9, 0.8), isometry=1e-3)
TOKENS = replace(OPTIM, isometry=0.0)
RUNS = {
    "dynamic": RunConfig(task="random", model=CONV, optim=OPTIM),
    "curriculum": RunConfig(task="random", model=CONV, optim=OPTIM, n=(4,), n_odds=(1,), curriculum=(1, 2), curriculum_share=0.6),
    "accumulated": RunConfig(task="random", model=CONV, optim=replace(OPTIM, accumulate=2)),
    "tokens": RunConfig(task="random", model=FORMER, optim=TOKENS, n=(1, 2), n_odds=(1, 1)),
    "lengths": RunConfig(task="random", model=replace(FORMER, dropout=0.0), optim=TOKENS, n=(2,), n_odds=(1,)),
}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class OnCpu(CudaGraphs):
    """What CUDA graphs do, without a GPU: recording changes nothing, and a replay writes into the tensors of the recording."""

    def __init__(self, network):
        self.network, self.recorded, self.replayed = network, 0, 0

    def stream(self):
        return nullcontext()

    beside = stream

    def join(self):
        pass

    def record(self, operations):
        self.recorded += 1
        before, numbers = [buffer.clone() for buffer in self.network.buffers()], torch.get_rng_state()
        operations()
        torch.set_rng_state(numbers)
        for buffer, old in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(old)
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        places = [parameter.grad for parameter in parameters]
        for place in places:
            place.fill_(torch.nan)

        def replay():
            self.replayed += 1
            self.network.zero_grad()
            operations()
            for parameter, place in zip(parameters, places, strict=True):
                place.copy_(parameter.grad)
            self.network.zero_grad()  # a graph knows nothing of what Python calls the gradient

        return replay


def random_task(settings):
    """Random items of the network's own size; sequences of all lengths where the run is that on lengths."""
    network = describe(settings.model)
    if network.takes == "images":
        return ImageTask.random(network, 64)
    if settings is not RUNS["lengths"]:
        return SequenceTask.random(network, 64)
    lengths = torch.randint(20, 100, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    part = Sequences.of([bytes([1 + place % 18]) * length for place, length in enumerate(lengths)], [0, 1] * 32)
    return replace(SequenceTask.random(network, 2), train=part)


def started(settings, device="cpu"):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=device == "cpu")
    training = Training(build(settings.model), settings, accelerator)
    return training, Gradients(training, Feed(random_task(settings).to(accelerator.device), settings), accelerator)


def finish(training, gradients):
    """Take all steps; return loss and accuracy of each, and the weights and statistics after the last."""
    steps = range(1, training.config.optim.steps + 1)
    measured = torch.stack([loop.take_step(training, gradients, step)[0].clone() for step in steps])
    return {"measured": measured} | training.network.state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_replayed_steps_are_those_that_run_as_usual(name):
    """Bit for bit, with every n, part and random number of its step, and each kind of step is recorded once.

    Sequences are padded to fewer lengths, so they agree to rounding.
    """
    usual = finish(*started(RUNS[name]))
    training, gradients = started(RUNS[name])
    recorder = gradients.recorder = OnCpu(training.network)
    replayed = finish(training, gradients)
    assert usual["measured"].isfinite().all()
    for key, value in usual.items():
        assert_close(replayed[key], value, **{"rtol": 1e-4, "atol": 1e-5} if name == "lengths" else {"rtol": 0, "atol": 0})
    kinds = Counter(shapes(gradients.feed.draw(step, few_lengths=True)) for step in range(1, 10))
    assert recorder.recorded == sum(count > 1 for count in kinds.values()) > 0
    assert recorder.replayed == sum(count - 1 for count in kinds.values())


def test_lengths_grow_by_an_eighth_at_most():
    for length in range(1, 5000):
        rounded = rounded_up(length)
        assert length <= rounded <= length * 9 / 8
        assert rounded_up(rounded) == rounded


def test_there_are_eight_lengths_per_octave():
    assert len({rounded_up(length) for length in range(1025, 4097)}) == 16


def test_no_sequence_is_padded_beyond_the_longest_of_the_set():
    training, gradients = started(RUNS["lengths"])
    feed = gradients.feed
    found = [feed.draw(step, few_lengths=True).length for step in range(1, 10)]
    exact = [feed.draw(step).length for step in range(1, 10)]
    assert all(a >= b for a, b in zip(found, exact, strict=True))
    assert max(found) <= feed.longest == int(feed.batches.lengths.max())
    del training


@pytest.mark.parametrize(
    ("preset", "device", "asked", "compiled"),
    [
        ("recall_n2_att", "cuda", True, True),
        ("recall_n2_att", "cuda", False, False),
        ("recall_n2_att", "cpu", True, False),
        ("cifar10_mimoconv_n4", "cuda", True, False),
    ],
)
def test_networks_without_kernels_of_their_own_are_compiled_on_gpus(preset, device, asked, compiled, monkeypatch):
    monkeypatch.setattr(state, "runs_triton", lambda device: True)
    assert is_compiled(replace(find_preset(preset), compile=asked), torch.device(device)) == compiled


def test_releases_of_torch_that_compile_wrong_gradients_are_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu130")
    with pytest.raises(ConfigError, match=r"2\.10\.0 compiles wrong .* --no-compile"):
        compiled(nn.Sequential(nn.Conv2d(1, 1, 1)))
    compiled(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)))
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    compiled(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_reductions_that_compile_wrong_gradients_are_off():
    from torch._inductor import config

    with config.patch({"triton.mix_order_reduction": True}):
        compiled(nn.Identity())
        assert config.triton.mix_order_reduction is False


@pytest.mark.unchecked
@pytest.mark.once
def test_dropout_of_a_compiled_network_draws_what_it_draws_uncompiled():
    network, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.ReLU(), nn.Dropout(0.1)).train(), torch.randn(16, 8)
    found = []
    for run in (network, compiled(network)):
        torch.manual_seed(0)
        out = run(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), list(network.parameters())), torch.get_rng_state()))
    assert_close(*found)


def test_penalties_are_of_trained_weights_and_come_once_per_step():
    """Their gradients are those of factor times penalty, whatever the parts; an expanded one becomes a tensor of its own."""
    settings = replace(RUNS["accumulated"], optim=replace(OPTIM, accumulate=2, isometry=3.0))
    training, gradients = started(settings)
    gradients.penalties.append((2.0, lambda network: network.head.bias.sum()))
    gradients(1)
    with_penalty = {name: parameter.grad.clone() for name, parameter in training.network.named_parameters()}
    training.network.zero_grad()
    training, gradients = started(replace(settings, optim=replace(settings.optim, isometry=0.0)))
    gradients(1)
    own = dict(training.network.named_parameters())
    weight, bias = own["body.module.stage1.0.conv1.weight"], own["head.bias"]
    penalty = torch.autograd.grad(3 * isometry_penalty(training.network), weight)[0]
    assert_close(with_penalty["body.module.stage1.0.conv1.weight"], weight.grad + penalty)
    assert_close(with_penalty["head.bias"], bias.grad + 2)


def test_a_penalty_of_frozen_weights_has_no_gradient():
    training, gradients = started(RUNS["dynamic"])
    for parameter in training.network.body.parameters():
        parameter.requires_grad_(False)
    gradients(1)
    assert training.network.head.weight.grad is not None


def test_only_running_statistics_are_averaged_over_processes():
    """Constants, such as keys that are not trained, would drift by rounding."""
    training, _ = started(RUNS["dynamic"])
    names = [name for name, _ in training.network.named_buffers() if "running" in name]
    assert len(training.statistics) == len(names) > 0
    training, _ = started(RUNS["tokens"])
    assert not training.statistics
    assert training.buffers


def test_weights_cast_together_are_what_autocast_casts():
    """And so are their gradients, in the layout of the weights."""
    weights = [torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last), torch.randn(5, 4, 1, 1)]
    weights = [weight.requires_grad_() for weight in weights]
    x, found = torch.randn(2, 6, 5, 5).bfloat16(), []
    for cast in (CastTogether.apply(torch.bfloat16, *weights), [weight.bfloat16() for weight in weights]):
        out = torch.conv2d(torch.conv2d(x, cast[0]), cast[1])
        found.append((out, *torch.autograd.grad(out.float().square().sum(), weights)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert found[0][1].stride() == weights[0].stride()


@NEEDS_GPU
@pytest.mark.parametrize("name", RUNS)
def test_recorded_steps_do_not_wait_for_the_gpu(name):
    """And give what steps without CUDA graphs give, to the rounding of sums whose order is not fixed."""
    ends = []
    for settings in (replace(RUNS[name], compile=False, cuda_graphs=graphs) for graphs in (False, True)):
        training, gradients = started(settings, "cuda")
        for step in range(1, 10):
            seen = step > 7
            torch.cuda.set_sync_debug_mode("error" if seen else "default")
            try:
                loop.take_step(training, gradients, step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        ends.append(training.network.state_dict())
    for key, value in ends[0].items():
        assert_close(ends[1][key], value, rtol=1e-2, atol=1e-3)


@NEEDS_GPU
def test_what_waits_for_the_gpu_cannot_be_recorded():
    with pytest.raises(ConfigError, match="--no-cuda-graphs"):
        CudaGraphs(torch.device("cuda")).record(lambda: torch.ones(1, device="cuda").item())
