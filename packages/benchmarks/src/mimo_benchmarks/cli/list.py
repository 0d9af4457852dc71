"""`mimonets list`: show the presets as a table, and how long each would take here."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import tyro

from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.settings import require
from vsa_core.hub.markdown import markdown_table


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
        estimate: also show the hours that training, with controls where the preset has them, would take on this device: for each
            n, its steps times their mean of 20 on random inputs of full length. Evaluation and checkpoints come on top.
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
                from mimo_benchmarks.cli.estimate import training_seconds  # here, because a plain list needs nothing of it

                try:
                    hours = f"{training_seconds(config) / 3600:,.2f}"
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
