"""Check that settings go with the task, the network, each other and the run to be resumed."""

import json
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.run_directory import (
    CHECKPOINTS,
    CONFIG,
    experiment_around,
    flatten_settings,
    parse_run,
    read_settings,
    require_unchanged,
    settings_as_json,
)
from mimo_benchmarks.settings import UNRELATED_TO_LEARNING, RunConfig, require
from mimo_benchmarks.tasks.protocol import Task
from mimo_benchmarks.training.checkpoint import newest_state
from mimo_benchmarks.training.feed import require_equal_shares

RUN = "run"
"""Entry of a checkpoint's state: what config.json says of the run, as text, because checkpoints hold finite numbers alone."""


def check_effect(before: RunConfig, asked: RunConfig) -> None:
    """Raise ConfigError if a flag has changed a setting that has no effect beside the other settings."""
    optim, network = asked.optim, describe(asked.model)
    adamw = f"optim.optimizer is {optim.optimizer}"
    effects = {
        "optim.momentum": (optim.optimizer != "adamw", adamw),
        "optim.betas": (optim.optimizer == "adamw", adamw),
        "optim.peak_beta1": (optim.optimizer == "adamw", adamw),
        "optim.eps": (optim.optimizer == "adamw", adamw),
        "optim.rest_lr": (optim.optimizer == "muon", adamw),
        "optim.isometry": ("isometry" in network.penalties, "the network has no convolutions that it applies to"),
        "optim.key_penalty": ("key_penalty" in network.penalties, "the network has no binding keys of images that are trained"),
        "optim.decay": (optim.weight_decay > 0, "optim.weight_decay is 0"),
        "augment": (network.takes == "images", f"the network takes {network.takes}"),
        "augment.border": (asked.augment.crop > 0, "augment.crop is 0"),
        "augment.mixup_each": (asked.augment.mixup > 0, "augment.mixup is 0"),
    }
    for name, (effect, reason) in effects.items():
        value = attrgetter(name)
        require(effect or value(before) == value(asked), f"{name} has no effect, because {reason}: leave it out")
    if asked.controls and not before.controls:
        require(bool(controls(asked.model, asked.n)), "controls has no effect, because this network has none: leave it out")


def check_same_run(path: Path, preset: str, config: RunConfig) -> None:
    """Raise ConfigError, naming what differs, unless the files of a run belong together and these settings can resume it."""
    around = experiment_around(path)
    require(around is None, f"{path} is a control inside the run {around}: resume that run")
    name, before = read_settings(path)
    if newest := newest_state(path / CHECKPOINTS):
        check_saved_by(*newest, name, before)
    require_unchanged(path)
    require(name == preset, f"{path} is a run of {name}, not of {preset}: leave out the preset to resume it")
    changed = differences(before, config)
    require(not changed, f"{path} cannot be resumed with other settings: {changed}")


def check_saved_by(path: Path, state: Mapping[str, Any], name: str, config: RunConfig) -> None:
    """Raise ConfigError, naming the settings that differ, if a checkpoint was saved by another run than this one.

    Checkpoints of earlier versions do not say which run saved them.
    """
    if RUN not in state:
        return
    try:
        found = json.loads(state[RUN])
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} does not say which run saved it ({error}): bring back the run's own files") from error
    saved_name, saved = parse_run(found, path)
    changed = f"it is of {saved_name}, not of {name}" if saved_name != name else differences(saved, config)
    require(not changed, f"{path} and {CONFIG} are not of the same run ({changed}): bring back the run's own files")


def differences(before: RunConfig, now: RunConfig) -> str:
    """Name the settings that differ in what is learnt, with both values; an empty text if none does."""
    old, new = flatten_settings(settings_as_json(before)), flatten_settings(settings_as_json(now))
    names = [name for name in old | new if name.split(".")[0] not in UNRELATED_TO_LEARNING and old.get(name) != new.get(name)]
    return "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names)


def check_compatible(config: RunConfig, task: Task, accelerator: Accelerator) -> None:
    """Raise ConfigError unless network, task, settings and processes go together."""
    require_equal_shares(config, accelerator.num_processes)
    task.check(config, describe(config.model))
    require(task.dev is not None or not config.dev_every, f"task {task.name} has no dev split: leave out dev_every and best")
    gpu = accelerator.device.type == "cuda"
    require(gpu or not config.sync_batch_norm, "sync_batch_norm is for several GPUs, and this runs on a CPU")
