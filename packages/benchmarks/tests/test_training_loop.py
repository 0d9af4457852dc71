"""The training step against torch's parts put together by hand; going on from a checkpoint; what is not finite."""

import copy
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.networks.registry import build
from mimo_benchmarks.presets.find import quickstart
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.registry import load
from mimo_benchmarks.training import gradients
from mimo_benchmarks.training.checkpoint import load_checkpoint, save_checkpoint
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.gradients import batch_accuracy, objective
from mimo_benchmarks.training.loop import PATIENCE, accept_update, are_finite, train
from mimo_benchmarks.training.state import Training
from mimoconv import MIMOConvConfig, WideResNetConfig, isometry_penalty
from mimoformer import MIMOFormerConfig
from vsa_core.penalties import key_orthonormality

SIZES = {"depth": 10, "width": 0.5, "stem_channels": 8, "in_channels": 1, "image_size": 8}
SMALL = MIMOConvConfig(**SIZES)
FORMER = MIMOFormerConfig(
    m=2, n=2, vocab_size=20, max_length=42, layers=1, embed_dim=16, heads=1, mlp_dim=16, features=16, head="tokens"
)


@pytest.fixture
def digits(tmp_path):
    return load("digits", tmp_path)


def config(steps=4, groups=6, model=SMALL, task="digits", n=(1, 2, 4), odds=(1, 1, 3), **settings):
    optim = {name: settings.pop(name) for name in tuple(settings) if name in OptimConfig.__dataclass_fields__}
    optim = OptimConfig(steps=steps, groups=groups, **optim)
    return RunConfig(task=task, model=model, n=n, n_odds=odds, optim=optim, log_every=1, **settings)


def started(settings):
    torch.manual_seed(settings.seed)
    return Training(build(settings.model), settings, Accelerator(cpu=True))


class RecordedFeed(Feed):
    """A feed that remembers what it gave, by step."""

    def __init__(self, task, settings):
        super().__init__(task, settings)
        self.given = {}

    def draw(self, step, **options):
        self.step = step
        return super().draw(step, **options)

    def batch(self, drawn, part=0):
        batch = self.given[self.step, part] = super().batch(drawn, part)
        return batch


def run(training, task, after_step=lambda step: None, log=lambda **line: None, feed=None):
    feed = feed or Feed(task, training.config)
    train(training, feed, Accelerator(cpu=True), name="x", log=log, after_step=after_step)
    return training


def weights(training):
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


@pytest.mark.parametrize("mixup", [0, 1])
@pytest.mark.parametrize("model", [SMALL, WideResNetConfig(**SIZES)], ids=["superposed", "plain"])
def test_steps_are_adamw_on_a_one_cycle_of_smoothed_labels(digits, model, mixup):
    settings = config(model=model, max_grad_norm=0.5, eps=1e-3)  # else biases without a gradient follow its rounding
    settings = replace(settings, augment=replace(settings.augment, mixup=mixup))
    training, lines = started(settings), []
    reference = copy.deepcopy(training.network).train()
    run(training, digits, log=lambda **line: lines.append(line))

    slopes = {layer.weight for layer in reference.modules() if isinstance(layer, nn.PReLU)}
    decaying = [parameter for parameter in reference.parameters() if parameter not in slopes]
    groups = [{"params": decaying, "weight_decay": 0.2}, *({"params": [slope], "weight_decay": 0.0} for slope in slopes)]
    optimizer = torch.optim.AdamW(groups, lr=8e-3, eps=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=5, pct_start=0.1, cycle_momentum=False)
    feed, count = Feed(digits, settings), 0
    for step, line in enumerate(lines, 1):
        images, _, targets = feed.batch(feed.draw(step))
        y = targets.flatten(0, 1)
        loss = -((0.8 * y + 0.02) * reference(images).reshape(-1, 10).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        count += len(y)
        assert (line["step"], line["n"], line["inputs"], line["skipped"]) == (step, feed.n[step - 1], count, 0)
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert line["lr"] == pytest.approx(lr)
    assert len(lines) == 4
    for (name, value), expected in zip(training.network.named_parameters(), reference.parameters(), strict=True):
        assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_penalties_are_added_to_the_loss(digits):
    """The first step of plain SGD takes off the gradient of loss and penalties, and reports the loss alone."""
    rates = {"lr": 0.1, "momentum": (0.0, 0.0), "weight_decay": 0.0, "start": 1.0, "end": 1.0, "max_grad_norm": 1e9}
    settings = config(steps=1, n=(2,), odds=(1,), optimizer="sgd", isometry=0.01, key_penalty=0.3, **rates)
    training, lines = started(settings), []
    reference = copy.deepcopy(training.network).train()
    run(training, digits, log=lambda **line: lines.append(line))
    feed = Feed(digits, settings)
    images, _, targets = feed.batch(feed.draw(1))
    loss = objective(reference(images), targets, settings.optim)
    assert lines[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    (loss + 0.01 * isometry_penalty(reference) + 0.3 * key_orthonormality(reference.binding.keys)).backward()
    for mine, parameter in zip(training.network.parameters(), reference.parameters(), strict=True):
        assert_close(mine, parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_objectives_and_accuracy_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]])
    optim = OptimConfig(label_smoothing=0.3)
    log_p = logits.log_softmax(-1)
    smoothed = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    assert_close(objective(logits, torch.tensor([0, 2]), optim), -(smoothed * log_p).sum(-1).mean())
    unscored = torch.tensor([[0, -100]])
    assert_close(objective(logits[None], unscored, replace(optim, label_smoothing=0.0)), -log_p[0, 0])
    assert batch_accuracy(logits[None], unscored) == 1
    assert batch_accuracy(logits, torch.tensor([0, 2])) == 0.5
    squared = replace(optim, label_smoothing=0.0, loss="squared")
    shares = nn.functional.one_hot(torch.tensor([0, 2]), 3).float()
    by_hand = ((logits - torch.tensor([[1.0, -1, -1], [-1, -1, 1.0]])) ** 2).mean()
    assert_close(objective(logits, shares, squared), by_hand)


def test_accumulated_batches_are_one_batch(tmp_path):
    """Without dropout and BatchNorm, the sum of the parts' gradients is the whole's."""
    task = load("induction", tmp_path)
    settings = {
        "model": replace(FORMER, dropout=0.0),
        "task": "induction",
        "n": (2,),
        "odds": (1,),
        "optimizer": "sgd",
        "lr": 0.1,
    }
    whole, parts = (run(started(config(**settings, accumulate=parts)), task) for parts in (1, 3))
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)


SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": (0.95, 0.85), "reject": 3.0}
SEQUENCES = {"model": FORMER, "task": "induction", "n": (2,), "odds": (1,), "curriculum": (1,), "curriculum_share": 0.5}
RUNS = {
    "adamw, moving average": {"average": 0.9},
    "sgd, rejection": SGD,
    "muon": {"optimizer": "muon", "lr": 0.02},
    "adamw, dropout, curriculum": SEQUENCES,
    "adamw, first beta in a cycle": {"betas": (0.95, 0.999), "peak_beta1": 0.85, "warmup": 0.5, "schedule": "linear"},
    "adamw, annealing by epochs": {"schedule": "annealing", "rate_parts": 3, "warmup": 0.2},
    "muon, dropout, curriculum": {**SEQUENCES, "optimizer": "muon", "lr": 0.02},
}


def stops_of(feed, count=20):
    """Return steps at which a run can stop: ends of epochs, the end of the curriculum, some changes of n, and drawn ones."""
    steps = range(1, feed.config.optim.steps)
    chosen = {step for step in steps if step % feed.epoch == 0} | {feed.config.curriculum_steps} & {*steps}
    chosen |= {*[step for step in steps if feed.n[step] != feed.n[step - 1]][:6]}
    return chosen | {*random.Random(0).sample(sorted({*steps} - chosen), count - len(chosen))}


@pytest.mark.parametrize("steps", [8, pytest.param(60, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_run_that_never_stopped(kind, steps, tmp_path):
    """It sees the same batches and has the same weights and log lines, bit for bit; epochs of the images are short."""
    settings = config(steps, **RUNS[kind])
    task = load(settings.task, tmp_path)
    if settings.task == "digits":
        task = replace(task, train=replace(task.train, images=task.train.images[:60], labels=task.train.labels[:60]))
    feed, lines, training = RecordedFeed(task, settings), [], started(settings)
    stops = {1, 4, 7} if steps == 8 else stops_of(feed)

    def save(step):
        if step in stops:
            save_checkpoint(tmp_path / str(step), step, *training.state())

    run(training, task, after_step=save, log=lambda **line: lines.append(line), feed=feed)
    for stop in stops:
        again, later, rest = started(settings), [], RecordedFeed(task, settings)
        again.restore(load_checkpoint(tmp_path / str(stop)))
        torch.manual_seed(99)  # a resumed run must not depend on what was drawn before
        run(again, task, log=lambda later=later, **line: later.append(line), feed=rest)
        assert {step for step, _ in rest.given} == {*range(stop + 1, steps + 1)}
        for step, batch in rest.given.items():
            assert all(one is other or torch.equal(one, other) for one, other in zip(batch, feed.given[step], strict=True))
        assert same(weights(again), weights(training))
        assert same(again.evaluated_weights(), training.evaluated_weights())
        for line, other in zip(lines[stop:], later, strict=True):
            assert {**line, "inputs_per_second": 0} == {**other, "inputs_per_second": 0}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_restored_optimizer_has_the_layout_of_its_weights(digits, optimizer, tmp_path):
    """On GPUs, where weights of images are channels last, fused kernels want that of what they keep."""
    settings = config(2, optimizer=optimizer, lr=0.01)
    training = run(started(settings), digits)
    save_checkpoint(tmp_path, 2, *training.state())
    again = started(settings)
    again.network.to(memory_format=torch.channels_last)
    again.restore(load_checkpoint(tmp_path))
    kept = 0
    for parameter, mine in zip(again.network.parameters(), training.network.parameters(), strict=True):
        for name, value in again.optimizer.state[parameter].items():
            assert torch.equal(value, training.optimizer.state[mine][name])
            if value.dim() == 4:
                assert value.stride() == parameter.stride()
                kept += 1
    assert kept > 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_an_update_that_is_not_finite_is_left_out(digits, optimizer, value):
    """Injected into one step's gradient; 1e38 overflows the norm. What comes after is finite again."""
    settings = config(6, optimizer=optimizer, lr=0.01)
    training, lines, kept = started(settings), [], {}
    first = next(training.network.parameters())

    def poison(gradient):
        return torch.full_like(gradient, value) if training.progress.step == 2 else gradient

    first.register_hook(poison)
    run(training, digits, lambda step: kept.update({step: weights(training)}), lambda **line: lines.append(line))
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert same(kept[3], kept[2])
    assert not same(kept[4], kept[3])
    tensors, state = training.state()
    assert all(tensor.isfinite().all() for group in tensors.values() for tensor in group.values())
    json.dumps(state, allow_nan=False)


def refuses_only_the_third(training, digits):
    """Take six steps; the third is as if it had not been, and nothing that a checkpoint holds is infinite or NaN."""
    lines, kept = [], {}
    run(training, digits, lambda step: kept.update({step: weights(training)}), lambda **line: lines.append(line))
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert same(kept[3], kept[2])
    assert not same(kept[4], kept[3])
    return lines, [tensor for group in training.state()[0].values() for tensor in group.values()]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_one_pixel_does_not_spoil_the_statistics(digits, optimizer, value):
    """With 1e30 the loss and the gradient are ordinary, and only BatchNorm's variance overflows."""
    training = started(config(6, optimizer=optimizer, lr=0.01))

    def poison(_, inputs):
        if training.progress.step == 2:
            inputs[0][0, 0, 0, 0, 0] = value

    training.network.register_forward_pre_hook(poison)
    lines, tensors = refuses_only_the_third(training, digits)
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert value != 1e30 or (lines[2]["loss"] < 10 and lines[2]["grad_norm"] < 1000)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_buffers_of_all_kinds_stay_finite(digits, value):
    """A mask of minus infinity, which no step changes, may stay as it is."""
    network = build(SMALL)
    network.register_buffer("mask", torch.full((3,), -torch.inf))
    network.register_buffer("empty", torch.zeros(0, dtype=torch.float16))
    network.register_buffer("seen", torch.zeros(2, dtype=torch.float64))
    training = Training(network, config(6), Accelerator(cpu=True))

    def count(*_):
        network.seen[1] += value if training.progress.step == 2 else 1

    network.register_forward_hook(count)
    _, tensors = refuses_only_the_third(training, digits)
    assert network.seen.tolist() == [0, 5]
    assert sum(int((~tensor.isfinite()).sum()) for tensor in tensors) == len(network.mask)


def test_an_infinite_loss_is_left_out(digits):
    """Though its gradient is finite."""
    training = started(config(6, loss="squared", label_smoothing=0.0))

    def enlarge(_, inputs, logits):
        if training.progress.step != 2:
            return logits
        logits.register_hook(lambda gradient: 1e-20 * gradient)
        return logits + 1e20

    training.network.register_forward_hook(enlarge)
    lines, _ = refuses_only_the_third(training, digits)
    assert lines[2]["loss"] == float("inf")
    assert lines[2]["grad_norm"] < 1000


@pytest.mark.parametrize(("steps", "faults"), [(16, 8), pytest.param(200, 100, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", ["adamw, moving average", "sgd, rejection", "muon", "adamw, dropout, curriculum"])
def test_nothing_infinite_or_huge_gets_into_a_checkpoint(kind, steps, faults, tmp_path, monkeypatch):
    """NaN, infinity or 1e30 at steps that are drawn, in one number of the first layer's output, the loss or each gradient."""
    draw, settings = random.Random(kind), config(steps, **RUNS[kind])
    values = (float("nan"), float("inf"), float("-inf"), 1e30)
    at = {
        step: (draw.choice(["layer", "loss", "gradient"]), draw.choice(values)) for step in draw.sample(range(steps - 1), faults)
    }
    training, skipped = started(settings), []

    def spoil(where, tensor):
        place, value = at.get(training.progress.step, ("", 0))
        if place == where:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            tensor.view(-1)[draw.randrange(tensor.numel())] = value
        return tensor

    network = training.network
    first = network.embedding if settings.model is FORMER else network.stem
    first.register_forward_hook(lambda module, inputs, output: spoil("layer", output))
    for parameter in filter(lambda each: each.requires_grad, network.parameters()):
        parameter.register_hook(lambda gradient: spoil("gradient", gradient))
    monkeypatch.setattr(gradients, "objective", lambda *arguments: spoil("loss", objective(*arguments)))

    def check(step):
        tensors, state = training.state()
        assert all(tensor.abs().max() < 1e10 for group in tensors.values() for tensor in group.values())
        json.dumps(state, allow_nan=False)

    task = load(settings.task, tmp_path)
    run(training, task, after_step=check, log=lambda **line: skipped.append(line["skipped"]))
    assert skipped[-1] >= faults / 2


@pytest.mark.unchecked
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_processes_decide_alike(value):
    """What one of them alone finds, all refuse."""
    there = torch.tensor(value).isfinite().float()
    two = SimpleNamespace(num_processes=2, reduce=lambda here, how: {"mean": (here + there) / 2}[how])
    for here in (1.0, float("nan")):
        assert are_finite([torch.tensor(2.0), torch.tensor(here)], two) == (value == 0 and here == 1)


def test_time_counts_up_to_every_step(digits):
    """Not to the last log line alone."""
    training = started(replace(config(steps=3), log_every=100))
    found = []
    run(training, digits, after_step=lambda step: found.append(training.progress.seconds))
    assert 0 < found[0] < found[1] < found[2]


def test_training_is_given_up_after_many_of_them(digits):
    training, lines = started(config(60)), []
    next(training.network.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    before = weights(training)
    with pytest.raises(FloatingPointError, match=f"{PATIENCE} updates in a row were skipped"):
        run(training, digits, log=lambda **line: lines.append(line))
    assert len(lines) == PATIENCE
    assert same(weights(training), before)


def test_training_goes_on_where_they_are_not_in_a_row(digits):
    training, lines = started(config(2 * PATIENCE + 3)), []

    def every_other(gradient):
        return gradient * float("nan") if training.progress.step % 2 else gradient

    next(training.network.parameters()).register_hook(every_other)
    run(training, digits, log=lambda **line: lines.append(line))
    assert lines[-1]["skipped"] == PATIENCE + 1


def published_decisions(norms, epoch, ratio):
    """Which updates are made, by the rule of train_epoch in the published train_superposition.py, written as there.

    The mean is over the norms of the updates made; an epoch without any keeps the mean before it. There is no mean before the
    first epoch's end, and comparisons with NaN, or of inf with inf, are false.
    """
    made, mean, total, count = [], float("inf"), 0.0, 0
    for step, norm in enumerate(norms, 1):
        update = norm < ratio * mean
        if update:
            total, count = total + norm, count + 1
        made.append(update)
        if step % epoch == 0:
            mean = total / count if count > 0 else mean
            total, count = 0.0, 0
    return made


def test_step_rejection_follows_the_published_rule():
    """Norms over four decades, some not finite, so that updates are rejected in most epochs and whole epochs here and there."""
    generator = torch.Generator().manual_seed(0)
    norms = 10 ** (4 * torch.rand(300, generator=generator, dtype=torch.float64) - 2)
    norms[40:45] = 1e6  # a whole epoch
    norms[torch.tensor([3, 57, 58, 120])] = torch.tensor([float("inf"), float("nan"), float("inf"), float("nan")]).double()
    optim = OptimConfig(reject=10.0)
    counts = {
        name: torch.zeros((), dtype=torch.float64) for name in ("skipped", "skipped_in_a_row", "norms", "epoch_steps", "mean")
    }
    found = [bool(accept_update(norm, counts, optim, new_epoch=step % 5 == 0)) for step, norm in enumerate(norms, 1)]
    expected = published_decisions(norms.tolist(), 5, 10.0)
    assert found == expected
    assert 20 < expected.count(False) < 150
    assert expected[40:45] == [False] * 5
    assert counts["skipped"] == expected.count(False)


@pytest.mark.parametrize(("n", "epoch"), [(1, 3), (2, 2)])
def test_step_rejection_goes_by_the_last_epochs_mean(digits, n, epoch):
    """An epoch is n passes over the 18 images in steps of 6 n, whose rest is left out as published: 3 steps, or 2 of 12 images.

    A gradient 100 times as long is left out, also of the mean, and the schedule goes on. Clipping does not change the norms.
    """
    digits = replace(digits, train=type(digits.train)(images=digits.train.images[:18], labels=digits.train.labels[:18]))
    settings = config(9, n=(n,), odds=(1,), reject=5.0, max_grad_norm=0.01, optimizer="sgd", lr=1e-4, weight_decay=0.0)
    training, lines = started(settings), []

    def longer(gradient):
        return gradient * (100 if training.progress.step in (4, 7) else 1)  # in steps 5 and 8

    for parameter in training.network.parameters():
        parameter.register_hook(longer)
    run(training, digits, log=lambda **line: lines.append(line))
    norms = [line["grad_norm"] for line in lines]
    assert min(norms) > 0.01
    made = published_decisions(norms, epoch, 5.0)
    assert [line["skipped"] for line in lines] == [made[:step].count(False) for step in range(1, 10)]
    assert made == [step not in (5, 8) for step in range(1, 10)]
    assert len({line["lr"] for line in lines}) > 7


def test_the_moving_average_is_what_is_evaluated(digits):
    training, kept = started(config(4, average=0.75)), []
    kept.append(weights(training))
    run(training, digits, after_step=lambda step: kept.append(weights(training)))
    name = "head.weight" if "head.weight" in kept[0] else next(iter(kept[0]))
    average = kept[1][name]
    for later in kept[2:]:
        average = 0.75 * average + 0.25 * later[name]
    assert_close(training.evaluated_weights()[name], average)
    statistics = [key for key in kept[-1] if "running_mean" in key]
    assert statistics
    assert all(torch.equal(training.evaluated_weights()[key], kept[-1][key]) for key in statistics)


def test_the_quickstart_learns(tmp_path):
    """30 steps of the quickstart's recipe bring the loss down; chance is log 10 = 2.30, the smoothed labels' floor 0.98."""
    lines = []
    settings = RunConfig(model=quickstart().model, optim=OptimConfig(steps=30), log_every=1)
    run(started(settings), load("digits", tmp_path), log=lambda **line: lines.append(line["loss"]))
    assert sum(lines[-5:]) / 5 < 1.9
