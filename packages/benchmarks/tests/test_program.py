"""The program from the command line to the run directory: what is written, repeated and resumed."""

import gc
import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli import machine
from mimo_benchmarks.cli.machine import prepare_machine
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.experiment.experiment import run_experiment
from mimo_benchmarks.networks.registry import load_finished
from mimo_benchmarks.training import state
from mimo_benchmarks.training.signals import Stopped

pytestmark = pytest.mark.once
SMALL = ["--model.width", "1", "--model.stem-channels", "16"]
SHORT = ["--optim.steps", "4", "--optim.groups", "24", "--log-every", "2", "--threads", "1", *SMALL]


def refused(capsys, *arguments):
    """What the program says when it refuses these arguments with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Throughput is measured once on few images, as what it is does not matter here; collections skip what imports have made."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rates.BUDGET, "cpu", 1)
        patch.setattr(rates, "inputs_per_second", partial(rates.inputs_per_second, rounds=1))
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two experiments of one seed, and a run of another seed without controls."""
    folder = tmp_path_factory.mktemp("runs")
    for name, *flags in (("0", "--seed", "7"), ("1", "--seed", "7"), ("2", "--seed", "8", "--no-controls")):
        main([*SHORT, *flags, "--out", str(folder / name)])
    return [folder / name for name in ("0", "1", "2")]


def numbers(run):
    """All that a run found out, apart from how long it took."""
    rows = [row for path in sorted(run.rglob("result.json")) for row in json.loads(path.read_text())["rows"]]
    found = [{name: value for name, value in row.items() if not name.startswith("inputs_per_second")} for row in rows]
    lines = [json.loads(line) for path in sorted(run.rglob("metrics.jsonl")) for line in path.read_text().splitlines()]
    return found, [{name: value for name, value in line.items() if name != "inputs_per_second"} for line in lines]


def weights(run):
    return load_finished(run, torch.device("cpu"))[1].state_dict()


def test_same_seed_same_numbers(runs):
    assert numbers(runs[0]) == numbers(runs[1])
    rows, lines = numbers(runs[2])
    assert rows != numbers(runs[0])[0][-len(rows) :]
    assert lines[0]["loss"] not in [line["loss"] for line in numbers(runs[0])[1]]


CONTROLS = ("equal_cost_n1", "equal_cost_n4", "thin")
OF_A_RUN = {"config.json", "environment.json", "metrics.jsonl", "result.json", "checkpoints", "model"}


def test_a_run_directory_holds_all_there_is_to_know(runs):
    files = {path.name for path in runs[0].iterdir() if path.suffix != ".png"}
    assert files == OF_A_RUN | set(CONTROLS) | {".lock", "report.md", "report.html"}
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
    printed = " ".join(capsys.readouterr().out.split())
    assert "| cifar10_mimoconv_n4 | MIMOConv-28-10 | cifar10 | 4 | 465,600 | 95.58 ± 0.23 at 4 |" in printed
    assert "mimoconv_n2" not in printed


@pytest.mark.unchecked
def test_list_estimates_hours(capsys):
    main(["list", "induction_n2_att.short", "--estimate"])
    row = capsys.readouterr().out.strip().splitlines()[-1].split(" | ")
    assert row[0] == "| induction_n2_att.short"
    assert float(row[-1].rstrip(" |")) < 10


@pytest.mark.unchecked
@pytest.mark.parametrize("step", [1, 6, 14], ids="step {}".format)
def test_an_interrupted_experiment_goes_on_as_if_it_had_not_been(step, runs, tmp_path):
    """In the network itself or in a control: weights bit-equal, and all that was found out."""
    run, signals = tmp_path / "run", iter([0] * (step - 1) + [15])
    request = type("At", (), {"signal": property(lambda self: next(signals))})()
    preset, config = parse_settings([*SHORT, "--seed", "7", "--out", str(run)])
    accelerator = prepare_machine(config)
    config = replace(config, precision=accelerator.mixed_precision)
    with pytest.raises(Stopped, match=f"resume with mimonets --resume {run}$") as stopped:
        run_experiment(config, preset, accelerator, listen=lambda: nullcontext(request))
    assert stopped.value.code == 143
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
    monkeypatch.setattr("mimo_benchmarks.training.checkpoint.sync", full)
    said = refused(capsys, *SHORT, "--seed", "7", "--no-controls", "--out", str(run))
    assert "No space left" in said
    assert "make room" in said
    monkeypatch.undo()
    main(["--resume", str(run), "--threads", "1"])
    assert all(torch.equal(value, weights(runs[0])[name]) for name, value in weights(run).items())


@pytest.mark.parametrize("flags", [["--precision", "bf16"], ["--compile", "--n", "2", "--n-odds", "1"]], ids=" ".join)
@pytest.mark.filterwarnings("ignore")
def test_other_ways_to_compute(flags, tmp_path, monkeypatch):
    """The quickstart's network, trained in bf16 or compiled, without the minutes that torch's usual backend takes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    if "--compile" in flags:
        monkeypatch.setattr(state, "is_compiled", lambda config, device: config.compile)
    AcceleratorState._reset_state()  # it is one for a whole process, and refuses another precision
    main([*SHORT, "--no-controls", *flags, "--out", str(tmp_path / "run")])
    AcceleratorState._reset_state()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert all(0 <= row["accuracy"] <= 1 for row in result["rows"])


def test_every_kind_of_optimizer_and_model(tmp_path):
    few = ["--optim.steps", "3", "--log-every", "3", "--threads", "1"]
    for name, *flags in (
        ("quickstart.thin", "--optim.optimizer", "muon", "--optim.lr", "0.02"),
        ("quickstart", *SMALL, "--no-controls", "--optim.optimizer", "sgd", "--optim.average", "0.5", "--optim.reject", "10"),
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

    monkeypatch.setattr(machine, "get_available_trackers", lambda: ["ours"])
    monkeypatch.setattr(experiment, "filter_trackers", lambda names, path: [Tracker(_blank=True)])
    main([*SHORT, "--no-controls", "--tracker", "ours", "--out", str(tmp_path / "run")])
    (config, *lines) = told
    assert "quickstart" not in config
    assert "'steps': 4" in config["config"]
    assert [step for step, _ in lines] == [2, 4]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [values["quickstart/loss"] for _, values in lines] == [line["loss"] for line in logged]


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
