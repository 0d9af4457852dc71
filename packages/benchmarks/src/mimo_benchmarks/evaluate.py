"""Accuracy in eval mode."""

import torch

from mimo_benchmarks.tasks import Task
from mimo_benchmarks.train import Network
from mimoconv import predict

CHUNK = 1024
"""Images handed over at a time, to bound memory; rounded down to whole groups."""


def accuracy(network: Network, task: Task, n: int) -> float:
    """Share of all test images classified right with n a pass, in the order of the set."""
    chunk = max(1, CHUNK // n) * n
    images, labels = task.test.images.split(chunk), task.test.labels.split(chunk)
    right = [(predict(network, task.pixels(x), n).argmax(-1) == y).sum() for x, y in zip(images, labels, strict=True)]
    return int(torch.stack(right).sum()) / len(task.test.labels)
