"""`mimonets [train] [PRESET] [--flags]`: train the network of a preset, evaluate it and write a report."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import tyro

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.run_directory import read_settings
from mimo_benchmarks.settings import RunConfig

FIRST = ("quickstart", "mnist", "cifar10")
"""Presets that `--help` lists."""


def execute_train(arguments: Sequence[str], other: Sequence[str] = ()) -> None:
    """Train as the command line says.

    Args:
        arguments: the command line without the program's name.
        other: names of the program's other commands, for --help.

    Raises:
        ConfigError: settings that cannot work; `run_experiment` has the other errors.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    preset, config = parse_settings(arguments, other)
    from mimo_benchmarks.cli.machine import prepare_machine  # here, because --help needs none of what these import
    from mimo_benchmarks.experiment.experiment import run_experiment

    accelerator = prepare_machine(config)
    # the precision may come from the launcher, and a resumed run must keep it
    run_experiment(replace(config, precision=accelerator.mixed_precision), preset, accelerator)
    accelerator.end_training()


def parse_settings(arguments: Sequence[str], other: Sequence[str] = ()) -> tuple[str, RunConfig]:
    """Return the preset's name and its settings with the flags applied; quickstart where no name comes first.

    With `--resume RUN`, name and settings are those of that run.

    Args:
        arguments: the command line without the program's name.
        other: names of the program's other commands, for --help.

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
        default = find_preset(name)
    else:
        of, default = read_settings(Path(run))
        name, default = name or of, replace(default, out=None)
    presets = "\n".join(f"  {preset}: {(PRESETS[preset].__doc__ or ' ').splitlines()[0]}" for preset in FIRST)
    description = (
        "Train a network in superposition, and with --controls plain networks of equal cost on the same inputs; "
        "then compare accuracy and throughput."
        f"\n\nmimonets [train] [PRESET] [--flags]: a preset comes first, and flags change it. Presets:\n\n{presets}\n"
        f"  and {len(PRESETS) - len(FIRST)} more: `mimonets list` shows them\n\nPRESET.short takes a twentieth of the steps, "
        "PRESET.thin and PRESET.equal_cost_n4 are its controls alone.\n\n"
        f"Other commands: `mimonets {' | '.join(other)}`, each with --help, and `mimonets --version`.\n\n"
        f"The defaults below are those of {name}."
    )
    settings = (tyro.conf.AvoidSubcommands,)
    try:
        asked = tyro.cli(
            RunConfig, default=default, args=flags, prog=f"mimonets {name}", description=description, config=settings
        )
    except SystemExit as exit_:
        if exit_.code == 2 and set(flags) & set(PRESETS):
            print("A preset's name comes first, before all flags.", file=sys.stderr)
        raise
    except ValueError as error:  # a dataclass refused a value
        raise ConfigError(str(error)) from error
    from mimo_benchmarks.experiment.compatibility import check_effect  # here, because --help needs none of what it imports

    check_effect(default, asked)
    return name, asked
