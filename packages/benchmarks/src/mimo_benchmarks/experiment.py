"""One experiment from start to table: train a network and its controls, evaluate and measure them side by side, report."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import broadcast_object_list, set_seed
from jaxtyping import Float, UInt8
from torch import Tensor

from mimo_benchmarks import checkpoint, models, report, results, tasks
from mimo_benchmarks.baselines.controls import controls
from mimo_benchmarks.config import RunConfig, require
from mimo_benchmarks.data.folder import data_folder
from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.evaluate import classify
from mimo_benchmarks.grouping import Feed, check_shares
from mimo_benchmarks.kinds import ImageTask, SequenceTask, Task, normalised
from mimo_benchmarks.log import RunDirectory, as_json, new_directory, read_config, tuples
from mimo_benchmarks.models import Network
from mimo_benchmarks.results import Finished
from mimo_benchmarks.stopping import Request, Stopped, listening
from mimo_benchmarks.train import Training, train
from mimoconv import MIMOConvConfig, WideResNetConfig, recalibrate

FREE = {"out", "resume", "threads", "device", "tracker", "data_dir", "log_every", "save_every", "controls"}
"""Settings that a resumed run may change: none of them changes what is learnt."""
CALIBRATION = 4096
"""Training images that BatchNorm statistics are estimated on after training."""


def run(config: RunConfig, preset: str, accelerator: Accelerator) -> None:
    """Carry out an experiment, or go on with one.

    Raises:
        ConfigError: settings that do not fit the task, each other, or the run that is to go on; a run directory that exists.
        DatasetError: the data is missing or wrong.
        CheckpointError: a checkpoint cannot be read or written.
        FloatingPointError: training diverged.
        Stopped: a signal came, and the run was saved.
    """
    start = time.perf_counter()
    task = tasks.load(config.task, data_folder(config.data_dir))
    check_fit(config, task, accelerator)
    set_seed(config.seed)
    network = models.build(config.model).to(accelerator.device)  # here, so that what is too large leaves nothing behind
    before = results.interference(config, task, network) if accelerator.is_main_process else None
    del network
    networks = {"": config}
    if config.controls:
        plain = controls(config.model, config.n)
        networks |= {name: replace(config, model=model, controls=False) for name, model in plain.items()}
    path = directory(config, preset, accelerator)
    task = task.to(accelerator.device)
    finished = []
    with listening() as request:
        for name, each in networks.items():
            inside = RunDirectory(path / name)
            finished.append(carry_out(each, f"{preset}.{name}".rstrip("."), task, inside, accelerator, request))
            accelerator.free_memory()
    if request.signal:
        raise Stopped(request.signal, f"stopped after training; go on with --resume {shlex.quote(str(path))}")
    if not accelerator.is_main_process:
        return
    rates = results.throughput(finished, accelerator.device)
    for one, rate in zip(finished, rates, strict=True):
        crosstalk = before if one is finished[0] else None
        one.directory.write("result.json", results.result(one, task, rate, crosstalk, time.perf_counter() - start))
    table = report.write([path], path, f"{preset}: {task.name}, seed {config.seed}")
    print(f"\n{table}\n\n{path}: result.json, report.md, report.html and their pictures")


def carry_out(
    config: RunConfig, name: str, task: Task, directory: RunDirectory, accelerator: Accelerator, request: Request
) -> Finished:
    """Train one network from its newest checkpoint, or from the start, and return it as it is evaluated."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    set_seed(config.seed)
    training, main = Training(models.build(config.model), config, accelerator), accelerator.is_main_process
    feed = Feed(task, config, accelerator.device, accelerator.process_index, accelerator.num_processes)
    saves = directory.path / "checkpoints"
    kept = checkpoint.load(saves, accelerator.device)
    if kept:
        training.restore(kept)
    steps = accelerator.gather(torch.tensor([training.progress.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise CheckpointError(f"{saves}: the processes would go on from steps {steps}; all machines must see the run directory")
    if main:
        directory.begin(name, config, accelerator.device)
        directory.rewind(training.progress.step)
        for reason in kept.skipped if kept else ():
            print(f"passed over {reason}")
        print(f"{directory.path}: {name}, from step {training.progress.step} of {config.optim.steps}")

    def log(**values: Any) -> None:
        if main:
            directory.log(**values)
        dev = {f"dev_accuracy/{n}": value for n, value in values.pop("dev_accuracy", {}).items()}
        step = values.pop("step")
        accelerator.log({f"{name}/{key}": value for key, value in (values | dev).items()}, step=step)

    def after(step: int) -> None:
        if main and config.dev_every and step % config.dev_every == 0:
            log(step=step, dev_accuracy=choose(training, task, step, accelerator.device))
        number = asked_to_stop(request, step, config, accelerator)
        if main and (number or step % config.save_every == 0 or step == config.optim.steps):
            checkpoint.save(saves, step, *training.state())
        if number:
            raise Stopped(number, f"stopped after step {step}; go on with --resume {shlex.quote(str(root(directory.path)))}")

    try:
        train(training, feed, accelerator, name=name, log=log, after=after)
    except FloatingPointError:
        if main:
            checkpoint.save(directory.path / "diagnostic", training.progress.step, *training.state())
        raise
    peak = results.peak_memory(accelerator.device)
    weights = training.best or training.evaluated().state_dict()
    network = results.fresh(config.model, weights, accelerator.device)
    if main and isinstance(task, ImageTask) and isinstance(config.model, MIMOConvConfig | WideResNetConfig):
        images = task.train.images[:CALIBRATION].split(512)
        for n in results.evaluated_n(config):
            recalibrate(network, (task.pixels(part) for part in images), n)  # type: ignore[arg-type]
    if main:
        seen = {"scale": task.scale, "mean": task.mean, "std": task.std} if isinstance(task, ImageTask) else {}
        state = {"pixels": seen, "classes": getattr(task, "classes", None)}
        checkpoint.save(directory.path / "model", config.optim.steps, {"model": network.state_dict()}, state, keep=1)
    progress = training.progress
    return Finished(
        config=config, name=name, network=network, directory=directory, feed=feed, progress=progress, peak_memory_bytes=peak
    )


def choose(training: Training, task: Task, step: int, device: torch.device) -> dict[int, float]:
    """Dev accuracy for each n; with `best`, the weights of the highest one are remembered, once the curriculum is over."""
    assert isinstance(task, SequenceTask)
    config = training.config
    network = results.fresh(config.model, training.evaluated().state_dict(), device)
    found = {n: classify(network, config.model, task, task.dev, n).accuracy for n in config.n}
    highest = max(found.values())
    if config.best and highest > training.progress.best and step > config.curriculum_share * config.optim.steps:
        training.keep(highest)
    return found


def root(path: Path) -> Path:
    """The directory of the whole experiment, given that of one of its networks."""
    return path.parent if (path.parent / "config.json").exists() else path


def asked_to_stop(request: Request, step: int, config: RunConfig, accelerator: Accelerator) -> int:
    """The signal that ends the run now, or 0; several processes agree on it at log lines."""
    if accelerator.num_processes == 1:
        return request.signal
    if step % config.log_every and step < config.optim.steps:
        return 0
    return int(accelerator.gather(torch.tensor([request.signal], device=accelerator.device)).max())


def directory(config: RunConfig, preset: str, accelerator: Accelerator) -> Path:
    """The run directory, made or gone on with by the main process; all learn of it, and of what is wrong."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [same_run(config.resume, preset, config) if config.resume else new_directory(config.out, preset)]
            accelerator.log_with = filter_trackers(list(config.tracker), found[0])
        except ConfigError as error:
            found = [error]
    (path,) = broadcast_object_list(found)
    if isinstance(path, ConfigError):
        raise path
    if config.tracker:
        accelerator.project_configuration.set_directories(str(path))
        accelerator.init_trackers(preset, {"config": str(as_json(config))})
    return Path(path)


def same_run(path: Path, preset: str, config: RunConfig) -> Path:
    """The directory of a run that these settings go on with; ConfigError names those that differ."""
    name, before = read_config(path)
    require(name == preset, f"{path} is a run of {name}, not of {preset}: resume it without naming a preset")
    old, new = as_json(before), as_json(config)
    changed = [f"{key} was {was!r} and is {now!r}" for key, was, now in differences(old, new) if key.split(".")[0] not in FREE]
    require(not changed, f"{path} cannot go on with other settings: {'; '.join(changed)}")
    return path


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Settings that are not the same, by their names on the command line."""
    found = []
    for key in old | new:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append((prefix + key, was, now))
    return found


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
            require(hasattr(config.model, "image_size"), f"task {task.name} has images, and the network takes tokens")
        case SequenceTask():
            needed = {"num_classes": task.classes, "head": "pair" if task.train.parts == 2 else "classes"}
        case _:
            needed = {"head": "tokens"}
    if not isinstance(task, ImageTask):
        require(not hasattr(config.model, "image_size"), f"task {task.name} has tokens, and the network takes images")
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


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network for images whose training is finished."""

    config: RunConfig
    network: Network
    """In eval mode."""
    pixels: Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
    """What it sees of images on the task's own scale of grey."""
    scale: float
    """The value of a white pixel there."""
    classes: int


def trained(path: Path, device: torch.device) -> Trained:
    """The network of a run directory.

    Raises:
        ConfigError: it is none, or none of images.
        CheckpointError: its weights are missing or damaged.
    """
    _, config = read_config(path)
    kept = checkpoint.load(path / "model", device)
    if kept is None:
        raise CheckpointError(f"{path} has no finished network: go on with `--resume {shlex.quote(str(path))}` first")
    require(bool(kept.state["pixels"]), f"{path} is a run on {config.task}, which has no images")
    seen: dict[str, Any] = tuples(kept.state["pixels"])
    network = results.fresh(config.model, kept.tensors["model"], device)
    return Trained(
        config=config,
        network=network,
        pixels=lambda images: normalised(images, **seen),
        scale=seen["scale"],
        classes=kept.state["classes"],
    )
