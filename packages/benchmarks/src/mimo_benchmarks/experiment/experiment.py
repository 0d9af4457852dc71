"""One experiment from start to table: train a network and its controls, evaluate and measure them side by side, report."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import broadcast_object_list, set_seed

from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.evaluation import results
from mimo_benchmarks.evaluation.answers import classify
from mimo_benchmarks.evaluation.results import Finished
from mimo_benchmarks.experiment.compatibility import check_fit, same_run
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.report import report
from mimo_benchmarks.run_directory import RunDirectory, as_json, new_directory
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.tasks.kinds import ImageTask, SequenceTask, Task
from mimo_benchmarks.training import checkpoint
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import Training, train
from mimo_benchmarks.training.signals import Request, Stopped, listening
from mimoconv import MIMOConvConfig, WideResNetConfig, recalibrate

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
        try:
            for name, each in networks.items():
                inside = RunDirectory(path / name)
                finished.append(carry_out(each, f"{preset}.{name}".rstrip("."), task, inside, accelerator, request))
                accelerator.free_memory()
            if request.signal:
                raise Stopped(request.signal, "stopped after training")
        except Stopped as stopped:
            again = f"--resume {shlex.quote(str(path))}" + " --controls" * bool(config.resume and config.controls)
            raise Stopped(stopped.number, f"{stopped}; go on with {again}") from None
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
        with checkpoint.fitting(kept.path):
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
        if main and config.dev_every and (step % config.dev_every == 0 or step == config.optim.steps):
            log(step=step, dev_accuracy=choose(training, task, step, accelerator.device))
        number = asked_to_stop(request, step, config, accelerator)
        if main and (number or step % config.save_every == 0 or step == config.optim.steps):
            checkpoint.save(saves, step, *training.state())
        if number:
            raise Stopped(number, f"stopped after step {step}")

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
    late = step > config.curriculum_steps or step == config.optim.steps
    if config.best and late and highest > training.progress.best:
        training.keep(highest)
    return found


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
