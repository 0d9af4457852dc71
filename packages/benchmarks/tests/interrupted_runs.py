"""Carries out small experiments in processes that die, or whose disk fails, at a given moment, for test_interrupted_runs.py."""

import errno
import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree

from accelerate import Accelerator

from mimo_benchmarks.errors import CheckpointError, ConfigError, DatasetError
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.experiment.experiment import run_experiment
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.report import composition  # noqa: F401  (its imports take a second, which each process would need)
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.tasks.image_task import ImageTask
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.training import loop
from mimoconv import MIMOConvConfig
from mimoformer import MIMOFormerConfig

IMAGES = MIMOConvConfig(depth=10, width=0.25, stem_channels=8, in_channels=1, image_size=8)
SEQUENCES = MIMOFormerConfig(
    m=2, n=2, vocab_size=20, max_length=12, layers=1, embed_dim=16, heads=1, mlp_dim=16, features=16, num_classes=2, dropout=0.1
)
OPTIM = OptimConfig(steps=6, groups=4)
RUNS = {
    "CNN": RunConfig(task="tiny", model=IMAGES, optim=replace(OPTIM, average=0.9), save_every=1, log_every=1, threads=1),
    "Transformer": RunConfig(
        task="tiny",
        model=SEQUENCES,
        n=(2,),
        n_odds=(1,),
        curriculum=(1,),
        curriculum_share=0.5,
        optim=replace(OPTIM, optimizer="muon", lr=0.02),
        dev_every=2,
        best=True,
        save_every=1,
        log_every=1,
        threads=1,
    ),
}
"""One network of each family: a moving average of weights, several n; a curriculum, dropout, the best weights by dev accuracy."""


class Moments:
    """Counts training steps and what is done to files of a run; dies or fails at a given one, in the middle of a write."""

    def __init__(self, folder: Path, at: int, manner: str) -> None:
        self.folder, self.at, self.manner, self.count, self.failing = str(folder), at, manner, 0, False
        for owner, name in ((os, "fsync"), (loop, "take_step")):
            setattr(owner, name, self.counted(getattr(owner, name)))
        write = Path.write_bytes

        def write_slowly(path: Path, data: bytes) -> int:
            write(path, data[: len(data) // 2])
            self.pass_by()
            return write(path, data)

        Path.write_bytes = write_slowly
        sys.addaudithook(self.hear)

    def counted(self, function):
        """Wrap a function so that each call counts; training steps cannot fail, but the process can die before one."""

        def call(*arguments, **options):
            self.pass_by(can_fail=function.__name__ != "take_step")
            return function(*arguments, **options)

        return call

    def hear(self, event, arguments):
        """Count what Python is about to do to the folders and names of files, wherever it was asked to."""
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if not changes and (event != "open" or not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        place = arguments[0]
        if isinstance(place, str | Path) and (str(place).startswith(self.folder) or not os.path.isabs(place)):
            self.pass_by()  # a folder that is removed has its names removed by themselves

    def pass_by(self, *, can_fail=True):
        """Count a moment; at the one that was asked for, die or fail."""
        self.count += 1
        if self.count == self.at and self.manner == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.manner != "kill" and can_fail and (self.count == self.at or self.failing):
            self.failing = self.manner == "for good"
            raise OSError(errno.ENOSPC, "No space left on device")


def carry_out(family: str, folder: str, at: int = 0, manner: str = "kill", seconds: float = 0.0) -> None:
    """Start or resume an experiment; die at a moment, or after so many seconds on the CPU. Ends the process."""
    path, config, code = Path(folder), RUNS[family], 0
    task = (ImageTask if family == "CNN" else SequenceTask).random(describe(config.model), 64)
    tasks.TASKS["tiny"] = tasks.TaskEntry(load=lambda _: replace(task, name="tiny"), kind=type(task))
    if not (path / "config.json").exists():
        rmtree(path, ignore_errors=True)
    accelerator, moments = Accelerator(cpu=True), Moments(path, at, manner)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal kills, as nothing handles it
    try:
        run_experiment(replace(config, **{"resume" if path.exists() else "out": path}), "tiny", accelerator)
    except (CheckpointError, ConfigError, DatasetError):
        code = 2
        traceback.print_exc()
    except BaseException:
        code = 3
        traceback.print_exc()
    moments.manner = "kill"
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(moments.count, file=sys.stderr, flush=True)
    os._exit(code)


def main() -> None:
    """Carry out what each line asks for in a process of its own, and print how that ended and what it said."""
    rates.BUDGET["cpu"] = 1
    rates.inputs_per_second = partial(rates.inputs_per_second, rounds=1)
    for config in RUNS.values():
        build(config.model)  # which imports more of torch, once for all processes
    log = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            os.dup2(2, 1)
            carry_out(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), log.read_text()]), flush=True)


if __name__ == "__main__":
    main()
