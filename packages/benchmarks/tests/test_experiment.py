"""One experiment: which weights are tested, what is written, what a finished network is, and how an experiment is resumed."""

import gc
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.evaluation.answers import classify
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.experiment.compatibility import RUN, check_same_run
from mimo_benchmarks.experiment.experiment import run_experiment
from mimo_benchmarks.networks.convolutional import MIMOConvNetwork, WideResNetNetwork
from mimo_benchmarks.networks.datamux_conv import DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.networks.registry import build, describe, load_finished
from mimo_benchmarks.report import composition
from mimo_benchmarks.run_directory import RunDirectory, read_result, run_as_json
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.tasks.image_task import ImageTask
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.training.checkpoint import load_checkpoint, save_checkpoint
from mimo_benchmarks.training.signals import Stopped
from mimo_benchmarks.training.state import Training
from mimoconv import MIMOConv, MIMOConvConfig, predict
from mimoformer import MIMOFormer, MIMOFormerConfig

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
CONFIG = RunConfig(task="tiny", model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)
TINY = MIMOFormerConfig(
    m=2, n=2, vocab_size=20, max_length=12, layers=1, embed_dim=16, heads=1, mlp_dim=16, features=16, num_classes=2
)
TINY_CONFIG = RunConfig(task="tiny", model=TINY, n=(2,), n_odds=(1,), optim=OptimConfig(steps=2, groups=4))
WORDS = tuple(f"word{number}" for number in range(19))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Throughput is measured once on few items, as what it is does not matter here; collections skip what imports have made."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rates.BUDGET, "cpu", 1)
        patch.setattr(rates, "inputs_per_second", partial(rates.inputs_per_second, rounds=1))
        yield
    gc.unfreeze()


def offer(monkeypatch, task, **changes):
    """Offer a task with some changes under the name "tiny"."""
    task = replace(task, name="tiny", **changes)
    monkeypatch.setitem(tasks.TASKS, "tiny", tasks.TaskEntry(load=lambda folder: task, kind=type(task)))
    return task


@pytest.fixture(autouse=True)
def images(monkeypatch):
    """64 random images, which are the task "tiny" unless a test offers another."""
    return offer(monkeypatch, ImageTask.random(describe(SMALL), 64))


def run(config, name="quickstart", **options):
    run_experiment(config, name, Accelerator(cpu=True), **options)


def signal_in_step(step, number=15):
    """A request to stop that comes with the given step."""
    signals = iter([0] * (step - 1) + [number])
    return lambda: nullcontext(type("At", (), {"signal": property(lambda self: next(signals))})())


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_dev_accuracy_chooses_what_is_tested(interrupted, monkeypatch, tmp_path):
    """Of the dev split, once the curriculum is over; also where the run was stopped after its best step, 9 of 12."""
    optim = OptimConfig(steps=12, groups=4, lr=1e-2)
    begun = {"curriculum": (1,), "curriculum_share": 0.5}
    config = replace(TINY_CONFIG, optim=optim, dev_every=3, best=True, **begun)
    task = SequenceTask.random(describe(TINY), 256)
    task = offer(monkeypatch, task, test=replace(task.test, labels=1 - task.test.labels))
    weights, accuracies = [], iter([0.9, 0.8, 0.5, 0.4])  # at steps 3, 6, 9, 12

    def classify(network, module, of, split, n, name):
        assert torch.equal(split.labels, task.dev.labels)
        weights.append({name: value.clone() for name, value in module.state_dict().items()})
        return SimpleNamespace(accuracy=next(accuracies))

    monkeypatch.setattr(experiment, "classify", classify)
    out = tmp_path / "run"
    if interrupted:
        with pytest.raises(Stopped):
            run(replace(config, out=out), "tiny", listen=signal_in_step(10))
        assert load_checkpoint(out / "checkpoints").step == 10
    again = {"resume": out} if interrupted else {"out": out}
    run(replace(config, **again), "tiny")
    kept = MIMOFormer.from_pretrained(out).state_dict()
    assert len(weights) == 4
    assert all(torch.equal(kept[name], value) for name, value in weights[2].items())


@pytest.mark.once
@pytest.mark.unchecked
def test_the_last_weights_are_held_against_the_dev_split_too(monkeypatch, tmp_path):
    """Also where the run is too short for any other evaluation."""
    offer(monkeypatch, SequenceTask.random(describe(TINY), 256))
    run(replace(TINY_CONFIG, dev_every=100, best=True, out=tmp_path / "run"), "tiny")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev_accuracy" in line] == [2]
    assert "best" in load_checkpoint(tmp_path / "run" / "checkpoints").tensors


@pytest.mark.once
@pytest.mark.unchecked
def test_networks_are_built_once_and_calibrated_on_training_images(images, monkeypatch, tmp_path):
    """Each network of an experiment, apart from those without memory, of which only the multiply-adds are counted."""
    built, calibrated = [], []

    def counted(network, really):
        def build(self):
            module = really(self)
            if not next(module.parameters()).is_meta:
                built.append(self.config.label)
            return module

        monkeypatch.setattr(network, "build", build)

    def recalibrate(self, module, batches, n):
        calibrated.append(n)
        batches = list(batches)
        assert torch.equal(torch.cat(batches), images.pixels(images.train.images))
        really(self, module, batches, n)

    really = WideResNetNetwork.recalibrate
    for network in (MIMOConvNetwork, WideResNetNetwork):
        counted(network, network.build)
    monkeypatch.setattr(WideResNetNetwork, "recalibrate", recalibrate)
    out = tmp_path / "run"
    run(replace(CONFIG, out=out, controls=True))
    controls = sorted(out.glob("*/result.json"))
    assert Counter(built) == Counter([SMALL.label, *(read_result(path.parent).model for path in controls)])
    assert len(controls) >= 2
    assert calibrated == [1, 2, 4] + [1] * len(controls)
    assert all(read_result(path.parent).crosstalk is None for path in controls)


@pytest.mark.once
@pytest.mark.unchecked
def test_controls_that_a_resumed_run_has_added_stay_asked_for(tmp_path):
    """In what is said where it is interrupted among them."""
    run(replace(CONFIG, out=tmp_path / "run"))
    with pytest.raises(Stopped, match=r"^stopped after step 1; resume with mimonets --resume \S*/run --controls$") as stopped:
        run(replace(CONFIG, resume=tmp_path / "run", controls=True), listen=lambda: nullcontext(SimpleNamespace(signal=2)))
    assert stopped.value.code == 130


def test_settings_are_written_first_of_all(tmp_path, monkeypatch):
    """From then on a run can be resumed, and nobody else can write there until it ends."""
    out = tmp_path / "run"

    def killed(*_):
        with pytest.raises(ConfigError, match="is in use by"):
            run(replace(CONFIG, resume=out))
        raise SystemExit

    monkeypatch.setattr(experiment, "train_and_evaluate", killed)
    for given in ({"out": out}, {"resume": out}):
        with pytest.raises(SystemExit):
            run(replace(CONFIG, **given))
        assert sorted(path.name for path in out.iterdir()) == [".lock", "config.json"]
        check_same_run(out, "quickstart", CONFIG)


def test_a_checkpoint_of_another_network(tmp_path):
    """In a run that is resumed."""
    out = tmp_path / "run"
    RunDirectory(out).begin("quickstart", CONFIG, CPU)
    other = Training(build(replace(SMALL, width=1)), CONFIG, Accelerator(cpu=True))
    save_checkpoint(out / "checkpoints", 1, *other.state())
    with pytest.raises(CheckpointError, match="does not fit: it is of another network or optimizer"):
        run(replace(CONFIG, resume=out))


@pytest.mark.once
@pytest.mark.unchecked
def test_a_checkpoint_says_which_run_saved_it(tmp_path, monkeypatch, capsys):
    """One of another seed, which has been put into the run or into a control, is refused; one that does not say it is named."""
    config, out, swapped = replace(CONFIG, controls=True), tmp_path / "run", tmp_path / "other"
    for seed, place in ((0, out), (3, swapped)):
        with pytest.raises(Stopped):
            run(replace(config, seed=seed, out=place), listen=signal_in_step(3))  # in the first step of a control
    (control,) = (path.parent.name for path in out.glob("*/checkpoints"))
    state = json.loads((out / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert json.loads(state[RUN]) == run_as_json("quickstart", replace(config, out=out))
    kept = tmp_path / "kept"
    (out / control / "checkpoints").rename(kept)
    (swapped / control / "checkpoints").rename(out / control / "checkpoints")
    with pytest.raises(ConfigError, match=rf"{control}/checkpoints/step-00000001 .* not of the same run \(seed was 3 and is 0\)"):
        run(replace(config, resume=out))
    (out / control / "checkpoints").rename(swapped / control / "checkpoints")
    kept.rename(out / control / "checkpoints")
    (out / "checkpoints").rename(kept)
    (swapped / "checkpoints").rename(out / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "build", lambda config: pytest.fail("a network was built"))
        with pytest.raises(ConfigError, match=r"run/checkpoints/step-00000002 .*seed was 3 and is 0"):
            run(replace(config, resume=out))
    capsys.readouterr()
    checkpoint = load_checkpoint(kept)
    del checkpoint.state[RUN]
    save_checkpoint(kept, 2, checkpoint.tensors, checkpoint.state)
    (out / "checkpoints").rename(swapped / "checkpoints")
    kept.rename(out / "checkpoints")
    run(replace(config, resume=out))
    said = [line for line in capsys.readouterr().out.splitlines() if "earlier version" in line]
    assert said == [
        f"{out}/checkpoints/step-00000002 is of an earlier version and holds no settings to compare with those of the run"
    ]


def test_a_network_that_is_not_finished(tmp_path):
    """Or is there no longer: its weights are not those that were saved."""
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    with pytest.raises(ConfigError, match=r"has no model\.safetensors, nor does its folder model"):
        load_finished(tmp_path, CPU)
    build(SMALL).save_pretrained(tmp_path / "model")
    build(replace(SMALL, width=1)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ConfigError, match="a file was changed or damaged"):
        load_finished(tmp_path, CPU)


def assert_tested(out, kind, task, n):
    """The network in a run, and in its model/, answers as the one that was tested; returns it."""
    result = read_result(out)
    for source in (out, str(out), out / "model"):
        network, module = load_finished(source, CPU)
        assert isinstance(module, kind)
        assert not module.training
        (row,) = (row for row in result.rows if row.n == n)
        assert classify(network, module, task, task.test, n).accuracy == row.accuracy
        assert module.accuracy == {(n, n) if kind is MIMOFormer else row.n: row.accuracy for row in result.rows for n in [row.n]}
        same = kind.from_pretrained(source).state_dict()
        assert all(torch.equal(value, same[name]) for name, value in module.state_dict().items())
    return module


@pytest.mark.once
@pytest.mark.unchecked
def test_the_finished_network_of_images_is_the_one_that_was_tested(images, monkeypatch, tmp_path):
    """It normalises uint8 images as its training task does, and knows its classes."""
    task = offer(monkeypatch, images, mean=(0.25,), std=(0.5,), class_names=tuple("abcdefghij"))
    run(replace(CONFIG, out=tmp_path / "run"))
    module = assert_tested(tmp_path / "run", MIMOConv, task, 2)
    assert (module.config.mean, module.config.std, module.config.class_names) == ((0.25,), (0.5,), tuple("abcdefghij"))
    some = task.test.images[:20]
    assert_close(predict(module, some, 4), predict(module, task.pixels(some), 4))


@pytest.mark.once
@pytest.mark.unchecked
def test_the_finished_network_of_sequences_is_the_one_that_was_tested(monkeypatch, tmp_path):
    """It turns texts into tokens as its training task does, and knows its classes."""
    given = {"tokenizer": "words", "words": WORDS, "class_names": ("yes", "no")}
    task = offer(monkeypatch, SequenceTask.random(describe(TINY), 64), **given)
    run(replace(TINY_CONFIG, out=tmp_path / "run"), "tiny")
    module = assert_tested(tmp_path / "run", MIMOFormer, task, 2)
    assert (module.config.tokenizer, module.config.words, module.config.class_names) == ("words", WORDS, ("yes", "no"))
    tokens, mask = describe(module.config).tokenize(["word0 word3", "word18"])
    assert tokens.tolist() == [[1, 4], [19, 0]]
    assert mask.tolist() == [[True, True], [True, False]]


@pytest.mark.once
@pytest.mark.unchecked
def test_the_finished_datamux_network_is_the_one_that_was_tested(monkeypatch, tmp_path):
    config = DataMUXConvConfig(capacity=4)
    task = offer(monkeypatch, ImageTask.random(describe(config), 60), mean=(0.25,), std=(0.5,))
    run(replace(CONFIG, model=config, n=(4,), n_odds=(1,), out=tmp_path / "run"), "tiny")
    module = assert_tested(tmp_path / "run", DataMUXConv, task, 4)
    assert (module.config.mean, module.config.std, module.config.class_names) == ((0.25,), (0.5,), task.class_names)


@pytest.mark.once
@pytest.mark.unchecked
def test_the_report_is_made_from_results_in_memory(monkeypatch, tmp_path, capsys):
    """No file of the run is read back: neither result.json nor config.json nor metrics.jsonl needs to be there any more."""
    shown = []

    def write(runs, begun, out, title):
        for name in ("result.json", "config.json", "environment.json", "metrics.jsonl"):
            (out / name).write_bytes(b"\xff damaged")
        shown.extend(runs)
        return really(runs, begun, out, title)

    really = composition.write_report
    monkeypatch.setattr(composition, "write_report", write)
    run(replace(CONFIG, out=tmp_path / "run", log_every=1))
    (one,) = shown
    assert SMALL.label in (tmp_path / "run" / "report.md").read_text()
    assert SMALL.label in capsys.readouterr().out
    assert (one.result.model, sum(len(steps) for steps, _ in one.train_curves.values())) == (SMALL.label, 2)


@pytest.mark.once
@pytest.mark.unchecked
def test_a_network_whose_features_do_not_vary_is_a_result(monkeypatch, tmp_path):
    """Its crosstalk is unknown, in the report too."""
    task = ImageTask.random(describe(SMALL), 64)
    offer(monkeypatch, task, test=replace(task.test, images=torch.zeros_like(task.test.images)))
    run(replace(CONFIG, out=tmp_path / "run"))
    found = read_result(tmp_path / "run").crosstalk
    assert {share for shares in found["after"].values() for share in shares.values()} == {None}
    assert "crosstalk along the network, unknown where features do not vary" in (tmp_path / "run" / "report.md").read_text()


def test_a_network_that_diverged_in_its_last_step_ends_with_a_remedy(images):
    """Its statistics are no numbers, which comes out before its answers."""
    network = build(SMALL)
    torch.nn.init.constant_(network.body.module.stage1[0].conv1.weight, 1e38)
    with pytest.raises(FloatingPointError, match=r"statistics for n = 1 are not finite.*a lower --optim.lr may help"):
        experiment.recalibrate(CONFIG, network, images)


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_an_update_that_overflows_weights_is_not_saved(optimizer, tmp_path):
    """Loss, gradient and buffers of the step are finite; what the learning rate makes of them is not."""
    optim = OptimConfig(steps=1, groups=4, optimizer=optimizer, lr=1e39, rest_lr=1e39, weight_decay=0.0, warmup=0.0)
    with pytest.raises(FloatingPointError, match=r"step 1: weights .* are not finite; .*a lower --optim.lr may help"):
        run(replace(CONFIG, optim=optim, save_every=1, out=tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert load_checkpoint(tmp_path / "run" / "diagnostic").step == 1
