"""Tell which GPUs run the Triton kernels."""

import os
from functools import cache
from importlib.util import find_spec
from shutil import which

import torch

__all__ = ["runs_triton"]


@cache
def runs_triton(device: torch.device) -> bool:
    """Return whether a GPU is one of NVIDIA's from Ampere on, and Triton and the C compiler that it calls are there."""
    recent = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    compiler = "CC" in os.environ or any(map(which, ("gcc", "clang", "cc")))
    return recent and compiler and find_spec("triton") is not None
