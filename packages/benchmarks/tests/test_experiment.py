"""A result holds what was measured of the network, split and n that it names; a run goes on with its own settings alone."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mimo_benchmarks.cli.list import random_task
from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.evaluation import results, trained
from mimo_benchmarks.evaluation.answers import Answers
from mimo_benchmarks.evaluation.results import Finished
from mimo_benchmarks.experiment import compatibility as fit
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.presets.find import find
from mimo_benchmarks.run_directory import RunDirectory
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.tasks.registry import load
from mimo_benchmarks.training import checkpoint
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import Training
from mimo_benchmarks.training.signals import Stopped
from mimoconv import MIMOConvConfig, WideResNet, count_macs
from mimoformer import MIMOFormerConfig

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
SQUARED = OptimConfig(loss="squared", label_smoothing=0)
CONFIG = RunConfig(model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)


def finished(config, folder, name="quickstart"):
    training = Training(results.models.build(config.model), config, Accelerator(cpu=True))
    training.progress.step = 2
    directory = RunDirectory(folder / name)
    directory.begin(name, config, CPU)
    feed = Feed(load("digits", folder), config, CPU)
    network = training.network.eval()
    return Finished(
        config=config, name=name, network=network, directory=directory, feed=feed, progress=training.progress, peak_memory_bytes=7
    )


def test_rows_hold_what_was_measured(monkeypatch, tmp_path):
    task, asked = load("digits", tmp_path), []
    one = finished(CONFIG, tmp_path)

    def classify(network, config, of, split, n, *, passes=None, shuffle=None):
        assert (network, config, of, split) == (one.network, SMALL, task, task.test)
        asked.append((n, passes))
        classes = split.labels.clone()
        classes[: 36 * len(asked)] = -1  # wrong on the first 10 %, 20 %, ..
        right = classes == split.labels
        return Answers(classes=classes, right=right, scored=torch.ones_like(right), slot=torch.arange(360) % n)

    monkeypatch.setattr(results, "classify", classify)
    monkeypatch.setattr(results, "changed_by_regrouping", lambda network, config, of, n, answers, seed: n / 100 + seed)
    (first,) = one.directory.starts()
    again = first | {"command": "run.py --resume", "device": "another", "processes": 2}
    one.directory.write("environment.json", [first, again])
    found = results.result(one, task, {1: 10.0, 2: 20.0, 4: 30.0}, None, 9.0)
    assert (found["command"], found["device"], found["processes"]) == (first["command"], "another", 2)
    rows = found["rows"]
    assert asked == [(1, None), (1, 4), (2, None), (2, 4), (4, None), (4, 4)]
    assert [row["n"] for row in rows] == [row["inputs"] for row in rows] == [1, 2, 4]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.9, 0.7, 0.5])
    assert [row["accuracy_batch_statistics"] for row in rows] == pytest.approx([0.8, 0.6, 0.4])
    assert [len(row["accuracy_per_slot"]) for row in rows] == [1, 2, 4]
    assert [row["changed_by_regrouping"] for row in rows] == [None, 0.02, 0.04]
    assert [row["macs"] for row in rows] == [count_macs(one.network, n) for n in (1, 2, 4)]
    assert [row["inputs_per_second"] for row in rows] == [10, 20, 30]
    assert (found["preset"], found["control"], found["superposed"]) == ("quickstart", None, True)
    assert (found["steps"], found["inputs_seen"], found["peak_memory_bytes"]) == (2, one.feed.inputs(2), 7)
    assert found["guesses"] == {"the most frequent class": torch.bincount(task.test.labels).max().item() / 360}
    assert json.loads(json.dumps(found)) == found


def test_forms_of_a_preset_are_told_apart(tmp_path):
    """The control is named apart from the preset, and has no figure of the paper."""
    task = load("digits", tmp_path)
    thin = replace(CONFIG, model=find("quickstart.thin").model)
    named = {
        "quickstart.thin": ("quickstart", "thin", False),
        "quickstart.short": ("quickstart.short", None, False),
        "quickstart.short.equal_cost_n4": ("quickstart.short", "equal_cost_n4", False),
    }
    for name, (preset, control, superposed) in named.items():
        found = results.result(finished(thin, tmp_path, name), task, {1: 1.0}, None, 0.0)
        assert (found["preset"], found["control"], found["superposed"]) == (preset, control, superposed)
        assert [row["n"] for row in found["rows"]] == [1]


def test_the_paper_s_figure_stands_beside_the_run_that_it_is_of():
    """And beside no other network, task, training or control, however it is called."""
    config = find("recall_n2_att")
    figures = {"2": [96.52, 2.79]}
    assert results.reported(config, "recall_n2_att") == figures
    same = replace(config, seed=3, threads=1, log_every=7, optim=replace(config.optim, accumulate=2))
    assert results.reported(same, "recall_n2_att") == figures
    for other in (
        replace(config, task="induction"),
        replace(config, n=(1,)),
        replace(config, dev_every=7),
        replace(config, model=replace(config.model, layers=1)),
        replace(config, optim=replace(config.optim, steps=9)),
    ):
        assert results.reported(other, "recall_n2_att") == {}
    assert results.reported(find("recall_n2_att.thin"), "recall_n2_att.thin") == {}
    assert results.reported(find("recall_n2_att.short"), "recall_n2_att.short") == {}


def test_throughput_is_measured_in_one_go(monkeypatch, tmp_path):
    """Each network at each n, on as many random inputs as whole passes of all of them hold."""
    plain = replace(CONFIG, model=find("quickstart.thin").model)
    both = [finished(CONFIG, tmp_path, "a"), finished(plain, tmp_path, "b")]

    def inputs_per_second(networks, inputs):
        assert [(type(network), n) for network, n in networks[3:]] == [(WideResNet, 1)]
        assert [n for _, n in networks] == [1, 2, 4, 1]
        assert inputs.shape == (960, 1, 8, 8)
        return [1.0, 2.0, 3.0, 4.0]

    monkeypatch.setattr(results, "inputs_per_second", inputs_per_second)
    assert results.throughput(both, CPU) == [{1: 1.0, 2: 2.0, 4: 3.0}, {1: 4.0}]
    monkeypatch.setitem(results.BUDGET, "cpu", 1.0)
    monkeypatch.setattr(results, "inputs_per_second", lambda networks, inputs: [len(inputs)] * len(networks))
    assert results.throughput(both, CPU)[1] == {1: 4}


@pytest.mark.unchecked
def test_fewer_inputs_where_memory_does_not_hold_them(monkeypatch, tmp_path):
    def inputs_per_second(networks, inputs):
        if len(inputs) > 100:
            raise torch.OutOfMemoryError
        return [len(inputs)] * len(networks)

    monkeypatch.setattr(results, "inputs_per_second", inputs_per_second)
    assert results.throughput([finished(CONFIG, tmp_path)], CPU)[0] == {1: 60, 2: 60, 4: 60}


TINY = MIMOFormerConfig(
    m=2, n=2, vocab_size=20, max_length=12, layers=1, embed_dim=16, heads=1, mlp_dim=16, features=16, num_classes=2
)


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_dev_accuracy_chooses_what_is_tested(interrupted, monkeypatch, tmp_path):
    """Of the dev split, once the curriculum is over; also where the run was stopped after its best step, 9 of 12."""
    optim = OptimConfig(steps=12, groups=4, lr=1e-2)
    begun = {"curriculum": (1,), "curriculum_share": 0.5}
    config = RunConfig(task="tiny", model=TINY, n=(2,), n_odds=(1,), optim=optim, dev_every=3, best=True, **begun)
    task = random_task(config)
    task = replace(task, test=replace(task.test, labels=1 - task.test.labels))
    monkeypatch.setitem(tasks.TASKS, "tiny", lambda folder: task)
    monkeypatch.setitem(results.BUDGET, "cpu", 1)
    weights, accuracies = [], iter([0.9, 0.8, 0.5, 0.4])  # at steps 3, 6, 9, 12

    def classify(network, model, of, split, n):
        assert torch.equal(split.labels, task.dev.labels)
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
        return SimpleNamespace(accuracy=next(accuracies))

    monkeypatch.setattr(experiment, "classify", classify)
    out = tmp_path / "run"
    if interrupted:
        signals = iter([0] * 9 + [15])
        request = type("At", (), {"signal": property(lambda self: next(signals))})()
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "listening", lambda: nullcontext(request))
            with pytest.raises(Stopped):
                experiment.run(replace(config, out=out), "tiny", Accelerator(cpu=True))
    again = {"resume": out} if interrupted else {"out": out}
    experiment.run(replace(config, **again), "tiny", Accelerator(cpu=True))
    kept = checkpoint.load(out / "model").tensors["model"]
    assert len(weights) == 4
    assert all(torch.equal(kept[name], value) for name, value in weights[2].items())


@pytest.mark.once
@pytest.mark.unchecked
def test_the_last_weights_are_held_against_the_dev_split_too(monkeypatch, tmp_path):
    """Also where the run is too short for any other evaluation."""
    config = find("recall_n2_att")
    config = replace(config, task="tiny", model=TINY, optim=OptimConfig(steps=2, groups=4), dev_every=100, best=True)
    task = random_task(config)
    monkeypatch.setitem(tasks.TASKS, "tiny", lambda folder: task)
    monkeypatch.setitem(results.BUDGET, "cpu", 1)
    experiment.run(replace(config, out=tmp_path / "run"), "tiny", Accelerator(cpu=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev_accuracy" in line] == [2]
    assert "best" in checkpoint.load(tmp_path / "run" / "checkpoints").tensors


@pytest.mark.once
@pytest.mark.unchecked
def test_statistics_are_estimated_on_training_images(monkeypatch, tmp_path):
    task, seen = load("digits", tmp_path), []
    monkeypatch.setitem(results.BUDGET, "cpu", 1)

    def recalibrate(network, batches, n):
        seen.append(n)
        batches = list(batches)
        assert torch.equal(torch.cat(batches), task.pixels(task.train.images))
        really(network, batches, n)

    really = experiment.recalibrate
    monkeypatch.setattr(experiment, "recalibrate", recalibrate)
    experiment.run(replace(CONFIG, out=tmp_path / "run", controls=True), "quickstart", Accelerator(cpu=True))
    assert seen[:3] == [1, 2, 4]
    assert set(seen[3:]) == {1}
    for path in (tmp_path / "run").glob("*/result.json"):
        assert json.loads(path.read_text())["crosstalk"] is None


def test_a_run_goes_on_with_its_own_settings_alone(tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    free = replace(CONFIG, threads=2, log_every=3, save_every=5, resume=tmp_path, data_dir=tmp_path, controls=True)
    assert fit.same_run(tmp_path, "quickstart", free) == tmp_path
    changed = replace(CONFIG, seed=3, optim=replace(CONFIG.optim, lr=0.5), model=replace(SMALL, width=2))
    with pytest.raises(ConfigError) as error:
        fit.same_run(tmp_path, "quickstart", changed)
    for words in ("seed was 0 and is 3", "optim.lr was 0.008 and is 0.5", "model.width was 0.5 and is 2"):
        assert words in str(error.value)
    assert "threads" not in str(error.value)
    with pytest.raises(ConfigError, match="is a run of quickstart, not of mnist"):
        fit.same_run(tmp_path, "mnist", CONFIG)
    RunDirectory(tmp_path / "thin").begin("quickstart.thin", CONFIG, CPU)
    with pytest.raises(ConfigError, match=r"thin is a part of the run .*: resume that"):
        fit.same_run(tmp_path / "thin", "quickstart.thin", CONFIG)


@pytest.mark.once
def test_controls_that_a_resumed_run_has_added_stay_asked_for(monkeypatch, tmp_path):
    """In what is said where it is interrupted among them."""
    monkeypatch.setitem(results.BUDGET, "cpu", 1)
    experiment.run(replace(CONFIG, out=tmp_path / "run"), "quickstart", Accelerator(cpu=True))
    monkeypatch.setattr(experiment, "listening", lambda: nullcontext(SimpleNamespace(signal=2)))
    with pytest.raises(Stopped, match=r"^stopped after step 1; go on with --resume \S*/run --controls$") as stopped:
        experiment.run(replace(CONFIG, resume=tmp_path / "run", controls=True), "quickstart", Accelerator(cpu=True))
    assert stopped.value.code == 130


def test_a_checkpoint_of_another_network(tmp_path):
    """In a run that goes on, and in one that is finished."""
    out = tmp_path / "run"
    RunDirectory(tmp_path).begin("x", CONFIG, CPU)
    RunDirectory(out).begin("quickstart", CONFIG, CPU)
    other = Training(models.build(replace(SMALL, width=1)), CONFIG, Accelerator(cpu=True))
    checkpoint.save(out / "checkpoints", 1, *other.state())
    checkpoint.save(out / "model", 2, {"model": other.network.state_dict()}, {"pixels": {"scale": 16}, "classes": 10})
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not fit: it is of another network or optimizer"):
        experiment.run(replace(CONFIG, resume=out), "quickstart", Accelerator(cpu=True))
    with pytest.raises(CheckpointError, match="does not fit: it is of another network or optimizer"):
        trained.trained(out, CPU)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"preset": "x"}', '{"preset": "x", "config": {"model": {"kind": "Other"}}}'])
def test_a_directory_of_something_else(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        fit.same_run(tmp_path, "quickstart", CONFIG)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("digits", {"model": find("recall_n2_att").model, "n": (2,), "n_odds": (1,)}, "has images, and the network takes tokens"),
        ("recall", {}, "has tokens, and the network takes images"),
        ("recall", {"model": find("listops_deep_n2_att").model, "n": (2,), "n_odds": (1,)}, "needs --model.head tokens"),
        (
            "recall",
            {"model": find("induction_n2_att").model, "n": (2,), "n_odds": (1,)},
            "needs --model.max-length 42 or more, got 31",
        ),
        (
            "recall",
            {"model": find("recall_n2_att").model, "n": (2,), "n_odds": (1,), "optim": SQUARED},
            "squared is for images, and task recall has tokens",
        ),
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
        fit.check_fit(replace(CONFIG, task=name, **changes), load(name, tmp_path), Accelerator(cpu=True))


def test_a_network_that_is_not_finished(tmp_path):
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    with pytest.raises(CheckpointError, match="has no finished network: go on with `--resume"):
        trained.trained(tmp_path, CPU)


@pytest.mark.once
def test_a_trained_network_comes_back(tmp_path):
    config = replace(CONFIG, out=tmp_path / "run")
    experiment.run(config, "quickstart", Accelerator(cpu=True))
    task, back = load("digits", tmp_path), trained.trained(tmp_path / "run", CPU)
    assert (back.config, back.scale, back.classes) == (config, 16, 10)
    assert torch.equal(back.pixels(task.test.images), task.pixels(task.test.images))
    found = results.classify(back.network, SMALL, task, task.test, 2).accuracy
    assert found == json.loads((tmp_path / "run" / "result.json").read_text())["rows"][1]["accuracy"]
