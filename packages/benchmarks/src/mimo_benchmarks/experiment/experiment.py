"""Carry out one experiment: train a network and its controls, evaluate and time them side by side, write the report."""

import json
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn

from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.environment import peak_memory
from mimo_benchmarks.errors import CheckpointError, ConfigError, NotEnoughMemory
from mimo_benchmarks.evaluation.answers import classify
from mimo_benchmarks.evaluation.rates import measure_throughput
from mimo_benchmarks.experiment.compatibility import RUN, check_compatible, check_same_run, check_saved_by
from mimo_benchmarks.experiment.findings import Trained, crosstalk_of, evaluate_network, write_result
from mimo_benchmarks.experiment.memory_need import SMALLER_STEPS, check_memory
from mimo_benchmarks.experiment.time_left import TimeLeft
from mimo_benchmarks.memory import memory_for
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.progress import progress_bar, seconds_since
from mimo_benchmarks.result import Crosstalk, Row
from mimo_benchmarks.run_directory import (
    CHECKPOINTS,
    DIAGNOSTIC,
    MODEL,
    RunDirectory,
    make_run_directory,
    run_as_json,
    settings_as_json,
)
from mimo_benchmarks.run_lock import lock_run
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.tasks.protocol import Task
from mimo_benchmarks.training.checkpoint import load_checkpoint, must_fit, save_checkpoint
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import train
from mimo_benchmarks.training.processes import Agreement, end_if_one_is_silent, open_store
from mimo_benchmarks.training.signals import Stopped, StopRequest, note_signals
from mimo_benchmarks.training.state import Training

SMALLER_MODEL = "give smaller --model sizes, or free some"
"""What to do where a network does not fit into memory."""
CALIBRATION = 4096
"""Number of training items on which BatchNorm statistics are estimated after training."""


def run_experiment(
    config: RunConfig,
    preset: str,
    accelerator: Accelerator,
    listen: Callable[[], AbstractContextManager[StopRequest]] = note_signals,
) -> None:
    """Carry out an experiment, or resume one.

    Args:
        config: settings of the experiment, from which those of the controls are derived.
        preset: name of the preset, for files and tables.
        accelerator: device, precision and processes.
        listen: makes the request to stop that is looked at after every step; unless given, SIGINT and SIGTERM ask to stop.

    Raises:
        ConfigError: settings do not fit the task, each other, or the run to be resumed; or the run directory exists already.
        DatasetError: the data set is missing or damaged.
        CheckpointError: a checkpoint cannot be read or written.
        FloatingPointError: training diverged.
        NotEnoughMemory: the network, its training or its evaluation does not fit into memory.
        Stopped: a signal came, and the run was saved.
    """
    start = time.perf_counter()
    if config.resume:  # before anything of these sizes is built
        check_same_run(config.resume, preset, config)
    task = tasks.load(config.task, data_folder(config.data_dir))
    check_compatible(config, task, accelerator)
    longest = None if (lengths := task.lengths(task.train)) is None else int(lengths.max())
    network = untrained_network(config, accelerator)  # before any file, so that a network that is too large leaves none behind
    configs = {"": config}
    if config.controls:
        plain = controls(config.model, config.n)
        configs |= {name: replace(config, model=model, controls=False) for name, model in plain.items()}
    for each in configs.values():
        check_memory(each, accelerator.device, processes=accelerator.num_processes, longest=longest)
    with memory_for(f"the data of task {task.name}", "choose another task, or train with --device cpu"):
        task = task.to(accelerator.device)
    with prepare_directory(configs, preset, accelerator) as path:
        train_and_compare(path, preset, configs, task, network, accelerator, listen, start)


def train_and_compare(
    path: Path,
    preset: str,
    configs: Mapping[str, RunConfig],
    task: Task,
    network: nn.Module,
    accelerator: Accelerator,
    listen: Callable[[], AbstractContextManager[StopRequest]],
    start: float,
) -> None:
    """Train and evaluate the networks of an experiment in its run directory, time them side by side, and write the report.

    Args:
        path: the run directory.
        preset: name of the preset, for files and tables.
        configs: settings of the experiment under the name "", and those of its controls under theirs.
        task: the task, on the device.
        network: the experiment's own network with its first weights.
        accelerator: device, precision and processes.
        listen: makes the request to stop.
        start: time at which the experiment began.
    """
    config = configs[""]
    rank, world = accelerator.process_index, accelerator.num_processes
    feeds = [Feed(task, each, rank, world) for each in configs.values()]
    time_left = TimeLeft(feeds)
    finished: list[Trained] = []
    with listen() as request, end_if_one_is_silent(rank, world, config.timeout):
        agreement = Agreement(request, rank, world, open_store() if world > 1 else None)
        try:
            for feed, (name, each) in zip(feeds, configs.items(), strict=True):
                network = untrained_network(each, accelerator) if finished else network
                inside = RunDirectory(path / name)
                finished.append(
                    train_and_evaluate(f"{preset}.{name}".rstrip("."), network, feed, inside, accelerator, agreement, time_left)
                )
                accelerator.free_memory()
            if request.signal:
                raise Stopped(request.signal, "stopped after training")
        except Stopped as stopped:
            again = f"--resume {shlex.quote(str(path))}" + " --controls" * bool(config.resume and config.controls)
            raise Stopped(stopped.number, f"{stopped}; resume with mimonets {again}") from None
        except NotEnoughMemory as error:
            if not any(path.glob("**/checkpoints/step-*")):
                raise
            more = f"where there is more memory, mimonets --resume {shlex.quote(str(path))} goes on from what is saved"
            raise NotEnoughMemory(f"{error}; {more}") from error
    if not accelerator.is_main_process:
        return
    candidates = [(one.network, one.module, row.n) for one in finished for row in one.rows]
    rates = iter(measure_throughput(candidates, accelerator.device) if config.rates else [])
    runs = []
    for one in finished:
        own = {row.n: next(rates, None) for row in one.rows}
        runs.append(write_result(one, finished[0], task, own, seconds_since(start)))
    from mimo_benchmarks.report.composition import write_report  # here, because the import takes a second

    table = write_report(runs, {}, path, f"{preset}: {task.name}, seed {config.seed}")
    print(f"\n{table}\n\n{path}: result.json, report.md, report.html and their pictures")


def untrained_network(config: RunConfig, accelerator: Accelerator) -> nn.Module:
    """Return the network with the first weights of this seed, on its device."""
    set_seed(config.seed)
    network = build(config.model)
    with memory_for("the network", SMALLER_MODEL):
        return network.to(accelerator.device)


def train_and_evaluate(
    name: str,
    network: nn.Module,
    feed: Feed,
    directory: RunDirectory,
    accelerator: Accelerator,
    agreement: Agreement,
    time_left: TimeLeft,
) -> Trained:
    """Train a network from its newest checkpoint or from the start, evaluate it, and save it for `predict`."""
    config, task = feed.config, feed.task
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    main = accelerator.is_main_process
    with memory_for("measuring crosstalk", SMALLER_MODEL):
        before = crosstalk_of(config, network, task) if main else None
    with memory_for("the network, its gradients and its optimizer", SMALLER_MODEL):
        training, saves = Training(network, config, accelerator), directory.path / CHECKPOINTS
        notes = restore_newest(training, saves, accelerator, name)
    start = training.progress.step
    time_left.note(feed, start, training.progress.seconds)
    if main:
        for note in [*notes, *directory.begin(name, config, accelerator.device, start)]:
            print(note)
        print(f"{directory.path}: {name}, {time_left.place(feed)}from step {start} of {config.optim.steps}", flush=True)

    def save(folder: Path) -> None:
        directory.sync_metrics()
        tensors, state = training.state()
        save_checkpoint(folder, training.progress.step, tensors, {**state, RUN: json.dumps(run_as_json(name, config))})

    def log(**values: Any) -> None:
        if main:
            directory.log(**values)
        if "loss" in values:
            bar.set_postfix_str(describe_step(**values, left=time_left.describe()), refresh=False)
        dev = {f"dev_accuracy/{n}": value for n, value in values.pop("dev_accuracy", {}).items()}
        accelerator.log({f"{name}/{key}": value for key, value in (values | dev).items() if key != "step"}, step=values["step"])

    def after_step(step: int) -> None:
        bar.update()
        time_left.note(feed, step, training.progress.seconds)
        if main and config.dev_every and (step % config.dev_every == 0 or step == config.optim.steps):
            log(step=step, dev_accuracy=evaluate_dev(training, task, step))
        number = agreement(step, training.progress.seconds, last=step == config.optim.steps)
        if number or step % config.save_every == 0 or step == config.optim.steps:
            training.require_finite(name)  # in every process, as all have the same weights
            if main:
                with progress_bar("saving a checkpoint"), memory_for("saving a checkpoint", SMALLER_MODEL):
                    save(saves)
        if number:
            agreement.wait_for_first()
            raise Stopped(number, f"stopped after step {step}")

    try:
        with (
            progress_bar(f"training {name}", config.optim.steps, unit=" steps", start=start, leave=True) as bar,
            memory_for("a training step", SMALLER_STEPS),
        ):
            train(training, feed, accelerator, name=name, log=log, after_step=after_step)
    except FloatingPointError:
        if main:
            save(directory.path / DIAGNOSTIC)
        raise
    peak = peak_memory(accelerator.device)
    module = training.evaluated_network(training.best or training.evaluated_weights())
    rows, after = evaluate_and_save(config, module, task, directory) if main else ((), None)
    return Trained(
        config=config,
        name=name,
        module=module,
        directory=directory,
        progress=training.progress,
        inputs_seen=feed.inputs(training.progress.step),
        peak_memory_bytes=peak,
        rows=rows,
        crosstalk=None if before is None or after is None else {"before": before, "after": after},
    )


def evaluate_and_save(
    config: RunConfig, module: nn.Module, task: Task, directory: RunDirectory
) -> tuple[tuple[Row, ...], Crosstalk | None]:
    """Evaluate a trained network and save it for `predict`; return its accuracies and costs, and its crosstalk."""
    with memory_for("evaluating the network", SMALLER_MODEL):
        recalibrate(config, module, task)
        rows = evaluate_network(describe(config.model), module, task, config)
        after = crosstalk_of(config, module, task)
        save_network(config, module, task, rows, directory)
    return rows, after


def restore_newest(training: Training, saves: Path, accelerator: Accelerator, name: str) -> Sequence[str]:
    """Restore the newest valid checkpoint, if there is one; say which newer ones were skipped, and what could not be compared.

    Raises:
        ConfigError: the checkpoint is of another run.
        CheckpointError: no checkpoint is valid, or the processes see different ones.
    """
    with progress_bar("looking for checkpoints", brief=True):
        kept = load_checkpoint(saves, accelerator.device)
    notes = []
    if kept:
        check_saved_by(kept.path, kept.state, name, training.config)
        with must_fit(kept.path):
            training.restore(kept)
        notes = [f"skipped a checkpoint that is not valid: {reason}" for reason in kept.skipped]
        if RUN not in kept.state:
            notes.append(f"{kept.path} is of an earlier version and holds no settings to compare with those of the run")
    steps = accelerator.gather(torch.tensor([training.progress.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise CheckpointError(f"{saves}: the processes would resume from steps {steps}; let all machines see one run directory")
    return notes


def describe_step(*, loss: float, accuracy: float, inputs_per_second: float, left: str, **_: Any) -> str:
    """Say how training goes, for the progress bar."""
    parts = [f"loss {loss:.3f}", f"accuracy {accuracy:.1%}", f"{inputs_per_second:,.0f} inputs/s", left]
    return ", ".join(filter(None, parts))


def recalibrate(config: RunConfig, module: nn.Module, task: Task) -> None:
    """Estimate the BatchNorm statistics of a trained network on training items, for each n of its evaluation.

    Raises:
        FloatingPointError: they are not finite.
    """
    network = describe(config.model)
    for n in network.evaluated_n(config.n):
        with closing(calibration_batches(task, n)) as batches:
            try:
                network.recalibrate(module, batches, n)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}: training diverged; a lower --optim.lr may help") from error


def calibration_batches(task: Task, n: int) -> Generator[Tensor, None, None]:
    """Yield training items in batches, and show how far they are used up."""
    index = torch.arange(min(CALIBRATION, len(task.train)))
    with progress_bar(f"estimating BatchNorm statistics, n = {n}", len(index), unit=" items") as bar:
        for part in index.split(512):
            yield task.items(task.train, part)[0]
            bar.update(len(part))


def save_network(config: RunConfig, module: Any, task: Task, rows: Sequence[Row], directory: RunDirectory) -> None:
    """Write the finished network to model/, with all that `predict` needs from the task in its configuration."""
    network = describe(config.model)
    accuracy = {network.accuracy_key(row.n): row.accuracy for row in rows}
    module.config = replace(module.config, **task.saved)
    command = directory.starts[0]["command"]
    try:
        with progress_bar("saving the network"):
            network.library.save(module, directory.path / MODEL, accuracy=accuracy, command=command)
    except OSError as error:
        path = directory.path / MODEL
        raise CheckpointError(f"{path} cannot be written ({error}): make room, then resume with --resume") from error


def evaluate_dev(training: Training, task: Task, step: int) -> dict[int, float]:
    """Return dev accuracy for each n; with `best`, remember the weights if it is the highest so far after the curriculum."""
    config = training.config
    module = training.evaluated_network(training.evaluated_weights())
    network = describe(config.model)
    found = {n: classify(network, module, task, task.dev, n, name="answering the dev split").accuracy for n in config.n}
    highest = max(found.values())
    late = step > config.curriculum_steps or step == config.optim.steps
    if config.best and late and highest > training.progress.best:
        training.remember_best(highest)
    return found


@contextmanager
def prepare_directory(configs: Mapping[str, RunConfig], preset: str, accelerator: Accelerator) -> Iterator[Path]:
    """Yield the run directory, which the main process makes or resumes, and holds; every process gets it, or the error."""
    found: list[Any] = [None]
    config = configs[""]
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                path = config.resume or make_run_directory(config.out, preset)
                for name in configs:
                    RunDirectory(path / name).check()
                held.enter_context(lock_run(path))
                RunDirectory(path).write_config(preset, config)
                accelerator.log_with = filter_trackers(list(config.tracker), path)
                found = [path]
            except (ConfigError, CheckpointError) as error:
                found = [error]
        (told,) = broadcast_object_list(found)
        if isinstance(told, Exception):
            raise told
        if config.tracker:
            accelerator.project_configuration.set_directories(str(told))
            accelerator.init_trackers(preset, {"config": str(settings_as_json(config))})
        yield Path(told)
