"""One run from start to table: train the superposed network and its controls, evaluate, measure, report."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from jaxtyping import Float
from torch import Tensor

from mimo_benchmarks import report, tasks
from mimo_benchmarks.baselines.equal_cost import TOLERANCE, equal_cost
from mimo_benchmarks.config import RunConfig, require
from mimo_benchmarks.data.folder import data_folder
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.evaluate import accuracy_per_slot, classify, crosstalk_by_depth, regrouped_share
from mimo_benchmarks.kinds import ImageTask
from mimo_benchmarks.log import RunDirectory, new_directory
from mimo_benchmarks.report import Row
from mimo_benchmarks.throughput import images_per_second
from mimo_benchmarks.train import Network, train
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig, count_macs, recalibrate

THROUGHPUT_IMAGES = 960
"""Images that throughput is measured on: a multiple of every n up to 6."""
PROBE = 256
"""Test images that crosstalk is measured on."""


def run(config: RunConfig, preset: str, accelerator: Accelerator) -> Path:
    """Carry out one experiment and return its run directory.

    Raises:
        ConfigError: settings that do not fit the task, or a run directory that exists already.
        DatasetError: the data is missing or wrong.
        FloatingPointError: training diverged.
    """
    start = time.perf_counter()
    image_tasks = [task.__name__ for task in tasks.IMAGES]
    sees_images = config.task in image_tasks or config.task not in tasks.TASKS
    require(sees_images, f"task {config.task} has no images, and this program trains on {', '.join(image_tasks)} only")
    task = tasks.load(config.task, data_folder(config.data_dir))
    assert isinstance(task, ImageTask)
    check_fit(config, task, accelerator)
    set_seed(config.seed)
    network = build(config.model)
    task = task.to(accelerator.device)
    main = accelerator.is_main_process
    directory = RunDirectory(new_directory(config.out, preset), preset, config, accelerator.device) if main else None
    log = directory.log if directory else lambda **_: None
    if directory:
        print(f"Writing to {directory.path}")

    models: list[tuple[str, Network, list[int]]] = [("MIMOConv", network, sorted(config.n))]
    if config.controls:
        for name, plain in controls(network, {min(config.n), max(config.n)}).items():
            set_seed(config.seed)
            models.append((name, WideResNet(plain), [1]))
    probe = task.pixels(task.test.images[:PROBE])
    before = interference(network.to(accelerator.device), config, probe) if main else {}
    trained = [(name, *train(model, task, config, accelerator, name=name, log=log), ns) for name, model, ns in models]
    if directory is None:
        return Path()
    for _, model, _, ns in trained:
        for n in ns:
            recalibrate(model, (task.pixels(images) for images in task.train.images[:4096].split(512)), n)

    images = task.pixels(task.train.images.repeat(-(-THROUGHPUT_IMAGES // len(task.train.labels)), 1, 1, 1)[:THROUGHPUT_IMAGES])
    settings = [(name, model, n) for name, model, _, ns in trained for n in ns]
    rates = images_per_second([(model, n) for _, model, n in settings], images)
    answers = [classify(model, task, task.test, n) for _, model, n in settings]
    rights = [classes == task.test.labels for classes in answers]
    rows = [
        Row(
            model=name,
            n=n,
            accuracy=right.double().mean().item(),
            images_per_second=rate,
            speedup=rate / rates[0],
            macs=count_macs(model, n),
            superposed=isinstance(model, MIMOConv),
        )
        for (name, model, n), right, rate in zip(settings, rights, rates, strict=True)
    ]
    after = interference(network, config, probe)
    result = {
        "preset": preset,
        "task": task.name,
        "seed": config.seed,
        "rows": [asdict(row) for row in rows],
        "accuracy_per_slot": {n: accuracy_per_slot(right, n) for right, n in zip(rights, sorted(config.n), strict=False)},
        "changed_by_regrouping": {
            n: regrouped_share(network, task, n, classes, torch.Generator().manual_seed(config.seed))
            for classes, n in zip(answers, sorted(config.n), strict=False)
        },
        "crosstalk": {"before": before, "after": after},
        "images_seen": {name: seen for name, _, seen, _ in trained},
        "wall_seconds": time.perf_counter() - start,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
    directory.write("result.json", result)
    pictures = [directory.path / "accuracy_throughput.png", directory.path / "crosstalk.png"]
    report.plot(rows, pictures[0])
    report.plot_crosstalk(before, after, pictures[1])
    details = {"config": asdict(config), "environment": directory.environment, "result": result}
    title = f"{preset}: {task.name}, seed {config.seed}"
    (directory.path / "report.html").write_text(report.page(rows, title, pictures, details))
    names = ", ".join(path.name for path in pictures)
    print(f"\n{report.table(rows)}\n\n{report.verdict(rows)}\n\n{directory.path}: result.json, {names}, report.html")
    return directory.path


def interference(network: MIMOConv, config: RunConfig, images: Float[Tensor, "count c h w"]) -> dict[int, dict[str, float]]:
    """`crosstalk_by_depth` for each n, with the same draws wherever the seed is the same."""
    return {n: crosstalk_by_depth(network, images, n, torch.Generator().manual_seed(config.seed)) for n in sorted(config.n)}


def build(config: MIMOConvConfig) -> MIMOConv:
    """The network; ConfigError where its sizes are beyond the machine."""
    try:
        return MIMOConv(config)
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # the allocator's errors, and sizes beyond 64 bits
        raise ConfigError(f"this network is too large to be built: {str(error).splitlines()[0]}") from error


def controls(network: MIMOConv, inputs: set[int]) -> dict[str, WideResNetConfig]:
    """The plain networks that cost as much as each number of inputs a pass, under names that say so, or how far they are off.

    One network where two numbers come down to the same.
    """
    chosen = {equal_cost(network.config, count_macs(network, n)): n for n in sorted(inputs)}
    names = {}
    for config, n in chosen.items():
        with torch.device("meta"):
            ratio = count_macs(WideResNet(config)) / count_macs(network, n)
        names[f"plain CNN, {'' if abs(ratio - 1) <= TOLERANCE else f'{ratio:.2f}x the '}cost of n={n}"] = config
    return names


def check_fit(config: RunConfig, task: ImageTask, accelerator: Accelerator) -> None:
    """Raise ConfigError unless the network's input and output are the task's, and the groups can be shared by the processes."""
    world = accelerator.num_processes
    require(config.optim.groups % world == 0, f"optim.groups = {config.optim.groups} cannot be shared by {world} processes")
    channels, size = task.train.images.shape[1:3]
    needed = {"in_channels": channels, "image_size": size, "num_classes": task.classes}
    require(config.augment.crop < size, f"augment.crop = {config.augment.crop}, but the images of {task.name} have {size} pixels")
    require(config.model.mean is None, "each task scales its images itself: leave out --model.mean and --model.std")
    for name, value in needed.items():
        given = getattr(config.model, name)
        require(given == value, f"task {task.name} needs --model.{name.replace('_', '-')} {value}, got {given}")
