"""Every preset is one of the tables' rows, fits the task that it names, and has the controls that it should have."""

from dataclasses import replace
from math import inf

import pytest

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.run_directory import RunDirectory, read_settings, settings_as_json
from mimo_benchmarks.settings import AugmentConfig, OptimConfig
from mimo_benchmarks.tasks.registry import TASKS
from mimoconv import MIMOConvConfig, WideResNetConfig

SHAPES = {
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "mnist20": (1, 20, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "svhn": (3, 32, 10),
    "listops": (16, 2000, 10),
    "text": (257, 4000, 2),
    "retrieval": (257, 4000, 2),
    "image": (257, 1024, 10),
    "pathfinder": (257, 1024, 2),
    "recall": (20, 42, None),
    "induction": (20, 31, None),
    **{f"mqar_{length}": (8192, length, None) for length in (64, 128, 256, 512)},
}
"""Channels, pixels and classes of images; ids, longest sequence and classes of sequences, None where tokens are predicted."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_task_and_is_documented(name, tmp_path):
    config = find_preset(name)
    assert config.task in TASKS
    first, second, classes = SHAPES[config.task]
    model = config.model
    if describe(model).takes == "tokens":
        assert model.vocab_size >= first
        assert model.max_length >= second
        assert model.head == {None: "tokens"}.get(classes, "pair" if config.task == "retrieval" else "classes")
        assert classes in (None, model.num_classes)
    else:
        assert (model.in_channels, model.image_size, model.num_classes) == (first, second, classes)
    assert PRESETS[name].__doc__
    for figures in PAPER.get(name, {}).values():
        assert str(figures[0]) in PRESETS[name].__doc__
    assert all(int(n) in config.n for n in PAPER.get(name, {}))
    directory = RunDirectory(tmp_path)
    directory.write("config.json", {"preset": name, "config": settings_as_json(config)})
    assert read_settings(tmp_path) == (name, config)


def test_there_is_a_preset_for_every_row():
    """Table 1 for two sets, SVHN, Figure 4, Table 2 for five tasks in two sizes, Table 3, multi-query recall."""
    assert set(PAPER) <= set(PRESETS)
    for task in ("cifar10", "cifar100"):
        rows = ("wide_resnet", "wide_isonet", "mimoconv_n1", "mimoconv_n2", "mimoconv_n4", "mimoconv_dynamic")
        assert all(f"{task}_{row}" in PAPER for row in rows)
    assert sum(name.startswith(("listops_", "text_", "retrieval_", "image_", "pathfinder_")) for name in PAPER) == 5 * 2 * 6 + 1
    assert all(f"mnist_{model}_n{n}" in PRESETS for model in ("mimoconv", "datamux") for n in (1, 2, 4, 8, 16))
    assert sum(name.startswith("mqar_") for name in PRESETS) == 4 * 4


@pytest.mark.parametrize("name", ["listops_deep", "listops_wide", "recall", "induction"])
def test_blurry_presets_stand_beside_those_of_the_paper(name):
    """They differ from the paper's in their variant alone, and the paper has no figure for them."""
    blurry, published = find_preset(f"{name}_n2_blurry"), find_preset(f"{name}_n2_att")
    assert blurry == replace(published, model=replace(published.model, variant="blurry"))
    assert f"{name}_n2_blurry" not in PAPER
    assert "no figure in Menet et al. (2023)" in PRESETS[f"{name}_n2_blurry"].__doc__
    assert "Table" not in PRESETS[f"{name}_n2_blurry"].__doc__
    assert "blurry" in blurry.model.label


def test_figures_of_table_2_add_up():
    """To the averages that the paper prints beside them, which were rounded on their own."""
    printed = {"performer": (60.04, 60.93), "n2_att": (58.61, 59.86), "n2_att_mlp": (55.98, 57.09), "n4_att": (49.29, 56.37)}
    printed |= {"n4_att_curriculum": (54.82, 57.50), "n4_att_mlp": (45.00, 47.84)}
    for row, averages in printed.items():
        for size, average in zip(("deep", "wide"), averages, strict=True):
            tasks = ("listops", "text", "retrieval", "image", "pathfinder")
            figures = [next(iter(PAPER[f"{task}_{size}_{row}"].values()))[0] for task in tasks]
            assert sum(figures) / 5 == pytest.approx(average, abs=0.02)


def test_published_recipes():
    """The published settings, by hand."""
    sgd = {"groups": 128, "optimizer": "sgd", "lr": 0.2, "momentum": (0.95, 0.85), "weight_decay": 1e-5, "warmup": 0.3}
    sgd |= {"start": 0.04, "end": 4e-6, "schedule": "cosine", "decay": "published", "max_grad_norm": 1e3, "average": 0.0}
    sgd |= {"reject": 10.0, "isometry": 1e-4, "key_penalty": 0.1, "label_smoothing": 0.0, "loss": "cross_entropy"}
    iso = {"stem": "conv-norm-relu", "activation": "prelu", "final_norm": False, "depth": 28, "width": 10}
    plain = WideResNetConfig(**iso | {"activation": "relu"})  # WideISOReLUNet-28 in the published README
    for name, optim, model in (
        ("cifar10_mimoconv_n4", {"steps": 465_600}, MIMOConvConfig(**iso, capacity=4, stem_channels=64)),
        ("cifar100_mimoconv_n1", {"steps": 468_000}, MIMOConvConfig(**iso, capacity=1, stem_channels=64, num_classes=100)),
        ("cifar10_wide_isonet", {"steps": 468_000}, plain),
        ("cifar10_wide_resnet", {"steps": 78_000, "isometry": 0.0}, plain),
        ("cifar10_mimoconv_n2_no_isometry", {"steps": 468_000, "isometry": 0.0}, MIMOConvConfig(**iso, capacity=2)),
        ("cifar10_mimoconv_n4_d32", {"steps": 465_600}, MIMOConvConfig(**iso, capacity=4, stem_channels=32)),
        ("cifar10_mimoconv_n4_200_epochs", {"steps": 77_600}, MIMOConvConfig(**iso, capacity=4)),
    ):
        config = find_preset(name)
        assert config.optim == OptimConfig(**sgd | optim), name
        assert config.model == model, name
        assert config.augment == AugmentConfig(rotate=0, shift=0, scale=0, crop=4, flip=True, mixup=1)
    adamw = {
        "optimizer": "adamw",
        "betas": (0.95, 0.999),
        "peak_beta1": 0.85,
        "eps": 1e-6,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "schedule": "linear",
    }
    adamw |= {"start": 0.04, "end": 4e-6, "max_grad_norm": inf, "label_smoothing": 0.0, "steps": 20_000, "warmup": 0.05}
    for row, groups, variant in (
        ("performer", 64, "att"),
        ("n2_att", 16, "att"),
        ("n4_att", 4, "att"),
        ("n4_att_mlp", 4, "att+mlp"),
    ):
        config = find_preset(f"listops_deep_{row}")
        assert config.optim == OptimConfig(**adamw, groups=groups)
        assert (config.model.variant, config.model.attention, config.best) == (variant, "relu", True)
        assert config.dev_every > 0
    assert find_preset("listops_wide_transformer").model.attention == "softmax"
    for task, rate in (("listops", 0.1), ("text", 0.0), ("retrieval", 0.1), ("image", 0.1), ("pathfinder", 0.1)):
        for size in ("deep", "wide"):
            assert find_preset(f"{task}_{size}_transformer").model.attention_dropout == rate
            assert find_preset(f"{task}_{size}_performer").model.attention_dropout == 0
    datamux = find_preset("mnist_datamux_n8")
    plain = {"optimizer": "sgd", "lr": 0.1, "momentum": (0.0, 0.0), "weight_decay": 0.0, "start": 1.0, "end": 1.0}
    plain |= {"loss": "squared", "label_smoothing": 0.0, "max_grad_norm": inf, "steps": 15 * 1875, "groups": 32}
    assert datamux.optim == OptimConfig(**plain)
    assert datamux.augment == AugmentConfig(rotate=0, shift=0, scale=0)
    h3 = {"lr": 5e-4, "weight_decay": 0.1, "steps": 62_800, "decay": "published", "label_smoothing": 0.0, "max_grad_norm": inf}
    linear = {"schedule": "linear", "warmup": 6_281 / 62_801, "start": 1e-9, "end": 1e-9}
    assert find_preset("recall_performer").optim == OptimConfig(**h3, **linear, groups=32)
    annealing = {"schedule": "annealing", "warmup": 0.1, "start": 2e-3, "end": 0.1}
    assert find_preset("induction_n2_att").optim == OptimConfig(**h3, **annealing, groups=8)
    for length, steps, groups in ((64, 12_544, 128), (128, 12_544, 128), (256, 25_024, 64), (512, 50_048, 32)):
        optim = find_preset(f"mqar_{length}_n2_att").optim
        assert (optim.steps, optim.groups, optim.schedule, optim.rate_parts) == (steps, groups, "annealing", 64)
        assert (optim.lr, optim.warmup, optim.end, optim.weight_decay) == (pytest.approx(2.154e-3, rel=1e-3), 0, 0, 0.1)
    for task in ("recall", "induction", "mqar_64", "mqar_512"):
        for row in ("transformer", "performer", "n2_att", "n2_att_dpfp"):
            model = find_preset(f"{task}_{row}").model
            softmax = row == "transformer"
            assert (model.dropout, model.residual_dropout, model.attention_dropout) == (0.1, 0, 0.1 if softmax else 0)
            assert (model.init, model.tied, model.positions) == ("gpt2", True, softmax or "mqar" not in task)
    conv = find_preset("cifar10_mimoconv_n4")
    assert (conv.optim.lr * conv.optim.start, conv.optim.lr, conv.optim.lr * conv.optim.end) == pytest.approx((0.008, 0.2, 8e-7))
    assert (conv.optim.steps, find_preset("cifar10_mimoconv_n2").optim.steps, find_preset("cifar10_wide_resnet").optim.steps) == (
        465_600,
        468_000,
        78_000,
    )
    dynamic = find_preset("cifar10_mimoconv_dynamic")
    assert dict(zip(dynamic.n, dynamic.n_odds, strict=True)) == {1: 1, 2: 0, 4: 4}
    for name, sequences, warmup, curriculum in (
        ("listops_deep_n4_att_curriculum", 64, 1_000, 3_000),
        ("text_wide_n4_att_curriculum", 32, 8_000, 6_500),
        ("retrieval_deep_n4_att_curriculum", 32, 800, 10_000),
        ("image_wide_n4_att_curriculum", 256, 175, 10_000),
        ("pathfinder_deep_n4_att_curriculum", 256, 312, 20_800),
    ):
        config = find_preset(name)
        assert config.optim.groups * describe(config.model).inputs(4) == sequences
        assert config.curriculum == (2,)
        assert round(config.curriculum_share * config.optim.steps) == curriculum
        assert round(config.optim.warmup * config.optim.steps) == warmup
        assert find_preset(name.replace("n4_att_curriculum", "performer")).optim.groups == sequences


@pytest.mark.parametrize(
    "name", ["quickstart", "cifar10_mimoconv_n4", "svhn_mimoconv_n2", "recall_n2_att", "image_wide_n4_att_mlp"]
)
def test_forms_of_a_preset(name):
    config, short = find_preset(name), find_preset(f"{name}.short")
    steps = config.optim.steps
    assert short.optim.steps == -(-steps // 20)
    assert replace(short, optim=config.optim, dev_every=config.dev_every) == config
    plain = controls(config.model, config.n)
    assert "thin" in plain
    assert f"equal_cost_n{max(config.n)}" in plain
    for control, model in plain.items():
        derived = find_preset(f"{name}.{control}")
        assert derived == replace(config, model=model, controls=False)
        assert describe(model).plain
        assert find_preset(f"{name}.short.{control}") == replace(short, model=model, controls=False)


def test_baselines_have_no_controls():
    for name in ("mnist_datamux_n4", "cifar10_wide_resnet", "listops_deep_performer", "recall_transformer"):
        assert not controls(find_preset(name).model, find_preset(name).n)
        with pytest.raises(ConfigError, match=f"{name} has the forms short$"):
            find_preset(f"{name}.thin")


def test_the_thin_control_of_the_paper_s_network_is_a_quarter_as_wide():
    config = find_preset("cifar10_fast_n4.thin")
    assert isinstance(config.model, WideResNetConfig)
    assert (config.model.depth, config.model.width) == (28, 2.5)
    assert config.optim.groups * describe(config.model).inputs(4) == 512
    assert isinstance(find_preset("cifar10_fast_n4").model, MIMOConvConfig)
    assert isinstance(find_preset("mnist_datamux_n4").model, DataMUXConvConfig)
