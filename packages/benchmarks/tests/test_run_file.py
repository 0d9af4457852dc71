"""benchmarks/run.py, of which packages/ has a copy: the program where it is installed, else a line that says how to start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "benchmarks" / "run.py", ROOT / "packages" / "benchmarks" / "run.py"]


def test_both_are_the_same_program():
    """They are files, because git can check symbolic links out as text files."""
    assert not any(part.is_symlink() for file in FILES for part in (file, file.parent))
    assert FILES[0].read_bytes() == FILES[1].read_bytes()
    assert all(os.access(file, os.X_OK) for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=["root", "packages"])
def test_outside_the_environment_a_line_says_how_to_start_it(file, tmp_path):
    """-S leaves out what is installed. Line and exit code are the program's own, without a traceback."""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", file, "mnist"], check=False, cwd=tmp_path, env=without, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    start = "start `scripts/uv run benchmarks/run.py` in the root of the checkout"  # the packages are on no index yet
    assert line == f"mimo_benchmarks is not installed for {sys.executable}: {start}"
