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


@pytest.mark.unchecked
def test_several_processes_that_cannot_work_all_say_so(tmp_path):
    """The main process alone finds the run directory there: nothing is written, and nobody waits for anybody."""
    (tmp_path / "there").mkdir()
    shared = {**ON_CPU, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RUN), "--out", "there"],
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            cwd=tmp_path,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert all("error: there exists already" in errors for errors in said)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())
