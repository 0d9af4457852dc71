"""The command line: a preset's name, flags that change it, and clear words for whatever goes wrong."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from mimo_benchmarks.data.storage.files import cores
from mimo_benchmarks.errors import CheckpointError, ConfigError, DatasetError, first_line
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.experiment.compatibility import check_effect
from mimo_benchmarks.presets.find import PRESETS, find
from mimo_benchmarks.run_directory import read_config
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.training.signals import Stopped

VERBS = {
    "list": "cli.list",
    "report": "cli.report",
    "throughput": "cli.throughput",
    "predict": "cli.predict",
    "data": "cli.data",
}
"""What else a first word can be, and the module that carries it out."""
FIRST = ("quickstart", "mnist", "cifar10")
"""Presets that `--help` tells of; there are many."""


def parse(arguments: Sequence[str]) -> tuple[str, RunConfig]:
    """The preset's name and its configuration with the flags applied; quickstart where no name comes first.

    With `--resume RUN`, name and configuration are those of that run.

    Raises:
        ConfigError: an unknown preset, or a value that cannot work.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    name, flags = "", list(arguments)
    if flags and not flags[0].startswith("-"):
        name = flags.pop(0)
    run = next((after for flag, after in pairwise(flags) if flag == "--resume"), None)
    run = run or next((flag.removeprefix("--resume=") for flag in flags if flag.startswith("--resume=")), None)
    if run is None:
        name = name or "quickstart"
        default = find(name)
    else:
        of, default = read_config(Path(run))
        name, default = name or of, replace(default, out=None)
    presets = "\n".join(f"  {preset}: {(PRESETS[preset].__doc__ or '').splitlines()[0]}" for preset in FIRST)
    description = (
        "Train a network, and with --controls plain ones of equal cost on the same inputs, then compare accuracy and throughput."
        f"\n\nusage: run.py [PRESET] [--flags]; a preset comes first, and flags change it:\n\n{presets}\n"
        f"  and {len(PRESETS) - len(FIRST)} more: `run.py list` shows them\n\nPRESET.short takes a twentieth of the steps, "
        "PRESET.thin and PRESET.equal_cost_n4 are its controls alone.\n\n"
        f"Other words: `run.py {' | '.join(VERBS)}`, each with --help.\n\nThe defaults below are those of {name}."
    )
    settings = (tyro.conf.AvoidSubcommands,)
    try:
        asked = tyro.cli(RunConfig, default=default, args=flags, prog=f"run.py {name}", description=description, config=settings)
    except SystemExit as exit_:
        if exit_.code == 2 and set(flags) & set(PRESETS):
            print("A preset's name comes first, before all flags.", file=sys.stderr)
        raise
    except ValueError as error:  # a dataclass refused a value
        raise ConfigError(str(error)) from error
    check_effect(default, asked)
    return name, asked


def machine(config: RunConfig) -> Accelerator:
    """Processes, device and precision, and the cores shared between the processes: the launcher leaves each with one thread.

    Raises:
        ConfigError: settings that this machine cannot follow.
    """
    gpu = torch.cuda.is_available()
    require(config.device != "cuda" or gpu, "device = cuda, but there is no GPU that torch can use: leave out --device")
    precision = config.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = config.device == "cpu" or not gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    require(not (precision == "fp16" and on_cpu), "precision = fp16 is for GPUs: take bf16 or no on a CPU")
    there = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.tracker:
        require(tracker in there, f"tracker {tracker!r} is not installed here, only {', '.join(there) or 'none'}: install it")
    require(not (config.resume and config.out), "resume goes on in its own directory: leave out --out")
    accelerator = Accelerator(mixed_precision=config.precision, cpu=config.device == "cpu")
    available = cores()
    threads = config.threads or max(1, available // accelerator.num_processes)
    require(threads <= available, f"threads = {threads}, but this process may use {available} cores")
    torch.set_num_threads(threads)
    return accelerator


def execute(arguments: Sequence[str]) -> None:
    """Run the program; exit codes as `main` has them."""
    try:
        if arguments and arguments[0] in VERBS:
            if os.environ.get("RANK", "0") == "0":  # once, however many processes
                import_module(f"mimo_benchmarks.{VERBS[arguments[0]]}").execute(arguments[1:])
            return
        preset, config = parse(arguments)
        accelerator = machine(config)
        config = replace(config, precision=accelerator.mixed_precision)  # what the launcher was told, so that a run keeps it
        experiment.run(config, preset, accelerator)
        accelerator.end_training()
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        print(f"error: {first_line(error)} A higher --optim.accumulate splits a step into smaller batches", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print(f"\nInterrupted: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)
