"""Whether settings go with the task, the network, each other and the run that they are to go on with."""

from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.run_directory import as_json, flat, read_config
from mimo_benchmarks.settings import FREE, ImageConfig, RunConfig, TokenConfig, require
from mimo_benchmarks.tasks.kinds import ImageTask, SequenceTask, Task
from mimo_benchmarks.training.feed import check_shares
from mimoconv import MIMOConvConfig, WideResNetConfig


def check_effect(before: RunConfig, asked: RunConfig) -> None:
    """Raise ConfigError for a setting that flags have changed and that has no effect beside the others."""
    optim, model = asked.optim, asked.model
    effects = {
        "optim.momentum": (optim.optimizer != "adamw", "optim.optimizer is adamw"),
        "optim.betas": (optim.optimizer == "adamw", f"optim.optimizer is {optim.optimizer}"),
        "optim.eps": (optim.optimizer == "adamw", f"optim.optimizer is {optim.optimizer}"),
        "optim.rest_lr": (optim.optimizer == "muon", f"optim.optimizer is {optim.optimizer}"),
        "optim.isometry": (isinstance(model, MIMOConvConfig | WideResNetConfig), "the network has no convolutions that it is of"),
        "optim.key_penalty": (
            isinstance(model, MIMOConvConfig) and model.trainable_keys,
            "the network has no keys of images that are trained",
        ),
        "optim.decay": (optim.weight_decay > 0, "optim.weight_decay is 0"),
        "augment": (isinstance(model, ImageConfig), "the network takes tokens"),
        "augment.border": (asked.augment.crop > 0, "augment.crop is 0"),
        "augment.mixup_each": (asked.augment.mixup > 0, "augment.mixup is 0"),
    }
    for name, (effect, reason) in effects.items():
        value = attrgetter(name)
        require(effect or value(before) == value(asked), f"{name} has no effect, because {reason}: leave it out")
    if asked.controls and not before.controls:
        require(bool(controls(model, asked.n)), "controls has no effect, because this network has none: leave it out")


def same_run(path: Path, preset: str, config: RunConfig) -> Path:
    """The directory of a run that these settings go on with; ConfigError names those that differ."""
    around = path.resolve().parent
    require(not (around / "config.json").exists(), f"{path} is a part of the run {around}: resume that")
    name, before = read_config(path)
    require(name == preset, f"{path} is a run of {name}, not of {preset}: resume it without naming a preset")
    old, new = flat(as_json(before)), flat(as_json(config))
    names = [name for name in old | new if name.split(".")[0] not in FREE and old.get(name) != new.get(name)]
    changed = [f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names]
    require(not changed, f"{path} cannot go on with other settings: {'; '.join(changed)}")
    return path


def check_fit(config: RunConfig, task: Task, accelerator: Accelerator) -> None:
    """Raise ConfigError unless network, task, settings and processes fit each other."""
    check_shares(config, accelerator.num_processes)
    needed: dict[str, Any]
    match task:
        case ImageTask():
            channels, size = task.train.images.shape[1:3]
            needed = {"in_channels": channels, "image_size": size, "num_classes": task.classes}
            crop = config.augment.crop
            require(crop < size, f"augment.crop = {crop}, but the images of {task.name} have {size} pixels: give less")
            scaled = getattr(config.model, "mean", None) is not None
            require(not scaled, "each task scales its images itself: leave out --model.mean and --model.std")
            require(not isinstance(config.model, TokenConfig), f"task {task.name} has images, and the network takes tokens")
        case SequenceTask():
            needed = {"num_classes": task.classes, "head": "pair" if task.train.parts == 2 else "classes"}
        case _:
            needed = {"head": "tokens"}
    classes = isinstance(task, ImageTask) or config.optim.loss == "cross_entropy"
    require(classes, f"optim.loss squared is for images, and task {task.name} has tokens: leave it out")
    if not isinstance(task, ImageTask):
        require(isinstance(config.model, TokenConfig), f"task {task.name} has tokens, and the network takes images")
        length = task.max_length if isinstance(task, SequenceTask) else task.train.inputs.shape[1]
        for name, least in (("vocab_size", task.vocab_size), ("max_length", length)):
            given = getattr(config.model, name)
            require(given >= least, f"task {task.name} needs --model.{name.replace('_', '-')} {least} or more, got {given}")
    for name, value in needed.items():
        given = getattr(config.model, name)
        require(given == value, f"task {task.name} needs --model.{name.replace('_', '-')} {value}, got {given}")
    has_dev = isinstance(task, SequenceTask)
    require(has_dev or not config.dev_every, f"task {task.name} has no dev split: leave out dev_every and best")
    gpu = accelerator.device.type == "cuda"
    require(gpu or not config.sync_batch_norm, "sync_batch_norm is for several GPUs, and this runs on a CPU")
