"""Run directories: what is taken, what stands in the way, who writes, and what a kill leaves behind."""

import json
import os
import platform
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from accelerate import Accelerator

from mimo_benchmarks import run_lock
from mimo_benchmarks.data.storage import files
from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.experiment.compatibility import check_same_run
from mimo_benchmarks.experiment.experiment import prepare_directory
from mimo_benchmarks.run_directory import RunDirectory, make_run_directory, read_metrics, read_settings
from mimo_benchmarks.run_lock import LOCK, lock_run
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.training.checkpoint import load_checkpoint, newest_state
from mimoconv import MIMOConvConfig

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
CONFIG = RunConfig(model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)


def test_only_what_exists_is_taken(tmp_path, monkeypatch):
    """Another number is of no use where the folder of all runs cannot be made."""
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"the run directory cannot be made \(.*'runs'\): choose another --out"):
        make_run_directory(None, "quickstart")
    Path("nowhere").mkdir()
    Path("runs/quickstart-001").symlink_to("nowhere else")
    assert make_run_directory(None, "quickstart") == Path("runs/quickstart-002")
    with pytest.raises(ConfigError, match="exists already"):
        make_run_directory(Path("runs/quickstart-001"), "quickstart")


def test_a_folder_that_cannot_be_synced_is_not_taken_for_one_that_exists(tmp_path, monkeypatch):
    """Such as one that may be written but not read: other numbers would be made there for ever."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    errors = [PermissionError(13, "Permission denied", "runs")]

    def sync(path):
        if errors:
            raise errors.pop()

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(ConfigError, match=r"the run directory cannot be made \(.*'runs'\): choose another --out"):
        make_run_directory(None, "quickstart")


def prepare(config, names=("",)):
    return prepare_directory(dict.fromkeys(names, config), "quickstart", Accelerator(cpu=True))


IN_THE_WAY = [f"{folder}{name}" for folder in ("", "thin/") for name in ("config.json", "metrics.jsonl", "result.json")]
IN_THE_WAY += [".lock", "report.md", "crosstalk.png", ".metrics.jsonl", "model/model.safetensors"]


@pytest.mark.parametrize("name", IN_THE_WAY)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")], ids=["folder", "pipe", "link"])
def test_what_stands_in_the_way_is_named_before_training(name, make, tmp_path):
    """In the directories of controls too."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    with pytest.raises(ConfigError, match=f"^{path} is not a file"), prepare(replace(CONFIG, resume=tmp_path), ("", "thin")):
        pass


@pytest.mark.parametrize("name", ["thin", "checkpoints", "model", "diagnostic", "thin/checkpoints"])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_what_stands_in_the_way_of_a_folder_is_named_before_training(name, make, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    with pytest.raises(ConfigError, match=f"^{path} cannot be read"), prepare(replace(CONFIG, resume=tmp_path), ("", "thin")):
        pass


def test_a_folder_that_may_not_be_written_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "checkpoints")  # root may write everywhere
    with pytest.raises(ConfigError, match="checkpoints may not be written"):
        RunDirectory(tmp_path).check()


def test_checkpoints_that_are_not_there_for_now_are_an_error(tmp_path):
    """A link to a disk that is missing: the run would begin anew, and nothing would say so."""
    (tmp_path / "checkpoints").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="checkpoints cannot be read"):
        load_checkpoint(tmp_path / "checkpoints")
    assert newest_state(tmp_path / "checkpoints") is None


DAMAGED = ["", "{", "[1]", "[{}]", '[{"command": 3}]', "[" * 100_000]


def test_a_record_of_starts_never_blocks_a_resume(tmp_path):
    """What is damaged, or not a file, is kept aside and named."""
    path = tmp_path / "environment.json"
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU)
    damage = [lambda text=text: path.write_text(text) for text in DAMAGED]
    for number, make in enumerate([*damage, lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path), path.mkdir], 1):
        path.unlink()
        make()
        directory = RunDirectory(tmp_path)
        directory.check()
        (note,) = directory.begin("quickstart", CONFIG, CPU)
        assert note.startswith(f"{path} ")
        assert note.endswith(f"; moved to environment.damaged-{number}")
        assert number > len(DAMAGED) or (tmp_path / f"environment.damaged-{number}").read_text() == DAMAGED[number - 1]
        assert [start["command"] for start in json.loads(path.read_text())] == [directory.starts[0]["command"]]


def test_a_record_of_another_version_is_kept(tmp_path):
    (tmp_path / "environment.json").write_text('[{"command": "first", "else": 3}]')
    directory = RunDirectory(tmp_path)
    assert directory.begin("quickstart", CONFIG, CPU) == []
    assert directory.starts[0] == {"command": "first", "else": 3}


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"step": 1, "x": ' + "[" * 300 + "]" * 300 + "}", '{"step": 1' + "0" * 400 + "}"]
)
def test_lines_of_metrics_that_cannot_be_are_dropped(line, tmp_path):
    good = '{"step": 1, "dev_accuracy": {"1": 0.5}}'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{good}\n{line}\n")
    assert read_metrics(tmp_path) == [json.loads(good)]
    RunDirectory(tmp_path).begin("quickstart", CONFIG, CPU, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == f"{good}\n"


def test_what_was_killed_before_it_began_can_be_deleted(tmp_path):
    """Nothing else is; a folder of other things is no run."""
    for left in ([], [LOCK], [".config.json"]):
        for name in left:
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=f"^{tmp_path} holds nothing to resume, because .*: delete it$"):
            read_settings(tmp_path)
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(ConfigError, match=rf"config\.json cannot be read .* is {tmp_path} a run directory\?"):
        read_settings(tmp_path)


def test_a_run_beside_another_program_s_settings_can_be_resumed(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "an application"}')
    RunDirectory(tmp_path / "run").begin("quickstart", CONFIG, CPU)
    check_same_run(tmp_path / "run", "quickstart", CONFIG)


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    who = f"process {os.getpid()} on {platform.node()}"
    for _ in range(2):
        with lock_run(tmp_path):
            with pytest.raises(ConfigError, match=f"^{tmp_path} is in use by {who}: wait until that ends"), lock_run(tmp_path):
                pass
            with pytest.raises(ConfigError, match="is in use by"), prepare(replace(CONFIG, resume=tmp_path)):
                pass
        assert (tmp_path / LOCK).read_bytes() == b""


def test_a_run_that_ends_by_an_error_is_not_in_use(tmp_path):
    with pytest.raises(CheckpointError), lock_run(tmp_path):
        raise CheckpointError("full")
    assert (tmp_path / LOCK).read_bytes() == b""
    with lock_run(tmp_path):
        pass


HOLD = "import sys; from pathlib import Path; from mimo_benchmarks.run_lock import lock_run\n"
HOLD += "with lock_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_what_a_killed_process_held_is_taken_over(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"is in use by process {holder.pid} on "), lock_run(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == holder.pid
    with lock_run(tmp_path):
        assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()


def test_of_many_that_take_over_at_once_one_wins(tmp_path):
    barrier = Barrier(8)
    for _ in range(20):
        (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": platform.node(), "boot": ""}))

        def take(_):
            barrier.wait()
            try:
                with lock_run(tmp_path):
                    barrier.wait()
            except ConfigError:
                barrier.wait()
                return 0
            return 1

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(8))) == 1


@pytest.mark.parametrize(
    ("owner", "has_locks", "refused"),
    [
        ({"pid": 1, "host": "elsewhere", "boot": "other"}, True, "process 1 on elsewhere"),
        ({"pid": 1, "host": "elsewhere", "boot": ""}, True, "process 1 on elsewhere"),
        ({"pid": 1, "host": "elsewhere", "boot": "same"}, True, None),  # a container that has another name since
        ({"pid": 1, "host": "here", "boot": "other"}, True, None),  # the machine was started anew since
        ({"pid": 1, "host": "here", "boot": "same"}, False, "process 1 on here"),
        ("damaged", True, "process unknown on an unknown machine"),
        (None, False, None),
    ],
)
def test_an_owner_that_cannot_be_seen_is_believed(owner, has_locks, refused, tmp_path, monkeypatch):
    """It is on another machine, or the file system has no locks; the message says which file to delete."""

    def lock_file(file, *, wait):
        if not has_locks:
            raise OSError("no locks")
        return True

    monkeypatch.setattr(run_lock, "lock_file", lock_file)
    monkeypatch.setattr(run_lock, "this_process", lambda: {"pid": 2, "host": "here", "boot": "same"})
    (tmp_path / LOCK).write_text(json.dumps(owner) if owner else "")
    if refused is None:
        with lock_run(tmp_path):
            assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == 2
        return
    wanted = f"is in use by {refused}, as {tmp_path / LOCK} says, .*: if it has ended, delete {tmp_path / LOCK}, then resume"
    with pytest.raises(ConfigError, match=wanted), lock_run(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_bytes()) == owner


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"\.lock cannot be written"), lock_run(tmp_path / "missing"):
        pass
