"""`mimonets list`: show the presets as a table, and how long each would take here."""

import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated

import torch
import tyro
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.experiment.memory_need import training_bytes
from mimo_benchmarks.memory import free_memory, gigabytes, memory_for
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.tasks.registry import TASKS
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import train
from mimo_benchmarks.training.state import Training
from vsa_core.hub.markdown import markdown_table

STEPS, WARMUP = 20, 3
"""Number of steps that an estimate times, and of steps before them."""
ROOM = 2.5
"""How many times as much memory as training takes at least must be free for an estimate."""
ITEMS = 1024
"""Number of random items that an estimate trains on."""


def execute_list(arguments: Sequence[str]) -> None:
    """Run `list` with these arguments.

    Raises:
        ConfigError: no preset matches.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(list_presets, args=arguments, prog="mimonets list", description=__doc__)


def list_presets(pattern: Annotated[str, tyro.conf.Positional] = "*", /, *, estimate: bool = False) -> None:
    """Show presets.

    Args:
        pattern: names of presets, with a shell's wildcards; forms such as NAME.short are shown by full names only.
        estimate: also show the hours that training would take on this device, from 20 steps on random inputs.
    """
    names = [name for name in PRESETS if fnmatchcase(name, pattern)]
    if not names:
        require(not set("*?[") & set(pattern), f"no preset has a name like {pattern!r}: `mimonets list` shows all")
        find_preset(pattern)  # raises ConfigError unless it is a form of a preset
        names = [pattern]
    rows, too_large = [], []
    with progress_bar("estimating", len(names), unit=" presets", hidden=not estimate) as bar:
        for name in names:
            config = find_preset(name)
            paper = PAPER.get(name, {}).items()
            figures = ", ".join((f"{mean} ± {std}" if std is not None else f"{mean}") + f" at {n}" for n, (mean, std) in paper)
            row = [name, config.model.label, config.task, " ".join(map(str, config.n)), f"{config.optim.steps:,}", figures]
            bar.set_postfix_str(name)
            if estimate:
                try:
                    hours = f"{seconds_per_step(config) * config.optim.steps / 3600:,.2f}"
                except NotEnoughMemory as error:
                    hours = "-"
                    too_large.append(f"{name}: {error}")
                row.append(hours)
            bar.update()
            rows.append(row)
    columns = ["preset", "network", "task", "n", "steps", "paper: % at n", *["hours here"] * estimate]
    print(markdown_table(columns, rows, left=columns[:6]), end="", flush=True)
    if too_large:
        raise NotEnoughMemory("\n".join(["some presets cannot be estimated here: name others", *too_large]))


def seconds_per_step(config: RunConfig) -> float:
    """Measure the seconds of a training step on random inputs of full length, on this device.

    Raises:
        NotEnoughMemory: the device has not `ROOM` times as much free memory as training takes at least, or memory runs out.
    """
    AcceleratorState._reset_state()  # accelerate keeps one per process, which refuses another precision
    accelerator = Accelerator(mixed_precision=config.precision)
    optim = replace(config.optim, steps=WARMUP + STEPS)
    config = replace(config, optim=optim, curriculum=(), curriculum_share=0, log_every=STEPS)
    need, room = ROOM * training_bytes(config), free_memory(accelerator.device)
    if room is not None and need > room:
        raise NotEnoughMemory(f"it may take {gigabytes(need)} of memory, and {gigabytes(room)} are free")
    times = {}

    def after_step(step: int) -> None:
        if step in (WARMUP, WARMUP + STEPS):
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            times[step] = time.perf_counter()

    with memory_for("its training", "take a machine with more"):
        task = TASKS[config.task].kind.random(describe(config.model), ITEMS).to(accelerator.device)
        training = Training(build(config.model), config, accelerator)
        train(training, Feed(task, config), accelerator, name="probe", log=lambda **_: None, after_step=after_step)
    accelerator.free_memory()
    return (times[WARMUP + STEPS] - times[WARMUP]) / STEPS
