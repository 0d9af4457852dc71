"""Whole experiments that are killed, or whose disk fails, at any moment: resumed, they end as if nothing had happened."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import pytest
import torch

from mimo_benchmarks.run_directory import read_metrics, read_result
from mimo_benchmarks.training.checkpoint import load_checkpoint

pytestmark = [pytest.mark.once, pytest.mark.unchecked]
FAMILIES = ("CNN", "Transformer")
TORTURE = pytest.mark.torture


@pytest.fixture(scope="module")
def carry_out(tmp_path_factory):
    """Starts or resumes an experiment in a process of its own; returns how that ended, and what it said."""
    log = tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("interrupted_runs.py")), str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program:

        def ask(family, folder, **fault):
            print(json.dumps({"family": family, "folder": str(folder), **fault}), file=program.stdin)
            return json.loads(program.stdout.readline())

        yield ask
        program.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(carry_out, tmp_path_factory):
    """End state, number of moments and bytes on the disk of an experiment of each family."""
    ends = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family) / "run"
        status, said = carry_out(family, folder)
        assert status == 0, said
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        ends[family] = end_of(folder), int(said.split()[-1]), size
    return ends


def end_of(folder):
    """All bits that a run ends with, apart from what is measured in seconds."""
    last = load_checkpoint(folder / "checkpoints")
    bits = {f"{part} {name}": bytes(value.contiguous().view(-1).view(torch.uint8)) for part, name, value in flat(last.tensors)}
    state = {name: value for name, value in last.state.items() if name not in ("seconds", "run")}
    lines = [{name: value for name, value in line.items() if name != "inputs_per_second"} for line in read_metrics(folder)]
    rows = [(row.n, row.accuracy, row.macs) for row in read_result(folder).rows]
    return last.step, bits, state, lines, rows, (folder / "model" / "model.safetensors").read_bytes()


def flat(tensors):
    return [(part, name, value) for part, values in tensors.items() for name, value in values.items()]


def assert_resumable(folder, before):
    """A checkpoint is lost neither now nor later; returns the step of the newest."""
    found = load_checkpoint(folder / "checkpoints")
    assert not (found and found.skipped)
    step = found.step if found else 0
    assert step >= before
    return step


@pytest.mark.parametrize(("kills", "by_clock"), [(2, False), pytest.param(50, True, marks=TORTURE)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kill_9_at_any_moment(carry_out, uninterrupted, tmp_path, family, kills, by_clock):
    """At a step or a change of a file that is drawn; half of the many by the processor's clock, in the middle of anything.

    A run is killed and resumed until it comes to its end, then the next one begins.
    """
    draw, (end, moments, _) = random.Random(family), uninterrupted[family]
    killed = runs = step = 0
    while killed < kills or step:
        folder = tmp_path / str(runs)
        fault = {"seconds": draw.uniform(0.01, 1)} if by_clock and draw.random() < 0.5 else {"at": draw.randrange(1, moments)}
        status, said = carry_out(family, folder, **(fault if killed < kills else {}))
        if status == 0:
            assert end_of(folder) == end
            runs, step = runs + 1, 0
        else:
            assert status in (-9, -27), said
            killed, step = killed + 1, assert_resumable(folder, step)
    assert runs > 0


@TORTURE
@pytest.mark.parametrize("manner", ["kill", "once", "for good"])
@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_files_fail(carry_out, uninterrupted, tmp_path, family, manner):
    """Each eighth of those of a run: files opened to be written, half-written, synced, renamed and removed.

    One fails, all fail from then on, or the process dies there. What saves do is tried one by one in test_checkpoint.py.
    """
    end, moments, _ = uninterrupted[family]
    for at in range(1 + random.Random(family + manner).randrange(8), moments + 1, 8):
        folder = tmp_path / str(at)
        status, said = carry_out(family, folder, at=at, manner=manner)
        assert status in ((-9,) if manner == "kill" else (0, 2)), (at, said)
        assert_resumable(folder, 0)
        status, said = carry_out(family, folder)
        assert status == 0, (at, said)
        assert end_of(folder) == end, at


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, and a function that mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=False, capture_output=True).returncode

    if shutil.which("mount") is None or mount("size=1g"):
        pytest.skip("file systems cannot be mounted here")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", place], check=True)


@TORTURE
@pytest.mark.parametrize("family", FAMILIES)
def test_a_disk_that_is_really_full_or_cannot_be_written(carry_out, uninterrupted, disk, family):
    """Full after each tenth of what a run leaves behind; then there is room; then it is read-only; then a run can go on."""
    (place, remount), (end, moments, size) = disk, uninterrupted[family]
    full = 0
    for tenth in range(1, 11):
        folder = place / str(tenth)
        assert remount(f"size={max(1, size * tenth // 10 // 1024)}k") == 0
        status, said = carry_out(family, folder)
        assert status in (0, 2), said
        full += status == 2
        assert_resumable(folder, 0)
        remount("size=1g")
        carry_out(family, folder, at=moments // 2)
        step = assert_resumable(folder, 0)
        remount("ro")
        status, said = carry_out(family, folder)
        assert status == 2, said
        assert assert_resumable(folder, 0) == step
        remount("rw")
        status, said = carry_out(family, folder)
        assert status == 0, said
        assert end_of(folder) == end
        rmtree(folder)
    assert full >= 5
