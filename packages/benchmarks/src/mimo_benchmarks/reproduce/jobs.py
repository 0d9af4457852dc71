"""The runs of a table: where each lies, how far it is, and the command that starts it or goes on with it."""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.controls import cost
from mimo_benchmarks.reproduce.tables import Row
from mimo_benchmarks.run_directory import CHECKPOINTS, METRICS, RESULT, never_began, read_metrics
from mimo_benchmarks.settings import RunConfig

FOLDER = re.compile(r"(?P<row>.+)-(?P<steps>\d+)-steps-seed-(?P<seed>\d+)")
"""Name of the directory of a run: its row, steps and seed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of a table with one seed."""

    row: Row
    share: float
    """Share of the published steps."""
    seed: int

    @property
    def config(self) -> RunConfig:
        """Return the settings of the row; the seed is another."""
        return self.row.config(self.share)

    @property
    def folder(self) -> str:
        """Return the name of the run directory, which tells runs with other steps apart."""
        return f"{self.row.name}-{self.config.optim.steps}-steps-seed-{self.seed}"

    def command(self, flags: Sequence[str] = ()) -> list[str]:
        """Return the arguments of `mimonets` that make this run, with further flags."""
        return ["train", self.row.preset, *self.row.flags(self.share), "--seed", str(self.seed), *flags]

    def start(self, out: Path, flags: Sequence[str]) -> list[str]:
        """Return the command line that starts this run below a folder, or goes on with it; flags change nothing learnt."""
        path = out / self.folder
        if never_began(path):
            shutil.rmtree(path)
        arguments = ["train", "--resume", str(path), *flags] if path.exists() else self.command(["--out", str(path), *flags])
        return [sys.executable, "-m", "mimo_benchmarks", *arguments]

    def is_finished(self, *folders: Path) -> bool:
        """Tell whether the run is finished below any of these folders."""
        return any((folder / self.folder / RESULT).is_file() for folder in folders)

    def step(self, out: Path) -> int:
        """Return the last step that the run below a folder has told of."""
        path = out / self.folder
        saved = [
            int(each.name.removeprefix("step-")) for each in (path / CHECKPOINTS).glob("step-*") if each.name[5:].isdecimal()
        ]
        logged = [int(line["step"]) for line in read_metrics(path)[-1:]] if (path / METRICS).is_file() else []
        return max([0, *saved, *logged])

    def work(self) -> float:
        """Estimate the multiply-adds of all steps, by which runs are compared."""
        config, network = self.config, describe(self.config.model)
        odds = sum(config.n_odds)
        each = sum(odd / odds * cost(config.model, n) * network.inputs(n) for n, odd in zip(config.n, config.n_odds, strict=True))
        return each * config.optim.groups * config.optim.steps

    def left(self, out: Path) -> float:
        """Estimate the multiply-adds of the steps that the run below a folder still has to take."""
        return self.work() * (1 - self.step(out) / self.config.optim.steps)
