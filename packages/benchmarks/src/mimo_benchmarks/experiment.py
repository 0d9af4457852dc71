"""One run from start to table: train the superposed network and its controls, evaluate, measure, report."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mimo_benchmarks import report, tasks
from mimo_benchmarks.baselines.equal_cost import equal_cost
from mimo_benchmarks.config import RunConfig, require
from mimo_benchmarks.data.folder import data_folder
from mimo_benchmarks.evaluate import accuracy
from mimo_benchmarks.log import RunDirectory, new_directory
from mimo_benchmarks.report import Row
from mimo_benchmarks.throughput import images_per_second
from mimo_benchmarks.train import Network, train
from mimoconv import MIMOConv, WideResNet, count_macs, recalibrate

THROUGHPUT_IMAGES = 960
"""Images that throughput is measured on: a multiple of every n up to 6."""


def run(config: RunConfig, preset: str, accelerator: Accelerator) -> Path:
    """Carry out one experiment and return its run directory.

    Raises:
        ConfigError: settings that do not fit the task, or a run directory that exists already.
        DatasetError: the data is missing or wrong.
        FloatingPointError: training diverged.
    """
    start = time.perf_counter()
    task = tasks.load(config.task, data_folder(config.data_dir))
    check_fit(config, task)
    task = task.to(accelerator.device)
    main = accelerator.is_main_process
    directory = RunDirectory(new_directory(config.out, preset), preset, config, accelerator.device) if main else None
    log = directory.log if directory else lambda **_: None

    models: list[tuple[str, Network, list[int]]] = []
    set_seed(config.seed)
    network = MIMOConv(config.model)
    models.append(("MIMOConv", network, sorted(config.n)))
    if config.controls:
        for n in sorted({min(config.n), max(config.n)}):
            set_seed(config.seed)
            plain = WideResNet(equal_cost(config.model, count_macs(network, n)))
            models.append((f"plain CNN, cost of n={n}", plain, [1]))
    trained = [(name, *train(model, task, config, accelerator, name=name, log=log), ns) for name, model, ns in models]
    if directory is None:
        return Path()
    for _, model, _, ns in trained:
        for n in ns:
            recalibrate(model, (task.pixels(images) for images in task.train.images[:4096].split(512)), n)

    images = task.pixels(task.train.images.repeat(-(-THROUGHPUT_IMAGES // len(task.train.labels)), 1, 1, 1)[:THROUGHPUT_IMAGES])
    settings = [(name, model, n) for name, model, _, ns in trained for n in ns]
    rates = images_per_second([(model, n) for _, model, n in settings], images)
    rows = [
        Row(
            model=name,
            n=n,
            accuracy=accuracy(model, task, n),
            images_per_second=rate,
            speedup=rate / rates[0],
            macs=count_macs(model, n),
            superposed=model.capacity > 1,
        )
        for (name, model, n), rate in zip(settings, rates, strict=True)
    ]
    result = {
        "preset": preset,
        "task": task.name,
        "seed": config.seed,
        "rows": [asdict(row) for row in rows],
        "images_seen": {name: seen for name, _, seen, _ in trained},
        "wall_seconds": time.perf_counter() - start,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
    directory.write("result.json", result)
    picture = directory.path / "accuracy_throughput.png"
    report.plot(rows, picture)
    details = {"config": asdict(config), "environment": directory.environment, "result": result}
    (directory.path / "report.html").write_text(report.page(rows, f"{preset}: {task.name}, seed {config.seed}", picture, details))
    print(f"\n{report.table(rows)}\n\n{report.verdict(rows)}\n\n{directory.path}: result.json, {picture.name}, report.html")
    return directory.path


def check_fit(config: RunConfig, task: tasks.Task) -> None:
    """Raise ConfigError unless the network's input and output are the task's."""
    channels, size = task.train.images.shape[1:3]
    needed = {"in_channels": channels, "image_size": size, "num_classes": task.classes}
    for name, value in needed.items():
        given = getattr(config.model, name)
        require(given == value, f"task {task.name} needs --model.{name.replace('_', '-')} {value}, got {given}")
