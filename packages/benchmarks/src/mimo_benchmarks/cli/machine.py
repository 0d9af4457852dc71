"""Prepare the machine for training: device, precision, trackers, processes and threads."""

import os

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from mimo_benchmarks.data.storage.files import cores
from mimo_benchmarks.errors import ConfigError, first_line, suggestion
from mimo_benchmarks.evaluation.rates import DTYPES
from mimo_benchmarks.memory import ran_out_of_memory
from mimo_benchmarks.settings import RunConfig, require


def prepare_machine(config: RunConfig) -> Accelerator:
    """Return device, precision and processes, and set the number of CPU threads if it is given.

    Raises:
        ConfigError: settings that this machine cannot follow.
    """
    gpu = torch.cuda.is_available()
    require(config.device != "cuda" or gpu, "device = cuda, but there is no GPU that torch can use: leave out --device")
    precision = config.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    require(precision in DTYPES, f"ACCELERATE_MIXED_PRECISION = {precision}, expected {', '.join(DTYPES)}: give --precision no")
    on_cpu = config.device == "cpu" or not gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    require(not (precision == "fp16" and on_cpu), "precision = fp16 is for GPUs: take bf16 or no on a CPU")
    known = [str(tracker) for tracker in LoggerType if tracker != LoggerType.ALL]
    there = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.tracker:
        require(tracker in known + there, f"there is no tracker {tracker!r}: {suggestion(tracker, known)}")
        missing = (
            f"tracker {tracker!r} is not installed: `pip install {tracker}`, or in a checkout `scripts/uv pip install {tracker}`"
        )
        require(tracker in there, missing)
    require(not (config.resume and config.out), "a resumed run keeps its own directory: leave out --out")
    try:
        accelerator = Accelerator(mixed_precision=config.precision, cpu=config.device == "cpu")
        torch.ones(()).to(accelerator.device).item()
    except (RuntimeError, ValueError, AssertionError) as error:
        if ran_out_of_memory(error):
            raise
        wrong = f"the device or the processes cannot be used ({first_line(error)})"
        raise ConfigError(f"{wrong}: give --device cpu, or other flags to the launcher") from error
    if config.threads is not None:
        available = cores()
        require(config.threads <= available, f"threads = {config.threads}, but this process may use {available} cores")
        torch.set_num_threads(config.threads)
    return accelerator
