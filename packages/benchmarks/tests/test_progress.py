"""Long steps say on stderr what they do: bars on a terminal, whole lines in a log; and how long an experiment still trains."""

import os
import sys
from dataclasses import replace

import pytest

from mimo_benchmarks import progress
from mimo_benchmarks.__main__ import main
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.experiment.time_left import TimeLeft
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.image_task import ImageTask
from mimo_benchmarks.training.feed import Feed
from mimoconv import MIMOConvConfig, WideResNetConfig

SMALL = ["--model.width", "1", "--model.stem-channels", "16", "--optim.steps", "2", "--optim.groups", "8", "--threads", "1"]


@pytest.mark.once
@pytest.mark.unchecked
def test_each_phase_of_an_experiment_says_so_once_and_only_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(rates.BUDGET, "cpu", 1)  # throughput on few inputs: what it is does not matter here
    main([*SMALL, "--n", "1", "2", "--n-odds", "1", "1", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr()
    lines = [line.partition(":")[0].removesuffix(" ..") for line in printed.err.splitlines()]
    plain = ["estimating BatchNorm statistics, n = 1", "testing, n = 1", "testing with batch statistics, n = 1"]
    both = ["estimating BatchNorm statistics, n = 2", "testing, n = 2", "testing with batch statistics, n = 2"]
    crosstalk = ["measuring crosstalk, n = 1", "measuring crosstalk, n = 2"]
    first = ["loading the task digits", *crosstalk, "training quickstart", plain[0], both[0], *plain[1:], *both[1:]]
    wanted = [*first, "testing in other passes, n = 2", *crosstalk, "saving the network"]
    for control in ("equal_cost_n2", "equal_cost_n1", "thin"):
        wanted += [f"training quickstart.{control}", *plain, "saving the network"]
    assert lines[: len(wanted)] == wanted
    assert "\r" not in printed.err
    assert "measuring" not in printed.out
    assert "network 1 of 4, from step 0 of 2" in printed.out
    assert "network 2 of 4, about 0:0" in printed.out


def test_a_bar_on_a_terminal_disappears_unless_it_is_to_stay(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for leave in (False, True):
        with progress_bar("working", 2, unit=" items", leave=leave) as bar:
            bar.update(2)
        shown = capsys.readouterr().err
        assert "working:   0%" in shown
        assert ("2/2" in shown.rpartition("\r")[2]) == leave


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_bar_is_closed_by_an_error(on_terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    with pytest.raises(KeyError), progress_bar("outside", 2, leave=True), progress_bar("inside"):
        raise KeyError
    assert not progress.open_bars
    assert capsys.readouterr().err.endswith("\n")  # so that a message starts a line of its own


def test_a_log_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    """By a clock that only the test turns."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread that looks at the time
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar("working", 300, unit=" items") as bar:
        for _ in range(300):
            now[0] += 1
            with progress_bar("inside", 5):
                pass
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == [f"working: {done} of 300 items" for done in range(0, 301, 10)]


def test_a_step_that_is_usually_brief_is_told_once_it_has_lasted(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar("working", 2, brief=True) as bar:
        bar.update()
        assert capsys.readouterr().err == ""
        now[0] += 61
        bar.update()
    assert capsys.readouterr().err == "working: 2 of 2 [01:01<00:00]\n"


def test_the_first_of_several_processes_alone_shows_bars(capsys, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setitem(os.environ, "RANK", rank)
        with progress_bar(f"process {rank}", 2) as bar:
            bar.set_postfix_str("so far", refresh=False)
            bar.update()
    assert capsys.readouterr().err == "process 0: 0 of 2 [00:00<?]\n"


def test_time_left_is_that_of_the_multiply_adds_left():
    """Summed step by step: of a network whose n changes, and of a plain one that sees as many inputs."""
    model = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
    plain = WideResNetConfig(depth=10, width=1, stem_channels=8, in_channels=1, image_size=8)
    optim = OptimConfig(steps=20, groups=4)
    config = RunConfig(model=model, optim=optim, curriculum=(1,), curriculum_share=0.2)
    task = ImageTask.random(describe(model), 64)
    feeds = [Feed(task, config), Feed(task, replace(config, model=plain))]
    macs = []
    for feed in feeds:
        module, steps = build(feed.config.model), []
        for step in range(1, optim.steps + 1):
            inputs, _, _ = feed.batch(feed.draw(step))
            count = inputs.shape[0] * inputs.shape[1]
            steps.append(count * feed.network.count_macs(module, feed.n[step - 1]))
        macs.append(steps)
    left = TimeLeft(feeds)
    assert left.seconds_left() is None
    assert left.place(feeds[0]) == "network 1 of 2, "
    left.note(feeds[0], 20, 30.0)
    left.note(feeds[1], 5, 10.0)
    done = sum(macs[0]) + sum(macs[1][:5])
    assert left.seconds_left() == pytest.approx(40.0 / done * sum(macs[1][5:]))
    left.note(feeds[1], 20, 70.0)
    assert left.place(feeds[1]) == "network 2 of 2, about 0:00:00 of training left for all 2 networks, "
    assert TimeLeft(feeds[:1]).place(feeds[0]) == ""
