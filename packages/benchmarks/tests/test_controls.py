from dataclasses import replace

import pytest

from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUXConfig
from mimo_benchmarks.presets.controls import CONTROL_RULES, STEP, TOLERANCE, controls, cost, cost_ratio
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig
from mimoconv import count_macs as conv_macs
from mimoformer import MIMOFormer, MIMOFormerConfig
from mimoformer import count_macs as former_macs
from mimoformer.zoo import TASKS

CONV = MIMOConvConfig(depth=10, width=1, capacity=4, in_channels=1, image_size=8)
FORMER = MIMOFormerConfig(
    m=2, n=2, vocab_size=18, max_length=43, layers=2, embed_dim=32, heads=1, mlp_dim=128, head="tokens", trainable_keys=True
)


def equal_cost(like, macs):
    return CONTROL_RULES[type(like)].equal_cost(like, macs)


def thin(like):
    return CONTROL_RULES[type(like)].thin(like)


@pytest.mark.parametrize(
    "sizes", [{}, {"depth": 16, "width": 4, "image_size": 28}, {"width": 10, "in_channels": 3, "image_size": 32}]
)
def test_wide_resnets_cost_what_each_n_costs(sizes):
    like = replace(CONV, **sizes)
    for n in (1, 2, 4):
        config = equal_cost(like, cost(like, n))
        assert cost_ratio(like, config, n) == pytest.approx(1, rel=TOLERANCE)
        assert all(channels % STEP == 0 for channels in (*config.stages, config.stem_channels))
        assert [getattr(config, name) for name in ("depth", "image_size", "in_channels")] == [
            getattr(like, name) for name in ("depth", "image_size", "in_channels")
        ]


@pytest.mark.parametrize("task", ["listops", "retrieval", "image", "pathfinder"])  # text has the widths of listops
@pytest.mark.parametrize("size", ["deep", "wide"])
@pytest.mark.parametrize("variant", ["att", "att+mlp"])
def test_performers_cost_what_each_n_costs(task, size, variant):
    """At every published size (one layer of it), without distortion: no part is scaled much otherwise than the others."""
    for n in (2, 4):
        like = TASKS[task](size, m=n, n=n, variant=variant, layers=1)
        config = equal_cost(like, cost(like, n))
        assert cost_ratio(like, config, n) == pytest.approx(1, rel=TOLERANCE)
        assert config.embed_dim % STEP == config.mlp_dim % STEP == config.dim % (STEP // 2) == 0
        scale = config.embed_dim / like.embed_dim
        assert 0.8 * scale < config.dim / like.dim < 1.2 * scale
        assert 0.4 * scale < config.mlp_dim / like.mlp_dim < 2.5 * scale
        widths = {name: getattr(like, name) for name in ("embed_dim", "head_dim", "mlp_dim")}
        assert replace(config, **widths) == replace(like, m=1, n=1, variant="att")


def test_one_sequence_a_pass_costs_what_the_plain_performer_of_that_size_costs():
    config = equal_cost(FORMER, former_macs(MIMOFormer(FORMER), 1))
    assert config == replace(FORMER, m=1, n=1, head_dim=32, trainable_keys=False)


def test_the_smallest_network_is_the_floor():
    assert equal_cost(CONV, 1.0).stages == (8, 16, 32)
    smallest = equal_cost(FORMER, 1.0)
    assert (smallest.embed_dim, smallest.dim, smallest.mlp_dim) == (8, 4, 8)


def test_the_thin_wide_resnet_has_a_slots_share_of_the_channels():
    found = thin(replace(CONV, depth=28, width=10, image_size=32))
    assert found == WideResNetConfig(depth=28, width=2.5, in_channels=1, image_size=32)
    assert found.stages == (40, 80, 160)
    assert thin(replace(CONV, width=0.125)).stages == (1, 2, 4)


@pytest.mark.parametrize(
    ("variant", "grid", "widths"),
    [
        ("att", (2, 2), (512, 16, 2048)),
        ("att", (4, 4), (512, 4, 2048)),
        ("att", (9, 9), (512, 1, 2048)),
        ("att+mlp", (2, 2), (256, 16, 1024)),
        ("att+mlp", (4, 2), (128, 8, 512)),
        ("att+mlp", (3, 1), (171, 21, 683)),
    ],
)
def test_the_thin_performer_has_a_slots_share_of_what_is_shared(variant, grid, widths):
    found = thin(MIMOFormerConfig(m=grid[0], n=grid[1], variant=variant, trainable_keys=True))
    assert (found.embed_dim, found.dim, found.mlp_dim) == widths
    assert replace(found, embed_dim=512, head_dim=None, mlp_dim=2048) == MIMOFormerConfig(m=1, n=1)


@pytest.mark.parametrize("like", [CONV, FORMER])
def test_controls_are_those_of_the_largest_and_smallest_n_and_the_thin_one(like):
    found = controls(like, (1, 2))
    expected = {"equal_cost_n2": equal_cost(like, cost(like, 2)), "equal_cost_n1": equal_cost(like, cost(like, 1))}
    assert list(found.items()) == [*expected.items(), ("thin", thin(like))]


def test_the_same_network_is_trained_once():
    """At a quarter of the usual width no plain network of whole vector lanes is as cheap, whatever n is."""
    narrow = replace(CONV, width=0.25)
    assert list(controls(narrow, (2, 4))) == ["equal_cost_n4", "thin"]
    assert cost_ratio(narrow, controls(narrow, (2, 4))["equal_cost_n4"], 4) > 1 + TOLERANCE
    assert list(controls(CONV, (4,))) == ["equal_cost_n4", "thin"]
    assert list(controls(replace(CONV, width=2), (2, 4))) == ["equal_cost_n4", "equal_cost_n2", "thin"]


@pytest.mark.parametrize(
    "config",
    [
        WideResNetConfig(),
        replace(CONV, capacity=1),
        replace(FORMER, m=1, n=1),
        DataMUXConvConfig(),
        DataMUXConfig(),
    ],
)
def test_plain_networks_and_datamux_have_none(config):
    assert controls(config, (1,)) == {}


@pytest.mark.parametrize(
    ("like", "build", "macs"),
    [(CONV, MIMOConv, conv_macs), (FORMER, MIMOFormer, former_macs)],
)
def test_ratios_are_those_of_multiply_adds(like, build, macs):
    control = equal_cost(like, cost(like, 1))
    assert cost_ratio(like, control, 2) == macs(build(control) if like is FORMER else WideResNet(control), 1) / macs(
        build(like), 2
    )
