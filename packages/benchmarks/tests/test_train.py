"""The training step against torch's parts put together by hand, and what each process takes of a batch."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.config import OptimConfig, RunConfig
from mimo_benchmarks.grouping import batch, inputs_per_step
from mimo_benchmarks.presets import quickstart
from mimo_benchmarks.sampling import Batches
from mimo_benchmarks.tasks import load
from mimo_benchmarks.train import train
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig

MODEL = {"depth": 10, "width": 0.5, "stem_channels": 8, "in_channels": 1, "image_size": 8}


@pytest.fixture
def setting(tmp_path):
    task = load("digits", tmp_path)
    optim = OptimConfig(steps=4, groups=6, max_grad_norm=0.5)
    return task, RunConfig(model=MIMOConvConfig(**MODEL), optim=optim, log_every=1)


def steps(task, config):
    """What the steps of a run see: n, images and targets."""
    inputs = inputs_per_step(config)
    batches = Batches(len(task.train.labels), [config.optim.groups * n for n in inputs], config.seed)
    return [(n, *batch(task, config, batches, step, n, torch.device("cpu"))) for step, n in enumerate(inputs, 1)]


@pytest.mark.parametrize("mixup", [0, 1])
@pytest.mark.parametrize("superposed", [True, False])
def test_steps_are_adamw_on_a_one_cycle_of_smoothed_labels(setting, superposed, mixup):
    task, config = setting
    config = replace(config, augment=replace(config.augment, mixup=mixup))
    network = MIMOConv(config.model) if superposed else WideResNet(WideResNetConfig(**MODEL))
    reference = copy.deepcopy(network).train()
    lines = []
    trained, seen = train(network, task, config, Accelerator(cpu=True), name="x", log=lambda **line: lines.append(line))
    assert not trained.training

    optimizer = torch.optim.AdamW(reference.parameters(), lr=8e-3, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=5, pct_start=0.1, cycle_momentum=False)
    count = 0
    for step, (line, (n, images, targets)) in enumerate(zip(lines, steps(task, config), strict=True), 1):
        x, y = images if superposed else images.flatten(0, 1), targets.flatten(0, 1)
        log_likelihood = reference(x).reshape(-1, 10).log_softmax(-1)
        loss = -((0.8 * y + 0.02) * log_likelihood).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        count += len(y)
        assert line["step"] == step
        assert line["n"] == n
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert line["lr"] == pytest.approx(schedule.get_last_lr()[0])
    assert (len(lines), seen) == (4, count)
    for (name, value), expected in zip(trained.named_parameters(), reference.parameters(), strict=True):
        assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=name)


class Second:
    """An accelerator that believes to be the second of two processes."""

    process_index, num_processes, is_main_process, device = 1, 2, False, torch.device("cpu")

    def prepare(self, *things):
        return things

    def backward(self, loss):
        loss.backward()

    def clip_grad_norm_(self, parameters, norm):
        return nn.utils.clip_grad_norm_(parameters, norm)

    def unwrap_model(self, model, **_):
        return model


@pytest.mark.unchecked
def test_each_process_takes_every_kth_group(setting):
    task, config = setting
    network, taken = MIMOConv(config.model), []
    network.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    train(network, task, config, Second(), name="x", log=lambda **_: None)
    for x, (_, whole, _) in zip(taken, steps(task, config), strict=True):
        assert torch.equal(x, whole[1::2])


def test_the_quickstart_learns(tmp_path):
    """30 steps of the quickstart's recipe bring the loss down; chance is log 10 = 2.30, the smoothed labels' floor 0.98."""
    config, lines = quickstart(), []
    config = RunConfig(model=config.model, optim=OptimConfig(steps=30), log_every=1)
    torch.manual_seed(0)
    train(
        MIMOConv(config.model),
        load("digits", tmp_path),
        config,
        Accelerator(cpu=True),
        name="x",
        log=lambda **line: lines.append(line["loss"]),
    )
    assert sum(lines[-5:]) / 5 < 1.9
