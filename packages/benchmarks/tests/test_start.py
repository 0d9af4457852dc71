"""How the program starts: what it imports, and how many threads it takes."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mimo_benchmarks import __version__
from mimo_benchmarks.cli import machine
from mimo_benchmarks.cli import main as command
from mimo_benchmarks.cli.machine import prepare_machine
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.environment import environment, git_revision
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.find import PRESETS
from mimo_benchmarks.settings import RunConfig

HEAVY = {"torch", "accelerate", "datasets", "matplotlib", "pandas", "PIL", "pyarrow", "scipy", "sklearn", "torchvision", "triton"}
PROGRAM = """
import gc
import sys
from mimo_benchmarks.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as exit_:
    assert exit_.code == 0
assert gc.isenabled()
print(*sys.modules)
"""


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch):
    """What the program sets in os.environ, it sets in a copy."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [(["--version"], set()), (["--help"], {"torch"}), (["list"], {"torch"})],
    ids=lambda value: " ".join(sorted(value)),
)
def test_what_answers_a_question_imports_little(arguments, needed):
    """torch takes most of the seconds of a start; nothing else that is heavy comes on top, and the version needs none of it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True)
    *_, modules = done.stdout.splitlines()
    assert HEAVY & set(modules.split()) == needed


def test_version(capsys):
    command.execute_command(["--version"])
    assert capsys.readouterr().out == f"mimonets {__version__}\n"


@pytest.mark.parametrize(("available", "processes", "expected"), [(1, "1", "1"), (2, "1", "1"), (8, "1", "7"), (8, "3", "2")])
def test_threads_leave_a_core_to_other_programs(available, processes, expected, monkeypatch):
    """Of 8 cores one thread takes 7; three processes take 2 each."""
    monkeypatch.setattr(command, "cores", lambda: available)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command.set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(("number", "expected"), [("", "7"), ("0", "7"), ("all", "7"), ("-1", "7"), (" 3", " 3"), ("3,2", "3,2")])
def test_what_is_no_number_of_threads_counts_as_not_set(number, expected, monkeypatch):
    """Of 8 cores one process takes 7, unless OMP_NUM_THREADS is a number, or one for each level of nesting."""
    monkeypatch.setattr(command, "cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    command.set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == expected


def test_threads_wait_as_the_user_says(monkeypatch):
    for policy, count, expected in ((None, None, "1000"), (None, "7", "7"), ("active", None, None)):
        for name, value in (("OMP_WAIT_POLICY", policy), ("GOMP_SPINCOUNT", count)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        command.set_thread_defaults()
        assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_the_users_own_number_of_threads_stays(monkeypatch):
    """OMP_NUM_THREADS itself, and what torch made of it, which only --threads changes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    command.set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        prepare_machine(RunConfig())
        assert torch.get_num_threads() == 3
        prepare_machine(RunConfig(threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/somewhere/.venv/bin/mimonets", "mnist", "--out", "a b"], "mimonets mnist --out 'a b'"),
        (["benchmarks/run.py", "--seed", "1"], "python benchmarks/run.py --seed 1"),
    ],
)
def test_a_run_says_its_command_as_a_shell_takes_it(arguments, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert environment(torch.device("cpu"))["command"] == expected


def git(folder, *arguments):
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.quotePath=false")
    return subprocess.run(["git", *name, *arguments], check=True, cwd=folder, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("inside", ["packages/benchmarks/src/mimo_benchmarks", ".venv/lib/site-packages/mimo_benchmarks"])
def test_the_commit_is_that_of_our_own_checkout(inside, monkeypatch, tmp_path):
    """Not that of a repository around an installed package; names that git prints in bytes are no obstacle."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("mimo_benchmarks.environment.__file__", str(tmp_path / inside / "environment.py"))
    (tmp_path / inside).mkdir(parents=True)
    assert git_revision() == "unknown"
    git(tmp_path, "init", "-q")
    assert git_revision() == "unknown"
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    git(tmp_path, "config", "core.quotePath", "false")
    own = git(tmp_path, "rev-parse", "HEAD") if inside.startswith("packages") else "unknown"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "result.json").touch()
    assert git_revision() == own
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    assert git_revision() == (own if own == "unknown" else f"{own}+")


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision() == "unknown"


def test_a_home_folder_is_found_where_shells_leave_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    given = ["--out=~/runs", "--out", "~/runs", "--text=~", "a=~b", "--out=a~b", "--compare=~"]
    wanted = ["--out=/home/ada/runs", *given[1:6], "--compare=/home/ada"]
    assert [command.expand_home(each) for each in given] == wanted
    monkeypatch.setattr("mimo_benchmarks.cli.train.execute_train", lambda flags, _: pytest.fail(flags[0]))
    with pytest.raises(pytest.fail.Exception, match=r"^--resume=/home/ada$"):
        command.execute_command(["--resume=~"])


@pytest.mark.parametrize(
    ("message", "processes", "told"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer", "2", True),
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer", "1", False),
        ("mat1 and mat2 shapes cannot be multiplied", "2", False),
    ],
)
def test_a_process_that_is_gone_is_told_in_one_line(message, processes, told, monkeypatch, capsys):
    """Other errors of torch are errors of ours."""

    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr("mimo_benchmarks.cli.train.execute_train", fail)
    with pytest.raises(SystemExit if told else RuntimeError) as error:
        command.execute_command([])
    if told:
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: another process of the run has ended, or cannot be reached ({message}): see what it said")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder that is current")
def test_a_current_folder_that_is_gone_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    """It would stop torch's libraries, in words that do not name it."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr("mimo_benchmarks.cli.train.execute_train", lambda *_: None)
    with pytest.raises(SystemExit) as error:
        command.execute_command([])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: the current folder is no longer there: go to another one\n"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "two", "0", "1.0"])
def test_what_is_no_number_of_processes_is_told_in_one_line(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("mimo_benchmarks.cli.train.execute_train", lambda *_: None)
    with pytest.raises(SystemExit) as error:
        command.execute_command([])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"error: {name} = {value!r}, expected the launcher's number of processes: unset it\n"


@pytest.mark.parametrize("rank", ["1", "-1", ""])
def test_a_process_that_is_not_one_of_those_there_are_does_not_end_in_silence(rank, monkeypatch, capsys):
    """Only the first process says anything."""
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as error:
        command.execute_command(["list"])
    assert error.value.code == 2
    assert f"RANK = {rank!r}, but WORLD_SIZE = 1: unset RANK, or use a launcher" in capsys.readouterr().err


def test_processes_that_do_not_share_a_run_are_not_recorded(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert environment(torch.device("cpu"))["processes"] == 1


def test_without_docstrings_it_trains_too(monkeypatch):
    """As `python -OO` leaves them out."""
    for preset in PRESETS.values():
        monkeypatch.setattr(preset, "__doc__", None)
    assert parse_settings([])[0] == "quickstart"


def no_accelerator(**_):
    raise ValueError("bf16 mixed precision requires a supported device.\nmore")


@pytest.mark.parametrize(
    ("accelerator", "told"),
    [(no_accelerator, r"bf16 mixed .* device\."), (lambda **_: SimpleNamespace(device=torch.device("meta")), ".*meta.*")],
    ids=["accelerate", "torch"],
)
def test_a_device_that_does_not_work_is_told_in_one_line(accelerator, told, monkeypatch):
    """Such as one that the variable ACCELERATE_TORCH_DEVICE names, which is not in this build of torch."""
    monkeypatch.setattr(machine, "Accelerator", accelerator)
    wanted = rf"^the device or the processes cannot be used \({told}\): give --device cpu, or other flags to the launcher$"
    with pytest.raises(ConfigError, match=wanted):
        prepare_machine(RunConfig())


def test_a_launcher_s_precision_is_one_of_ours(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="ACCELERATE_MIXED_PRECISION = fp8, expected no, bf16, fp16: give --precision no"):
        prepare_machine(RunConfig())


def test_what_is_missing_can_be_installed_by_the_line_that_is_given(monkeypatch):
    """For users of pip, and in a checkout, where `scripts/uv` always means its environment."""
    monkeypatch.setattr(machine, "get_available_trackers", list)
    line = "`pip install tensorboard`, or in a checkout `scripts/uv pip install tensorboard`"
    with pytest.raises(ConfigError, match=re.escape(f"tracker 'tensorboard' is not installed: {line}")):
        prepare_machine(RunConfig(tracker=("tensorboard",)))
