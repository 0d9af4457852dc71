"""Every command of the pages works as it stands: what is cheap is run, and the rest is read by the programs that would run it."""

import os
import re
import shlex
import subprocess
import sys
from functools import wraps
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from mimo_benchmarks.cli import train
from mimo_benchmarks.cli.main import COMMANDS, execute_command
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.presets.find import find_preset

ROOT = Path(__file__).parents[3]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")]

SHORTENED = {
    "mimonets": "--optim.steps 4 --no-controls",
    "mimonets quickstart --seed 1": "--optim.steps 4 --no-controls",
    "mimonets throughput quickstart": "--passes 8 --rounds 3",
    "mimonets throughput quickstart --n 1 2 4": "--passes 8 --rounds 3",
}
"""Commands that take minutes, and the flags with which they are run here."""
NOT_RUN = {
    "scripts/uv run accelerate launch benchmarks/run.py": "trains for minutes, and .ci/run runs this very line",
    "scripts/uv run pytest": "runs this test too, and .ci/run runs this very line",
    "mimonets data prepare cifar10 --download": "downloads",
    "mimonets data prepare mnist --download": "downloads",
    "mimonets data prepare listops": "generates for minutes",
    "mimonets data verify text": "reads a data set that has to be downloaded",
    "mimonets mnist --seed 1 --optim.steps 2000": "reads a data set that has to be downloaded",
    "mimonets --resume runs/mnist-001": "resumes the run of the line before",
    "accelerate launch --mixed_precision bf16 benchmarks/run.py cifar10_mimoconv_n4 --controls": "trains for days on a GPU",
    "mimonets reproduce figure4": "trains for hours on a GPU",
    "accelerate launch --multi_gpu": "takes several GPUs",
}
"""Commands that are not run, or how they begin, and why. Their flags are read all the same."""
PYTHON_NOT_RUN = {
    "CONTRIBUTING.md": "test_extending.py applies its blocks and runs them",
    "pathfinder.md": "generates 200,000 pictures",
}
"""Pages whose blocks of Python are not run, and why."""
STANDS_FOR = {"PRESET": "mnist", "COMMAND": "list", "S": "0", "stripes": "mnist"}
"""Words of prose that stand for others, or for what CONTRIBUTING adds, with an example."""
PARTS = {
    "list": ["list_presets"],
    "reproduce": ["reproduce"],
    "report": ["report"],
    "throughput": ["throughput"],
    "predict": ["predict"],
    "data": ["list_", "prepare", "verify"],
}
"""Functions that the commands call once they have read their flags."""


def blocks(page, *languages):
    """The code blocks of a page in one of these languages; "" is that of a block that says none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands(page):
    """The commands of a page's blocks, in order and without comments."""
    lines = "".join(blocks(page, "sh", "bash", "shell", "console", "")).replace("\\\n", " ").splitlines()
    return [" ".join(command.split()) for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def mentions(page):
    """The commands of a page's prose: what stands between backticks and begins with a program's name."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`((?:mimonets|accelerate|python|scripts/uv|uv|\.ci/\w+)(?:\s[^`]*)?)`", prose)
    return [" ".join(span.split()).removesuffix(" ...") for span in spans]


@pytest.fixture(autouse=True)
def nothing_is_carried_out(monkeypatch):
    """In this process, commands read their flags and do nothing; any run can be resumed, as one of mnist."""
    for command, names in PARTS.items():
        module = import_module(f"mimo_benchmarks.cli.{command}")
        for name in names:
            monkeypatch.setattr(module, name, wraps(getattr(module, name))(lambda *_, **__: None))
    monkeypatch.setattr(train, "read_settings", lambda path: ("mnist", find_preset("mnist")))


def is_run(command):
    return not any(command == skipped or command.startswith(f"{skipped} ") for skipped in NOT_RUN)


def read(command):
    """Let the programs that a command names read its flags; files that it names must be in the checkout."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)]
    if words[:2] == ["scripts/uv", "run"]:
        words = words[4:] if words[2] == "--group" else words[2:]
    if words[:2] == ["accelerate", "launch"] and words[2:]:
        launched = launch_command_parser().parse_args(words[2:])
        words = ["python", launched.training_script, *launched.training_script_args]
    if words[0] == "python" and words[1].endswith("run.py"):
        assert (ROOT / words[1]).is_file()
        words = ["mimonets", *words[2:]]
    if words[0] == "mimonets":
        read_mimonets(words[1:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "scripts/uv":
        assert words[1:2] == [] or re.search(rf"^(.* )?{words[1]}( .*)?\)$", (ROOT / "scripts/uv").read_text(), re.MULTILINE)
    else:
        known = words[0] in ("pytest", "accelerate") or command == ". .venv/bin/activate" or (ROOT / words[0]).is_file()
        assert known, f"{words[0]} is not a program that the checkout brings"


def read_mimonets(words):
    """Let the program read its flags; where prose only names a command, the name must be one."""
    is_command = words[:1] == ["--version"] or (words != [] and words[0] in COMMANDS)
    if is_command and len(words) <= (2 if words[0] == "data" else 1):
        words = [*words, "--help"]
    words = words[1:] if words[:1] == ["train"] else words
    try:
        (execute_command if is_command else parse_settings)(words)
    except SystemExit as exit_:  # --help ends so, with code 0
        if exit_.code != 0:
            raise


@pytest.mark.unchecked
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_read_the_commands_of_a_page(page):
    for command in commands(page) + mentions(page):
        try:
            read(command)
        except BaseException as error:
            raise AssertionError(f"{command} does not work: {error}") from error


def test_exceptions_are_about_commands_that_stand_on_a_page():
    there = [command for page in PAGES for command in commands(page)]
    assert all(command in there and is_run(command) for command in SHORTENED)
    assert all(any(command.startswith(skipped) for command in there) for skipped in NOT_RUN)
    assert {page.name for page in PAGES} >= set(PYTHON_NOT_RUN)


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_run(page, tmp_path):
    """One after the other in one shell, in a copy of the checkout's root without runs; then the page's blocks of Python.

    The shell does not find the programs of the environment until the page's own line has activated it.
    """
    for entry in ROOT.iterdir():
        if entry.name not in (".venv", "runs", "report"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    programs = str(Path(sys.prefix) / "bin")
    path = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder != programs)
    script = [f"{command} {SHORTENED.get(command, '')}" for command in commands(page) if is_run(command)]
    for number, code in enumerate(blocks(page, "python")):
        if ">>>" not in code and page.name not in PYTHON_NOT_RUN:
            (tmp_path / f"block{number}.py").write_text(code)
            script.append(f"python block{number}.py")
    done = subprocess.run(
        ["bash", "-ex", "-c", "\n".join([*script, "command -v mimonets"])],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_block_of_python_is_run():
    """Doctests of a README are run by pytest itself, and those of CONTRIBUTING by another test."""
    for page in PAGES:
        for code in blocks(page, "python"):
            tested = page.name == "README.md" if ">>>" in code else page.name in PYTHON_NOT_RUN or commands(page)
            assert tested, f"{page.name}: {code}"
