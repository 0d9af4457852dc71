"""Estimate how long an experiment trains on this device, for `mimonets list --estimate`."""

from collections import Counter
from dataclasses import replace

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.evaluation.rates import now
from mimo_benchmarks.experiment.memory_need import training_bytes
from mimo_benchmarks.memory import free_memory, gigabytes, memory_for
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks.registry import TASKS
from mimo_benchmarks.training.feed import Feed, n_of_steps
from mimo_benchmarks.training.gradients import Gradients
from mimo_benchmarks.training.loop import take_step
from mimo_benchmarks.training.state import Training

STEPS, WARMUP = 20, 3
"""Number of steps of each kind that are timed, and of steps before them, which are compiled and recorded."""
RATE = 1e-20
"""Learning rate of the steps that are timed, at which weights stay as they are: nothing can diverge in them."""
ROOM = 2.5
"""How many times as much memory as training takes at least must be free for an estimate."""
ITEMS = 1024
"""Number of random items that are trained on."""


def training_seconds(config: RunConfig) -> float:
    """Estimate the seconds that all steps of an experiment take on this device, with those of its controls.

    Steps of each n are timed on random inputs of full length, so shorter sequences take less. What the first steps take longer,
    to be compiled and recorded, is part of it; evaluation and checkpoints are not.

    Raises:
        NotEnoughMemory: the device has not `ROOM` times as much free memory as training takes at least, or memory runs out.
    """
    plain = controls(config.model, config.n).values() if config.controls else ()
    return sum(seconds_of_steps(each) for each in (config, *(replace(config, model=model, controls=False) for model in plain)))


def kinds_of_steps(config: RunConfig) -> list[tuple[RunConfig, int]]:
    """Return each kind of step as the settings of a run that has no others, with a rate of `RATE`; and how many there are."""
    n, first = n_of_steps(config), config.curriculum_steps
    begun, later = Counter(n[:first]), Counter(n[first:])
    optim = replace(config.optim, steps=(len(begun) + len(later)) * (WARMUP + STEPS), lr=RATE, rest_lr=RATE)
    config = replace(config, optim=optim)
    return [
        *((replace(config, curriculum=(each,), curriculum_share=1.0), count) for each, count in begun.items()),
        *(
            (replace(config, n=(each,), n_odds=(1.0,), curriculum=(), curriculum_share=0.0), count)
            for each, count in later.items()
        ),
    ]


def seconds_of_steps(config: RunConfig) -> float:
    """Estimate the seconds that all steps of one network take; see `training_seconds`."""
    AcceleratorState._reset_state()  # accelerate keeps one per process, which refuses another precision
    accelerator = Accelerator(mixed_precision=config.precision)
    need, room = ROOM * training_bytes(config, accelerator.device), free_memory(accelerator.device)
    if room is not None and need > room:
        raise NotEnoughMemory(f"it may take {gigabytes(need)} of memory, and {gigabytes(room)} are free")
    kinds, seconds = kinds_of_steps(config), 0.0
    with (
        memory_for("its training", "take a machine with more"),
        progress_bar("timing training steps", len(kinds) * (WARMUP + STEPS), unit=" steps") as bar,
    ):
        task = TASKS[config.task].kind.random(describe(config.model), ITEMS).to(accelerator.device)
        training = Training(build(config.model), kinds[0][0], accelerator)
        for kind, count in kinds:
            gradients, times = Gradients(training, Feed(task, kind), accelerator), [now(accelerator.device)]
            for step in range(1, WARMUP + STEPS + 1):
                take_step(training, gradients, step)
                bar.update()
                if step in (WARMUP, WARMUP + STEPS):
                    times.append(now(accelerator.device))
            start, warm, end = times
            each = (end - warm) / STEPS
            seconds += count * each + max(0.0, warm - start - WARMUP * each)
    accelerator.free_memory()
    return seconds
