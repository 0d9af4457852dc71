"""The program in processes of their own: signals, and several processes that share a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.networks.registry import load_finished
from mimo_benchmarks.training.checkpoint import load_checkpoint
from mimo_benchmarks.training.signals import note_signals

pytestmark = pytest.mark.once
RUN = Path(__file__).parent.parent / "run.py"


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
    process = start("--optim.steps", "3000", "--log-every", "1", "--no-controls", "--model.width", "0.5", "--out", str(run))
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Interrupted: stopped after step" in errors
    assert "Traceback" not in errors
    kept = load_checkpoint(run / "checkpoints")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kept.step == lines[-1]["step"]


@pytest.mark.unchecked
def test_a_second_signal_of_a_kind_acts_at_once():
    """The first of each is noted, in the order of their coming; what listened before listens again afterwards."""
    before = signal.getsignal(signal.SIGINT)
    with note_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


ON_CPU = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
RECALL = ["recall_n2_att", "--model.dropout", "0", "--optim.steps", "50", "--log-every", "10", "--optim.groups", "4"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A MIMOFormer, which has no BatchNorm, 50 steps by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rates.BUDGET, "cpu", 1)  # throughput on few sequences: what it is does not matter here
        main([*RECALL, "--threads", "1", "--out", str(run)])
    return run


def weights(run):
    return load_finished(run, torch.device("cpu"))[1].state_dict()


def losses(run):
    return torch.tensor([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def assert_same_result(run, alone):
    """Of all weights as one vector: single biases that start at 0 are what AdamW makes of rounding."""
    whole, found = weights(alone), weights(run)
    difference, size = (
        torch.cat([part.flatten() for part in parts]).norm()
        for parts in ([found[name] - whole[name] for name in whole], whole.values())
    )
    assert difference <= 1e-5 * size
    assert_close(losses(run), losses(alone), rtol=1e-5, atol=0)


@pytest.mark.unchecked
def test_two_machines_give_what_one_does(alone, tmp_path):
    """The same global batch in two processes: 1e-5 relative over 50 fp32 steps, weights and losses alike.

    They are two machine ranks over the loopback address, each started by a line of its own, as docs/running.md has them.
    """
    run = tmp_path / "run"
    machines = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *machines, "--main_process_port", free_port(), "--machine_rank"]
    both = [
        subprocess.Popen(
            [*launch, rank, str(RUN), *RECALL, "--out", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ON_CPU
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert_same_result(run, alone)


def start_both(*arguments, **options):
    """Two processes that share a run, without a launcher."""
    shared = {**ON_CPU, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            **options,
        )
        for rank in ("0", "1")
    ]


@pytest.mark.unchecked
def test_several_processes_that_cannot_work_all_say_so(tmp_path):
    """The main process alone finds the run directory there: nothing is written, and nobody waits for anybody."""
    (tmp_path / "there").mkdir()
    both = start_both(str(RUN), "--out", "there", cwd=tmp_path)
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert all("error: there exists already" in errors for errors in said)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())


SLOW = """
import time
from mimo_benchmarks.training import loop

really = loop.take_step


def take_step(*arguments):
    time.sleep(0.5)
    return really(*arguments)


loop.take_step = take_step
if __name__ == "__main__":
    from mimo_benchmarks.__main__ import main

    main()
"""
LONG_RUN = [*RECALL, "--optim.steps", "100000", "--log-every", "100000", "--save-every", "100000"]


def wait_until_training(run, process):
    while process.poll() is None and not (run / "environment.json").exists():
        time.sleep(0.1)


@pytest.mark.unchecked
def test_sigterm_to_a_launcher_saves_what_is_learnt(tmp_path):
    """However rarely the run logs; the launcher kills its processes 30 seconds later."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    machine = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", free_port()]
    program = [*machine, str(tmp_path / "slow.py"), *LONG_RUN, "--out", str(run)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *program], stderr=subprocess.PIPE, text=True, env=ON_CPU
    )
    wait_until_training(run, launcher)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate()
    assert launcher.returncode == 1
    step = load_checkpoint(run / "checkpoints").step
    assert f"\nInterrupted: stopped after step {step}; resume with mimonets --resume {run}\n" in errors
    assert errors.count("Interrupted") == 1
    assert (run / ".lock").read_text() == ""


@pytest.mark.unchecked
@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.torture), 1])
def test_a_process_that_was_stopped_ends_the_run(stopped, tmp_path):
    """The other one says so; it may be the first, which holds what they talk through."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    both = start_both(str(tmp_path / "slow.py"), *LONG_RUN, "--timeout", "5", "--out", str(run))
    wait_until_training(run, both[0])
    both[stopped].send_signal(signal.SIGSTOP)
    try:
        _, errors = both[1 - stopped].communicate()
    finally:
        both[stopped].kill()
        both[stopped].communicate()
    assert both[1 - stopped].returncode == 2
    assert f"error: process {stopped} gave no sign of life for 5 seconds (--timeout): it was stopped" in errors
