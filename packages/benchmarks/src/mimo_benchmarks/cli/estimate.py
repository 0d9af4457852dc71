"""Measure how long a training step takes on this device, for `mimonets list --estimate`."""

import time
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.experiment.memory_need import training_bytes
from mimo_benchmarks.memory import free_memory, gigabytes, memory_for
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks.registry import TASKS
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import train
from mimo_benchmarks.training.state import Training

STEPS, WARMUP = 20, 3
"""Number of steps that are timed, and of steps before them."""
ROOM = 2.5
"""How many times as much memory as training takes at least must be free for an estimate."""
ITEMS = 1024
"""Number of random items that are trained on."""


def seconds_per_step(config: RunConfig) -> float:
    """Measure the seconds of a training step on random inputs of full length, on this device.

    Raises:
        NotEnoughMemory: the device has not `ROOM` times as much free memory as training takes at least, or memory runs out.
    """
    AcceleratorState._reset_state()  # accelerate keeps one per process, which refuses another precision
    accelerator = Accelerator(mixed_precision=config.precision)
    optim = replace(config.optim, steps=WARMUP + STEPS)
    config = replace(config, optim=optim, curriculum=(), curriculum_share=0, log_every=STEPS)
    need, room = ROOM * training_bytes(config, accelerator.device), free_memory(accelerator.device)
    if room is not None and need > room:
        raise NotEnoughMemory(f"it may take {gigabytes(need)} of memory, and {gigabytes(room)} are free")
    times: dict[int, float] = {}

    def after_step(step: int) -> None:
        bar.update()
        if step in (WARMUP, WARMUP + STEPS):
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            times[step] = time.perf_counter()

    with (
        memory_for("its training", "take a machine with more"),
        progress_bar("timing training steps", WARMUP + STEPS, unit=" steps") as bar,
    ):
        task = TASKS[config.task].kind.random(describe(config.model), ITEMS).to(accelerator.device)
        training = Training(build(config.model), config, accelerator)
        train(training, Feed(task, config), accelerator, name="probe", log=lambda **_: None, after_step=after_step)
    accelerator.free_memory()
    return (times[WARMUP + STEPS] - times[WARMUP]) / STEPS
