"""The program as its users meet it: through the command line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from torch.testing import assert_close

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli import main as program
from mimo_benchmarks.cli.main import parse
from mimo_benchmarks.evaluation import results
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.training import checkpoint
from mimo_benchmarks.training import signals as stopping

pytestmark = pytest.mark.once
RUN = Path(__file__).parent.parent / "run.py"
SHORT = ["--optim.steps", "4", "--optim.groups", "4", "--log-every", "2", "--threads", "1"]


def refused(capsys, *arguments):
    """What the program says when it refuses these arguments with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err + printed.out


@pytest.mark.unchecked
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(capsys):
    assert "device = cuda, but there is no GPU that torch can use" in refused(capsys, "--device", "cuda")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quikstart"], "no preset 'quikstart': did you mean quickstart?"),
        (["zzz"], "no preset 'zzz': `run.py list` shows all"),
        (["quickstart.thn"], "no preset 'quickstart.thn': quickstart has the forms short, equal_cost_n4, equal_cost_n1, thin"),
        (["mnist_datamux_n4.thin"], "mnist_datamux_n4 has the forms short"),
        (["cifar10_mimoconv_n3"], "did you mean cifar10_mimoconv_n"),
        (["list", "zzz"], "no preset 'zzz'"),
        (["list", "zzz*"], "no preset's name is like 'zzz*'"),
        (["report"], "no finished run"),
        (["report", "/nonexistent"], "/nonexistent"),
        (["predict", "/nonexistent", "image.png"], "/nonexistent"),
        (["throughput", "quikstart"], "did you mean quickstart"),
        (["--optim.learning-rate", "1"], "--optim.learning-rate"),
        (["--optim.lr", "fast"], "fast"),
        (["--optim.lr", "-1"], "optim.lr must be above 0 and finite, got -1.0"),
        (["--optim.lr", "inf"], "optim.lr must be above 0 and finite, got inf"),
        (["--optim.weight-decay", "nan"], "optim.weight_decay must be finite and not negative, got nan"),
        (["--optim.steps", "0"], "optim.steps must be from 1 to 2^31 - 1, got 0"),
        (["--n", "1", "8", "--n-odds", "1", "1"], "n = 8, but the model has room for 4"),
        (["--n-odds", "1"], "n_odds must hold one number for each"),
        (["--model.depth", "11"], "depth must be 6k + 4"),
        (["--augment.shift", "-1"], "augment.shift must be finite and not negative, got -1"),
        (["--augment.rotate", "nan"], "augment.rotate must be finite and not negative, got nan"),
        (["--n-odds", "1", "1", "inf"], "n_odds must be finite"),
        (["--n-odds", "0", "0", "0"], "n_odds must have a finite sum above 0"),
        (["--model.width", "inf"], "width must be finite"),
        (["--model.width", "1e308"], "width must be finite"),
        (["--model.depth", "6000000000000000000000004"], "this network is too large to be built"),
        (["--optim.steps", "100000000000000000000"], "optim.steps must be from 1 to 2^31 - 1"),
        (["--seed", "1", "mnist"], "A preset's name comes first"),
        (["--model.mean", "0.5", "--model.std", "0.2"], "leave out --model.mean and --model.std"),
        (["--model.stem-channels", "10000000000"], "this network is too large to be built"),
        (["--model.stem-channels", "100000000000000000000"], "this network is too large to be built"),
        (["--threads", "100000"], "threads = 100000, but this process may use"),
        (["--model.image-size", "32"], "task digits needs --model.image-size 8, got 32"),
        (["--task", "imagenet"], "no task 'imagenet'; choose one of digits, mnist, mnist20, cifar10"),
        (["--seed", "-3"], "seed must be from 0 to 2^32 - 1, got -3"),
        (["--seed", "4294967296"], "seed must be from 0 to 2^32 - 1, got 4294967296"),
        (["mnist", "--data-dir", "/nonexistent"], "train-images-idx3-ubyte is missing"),
        (
            ["cifar10", "--data-dir", "/nonexistent"],
            "data_batch_1 is missing: get it with `mimonets data prepare cifar10",
        ),
        (["--task", "recall"], "task recall has tokens, and the network takes images"),
        (["recall_n2_att", "--n", "3"], "n = 3, but the model has room for 2"),
        (["--curriculum", "1"], "curriculum and curriculum_share come together"),
        (["--curriculum", "3", "--curriculum-share", "0.5"], "curriculum = 3 must divide the largest n, 4"),
        (["recall_datamux_n2", "--n", "1"], "DataMUX has no n but its capacity: give --n 2"),
        (["--curriculum", "9", "--curriculum-share", "0.5"], "curriculum = 9, but the model has room for 4"),
        (["--optim.groups", "6", "--optim.accumulate", "4"], "optim.groups = 6 cannot be split into optim.accumulate = 4"),
        (["--optim.momentum", "0.9", "0.8"], "optim.momentum has no effect, because optim.optimizer is adamw: leave it out"),
        (["mnist_mimoconv_n4", "--optim.betas", "0.9", "0.99"], "optim.betas has no effect, because optim.optimizer is sgd"),
        (["cifar10_muon_n4", "--optim.eps", "1e-7"], "optim.eps has no effect, because optim.optimizer is muon"),
        (["cifar10_fast_n4", "--optim.rest-lr", "0.1"], "optim.rest_lr has no effect, because optim.optimizer is sgd"),
        (["listops_deep_n2_att", "--optim.isometry", "1"], "optim.isometry has no effect, because the network has no"),
        (
            ["recall_n2_att", "--model.trainable-keys", "--optim.key-penalty", "1"],
            "optim.key_penalty has no effect, because the network",
        ),
        (["listops_deep_n2_att", "--augment.crop", "4"], "augment has no effect, because the network takes tokens"),
        (["--augment.border", "zero"], "augment.border has no effect, because augment.crop is 0"),
        (["--augment.no-mixup-each"], "augment.mixup_each has no effect, because augment.mixup is 0"),
        (["--optim.weight-decay", "0", "--optim.decay", "usual"], "optim.decay has no effect, because optim.weight_decay is 0"),
        (
            ["--model.no-trainable-keys", "--optim.key-penalty", "1"],
            "optim.key_penalty has no effect, because the network has no",
        ),
        (["cifar10_fast_n4.thin", "--controls"], "controls has no effect, because this network has none"),
        (["--optim.loss", "squared"], "optim.label_smoothing is of cross_entropy"),
        (["--optim.average", "1"], "optim.average must be from 0 to below 1, got 1"),
        (["--best"], "best needs dev accuracies to choose by: give dev_every"),
        (["--dev-every", "5"], "task digits has no dev split"),
        (["--sync-batch-norm"], "sync_batch_norm is for several GPUs"),
        (["--precision", "fp16"], "precision = fp16 is for GPUs"),
        (["--tracker", "nothing"], "tracker 'nothing' is not installed here"),
        (["--resume", "/nonexistent"], "is /nonexistent a run directory?"),
        (["--resume=/nonexistent"], "is /nonexistent a run directory?"),
        (["--augment.mixup", "1", "--optim.groups", "1"], "augment.mixup mixes images of different passes, and optim.groups = 1"),
        (["--augment.crop", "8"], "augment.crop = 8, but the images of digits have 8 pixels"),
        (["--augment.border", "wrap"], "wrap"),
    ],
)
def test_what_cannot_work_is_refused_in_one_message(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in " ".join(refused(capsys, *arguments).replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_what_a_preset_sets_for_another_optimizer_is_left_alone():
    """Its cycled momentum does not stand in the way of AdamW."""
    _, config = parse(["cifar10_fast_n4", "--optim.optimizer", "adamw", "--optim.betas", "0.9", "0.99"])
    assert (config.optim.momentum, config.optim.betas) == ((0.95, 0.85), (0.9, 0.99))


def test_an_existing_run_directory_is_never_overwritten(capsys, tmp_path):
    assert "exists already" in refused(capsys, *SHORT, "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.unchecked
def test_a_folder_without_rights(capsys, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "cannot be made" in refused(capsys, *SHORT, "--out", str(blocker / "run"))


@pytest.mark.unchecked
def test_a_file_where_the_runs_go(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    assert "the run directory cannot be made" in refused(capsys, *SHORT)


def test_training_that_diverged_is_said(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main([*SHORT, "--no-controls", "--optim.lr", "1e30", "--optim.steps", "1", "--out", str(tmp_path / "run")])
    assert exit_.value.code == 1
    assert "training diverged" in capsys.readouterr().err


def test_help_explains_presets_and_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "usage: run.py [PRESET]",
        "run.py list | report | throughput | predict | data",
        "quickstart:",
        "mnist:",
        "--optim.lr",
        "Peak learning rate",
        "--data-dir",
        "MIMO_DATA",
    ):
        assert words in text


def test_flags_change_the_preset():
    preset, config = parse(["quickstart", "--optim.lr", "0.5", "--n", "1", "3", "--n-odds", "2", "1"])
    assert (preset, config.optim.lr, config.n, config.n_odds) == ("quickstart", 0.5, (1, 3), (2, 1))


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Throughput is measured on few images: what it is does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(results.BUDGET, "cpu", 1)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one seed and one of another, by one process each as a user would start them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (7, 7, 8):
        main([*SHORT, "--seed", str(seed), "--out", str(folder / f"{len(list(folder.iterdir()))}")])
    return [folder / name for name in ("0", "1", "2")]


def numbers(run):
    """All that a run found out, apart from how long it took."""
    rows = [row for path in sorted(run.rglob("result.json")) for row in json.loads(path.read_text())["rows"]]
    found = [{name: value for name, value in row.items() if name != "inputs_per_second"} for row in rows]
    lines = [json.loads(line) for path in sorted(run.rglob("metrics.jsonl")) for line in path.read_text().splitlines()]
    return found, [{name: value for name, value in line.items() if name != "inputs_per_second"} for line in lines]


def weights(run):
    return checkpoint.load(run / "model").tensors["model"]


def test_same_seed_same_numbers(runs):
    assert numbers(runs[0]) == numbers(runs[1])
    assert numbers(runs[0]) != numbers(runs[2])


CONTROLS = ("equal_cost_n1", "equal_cost_n4", "thin")
OF_A_RUN = {"config.json", "environment.json", "metrics.jsonl", "result.json", "checkpoints", "model"}


def test_a_run_directory_holds_all_there_is_to_know(runs):
    files = {path.name for path in runs[0].iterdir()}
    assert files == OF_A_RUN | set(CONTROLS) | {"report.md", "report.html"} | {path.name for path in runs[0].glob("*.png")}
    config, (start,), result = (
        json.loads((runs[0] / f"{name}.json").read_text()) for name in ("config", "environment", "result")
    )
    assert (config["preset"], config["config"]["seed"], config["config"]["optim"]["steps"]) == ("quickstart", 7, 4)
    assert start["versions"]["torch"]
    assert start["git_revision"] == "unknown" or len(start["git_revision"].rstrip("+")) == 40
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert [row["n"] for row in result["rows"]] == [1, 2, 4]
    assert [len(row["accuracy_per_slot"]) for row in result["rows"]] == [1, 2, 4]
    changed = [row["changed_by_regrouping"] for row in result["rows"]]
    assert changed[0] is None
    assert 0 < changed[2] < 1
    assert result["crosstalk"]["before"]["4"]["logits"] != result["crosstalk"]["after"]["4"]["logits"]
    assert set(result["crosstalk"]["after"]["1"].values()) == {0}
    for control in CONTROLS:
        inside = runs[0] / control
        assert {path.name for path in inside.iterdir()} == OF_A_RUN
        found = json.loads((inside / "result.json").read_text())
        assert (found["control"], found["superposed"], found["preset"]) == (control, False, "quickstart")
        assert found["inputs_seen"] == result["inputs_seen"]
        assert [row["n"] for row in found["rows"]] == [1]


def test_default_directories_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main([*SHORT, "--no-controls"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["quickstart-001", "quickstart-002"]


def test_a_network_of_one_slot(tmp_path):
    """Superposition without superposition: it counts as a plain network, and has no controls."""
    main([*SHORT, "--model.capacity", "1", "--n", "1", "--n-odds", "1", "--out", str(tmp_path / "run")])
    (result,) = (json.loads(path.read_text()) for path in tmp_path.rglob("result.json"))
    assert not result["superposed"]


@pytest.mark.unchecked
def test_list_shows_what_the_paper_reports(capsys):
    main(["list", "cifar10_mimoconv_n4*"])
    printed = capsys.readouterr().out
    assert "| cifar10_mimoconv_n4 | MIMOConv-28-10 | cifar10 | 4 | 465,600 | 95.58 ± 0.23 at 4 |" in printed
    assert "mimoconv_n2" not in printed


@pytest.mark.unchecked
def test_list_estimates_hours(capsys):
    main(["list", "induction_n2_att.short", "--estimate"])
    row = capsys.readouterr().out.strip().splitlines()[-1].split(" | ")
    assert row[0] == "| induction_n2_att.short"
    assert float(row[-1].rstrip(" |")) < 10


def stop_at(step, monkeypatch):
    """As if SIGTERM came in that step."""

    class At:
        seen = 0

        @property
        def signal(self):
            self.seen += 1
            return 15 if self.seen == step else 0

    monkeypatch.setattr(experiment, "listening", lambda: nullcontext(At()))


@pytest.mark.unchecked
@pytest.mark.parametrize("step", [1, 6, 14], ids="step {}".format)
def test_an_interrupted_experiment_goes_on_as_if_it_had_not_been(step, runs, tmp_path, monkeypatch, capsys):
    """In the network itself or in a control: weights bit-equal, and all that was found out."""
    stop_at(step, monkeypatch)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        main([*SHORT, "--seed", "7", "--out", str(run)])
    assert exit_.value.code == 143
    assert f"go on with --resume {run}" in capsys.readouterr().err
    monkeypatch.undo()
    main(["--resume", str(run), "--threads", "1"])
    for inside in (run, *(run / name for name in CONTROLS)):
        whole = weights(runs[0] / inside.relative_to(run))
        assert all(torch.equal(value, whole[name]) for name, value in weights(inside).items())
    assert numbers(run) == numbers(runs[0])
    assert len(json.loads((run / "environment.json").read_text())) == 2


@pytest.mark.unchecked
def test_a_run_of_another_config_is_refused(runs, capsys):
    assert "seed was 7 and is 8" in refused(capsys, "--resume", str(runs[0]), "--seed", "8")
    assert "is a run of quickstart, not of mnist" in refused(capsys, "mnist", "--resume", str(runs[0]))
    assert "leave out --out" in refused(capsys, "--resume", str(runs[0]), "--out", "elsewhere")


@pytest.mark.unchecked
def test_lines_that_were_cut_off_are_dropped(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3}\n{"step": 9}\n\xff\xfe{"st')
    main(["--resume", str(run), "--threads", "1"])
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 3]


@pytest.mark.unchecked
def test_no_space_left(runs, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    monkeypatch.setattr("os.fsync", full)
    said = refused(capsys, *SHORT, "--seed", "7", "--no-controls", "--out", str(run))
    assert "No space left" in said
    assert "make room" in said
    monkeypatch.undo()
    main(["--resume", str(run)])
    assert all(torch.equal(value, weights(runs[0])[name]) for name, value in weights(run).items())


def test_ctrl_c_while_importing_ends_in_a_line(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "mimo_benchmarks.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mimo_benchmarks.cli.main")
    monkeypatch.delattr("mimo_benchmarks.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def start(*arguments, **options):
    """The program in a process of its own, which Ctrl-C reaches: a shell's background jobs ignore the signal."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, str(RUN), *arguments], stderr=subprocess.PIPE, text=True, env=environment, **options
    )
    signal.signal(signal.SIGINT, inherited)
    return process


@pytest.mark.unchecked
def test_ctrl_c_ends_the_step_saves_and_exits(tmp_path):
    run = tmp_path / "run"
    process = start("--optim.steps", "3000", "--log-every", "1", "--no-controls", "--out", str(run))
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Interrupted: stopped after step" in errors
    assert "Traceback" not in errors
    kept = checkpoint.load(run / "checkpoints")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kept.step == lines[-1]["step"]


@pytest.mark.unchecked
def test_a_second_signal_of_a_kind_acts_at_once():
    """The first of each is noted, in the order of their coming; what listened before listens again afterwards."""
    before = signal.getsignal(signal.SIGINT)
    with stopping.listening() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("flags", [["--precision", "bf16"], ["--compile", "--n", "2", "--n-odds", "1"]], ids=" ".join)
@pytest.mark.filterwarnings("ignore")
def test_other_ways_to_compute(flags, tmp_path, monkeypatch):
    """The quickstart's network, trained in bf16 or compiled, without the minutes that torch's usual backend takes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    AcceleratorState._reset_state()  # it is one for a whole process, and refuses another precision
    main([*SHORT, "--no-controls", *flags, "--out", str(tmp_path / "run")])
    AcceleratorState._reset_state()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert all(0 <= row["accuracy"] <= 1 for row in result["rows"])


def test_memory_that_runs_out_is_said(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmuch more")

    monkeypatch.setattr(experiment, "train", full)
    said = refused(capsys, *SHORT, "--no-controls", "--out", str(tmp_path / "run"))
    assert "error: CUDA out of memory. A higher --optim.accumulate splits a step into smaller batches\n" in said


def test_every_kind_of_optimizer_and_model(tmp_path):
    few = ["--optim.steps", "3", "--log-every", "3", "--threads", "1"]
    for name, *flags in (
        ("quickstart.thin", "--optim.optimizer", "muon", "--optim.lr", "0.02"),
        ("quickstart", "--no-controls", "--optim.optimizer", "sgd", "--optim.average", "0.5", "--optim.reject", "10"),
        ("recall_n2_att", "--optim.accumulate", "2", "--controls"),
        ("recall_n2_att_dpfp",),
        ("recall_datamux_n2",),
    ):
        run = tmp_path / name
        main([name, *few, *flags, "--out", str(run)])
        result = json.loads((run / "result.json").read_text())
        assert result["steps"] == 3
        assert all(0 <= row["accuracy"] <= 1 for row in result["rows"])
    assert {path.name for path in (tmp_path / "recall_n2_att").iterdir()} >= {"equal_cost_n2", "thin"}
    main(["report", str(tmp_path), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    for words in ("recall_n2_att", "DataMUX", "Performer"):
        assert words in text


def test_trackers_are_told_what_is_logged(tmp_path, monkeypatch):
    """One that accelerate is handed; network and quantity are in the name, and the step is the run's."""
    told = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory, main_process_only = "ours", False, True

        @property
        def tracker(self):
            return self

        def start(self):
            pass

        def store_init_configuration(self, values):
            told.append(values)

        def log(self, values, step, **_):
            told.append((step, values))

    monkeypatch.setattr(program, "get_available_trackers", lambda: ["ours"])
    monkeypatch.setattr(experiment, "filter_trackers", lambda names, path: [Tracker(_blank=True)])
    main([*SHORT, "--no-controls", "--tracker", "ours", "--out", str(tmp_path / "run")])
    (config, *lines) = told
    assert "quickstart" not in config
    assert "'steps': 4" in config["config"]
    assert [step for step, _ in lines] == [2, 4]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [values["quickstart/loss"] for _, values in lines] == [line["loss"] for line in logged]


ELASTIC = [sys.executable, "-m", "torch.distributed.run"]
ON_CPU = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
RECALL = ["recall_n2_att", "--model.dropout", "0", "--optim.steps", "50", "--log-every", "10", "--optim.groups", "4"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A MIMOFormer, 50 steps by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    main([*RECALL, "--threads", "1", "--out", str(run)])
    return run


def assert_same_result(run, alone):
    """Of all weights as one vector: single biases that start at 0 are what AdamW makes of rounding."""
    whole, found = weights(alone), weights(run)
    difference, size = (
        torch.cat([part.flatten() for part in parts]).norm()
        for parts in ([found[name] - whole[name] for name in whole], whole.values())
    )
    assert difference <= 1e-5 * size
    mine, theirs = ([line["loss"] for line in numbers(path)[1]] for path in (run, alone))
    assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-5, atol=0)


@pytest.mark.unchecked
def test_two_machines_give_what_one_does(alone, tmp_path):
    """The same global batch in two processes: 1e-5 relative over 50 fp32 steps, weights and losses alike.

    They are two machine ranks over the loopback address, each started by a line of its own, as docs/running.md has them.
    """
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *machines, "--main_process_port", port, "--machine_rank"]
    both = [
        subprocess.Popen(
            [*launch, rank, str(RUN), *RECALL, "--out", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ON_CPU
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert_same_result(run, alone)


@pytest.mark.unchecked
def test_several_processes_that_cannot_work_all_say_so(tmp_path):
    """The main process alone finds the run directory there: nothing is written, and nobody waits for anybody."""
    (tmp_path / "there").mkdir()
    command = [*ELASTIC, "--standalone", "--nproc-per-node", "2", str(RUN), "--out", "there"]
    run = subprocess.run(command, capture_output=True, text=True, env=ON_CPU, cwd=tmp_path, check=False)
    assert run.returncode != 0
    assert run.stderr.count("error: there exists already") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())
