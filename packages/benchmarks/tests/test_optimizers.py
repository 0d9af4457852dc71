"""Which parameters are updated how, and the one cycle."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUXConfig
from mimo_benchmarks.networks.registry import build
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training import optimizers
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig

OPTIMIZERS = ("adamw", "sgd", "muon")
TRANSFORMER = {"vocab_size": 8, "max_length": 6, "layers": 2, "embed_dim": 8, "heads": 2, "mlp_dim": 12}
BLOCKS = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attention.qkv", "attention.out", "mlp.0", "mlp.3")}
BODY = {f"body.module.stage{i}.0.{name}.weight" for i in (1, 2, 3) for name in ("conv1", "conv2", "shortcut.conv")}
NETWORKS = {
    "mimoconv": (
        MIMOConvConfig(capacity=2, depth=10, width=0.25, stem_channels=8),
        BODY,
        {"stem.conv.weight", "unbinding.weight", "head.weight"},
    ),
    "wide resnet": (WideResNetConfig(depth=10, width=0.25), BODY, {"stem.conv.weight", "head.weight"}),
    "mimoformer": (
        MIMOFormerConfig(**TRANSFORMER, variant="att+mlp", trainable_keys=True),
        BLOCKS,
        {"head.0.weight", "head.2.weight"},
    ),
    "datamux": (
        DataMUXConfig(**TRANSFORMER),
        BLOCKS,
        {"of_index.weight", "of_token.weight", "head.0.weight", "head.2.weight"},
    ),
    "datamux cnn": (
        DataMUXConvConfig(),
        {f"lenet.{i}.weight" for i in (0, 3, 6, 9)},
        {"mux.0.weight", "mux.2.weight", "demux.0.weight", "head.0.weight"},
    ),
}
"""A network, its hidden weights, and the other weights of convolutions, linear layers and unbinding."""
SLOPES = {f"body.module.stage{i}.0.act{j}.weight" for i in (1, 2, 3) for j in (1, 2)}


def settings(optimizer="sgd", **changes):
    return OptimConfig(**{"optimizer": optimizer, "lr": 0.1, "rest_lr": 0.03, "weight_decay": 0.01} | changes)


def options(network, optimizer):
    """Of every trained parameter: the options of its group."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    pairs = [(names[parameter], group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize("decay", ["published", "usual"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_parameter_is_updated_by_its_rule(name, optimizer, decay):
    model, hidden, weights = NETWORKS[name]
    network = build(model)
    found = options(network, optimizers.build_optimizer(network, settings(optimizer, decay=decay)))
    trained = {path for path, _ in network.named_parameters()}
    assert set(found) == trained
    decaying = hidden | weights if decay == "usual" else trained - (SLOPES if name == "mimoconv" else set())
    assert {path for path, group in found.items() if group["weight_decay"]} == decaying
    assert {group["weight_decay"] for group in found.values()} <= {0, 0.01}
    fast = hidden if optimizer == "muon" else trained
    assert {path: group["lr"] for path, group in found.items()} == {path: 0.1 if path in fast else 0.03 for path in trained}
    assert {path for path, group in found.items() if group.get("hidden")} == (hidden if optimizer == "muon" else set())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_frozen_is_left_out(optimizer):
    network = build(MIMOConvConfig(depth=10, width=0.25, trainable_keys=False))
    assert "binding.keys" not in options(network, optimizers.build_optimizer(network, settings(optimizer)))


def test_settings_reach_the_optimizer():
    config = OptimConfig(lr=0.3, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.07)
    (group,) = optimizers.build_optimizer(nn.Linear(2, 2), config).param_groups
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 0.3, "betas": (0.8, 0.98), "eps": 1e-6, "weight_decay": 0.07
    }  # fmt: skip
    (group,) = optimizers.build_optimizer(nn.Linear(2, 2), settings(momentum=(0.7, 0.6))).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.7, False)


def cycle(config, network=None):
    """Options of each group at every step."""
    optimizer = optimizers.build_optimizer(network or nn.Linear(2, 2), config)
    schedule, seen = optimizers.build_schedule(optimizer, config), []
    for _ in range(config.steps):
        seen.append([dict(group) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen, optimizer


def test_the_published_cycle():
    """Menet et al., 2023: 0.008 to 0.2 over 30 %, then down to 8e-7, momentum 0.95 to 0.85 and back."""
    config = settings(lr=0.2, steps=999, warmup=0.3, start=0.04, end=4e-6, momentum=(0.95, 0.85))
    seen, optimizer = cycle(config)
    rates, momenta = ([group[name] for (group,) in seen] for name in ("lr", "momentum"))
    assert rates[0] == pytest.approx(0.008)
    assert rates[299] == max(rates) == pytest.approx(0.2)
    assert rates[149] < 0.104 < rates[150]  # halfway up
    assert rates[649] == pytest.approx(0.1, rel=1e-2)  # halfway down
    assert rates == [*sorted(rates[:300]), *sorted(rates[300:], reverse=True)]
    assert 8e-7 < rates[-1] < 3e-6
    assert optimizer.param_groups[0]["lr"] == pytest.approx(8e-7)
    assert [momenta[0], momenta[299]] == pytest.approx([0.95, 0.85])
    assert momenta[-1] == pytest.approx(0.95, abs=1e-5)


def test_a_linear_cycle():
    seen, _ = cycle(settings("adamw", lr=1.0, steps=9, warmup=0.5, start=0.2, end=0.5, schedule="linear", momentum=(0.9, 0.8)))
    assert [group["lr"] for (group,) in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.8, 0.7, 0.6])
    assert {group["betas"] for (group,) in seen} == {(0.9, 0.999)}


def rates_of(preset):
    """The learning rate of each step of a preset's recipe."""
    return [group["lr"] for (group,) in cycle(find_preset(preset).optim)[0]]


def test_the_first_beta_of_the_long_range_arena_cycles_as_published():
    """run_tasks.py leaves OneCycleLR's cycle_momentum on, which overrides the betas that it gives AdamW."""
    weight = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.AdamW([weight], lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=1e-4, pct_start=1_000 / 20_000, anneal_strategy="linear", total_steps=20_000
    )
    published = []
    for _ in range(20_000):
        published.append((theirs.param_groups[0]["lr"], *theirs.param_groups[0]["betas"]))
        theirs.step()
        schedule.step()
    seen, _ = cycle(find_preset("listops_deep_n2_att").optim)
    assert len(seen) == len(published)
    for step, beta in ((0, 0.950), (2_000, 0.855), (6_000, 0.876), (10_000, 0.897), (19_999, 0.950)):
        (group,), (rate, beta1, beta2) = seen[step], published[step]
        assert beta1 == pytest.approx(beta, abs=5e-4)
        assert group["betas"] == pytest.approx((beta1, beta2), abs=1e-5)
        assert group["lr"] == pytest.approx(rate, abs=1e-8)  # a ten thousandth of the peak: our cycle has one point more


def test_first_betas_are_constant_elsewhere():
    seen, _ = cycle(OptimConfig(steps=9, momentum=(0.95, 0.85)))
    assert {group["betas"] for (group,) in seen} == {(0.9, 0.999)}


def test_recall_has_the_linear_warm_up_of_h3():
    """get_linear_schedule_with_warmup of transformers: 40 of 400 epochs, of 157 steps each, from 0 and back to it."""
    warmup, total = 157 * 40, 157 * 400
    rates = rates_of("recall_n2_att")
    assert len(rates) == total
    for step in (0, 1, 1_000, warmup - 1, warmup, warmup + 1, 31_400, total - 2, total - 1):
        share = step / warmup if step < warmup else (total - step) / (total - warmup)
        assert rates[step] == pytest.approx(5e-4 * share, abs=1e-9 * 5e-4), step


def test_induction_has_timm_s_cosine():
    """CosineLRScheduler of timm with t_initial, warmup_t, warmup_lr_init and lr_min as in safari; its cosine counts from 0."""
    warmup, total, peak, lowest, first = 157 * 40, 157 * 400, 5e-4, 0.1 * 5e-4, 1e-6
    rates = rates_of("induction_n2_att")
    assert len(rates) == total
    for step in (0, 1, 1_000, warmup - 1, warmup, warmup + 1, 31_400, total - 2, total - 1):
        if step < warmup:
            expected = first + step * (peak - first) / warmup
        else:
            expected = lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * step / total))
        assert rates[step] == pytest.approx(expected, rel=1e-9), step
    assert rates[warmup] < 0.98 * rates[warmup - 1]  # the drop where the rise ends


@pytest.mark.parametrize(("length", "batch"), [(64, 512), (128, 512), (256, 256), (512, 128)])
def test_multi_query_recall_anneals_epoch_by_epoch(length, batch):
    """Zoology's train.py: CosineAnnealingLR with T_max=64 and eta_min=0, one step per epoch, no warm-up."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=10 ** (-8 / 3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=64, eta_min=0.0)
    config, per_epoch = find_preset(f"mqar_{length}_transformer").optim, math.ceil(100_000 / batch)
    assert config.steps == 64 * per_epoch
    for epoch in range(64):
        for step in (epoch * per_epoch, epoch * per_epoch + 7, (epoch + 1) * per_epoch - 1):
            share = optimizers.annealed_share(step, config)
            assert config.lr * share == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        schedule.step()
    assert 0 < optimizers.annealed_share(config.steps - 1, config) < 1e-3


def test_annealing_reaches_the_optimizer():
    config = settings(steps=4, schedule="annealing", warmup=0.5, start=0.0, end=0.0)
    seen, _ = cycle(config)
    rates = [group["lr"] for (group,) in seen]
    assert rates == pytest.approx([0.0, 0.05, 0.05, 0.1 * (1 + math.cos(0.75 * math.pi)) / 2])


@pytest.mark.parametrize("preset", ["recall_transformer", "induction_performer", "recall_datamux_n2", "mqar_64_n2_att"])
def test_weight_decay_of_h3_and_zoology_is_on_all_parameters(preset):
    """Neither has groups of parameters: safari makes them only where optimizer_param_grouping is given, and here it is not."""
    config = find_preset(preset)
    network = build(config.model)
    found = options(network, optimizers.build_optimizer(network, config.optim))
    assert found.keys() == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {group["weight_decay"] for group in found.values()} == {0.1}


def test_every_group_has_its_own_peak_and_momentum_stays_where_it_has_one_value():
    network = build(NETWORKS["mimoformer"][0])
    seen, _ = cycle(settings("muon", steps=9, warmup=0.5, start=0.5), network)
    assert [group["lr"] for group in seen[0]] == pytest.approx([0.05, 0.015])
    assert [group["lr"] for group in seen[4]] == pytest.approx([0.1, 0.03])
    assert {group["momentum"] for groups in seen for group in groups} == {0.95}


@pytest.mark.parametrize("warmup", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_cycles_of_few_steps(steps, warmup):
    """A peak at the first of the points is one that torch would divide by zero for."""
    seen, _ = cycle(settings(steps=steps, warmup=warmup))
    assert all(0 < group["lr"] <= 0.1 for (group,) in seen)


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        ("sgd", lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)),
        ("adamw", lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.01)),
    ],
)
def test_steps_are_those_of_torchs_plain_optimizers(optimizer, plain):
    ours = nn.Linear(3, 2)
    theirs = copy.deepcopy(ours)
    pairs = (
        (ours, optimizers.build_optimizer(ours, settings(optimizer, momentum=(0.9, 0.9)))),
        (theirs, plain(theirs.parameters())),
    )
    for number in range(3):
        for network, optim in pairs:
            optim.zero_grad()
            network(torch.tensor([1.0, -2.0, number])).square().sum().backward()
            optim.step()
    assert_close(list(ours.parameters()), list(theirs.parameters()))
