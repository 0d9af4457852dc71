"""`run.py list`: the presets as a table, and how long each would take here."""

import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated

import torch
import tyro
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.synthetic.tokens import TokenSplit
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.presets.find import PRESETS, find
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.settings import ImageConfig, RunConfig, require
from mimo_benchmarks.tasks.kinds import ImageTask, SequenceTask, Task, TokenTask
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import Training, train

STEPS, WARMUP = 20, 3
"""Of the probe that time is taken of, and before."""
ITEMS = 1024
"""In its set."""


def execute(arguments: Sequence[str]) -> None:
    """Run `list` with these arguments.

    Raises:
        ConfigError: no preset matches.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(show, args=arguments, prog="run.py list", description=__doc__)


def show(pattern: Annotated[str, tyro.conf.Positional] = "*", /, *, estimate: bool = False) -> None:
    """Show presets.

    Args:
        pattern: of names, with a shell's wildcards; *.short and *.thin are asked for by their whole names.
        estimate: also the hours that training takes on the device at hand, from 20 steps on random inputs.
    """
    names = [name for name in PRESETS if fnmatchcase(name, pattern)]
    if not names:
        require(not set("*?[") & set(pattern), f"no preset's name is like {pattern!r}: `run.py list` shows all")
        find(pattern)  # raises, unless it is the form of a preset
        names = [pattern]
    heads = ("preset", "network", "task", "n", "steps", "paper: % at n")
    print("| " + " | ".join(heads + ("hours here",) * estimate) + " |")
    print("| " + " | ".join(["---"] * len(heads) + ["---:"] * estimate) + " |")
    for name in names:
        config = find(name)
        paper = PAPER.get(name, {}).items()
        figures = ", ".join((f"{mean} ± {std}" if std is not None else f"{mean}") + f" at {n}" for n, (mean, std) in paper)
        cells = [name, models.label(config.model), config.task, " ".join(map(str, config.n)), f"{config.optim.steps:,}", figures]
        if estimate:
            cells.append(f"{seconds_per_step(config) * config.optim.steps / 3600:,.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def seconds_per_step(config: RunConfig) -> float:
    """Of training on random inputs of full length, on the device at hand."""
    AcceleratorState._reset_state()  # it is one for a whole process, and refuses another precision
    accelerator = Accelerator(mixed_precision=config.precision)
    config = replace(
        config, optim=replace(config.optim, steps=WARMUP + STEPS), curriculum=(), curriculum_share=0, log_every=STEPS
    )
    task = random_task(config).to(accelerator.device)
    training, times = Training(models.build(config.model), config, accelerator), {}

    def after(step: int) -> None:
        if step in (WARMUP, WARMUP + STEPS):
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            times[step] = time.perf_counter()

    train(training, Feed(task, config, accelerator.device), accelerator, name="probe", log=lambda **_: None, after=after)
    accelerator.free_memory()
    return (times[WARMUP + STEPS] - times[WARMUP]) / STEPS


def random_task(config: RunConfig) -> Task:
    """A task of the shape that a preset's network takes."""
    generator, model = torch.Generator().manual_seed(0), config.model

    def integers(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(below, (ITEMS, *shape), generator=generator)

    if isinstance(model, ImageConfig):
        images = integers(256, model.in_channels, model.image_size, model.image_size).to(torch.uint8)
        split = Split(images=images, labels=integers(model.num_classes))
        return ImageTask(name="random", train=split, test=split, classes=model.num_classes)
    if model.head == "tokens":
        tokens = TokenSplit(
            inputs=integers(model.vocab_size, model.max_length), targets=integers(model.vocab_size, model.max_length)
        )
        return TokenTask(name="random", train=tokens, test=tokens, vocab_size=model.vocab_size, guesses={})
    parts = 2 if model.head == "pair" else 1
    values = integers(min(model.vocab_size, 256) - 1, parts * model.max_length).to(torch.uint8)
    offsets = torch.arange(ITEMS * parts + 1) * model.max_length
    labels = integers(model.num_classes)
    texts = Sequences(values=values.flatten(), offsets=offsets, labels=labels, parts=parts)
    sizes = {"classes": model.num_classes, "vocab_size": model.vocab_size, "max_length": model.max_length}
    return SequenceTask(name="random", train=texts, dev=texts, test=texts, **sizes)
