"""Settings that do not go with the task, the network or the run to be resumed are refused by name."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.experiment.compatibility import check_compatible, check_same_run
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.run_directory import RunDirectory
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.registry import load
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimoconv import MIMOConvConfig

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
CONFIG = RunConfig(model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)


def test_a_run_is_resumed_with_its_own_settings_alone(tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    free = replace(CONFIG, threads=2, log_every=3, save_every=5, resume=tmp_path, data_dir=tmp_path, controls=True)
    assert check_same_run(tmp_path, "quickstart", free) == tmp_path
    changed = replace(CONFIG, seed=3, optim=replace(CONFIG.optim, lr=0.5), model=replace(SMALL, width=2))
    with pytest.raises(ConfigError) as error:
        check_same_run(tmp_path, "quickstart", changed)
    for words in ("seed was 0 and is 3", "optim.lr was 0.008 and is 0.5", "model.width was 0.5 and is 2"):
        assert words in str(error.value)
    assert "threads" not in str(error.value)
    with pytest.raises(ConfigError, match="is a run of quickstart, not of mnist"):
        check_same_run(tmp_path, "mnist", CONFIG)
    RunDirectory(tmp_path / "thin").begin("quickstart.thin", CONFIG, CPU)
    with pytest.raises(ConfigError, match=r"thin is a control inside the run .*: resume that run"):
        check_same_run(tmp_path / "thin", "quickstart.thin", CONFIG)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"preset": "x"}', '{"preset": "x", "config": {"model": {"kind": "Other"}}}'])
def test_a_directory_of_something_else(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        check_same_run(tmp_path, "quickstart", CONFIG)


def of_tokens(preset, **changes):
    """The network of a preset, which takes tokens, in grids of 2 x 2."""
    return {"model": find_preset(preset).model, "n": (2,), "n_odds": (1,), **changes}


SQUARED = OptimConfig(loss="squared", label_smoothing=0)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("digits", of_tokens("recall_n2_att"), "has images, and the network takes tokens"),
        ("recall", {}, "has tokens, and the network takes images"),
        ("recall", of_tokens("listops_deep_n2_att"), "needs --model.head tokens"),
        ("recall", of_tokens("induction_n2_att"), "needs --model.max-length 42 or more, got 31"),
        ("recall", of_tokens("recall_n2_att", optim=SQUARED), "squared is for images, and task recall has tokens"),
        ("digits", {"dev_every": 5}, "has no dev split"),
        ("digits", {"sync_batch_norm": True}, "is for several GPUs"),
        (
            "digits",
            {"optim": OptimConfig(groups=5, accumulate=5), "model": replace(SMALL, num_classes=7)},
            "--model.num-classes 10, got 7",
        ),
    ],
)
def test_what_does_not_fit_the_task(name, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        check_compatible(replace(CONFIG, task=name, **changes), load(name, tmp_path), Accelerator(cpu=True))


def test_padding_that_has_to_keep_its_place():
    """Black pixels are padding in image_published and pathfinder_published."""
    model = find_preset("image_deep_n2_att").model
    task = replace(SequenceTask.random(describe(model), 2), padding_stays=True)
    settings = replace(CONFIG, **of_tokens("image_deep_n2_att"))
    with pytest.raises(ConfigError, match=r"needs --model\.pool all, got real"):
        task.check(settings, describe(model))
    published = replace(model, pool="all")
    task.check(replace(settings, model=published), describe(published))


@pytest.mark.unchecked
@pytest.mark.parametrize(("missing", "task"), [("class_names", "digits"), ("image_size", "digits"), ("tokenizer", "recall")])
def test_a_configuration_without_the_fields_that_a_task_needs(missing, task, tmp_path):
    """A network of one's own is refused before it is trained rather than when it is saved."""
    model = CONFIG.model if task == "digits" else find_preset("recall_n2_att").model
    fields = {name: value for name, value in vars(model).items() if name != missing}
    settings = SimpleNamespace(model=SimpleNamespace(**fields), optim=CONFIG.optim, augment=CONFIG.augment)
    with pytest.raises(ConfigError, match=f"SimpleNamespace has no {missing}, and task {task} needs fields of these names"):
        load(task, tmp_path).check(settings, describe(model))


@pytest.mark.parametrize("content", ["[1]", "[{}]", '[{"command": "x"}]'])
def test_a_damaged_record_of_starts_is_refused_before_training(content, tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(ConfigError, match=r"environment\.json does not say where the run was started"):
        RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
