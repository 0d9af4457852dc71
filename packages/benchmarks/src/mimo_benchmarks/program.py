"""The command line: a preset's name, flags that change it, and clear words for whatever goes wrong."""

import os
import sys
from collections.abc import Sequence

import torch
import tyro
from accelerate import Accelerator

from mimo_benchmarks import experiment
from mimo_benchmarks.config import RunConfig, require
from mimo_benchmarks.errors import ConfigError, DatasetError, suggestion
from mimo_benchmarks.presets import PRESETS


def parse(arguments: Sequence[str]) -> tuple[str, RunConfig]:
    """The preset's name and its configuration with the flags applied; quickstart where no name comes first.

    Raises:
        ConfigError: an unknown preset, or a value that cannot work.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    name, flags = "quickstart", list(arguments)
    if flags and not flags[0].startswith("-"):
        name = flags.pop(0)
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}: {suggestion(name, PRESETS)}")
    presets = "\n".join(f"  {preset}: {(make.__doc__ or '').splitlines()[0]}" for preset, make in PRESETS.items())
    description = (
        "Train one network in superposition and plain ones of equal cost on the same images, then compare accuracy and "
        f"throughput.\n\nusage: run.py [PRESET] [--flags]; a preset comes first, and flags change it:\n\n{presets}\n\n"
        "`run.py data --help` tells of the data sets.\n\n"
        f"The defaults below are those of {name}."
    )
    try:
        return name, tyro.cli(RunConfig, default=PRESETS[name](), args=flags, prog=f"run.py {name}", description=description)
    except SystemExit as exit_:
        if exit_.code == 2 and set(flags) & set(PRESETS):
            print("A preset's name comes first, before all flags.", file=sys.stderr)
        raise
    except ValueError as error:  # a dataclass refused a value
        raise ConfigError(str(error)) from error


def use_cores(config: RunConfig, accelerator: Accelerator) -> None:
    """Share the cores between the processes; the launcher leaves each with one thread.

    Raises:
        ConfigError: more threads than cores.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = config.threads or max(1, available // accelerator.num_processes)
    require(threads <= available, f"threads = {threads}, but this process may use {available} cores")
    torch.set_num_threads(threads)


def execute(arguments: Sequence[str]) -> None:
    """Run the program; exit code 2 for settings or data that cannot work, 1 for a failed run."""
    try:
        if arguments and arguments[0] == "data":
            if os.environ.get("RANK", "0") == "0":  # once, however many processes
                from mimo_benchmarks import data_program  # here, because `datasets` takes a second to import

                data_program.execute(arguments[1:])
            return
        preset, config = parse(arguments)
        accelerator = Accelerator()
        use_cores(config, accelerator)
        experiment.run(config, preset, accelerator)
        accelerator.end_training()
    except (ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
