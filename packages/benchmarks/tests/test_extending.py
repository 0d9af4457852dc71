"""The diff that CONTRIBUTING shows adds a task, a model and a preset that work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
PLACE = Path("packages/benchmarks/src")


@pytest.mark.once
@pytest.mark.unchecked
def test_the_diff_of_contributing_applies_and_runs(tmp_path):
    """Softmax regression tells the stripes apart; half of them are right by guessing."""
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text()
    diff = text.split("```diff\n")[1].split("```")[0]
    shutil.copytree(PACKAGE / "src", tmp_path / PLACE)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, check=True, cwd=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / PLACE), "PYTHONWARNINGS": "error"}
    flags = ["--optim.steps", "100", "--threads", "1", "--out", "run"]
    subprocess.run(
        [sys.executable, PACKAGE / "run.py", "stripes", *flags], check=True, cwd=tmp_path, env=environment, capture_output=True
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["model"] == "Linear"
    assert result["rows"][0]["accuracy"] > 0.95
