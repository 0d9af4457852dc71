"""The program as its users meet it: through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimo_benchmarks import experiment
from mimo_benchmarks.__main__ import main
from mimo_benchmarks.program import parse

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
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quikstart"], "no preset 'quikstart': did you mean quickstart?"),
        (["zzz"], "choose one of quickstart, mnist, cifar10"),
        (["--optim.learning-rate", "1"], "--optim.learning-rate"),
        (["--optim.lr", "fast"], "fast"),
        (["--optim.lr", "-1"], "optim.lr must be above 0 and finite, got -1.0"),
        (["--optim.lr", "inf"], "optim.lr must be above 0 and finite, got inf"),
        (["--optim.weight-decay", "nan"], "optim.weight_decay must be finite and not negative, got nan"),
        (["--optim.steps", "0"], "optim.steps must be from 1 to 2^31 - 1, got 0"),
        (["--n", "1", "8", "--n-odds", "1", "1"], "n = 8, but model.capacity is 4"),
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
            "data_batch_1 is missing: get it with `python benchmarks/run.py data prepare cifar10",
        ),
        (["--task", "listops"], "task listops has no images, and this program trains on digits, mnist, mnist20"),
        (["--augment.mixup", "1", "--optim.groups", "1"], "augment.mixup mixes images of different passes, and optim.groups = 1"),
        (["--augment.crop", "8"], "augment.crop = 8, but the images of digits have 8 pixels"),
        (["--augment.border", "wrap"], "wrap"),
    ],
)
def test_what_cannot_work_is_refused_in_one_message(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in " ".join(refused(capsys, *arguments).replace("│", " ").split())
    assert not list(tmp_path.iterdir())


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
        patch.setattr(experiment, "THROUGHPUT_IMAGES", 24)
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
    rows = json.loads((run / "result.json").read_text())["rows"]
    return [(row["model"], row["n"], row["accuracy"], row["macs"]) for row in rows], (run / "metrics.jsonl").read_text()


def test_same_seed_same_numbers(runs):
    assert numbers(runs[0]) == numbers(runs[1])
    assert numbers(runs[0]) != numbers(runs[2])


def test_a_run_directory_holds_all_there_is_to_know(runs):
    files = {path.name for path in runs[0].iterdir()}
    assert files == {"config.json", "environment.json", "metrics.jsonl", "result.json", "report.html"} | {
        "accuracy_throughput.png",
        "crosstalk.png",
    }
    config, environment, result = (
        json.loads((runs[0] / f"{name}.json").read_text()) for name in ("config", "environment", "result")
    )
    assert (config["preset"], config["seed"], config["optim"]["steps"]) == ("quickstart", 7, 4)
    assert environment["versions"]["torch"]
    assert environment["git_revision"] == "unknown" or len(environment["git_revision"].rstrip("+")) == 40
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["step"]) for line in lines[:2]] == [("MIMOConv", 2), ("MIMOConv", 4)]
    assert {row["model"] for row in result["rows"]} == {"MIMOConv", "plain CNN, cost of n=1", "plain CNN, cost of n=4"}
    assert [row["n"] for row in result["rows"]] == [1, 2, 4, 1, 1]
    assert len(set(result["images_seen"].values())) == 1
    assert [len(result["accuracy_per_slot"][n]) for n in "124"] == [1, 2, 4]
    assert result["changed_by_regrouping"]["1"] == 0 < result["changed_by_regrouping"]["4"] < 1
    assert result["crosstalk"]["before"]["4"]["logits"] != result["crosstalk"]["after"]["4"]["logits"]
    assert set(result["crosstalk"]["after"]["1"].values()) == {0}


def test_default_directories_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main([*SHORT, "--no-controls"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["quickstart-001", "quickstart-002"]
    assert "No controls were trained" in capsys.readouterr().out


def test_a_network_of_one_slot(tmp_path, capsys):
    """Superposition without superposition: its row is the superposed one, and each control is named and trained once."""
    one = ["--model.capacity", "1", "--n", "1", "--n-odds", "1", "--model.width", "0.25"]
    main([*SHORT, *one, "--out", str(tmp_path / "run")])
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    assert [(row["model"], row["superposed"]) for row in rows] == [
        ("MIMOConv", True),
        ("plain CNN, 1.75x the cost of n=1", False),
    ]
    assert "Here the plain CNN, 1.75x the cost of n=1, scores" in capsys.readouterr().out


def test_ctrl_c_while_importing_ends_in_a_line(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "mimo_benchmarks.program":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mimo_benchmarks.program")
    monkeypatch.delattr("mimo_benchmarks.program")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.unchecked
def test_ctrl_c_ends_in_a_line(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(RUN), "--optim.steps", "3000", "--log-every", "1", "--no-controls", "--out", str(run)]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    signal.signal(signal.SIGINT, inherited)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Interrupted." in errors
    assert "Traceback" not in errors


def test_mixed_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    main([*SHORT, "--no-controls", "--out", str(tmp_path / "run")])
    assert len(json.loads((tmp_path / "run" / "result.json").read_text())["rows"]) == 3


@pytest.mark.unchecked
def test_two_processes_write_one_run(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RUN), *SHORT]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, capture_output=True, env=environment)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["rows"]) == 5


@pytest.mark.unchecked
def test_groups_that_cannot_be_shared_by_the_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RUN)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    run = subprocess.run(
        [*command, "--optim.groups", "5"], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert run.returncode != 0
    assert "error: optim.groups = 5 cannot be shared by 2 processes" in run.stderr
    assert not list(tmp_path.iterdir())
