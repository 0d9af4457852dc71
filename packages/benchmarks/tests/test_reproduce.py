"""`mimonets reproduce`: the rows of the paper's tables, their queue, and what is kept of them."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_runs import ROW, make_run

from mimo_benchmarks.cli.main import execute_command
from mimo_benchmarks.cli.reproduce import execute_reproduce
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.report.runs import read_run
from mimo_benchmarks.reproduce import workers
from mimo_benchmarks.reproduce.jobs import FOLDER, Job
from mimo_benchmarks.reproduce.page import read_results, table_lines, write_page
from mimo_benchmarks.reproduce.results import LARGEST, keep, thinned
from mimo_benchmarks.reproduce.tables import KINDS, Row, find_table
from mimo_benchmarks.reproduce.workers import Machine, carry_out
from mimo_benchmarks.run_directory import settings_as_json
from mimo_benchmarks.run_lock import lock_run
from mimo_benchmarks.training.signals import Stopped, StopRequest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "results"
KEPT = sorted(RESULTS.glob("*/*"))
ADDRESS = re.compile(r"""(^|[\s"'=])(/|~/|[A-Za-z]:\\)[\w.]|://|@[\w-]+\.|\b(\d{1,3}\.){3}\d{1,3}\b""")
"""What looks like a path from the root, an address or a machine."""


def test_every_figure_of_the_paper_has_a_row():
    """But for those on SVHN, which are in its text alone."""
    rows = {row.preset for name in KINDS for row in find_table(name).rows}
    assert {name for name in PAPER if not name.startswith("svhn")} <= rows


@pytest.mark.parametrize("name", KINDS)
def test_rows_have_folders_of_their_own(name):
    table = find_table(name)
    folders = [Job(row=row, share=table.share, seed=0).folder for row in table.rows]
    assert len(set(folders)) == len(folders)
    for row, folder in zip(table.rows, folders, strict=True):
        assert FOLDER.fullmatch(folder)["row"] == row.name
        assert row.preset.split(".")[0] in PRESETS


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("row", [*find_table("table1").rows[:6], *find_table("table1").rows[13:16], find_table("table2").rows[4]])
def test_the_command_of_a_row_gives_its_settings(row, share):
    job = Job(row=row, share=share, seed=3)
    preset, config = parse_settings(job.command()[1:])
    assert preset == row.preset
    expected = settings_as_json(job.config) | {"seed": 3}
    assert settings_as_json(config) == expected


def test_a_share_of_the_steps():
    row = Row(preset="listops_deep_n2_att")
    published, tenth = row.config(1.0), row.config(0.1)
    assert published == find_preset(row.preset)
    assert (tenth.optim.steps, tenth.dev_every) == (2_000, 50)
    assert row.config(0.1).optim.warmup == published.optim.warmup
    assert find_preset("cifar10_mimoconv_n2.short").optim.steps == 23_400


def test_controls_stand_beside_what_they_are_for():
    rows = {row.preset for row in find_table("figure4").rows}
    config = find_preset("mnist_mimoconv_n4")
    assert {f"mnist_mimoconv_n4.{name}" for name in controls(config.model, config.n)} <= rows


SCRIPT = """
import json, pathlib, signal, sys, time
kind, folder, result = sys.argv[1:]
path = pathlib.Path(folder)
def end(*_):
    (path / "saved").write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
path.mkdir(exist_ok=True)
print("begun", flush=True)
(path / "metrics.jsonl").write_text('{"step": 7}\\n')
if kind == "fails": sys.exit("no memory")
if kind == "lasts":
    (path / "begun").write_text("")
    time.sleep(600)
(path / "result.json").write_text(result)
"""


@pytest.fixture
def fake(monkeypatch):
    """Runs that are over at once, fail, or last until they are stopped, by the names of their folders."""
    kinds = {}
    started = []

    def start(job, out, flags):
        started.append(job.folder)
        return [sys.executable, "-c", SCRIPT, kinds.get(job.folder, "ends"), str(out / job.folder), "{}"]

    monkeypatch.setattr(Job, "start", start)
    monkeypatch.setattr(Job, "work", lambda job: float(job.config.optim.steps))
    return kinds, started


def some_jobs(*seeds, preset="mnist_datamux_n2"):
    return [Job(row=Row(preset=preset), share=1.0, seed=seed) for seed in seeds]


def test_runs_go_one_after_the_other_and_one_that_fails_stops_no_other(fake, tmp_path, capsys):
    kinds, started = fake
    jobs = some_jobs(0, 1, 2)
    kinds[jobs[1].folder] = "fails"
    failed = carry_out(jobs, Machine(gpus=0, at_once=1, out=tmp_path), StopRequest())
    assert started == [job.folder for job in jobs]
    assert failed == [jobs[1]]
    said = capsys.readouterr().out
    assert f"{jobs[0].folder}: finished after" in said
    assert f"{jobs[1].folder}: ended with exit code 1 after" in said
    assert "no memory" in said
    assert (tmp_path / f"{jobs[1].folder}.log").read_text() == "begun\nno memory\n"


def test_each_run_is_noted_as_soon_as_it_is_finished(fake, tmp_path):
    kinds, started = fake
    jobs = some_jobs(0, 1, 2)
    kinds[jobs[1].folder] = "fails"
    noted = []
    carry_out(jobs, Machine(gpus=0, at_once=1, out=tmp_path), StopRequest(), note=lambda job: noted.append((job, len(started))))
    assert noted == [(jobs[0], 1), (jobs[2], 3)]


def test_a_signal_lets_running_ones_save_themselves_and_starts_no_other(fake, tmp_path, monkeypatch):
    kinds, started = fake
    jobs = some_jobs(0, 1, 2)
    kinds |= {job.folder: "lasts" for job in jobs}
    request = StopRequest()

    def wait(seconds):
        request.signal = signal.SIGTERM if all((tmp_path / job.folder / "begun").exists() for job in jobs[:2]) else 0

    monkeypatch.setattr(workers.time, "sleep", wait)
    assert carry_out(jobs, Machine(gpus=0, at_once=2, out=tmp_path), request) == []
    assert started == [job.folder for job in jobs[:2]]
    assert all((tmp_path / job.folder / "saved").exists() for job in jobs[:2])


def test_the_end_of_the_time_stops_as_a_signal_does(fake, tmp_path):
    kinds, _ = fake
    (job,) = some_jobs(0)
    kinds[job.folder] = "lasts"
    assert carry_out([job], Machine(gpus=0, at_once=1, out=tmp_path), StopRequest(), seconds=0.0) == []
    assert not (tmp_path / job.folder / "result.json").exists()


def test_lines_say_how_far_runs_are(fake, tmp_path, monkeypatch, capsys):
    kinds, _ = fake
    jobs = some_jobs(0, 1)
    kinds[jobs[0].folder] = "lasts"
    monkeypatch.setattr(workers, "TELL", -1.0)
    request = StopRequest()
    monkeypatch.setattr(workers.time, "sleep", lambda _: setattr(request, "signal", jobs[0].step(tmp_path)))
    carry_out(jobs, Machine(gpus=0, at_once=1, out=tmp_path), request)
    said = capsys.readouterr().out
    assert f"{jobs[0].folder}: step 7 of 28,125" in said
    assert "1 runs under way, 1 to come" in said


def test_places_are_spread_over_the_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Machine(gpus=2, at_once=2, out=Path()).slots() == ["0", "1", "0", "1"]
    assert Machine(gpus=0, at_once=2, out=Path()).slots() == [None, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert Machine(gpus=2, at_once=1, out=Path()).slots() == ["4", "7"]


@pytest.mark.unchecked
def test_a_run_is_no_process_of_a_launcher(fake, tmp_path, monkeypatch):
    (job,) = some_jobs(0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "0")
    given = {}
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *_, **options: given.update(options))
    Machine(gpus=0, at_once=1, out=tmp_path).start(job, None)
    assert not [name for name in given["env"] if "RANK" in name or "WORLD" in name or "ACCELERATE" in name]
    assert "PATH" in given["env"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's end")
def test_runs_save_themselves_when_the_command_is_killed(tmp_path):
    run = [sys.executable, "-c", SCRIPT, "lasts", str(tmp_path / "run"), "{}"]
    command = f"""
import os, pathlib, signal, time
from mimo_benchmarks.reproduce.jobs import Job
from mimo_benchmarks.reproduce.tables import Row
from mimo_benchmarks.reproduce.workers import Machine
Job.start = lambda *_: {run!r}
Machine(gpus=0, at_once=1, out=pathlib.Path({str(tmp_path)!r})).start(Job(row=Row(preset="quickstart"), share=1.0, seed=0), None)
while not pathlib.Path({str(tmp_path / "run" / "begun")!r}).exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == -signal.SIGKILL
    for _ in range(1000):
        if (tmp_path / "run" / "saved").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the run goes on")


def test_a_run_goes_on_where_it_was(tmp_path):
    (job,) = some_jobs(5)
    begin = job.start(tmp_path, ["--no-rates"])[3:]
    assert begin == ["train", "mnist_datamux_n2", "--seed", "5", "--out", str(tmp_path / job.folder), "--no-rates"]
    (tmp_path / job.folder / "checkpoints" / "step-00001000").mkdir(parents=True)
    assert job.start(tmp_path, ["--no-rates"])[3:] == ["train", "--resume", str(tmp_path / job.folder), "--no-rates"]
    assert job.step(tmp_path) == 1000


def test_a_run_that_was_killed_before_it_began_is_started_again(tmp_path):
    (job,) = some_jobs(5)
    (tmp_path / job.folder).mkdir()
    (tmp_path / job.folder / ".lock").write_text("")
    assert "--out" in job.start(tmp_path, [])
    assert not (tmp_path / job.folder).exists()


def test_two_commands_on_one_folder(fake, tmp_path):
    _, started = fake
    flags = ["figure4", "--rows", "mnist_datamux_n2", "--seeds", "0", "--gpus", "0", "--out", str(tmp_path)]
    (tmp_path / "figure4").mkdir()
    with lock_run(tmp_path / "figure4"):
        with pytest.raises(ConfigError, match="figure4 is in use by process"):
            execute_reproduce(flags)
        execute_reproduce([*flags, "--minutes", "0"])
    assert started == []


def finished_run(path, job, accuracy=0.5, **result):
    """A finished run of a job, as if trained on another machine."""
    settings = settings_as_json(job.config) | {
        "seed": job.seed,
        "precision": "no",
        "out": "/home/somebody/runs",
        "data_dir": "/data",
    }
    row = ROW | {"n": 2, "accuracy": accuracy}
    preset, _, control = job.row.preset.partition(".")
    known = {"preset": preset, "control": control or None, "seed": job.seed, "steps": job.config.optim.steps} | result
    run = make_run(path / job.folder, (row,), settings=settings, command="python /home/x/run.py --out /tmp", **known)
    start = {
        "command": "/home/x",
        "platform": "Linux-host.example.org",
        "device": "cpu",
        "processes": 1,
        "cores": 2,
        "threads": 1,
    }
    start |= {"python": "3.11", "versions": {"torch": "2.8"}, "git_revision": "0123abc"}
    (run / "environment.json").write_text(json.dumps([start]))
    return run


def test_what_is_kept_of_a_run(tmp_path):
    (job,) = some_jobs(1)
    run = finished_run(tmp_path, job)
    metrics = [{"step": step, "n": 2, "loss": 1 / 3, "accuracy": 0.5, "inputs_per_second": 5.0} for step in range(1, 2000)]
    metrics.insert(1000, {"step": 1000, "dev_accuracy": {"2": 0.4}})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in metrics))
    keep(job, run, tmp_path / "kept")
    kept = tmp_path / "kept" / job.folder
    assert {path.name for path in kept.iterdir()} == {"config.json", "environment.json", "metrics.jsonl", "result.json"}
    assert sum(path.stat().st_size for path in kept.iterdir()) < LARGEST
    text = "".join(path.read_text() for path in kept.iterdir())
    assert not re.search('home|/tmp|/data|example|inputs_per_second": 5', text)
    found = read_run(kept)
    assert found.result.command == "mimonets train mnist_datamux_n2 --seed 1"
    assert found.result.rows == read_run(run).result.rows
    assert found.settings == read_run(run).settings
    assert found.dev_curves == read_run(run).dev_curves
    steps = found.train_curves["2"][0]
    assert steps[-1] == 1999
    assert 20 < len(steps) < 200


def test_thinned_metrics_fit_and_keep_the_last():
    lines = [{"step": step, "loss": 0.5} for step in range(100)]
    text = thinned(lines, 500)
    assert len(text) <= 500
    assert json.loads(text.splitlines()[-1])["step"] == 99
    assert thinned(lines[:3], 500).count("\n") == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optim": {"lr": 1.0}}, "optim.lr"),
        ({"precision": "bf16"}, "precision"),
        ({}, "seed: 4"),
        (None, "preset: mnist_datamux_n4"),
    ],
)
def test_a_run_of_something_else_is_not_taken_for_a_row(tmp_path, changed, said):
    job, other = some_jobs(1, 4)
    if changed is None:
        run = finished_run(tmp_path, job, preset="mnist_datamux_n4")
    else:
        run = finished_run(tmp_path, job if changed else other)
    config = json.loads((run / "config.json").read_text())
    for name, value in (changed or {}).items():
        config["config"][name] = config["config"][name] | value if isinstance(value, dict) else value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"is not a run of .*{re.escape(said)}"):
        keep(job, run, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_rows_of_another_share_are_other_lines(tmp_path):
    rows = [Job(row=Row(preset="mnist_datamux_n2"), share=share, seed=seed) for share in (1.0, 0.1) for seed in (0, 1)]
    for job, accuracy in zip(rows, (0.9, 0.8, 0.5, 0.4), strict=True):
        finished_run(tmp_path / "figure4", job, accuracy)
    lines = table_lines("figure4", read_results("figure4", [tmp_path / "figure4"]))
    assert [(line.share, line.accuracies) for line in lines] == [(1.0, [0.9, 0.8]), (0.1, [0.5, 0.4])]
    write_page(tmp_path, tmp_path / "page.md", render=lambda draw: draw() and b"")
    page = (tmp_path / "page.md").read_text()
    assert re.search(r"mnist_datamux_n2 +\| +2 \| 85\.00 ± 7\.07 \| 90\.00, 80\.00 +\| +1 \| 28,125", page)
    assert re.search(r"mnist_datamux_n2 +\| +2 \| 45\.00 ± 7\.07 \| 50\.00, 40\.00 +\| +0\.1 \| +2,813", page)
    assert "Not run yet: mnist_mimoconv_n16, mnist_datamux_n16" in page
    assert (tmp_path / "page_figure4.png").exists()


def test_the_page_says_which_code_was_changed_since_its_commit(tmp_path):
    (job,) = some_jobs(0)
    finished_run(tmp_path / "figure4", job, git_revision="0123456789" * 4 + "+")
    write_page(tmp_path, tmp_path / "page.md", render=lambda draw: b"")
    assert "at commit 0123456+." in (tmp_path / "page.md").read_text()


def test_no_page_is_written_of_no_results(tmp_path):
    with pytest.raises(ConfigError, match="holds no result of a table"):
        write_page(tmp_path, tmp_path / "page.md")
    assert not list(tmp_path.iterdir())


def test_the_command_skips_what_is_finished_keeps_results_and_ends_in_the_table(fake, tmp_path, capsys):
    kinds, started = fake
    first, second = some_jobs(0, 1)
    finished_run(tmp_path / "runs" / "figure4", first)
    finished_run(tmp_path / "kept" / "figure4", second)
    flags = ["--rows", "mnist_datamux_n2", "--gpus", "0", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "kept")]
    execute_reproduce(["figure4", "--seeds", "0", "1", *flags])
    said = capsys.readouterr().out
    assert started == []
    assert "2 of 2 runs are finished" in said
    assert "50.00, 50.00" in said
    assert (tmp_path / "kept" / "figure4" / first.folder / "result.json").exists()
    execute_reproduce(["figure4", "--seeds", "0", "7", "--minutes", "0", *flags])
    assert "1 runs are left" in capsys.readouterr().out
    kinds[some_jobs(7)[0].folder] = "fails"
    with pytest.raises(SystemExit) as exit_:
        execute_reproduce(["figure4", "--seeds", "7", *flags])
    assert exit_.value.code == 1
    assert "1 runs failed" in capsys.readouterr().err


def test_a_signal_ends_the_command_as_it_ends_training(fake, tmp_path, monkeypatch):
    kinds, _ = fake
    kinds |= {job.folder: "lasts" for job in some_jobs(0)}
    monkeypatch.setattr(workers.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(workers, "stop", lambda running: [worker.process.kill() or worker.process.wait() for worker in running])
    with pytest.raises(Stopped, match="1 runs are left; the same command goes on"):
        execute_reproduce(["figure4", "--rows", "mnist_datamux_n2", "--seeds", "0", "--gpus", "0", "--out", str(tmp_path)])


def test_a_run_with_other_settings_is_refused_before_anything_runs(fake, tmp_path):
    _, started = fake
    (job,) = some_jobs(0)
    run = finished_run(tmp_path / "figure4", job)
    config = json.loads((run / "config.json").read_text())
    config["config"]["optim"]["lr"] = 0.5
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"is not a run of mnist_datamux_n2.*optim\.lr"):
        execute_reproduce(["figure4", "--rows", "mnist_datamux_n*", "--gpus", "0", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"is not a run of mnist_datamux_n2.*optim\.lr"):
        write_page(tmp_path, tmp_path / "page.md", render=lambda draw: b"")
    assert started == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["figure5"], "there is no table 'figure5': choose one of figure4, table3"),
        (["figure4", "--share", "0"], "share must be above 0 and at most 1, got 0"),
        (["figure4", "--share", "nan"], "share must be above 0 and at most 1, got nan"),
        (["figure4", "--seeds", "1", "1"], "seeds must be different numbers"),
        (["figure4", "--minutes", "-1"], "minutes must not be negative, got -1"),
        (["figure4", "--at-once", "0"], "at_once must be at least 1, got 0"),
        (["figure4", "--gpus", "-1"], "gpus must be at least 0, got -1"),
        (["figure4", "--gpus", "99"], "gpus is 99, and this machine has"),
        (["figure4", "--rows", "cifar*"], r"figure4 has no row with a name like 'cifar\*': its rows are mnist_mimoconv_n16"),
    ],
)
def test_what_cannot_be_asked(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        execute_command(["reproduce", *flags])
    assert exit_.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not KEPT, reason="a package without the repository around it has no results")
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_kept_results_are_whole_small_and_of_their_row_alone(path):
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["config.json", "environment.json", "metrics.jsonl", "result.json"]
    assert sum(file.stat().st_size for file in files) < 30_000
    for file in files:
        assert not ADDRESS.search(file.read_text()), file
    assert FOLDER.fullmatch(path.name)["row"] in {row.name for row in find_table(path.parent.name).rows}
    assert re.fullmatch(r"[0-9a-f]{40}", read_run(path).result.git_revision)


@pytest.mark.skipif(not KEPT, reason="a package without the repository around it has no results")
def test_the_page_is_what_the_results_say(tmp_path):
    write_page(RESULTS, tmp_path / "results.md", render=lambda draw: b"")
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in (ROOT / "docs").glob("results_*.png")}


@pytest.mark.skipif(not KEPT, reason="a package without the repository around it has no results")
def test_the_figures_of_the_readme_are_those_of_the_page():
    table = (ROOT / "README.md").read_text().split("| MNIST, 20 x 20 pixels")[1].split("\n\n")[0]
    page = (ROOT / "docs" / "results.md").read_text()
    for name, words in (("mimoconv", "MIMOConv-10-1"), ("datamux", "DataMUX's CNN")):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {words}"))
        for n, figure in zip((1, 2, 4, 8, 16), line.split(" | ")[1:], strict=True):
            assert re.search(rf"mnist_{name}_n{n} +\| +{n} \| {figure.rstrip(' |')} ", page)
