"""Every experiment as a function; its docstring is the evidence."""

from collections.abc import Callable
from dataclasses import replace

from mimo_benchmarks.config import OptimConfig, RunConfig
from mimo_benchmarks.data.augment import NONE
from mimoconv import MIMOConvConfig


def quickstart() -> RunConfig:
    """scikit-learn's handwritten digits, 8 x 8 pixels: no download, about a minute on two CPU cores."""
    digits = MIMOConvConfig(capacity=4, depth=10, width=2, stem_channels=32, in_channels=1, image_size=8)
    return RunConfig(task="digits", model=digits)


def mnist() -> RunConfig:
    """MNIST, 28 x 28 pixels, from the data folder."""
    base = quickstart()
    model = replace(base.model, width=1, image_size=28)
    return replace(base, task="mnist", model=model, optim=OptimConfig(steps=600))


def cifar10() -> RunConfig:
    """CIFAR-10, 32 x 32 pixels in colour, from the data folder: a few minutes on a GPU."""
    model = MIMOConvConfig(capacity=4, depth=16, width=4)
    optim = OptimConfig(steps=5000, groups=64, lr=2e-3, weight_decay=0.05, label_smoothing=0.1)
    return RunConfig(task="cifar10", model=model, optim=optim, augment=replace(NONE, crop=4, flip=True))


PRESETS: dict[str, Callable[[], RunConfig]] = {preset.__name__: preset for preset in (quickstart, mnist, cifar10)}
