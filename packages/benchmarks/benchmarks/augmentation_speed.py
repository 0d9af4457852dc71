"""Measure augmented CIFAR-10 images per second on this machine's GPU or CPU: the median of timed rounds, after a check.

python packages/benchmarks/benchmarks/augmentation_speed.py [FOLDER]

It times everything that a training step does for its images: order, draws, crop, mirror, mixup, normalisation, targets.
Without CIFAR-10 in the data folder, it uses random images, which cost the same.
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.data.vision.augment import CORRECTED, NONE, PUBLISHED
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.errors import DatasetError
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.image_task import ImageTask, numbered
from mimo_benchmarks.tasks.registry import cifar10
from mimo_benchmarks.training.feed import Feed
from mimoconv import MIMOConvConfig

ROUNDS, N = 15, 4
WARM_UP = 30
"""Seconds of work before the first timing on a GPU."""


def cifar10_or_random(folder: Path) -> ImageTask:
    """Return CIFAR-10, or as many random images."""
    try:
        return cifar10(folder)
    except DatasetError as error:
        print(f"random images: {error}")
        images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
        split = Split(images=images, labels=torch.randint(10, (50_000,)))
        return ImageTask(name="random", train=split, test=split, class_names=numbered(10), mean=(0.5,) * 3, std=(0.25,) * 3)


def main() -> None:
    """Print a line for each pipeline and batch size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    host = cifar10_or_random(data_folder(Path(sys.argv[1]) if sys.argv[1:] else None))
    data = host.to(device)
    began = time.perf_counter()
    steps = 40 if device.type == "cuda" else 2
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    for pipeline, augment in (
        ("crop and mirror", replace(NONE, crop=4, flip=True)),
        ("corrected", CORRECTED["cifar10"]),
        ("published", PUBLISHED["cifar10"]),
    ):
        for groups in (128, 1024):
            optim = OptimConfig(groups=groups, steps=2 + ROUNDS * steps)
            config = RunConfig(task="cifar10", model=MIMOConvConfig(), n=(N,), n_odds=(1,), augment=augment, optim=optim)
            feed, reference = Feed(data, config), Feed(host, config)
            for step in (1, 2):
                for ours, expected in zip(feed.batch(step), reference.batch(step), strict=True):
                    if ours is not None and expected is not None:  # images have no mask
                        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-4)
            rates = []
            # the compiler starts processes in the background, which must have ended
            while device.type == "cuda" and time.perf_counter() - began < WARM_UP:
                feed.batch(1)
            for round_ in range(ROUNDS):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for step in range(steps):
                    feed.batch(3 + round_ * steps + step)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                rates.append(groups * N * steps / (time.perf_counter() - start))
            rate = statistics.median(rates)
            views = 2 if augment.mixup else 1
            moved = rate * 3072 * (views + 4)  # pixels read as bytes, written as float32
            print(
                f"{pipeline:16} batch {groups * N:5}: {rate:12,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}), "
                f"at least {moved / 1e12:.4f} TB/s"
            )


if __name__ == "__main__":
    main()
