"""The kernels of the isometry penalty, in Triton's interpreter, and who gets them."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mimoconv.isometry import has_kernels


@pytest.mark.once
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_in_the_interpreter():
    """Triton reads the variable when it is first imported, so the tests run in a process of their own."""
    tests = Path(__file__).with_name("interpreted_isometry.py")
    program = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(program, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_package_does_not_import_triton():
    program = "import sys, mimoconv.isometry; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_kernels_are_for_float32_on_gpus():
    assert not has_kernels(torch.zeros(1, 1, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernels_are_for_plain_float32_tensors():
    weight = torch.zeros(1, 1, 1, 1, device="cuda")
    assert has_kernels(weight) == (torch.cuda.get_device_capability() >= (8, 0))
    assert not has_kernels(weight.double())
    assert not has_kernels(weight.as_subclass(type("Shard", (torch.Tensor,), {})))
