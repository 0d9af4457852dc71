"""The probe behind `mimonets list --estimate`: which steps it times, and that none of them can diverge."""

from dataclasses import replace

import pytest
import torch

from mimo_benchmarks.cli import estimate
from mimo_benchmarks.cli.estimate import kinds_of_steps, training_seconds
from mimo_benchmarks.networks.datamux import DataMUXConfig
from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.settings import AugmentConfig, OptimConfig, RunConfig
from mimo_benchmarks.training.feed import Feed, n_of_steps
from mimo_benchmarks.training.state import Training
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig

SMALL = {
    MIMOConvConfig: {"depth": 10, "width": 0.25, "stem_channels": 8},
    WideResNetConfig: {"depth": 10, "width": 0.25, "stem_channels": 8},
    MIMOFormerConfig: {"layers": 1, "embed_dim": 8, "heads": 1, "head_dim": 8, "mlp_dim": 8, "features": 4, "max_length": 8},
    DataMUXConfig: {"layers": 1, "embed_dim": 8, "heads": 1, "mlp_dim": 8, "max_length": 8},
    DataMUXConvConfig: {},
}


def small(name: str) -> RunConfig:
    """A preset with a network and batches that take no time."""
    config = find_preset(name)
    kept = {field: value for field, value in SMALL[type(config.model)].items() if hasattr(config.model, field)}
    parts = config.optim.accumulate
    return replace(config, model=replace(config.model, **kept), optim=replace(config.optim, groups=2 * parts), controls=False)


def recipes() -> list[str]:
    """One preset for each way of training a kind of network."""
    found: dict[object, str] = {}
    for name in PRESETS:
        config = find_preset(name)
        optim = replace(config.optim, steps=1, groups=1, accumulate=1, warmup=0.1)
        found.setdefault((type(config.model), optim, config.augment, len(config.n), config.curriculum), name)
    return list(found.values())


@pytest.fixture
def trained(monkeypatch, one_thread):
    """The networks that are trained, with the weights that they had before."""
    made = []

    def remember(network, config, accelerator):
        made.append((network, {name: value.clone() for name, value in network.named_parameters()}))
        return Training(network, config, accelerator)

    monkeypatch.setattr(estimate, "Training", remember)
    monkeypatch.setattr(estimate, "STEPS", 2)
    monkeypatch.setattr(estimate, "WARMUP", 1)
    return made


@pytest.mark.unchecked
@pytest.mark.parametrize("name", recipes())
def test_no_preset_changes_its_weights_while_it_is_timed(name, trained):
    config = small(name)
    assert training_seconds(config) >= 0
    ((network, before),) = trained
    for path, weight in network.named_parameters():
        assert (weight - before[path]).abs().max() < 1e-15, path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_timed_at_a_rate_of_almost_zero(name):
    for kind, _ in kinds_of_steps(find_preset(f"{name}.short")):
        assert kind.optim.lr == kind.optim.rest_lr == estimate.RATE


@pytest.mark.unchecked
def test_gradients_that_are_not_finite_end_no_estimate(trained, monkeypatch):
    build = estimate.build

    def damaged(config):
        network = build(config)
        next(network.parameters()).data.fill_(torch.nan)
        return network

    monkeypatch.setattr(estimate, "build", damaged)
    monkeypatch.setattr(estimate, "STEPS", 25)
    assert training_seconds(small("quickstart")) > 0


DYNAMIC = RunConfig(
    model=MIMOConvConfig(capacity=4, depth=10, width=0.25, stem_channels=8, in_channels=1, image_size=8),
    n=(1, 2, 4),
    n_odds=(1, 0, 3),
    curriculum=(2, 1),
    curriculum_share=0.2,
    optim=OptimConfig(steps=100, groups=2),
    augment=AugmentConfig(),
)


def test_kinds_of_steps_are_those_of_the_run_with_their_sizes():
    """Steps of a curriculum see as many images as those of the largest n."""
    kinds = kinds_of_steps(DYNAMIC)
    n = n_of_steps(DYNAMIC)
    probes = [(set(n_of_steps(kind)), count) for kind, count in kinds]
    assert probes == [({2}, 10), ({1}, 10), *(({each}, n[20:].count(each)) for each in dict.fromkeys(n[20:]))]
    assert sum(count for _, count in kinds) == 100
    task = estimate.TASKS["digits"].kind.random(describe(DYNAMIC.model), 64)
    real, sizes = Feed(task, DYNAMIC), {}
    for step in range(1, 101):
        sizes[step <= 20, n[step - 1]] = real.inputs(step) - real.inputs(step - 1)
    assert [Feed(task, kind).inputs(1) for kind, _ in kinds] == [
        sizes[place < 2, next(iter(each))] for place, (each, _) in enumerate(probes)
    ]


@pytest.fixture
def clock(monkeypatch):
    """Every step takes as many seconds as it has passes, the first one of each kind 1000 more, and no time goes by otherwise."""
    time, begun = [0.0], set()

    def step(training, gradients, number):
        kind = gradients.feed
        time[0] += len(kind.batch(kind.draw(number))[0]) + 1000 * (kind not in begun)
        begun.add(kind)

    monkeypatch.setattr(estimate, "take_step", step)
    monkeypatch.setattr(estimate, "now", lambda _: time[0])


@pytest.mark.unchecked
def test_seconds_are_the_steps_of_each_n_times_their_own(clock):
    n = n_of_steps(DYNAMIC)
    passes = 10 * 4 + 10 * 8 + 2 * len(n[20:])  # 8 images in passes of 2 and 1; then 2 passes
    assert training_seconds(DYNAMIC) == pytest.approx(passes + 1000 * len(kinds_of_steps(DYNAMIC)))


@pytest.mark.unchecked
def test_controls_are_part_of_it(clock):
    alone = replace(DYNAMIC, n=(4,), n_odds=(1,), curriculum=(), curriculum_share=0)
    controlled = replace(alone, controls=True)
    assert training_seconds(alone) == pytest.approx(200 + 1000)
    assert training_seconds(controlled) == pytest.approx(200 + 1000 + 2 * (800 + 1000))  # two plain networks, image by image
