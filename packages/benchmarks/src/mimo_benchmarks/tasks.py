"""The tasks: real images as two splits of uint8 tensors, and how they become inputs of a network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mimo_benchmarks.errors import ConfigError, DatasetError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with their labels."""

    images: UInt8[Tensor, "count c h w"]
    labels: Int[Tensor, " count"]

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Task:
    """Training and test images of one data set; `scale` is the value of a white pixel."""

    name: str
    train: Split
    test: Split
    classes: int
    scale: float

    def pixels(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Grey levels from 0 to 1."""
        return images / self.scale

    def to(self, device: torch.device) -> "Task":
        """The whole set on another device."""
        return Task(**{**vars(self), "train": self.train.to(device), "test": self.test.to(device)})


def digits(folder: Path) -> Task:
    """1,797 handwritten digits of 8 x 8 pixels, bundled with scikit-learn: 1,437 to train on, 360 to test, stratified.

    The split is fixed: it does not follow the seed of a run.
    """
    from sklearn.datasets import load_digits  # here, because the import takes seconds
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8), labels, test_size=360, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Task(
        name="digits",
        train=Split(images=train_x.to(torch.uint8), labels=train_y.long()),
        test=Split(images=test_x.to(torch.uint8), labels=test_y.long()),
        classes=10,
        scale=16,
    )


MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the four unpacked files."""


def mnist(folder: Path) -> Task:
    """70,000 handwritten digits of 28 x 28 pixels, from FOLDER/MNIST/raw as torchvision lays it out.

    Raises:
        DatasetError: a file is missing, or not the published one.
    """
    for name, digest in MNIST_FILES.items():
        path = folder / "MNIST" / "raw" / name
        if not path.is_file():
            raise DatasetError(
                f"{path} is missing: put MNIST's four unpacked files there, or name another folder with --data-dir"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise DatasetError(f"{path} is not the published file, by its SHA-256: fetch it again")
    from torchvision.datasets import MNIST  # here, because the import takes seconds

    parts = [MNIST(folder, train=train) for train in (True, False)]
    train, test = (Split(images=part.data[:, None], labels=part.targets) for part in parts)
    return Task(name="mnist", train=train, test=test, classes=10, scale=255)


def cifar10(folder: Path) -> Task:
    """60,000 colour photographs of 32 x 32 pixels in ten classes, from FOLDER/cifar-10-batches-py as torchvision lays it out.

    Raises:
        DatasetError: the files are missing, or not the published ones by torchvision's checksums.
    """
    from torchvision.datasets import CIFAR10  # here, because the import takes seconds

    try:
        parts = [CIFAR10(folder, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DatasetError(
            f"{folder / CIFAR10.base_folder} is missing or not the published CIFAR-10: put its unpacked batches there, "
            "or name another folder with --data-dir"
        ) from error
    train, test = (
        Split(images=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), labels=torch.tensor(part.targets))
        for part in parts
    )
    return Task(name="cifar10", train=train, test=test, classes=10, scale=255)


TASKS: dict[str, Callable[[Path], Task]] = {task.__name__: task for task in (digits, mnist, cifar10)}


def load(name: str, folder: Path) -> Task:
    """The task of that name; `folder` holds the sets that are not bundled.

    Raises:
        ConfigError: there is no such task.
        DatasetError: its files are missing or wrong.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name](folder)
