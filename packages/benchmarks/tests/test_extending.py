"""The example at the end of CONTRIBUTING.md adds a task, a network and a preset that work."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PACKAGE = Path(__file__).parents[1]


def apply_block(code: str, package: Path) -> None:
    """Write a block as a new file, or add its lines around the one line of it that the file has."""
    name, code = re.fullmatch(r"# (\S+\.py)\n(.*)", code, re.DOTALL).groups()
    file = package / name
    if not file.exists():
        file.write_text(code)
        return
    (anchor,) = {line for line in code.splitlines() if line} & set(file.read_text().splitlines())
    file.write_text(file.read_text().replace(f"\n{anchor}\n", f"\n{code}", 1))


@pytest.mark.once
@pytest.mark.unchecked
def test_the_example_of_contributing_runs(tmp_path):
    """Softmax regression tells the stripes apart; half of them are right by guessing. The finished network answers files."""
    example = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text().split("**A task, a network and a preset**")[1]
    blocks = re.findall(r"```python\n(.*?)```", example, re.DOTALL)
    assert len(blocks) == 5
    shutil.copytree(PACKAGE / "src" / "mimo_benchmarks", tmp_path / "mimo_benchmarks")
    for block in blocks:
        apply_block(block, tmp_path / "mimo_benchmarks")
    Image.linear_gradient("L").resize((8, 8)).save(tmp_path / "a.png")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}
    program = """
from mimo_benchmarks.__main__ import main
main(["stripes", "--optim.steps", "100", "--threads", "1", "--out", "run"])
main(["predict", "run", "a.png"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["model"] == "Linear"
    assert result["rows"][0]["accuracy"] > 0.95
    assert result["rows"][0]["macs"] == 2 * 64
    *_, row = csv.reader(done.stdout.splitlines())
    assert row[0] == "a.png"
    assert row[1] in ("across", "down")
