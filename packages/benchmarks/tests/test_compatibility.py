"""Settings that do not go with the task, the network or the run to be resumed are refused by name."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.experiment.compatibility import RUN, check_compatible, check_same_run
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.run_directory import RunDirectory, flatten_settings, read_settings, run_as_json, settings_as_json
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.registry import load
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.training.checkpoint import save_checkpoint
from mimoconv import MIMOConvConfig

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
CONFIG = RunConfig(model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)


def test_a_run_is_resumed_with_its_own_settings_alone(tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    free = replace(CONFIG, threads=2, log_every=3, save_every=5, resume=tmp_path, data_dir=tmp_path, controls=True)
    check_same_run(tmp_path, "quickstart", free)
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


def edit(run, name, value):
    """Change a setting in the config.json of a run, without a new checksum, as an editor does."""
    content = json.loads((run / "config.json").read_text())
    *parts, last = name.split(".")
    inside = content["config"]
    for part in parts:
        inside = inside[part]
    inside[last] = value
    (run / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("optim.steps", 40.0, "optim.steps is 40.0; expected a whole number"),
        ("optim.steps", True, "optim.steps is true; expected a whole number"),
        ("optim.optimizer", "adam", 'optim.optimizer is "adam"; expected one of adamw, sgd, muon'),
        ("optim.schedule", 3, "optim.schedule is 3; expected one of cosine, linear, annealing"),
        ("optim.betas", [0.9], "optim.betas is [0.9]; expected a list of 2 (each entry a number)"),
        ("optim.unknown", 3, "optim.unknown is unknown; expected steps, groups, "),
        ("augment.crop", 1.5, "augment.crop is 1.5; expected a whole number"),
        ("precision", "fp8", 'precision is "fp8"; expected one of no, bf16, fp16 or null'),
        ("device", "tpu", 'device is "tpu"; expected one of cpu, cuda or null'),
        ("log_every", 3.5, "log_every is 3.5; expected a whole number"),
        ("n", [1, 2, 4.0], "n[2] is 4.0; expected a whole number"),
        ("task", 3, "task is 3; expected text"),
        ("data_dir", 3, "data_dir is 3; expected a path or null"),
        ("tracker", "wandb", 'tracker is "wandb"; expected a list (each entry text)'),
        ("model.unbinding_relu", "a", 'model.unbinding_relu is "a"; expected true or false'),
        ("model.kind", "Other", 'model.kind is "Other"; expected one of MIMOConvConfig, WideResNetConfig, '),
    ],
)
def test_a_setting_of_another_type_or_choice(name, value, words, tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    edit(tmp_path, name, value)
    with pytest.raises(
        ConfigError, match=re.escape(f"{tmp_path / 'config.json'} does not hold settings of this version ({words}")
    ):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "preset", ["quickstart", "quickstart.thin", "mnist_datamux_n2", "listops_deep_n2_att", "induction_datamux_n2"]
)
def test_every_setting_is_held_against_its_type(preset, tmp_path):
    """None of them may be an object."""
    config = find_preset(preset)
    for name in flatten_settings(settings_as_json(config)):
        content = json.loads(json.dumps(run_as_json(preset, config)))
        (tmp_path / "config.json").write_text(json.dumps(content))
        edit(tmp_path, name, {"a": 1})
        with pytest.raises(ConfigError, match=rf' \({re.escape(name)} is {{"a": 1}}; expected '):
            read_settings(tmp_path)


@pytest.mark.parametrize("content", [{"config": {}}, {"preset": 3}, {"preset": ["a"]}])
def test_a_preset_is_a_name(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(run_as_json("x", CONFIG) | {"preset": None} | content))
    with pytest.raises(ConfigError, match=r"preset is (null|3|\[\"a\"\]); expected text"):
        read_settings(tmp_path)


def saved_by(config, name="quickstart"):
    """The state of a checkpoint, as far as it tells which run saved it."""
    return {RUN: json.dumps(run_as_json(name, config))}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", 3, "seed was 0 and is 3"),
        ("optim.lr", 0.5, "optim.lr was 0.008 and is 0.5"),
        ("model.image_size", 16, "model.image_size was 8 and is 16"),
        ("model.depth", 10**6, "model.depth was 10 and is 1000000"),
    ],
)
def test_an_edited_setting_is_named_by_what_the_checkpoint_says(name, value, words, tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    path = save_checkpoint(tmp_path / "checkpoints", 1, {}, saved_by(CONFIG))
    check_same_run(tmp_path, "quickstart", CONFIG)
    edit(tmp_path, name, value)
    _, edited = read_settings(tmp_path)
    message = f"{path} and config.json are not of the same run ({words}): bring back the run's own files"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_same_run(tmp_path, "quickstart", edited)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (saved_by(replace(CONFIG, seed=3)), "seed was 3 and is 0"),
        (saved_by(CONFIG, "mnist"), "it is of mnist, not of quickstart"),
        ({RUN: "{"}, "does not say which run saved it"),
        ({RUN: 3}, "does not say which run saved it"),
        ({RUN: "[]"}, "does not hold settings of this version"),
        ({RUN: '{"preset": "quickstart"}'}, "it is null; expected fields of RunConfig"),
    ],
)
def test_a_checkpoint_of_another_run(state, words, tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    path = save_checkpoint(tmp_path / "checkpoints", 1, {}, state)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))} .*{re.escape(words)}"):
        check_same_run(tmp_path, "quickstart", CONFIG)


def test_settings_that_may_change_are_no_difference(tmp_path):
    """And infinity, which JSON does not know, is compared like any number."""
    config = replace(CONFIG, optim=replace(CONFIG.optim, max_grad_norm=float("inf")))
    RunDirectory(tmp_path).begin("quickstart", config, CPU)
    save_checkpoint(tmp_path / "checkpoints", 1, {}, saved_by(replace(config, threads=2, log_every=3, resume=tmp_path)))
    check_same_run(tmp_path, "quickstart", config)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_edit_that_no_checkpoint_shows_is_noticed(checkpoint, tmp_path):
    """By the checksum: where there is no checkpoint yet, or in a setting that flags may change."""
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    if checkpoint:
        save_checkpoint(tmp_path / "checkpoints", 1, {}, saved_by(CONFIG))
    name, value = ("log_every", 3) if checkpoint else ("seed", 3)
    edit(tmp_path, name, value)
    with pytest.raises(ConfigError, match=r"config\.json was changed after it was written: its SHA-256 is .*; undo that"):
        check_same_run(tmp_path, "quickstart", replace(CONFIG, **{name: value}))


def test_a_run_of_an_earlier_version_has_no_checksum(tmp_path):
    """Nor settings in its checkpoints, and can be resumed."""
    (tmp_path / "config.json").write_text(json.dumps(run_as_json("quickstart", CONFIG)))
    save_checkpoint(tmp_path / "checkpoints", 1, {}, {"seconds": 0.0})
    check_same_run(tmp_path, "quickstart", CONFIG)


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
