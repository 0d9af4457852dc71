"""What a run is made of: frozen dataclasses that check themselves and fill `--help`."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from mimo_benchmarks.errors import ConfigError
from mimoconv import MIMOConvConfig


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW on a one-cycle schedule."""

    steps: int = 650
    """Training steps."""
    groups: int = 32
    """Superpositions a step, over all processes; a step with n inputs a pass sees groups x n images."""
    lr: float = 8e-3
    """Peak learning rate."""
    weight_decay: float = 0.2
    """Decoupled weight decay, on every parameter."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; it falls along a cosine after them."""
    label_smoothing: float = 0.2
    """Share of the target spread evenly over all classes."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        for name in ("steps", "groups"):
            value = getattr(self, name)
            require(1 <= value < 2**31, f"optim.{name} must be from 1 to 2^31 - 1, got {value}")
        require(0 < self.lr < inf, f"optim.lr must be above 0 and finite, got {self.lr}")
        require(0 <= self.weight_decay < inf, f"optim.weight_decay must be finite and not negative, got {self.weight_decay}")
        require(0 <= self.warmup <= 1, f"optim.warmup is a share of the steps, from 0 to 1, got {self.warmup}")
        require(0 <= self.label_smoothing < 1, f"optim.label_smoothing must be from 0 to below 1, got {self.label_smoothing}")
        require(0 < self.max_grad_norm <= inf, f"optim.max_grad_norm must be above 0, got {self.max_grad_norm}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How every training image is varied; 0 leaves a step out."""

    rotate: float = 3.0
    """Most degrees either way."""
    shift: float = 0.2
    """Most pixels along either axis."""
    scale: float = 0.03
    """Most relative growth or shrinkage of either axis."""
    crop: int = 0
    """Pixels of padding on every side, before a crop of the image's own size is taken at random."""
    border: Literal["reflect", "zero"] = "reflect"
    """What the padding shows: the image mirrored at its outermost pixels, or black."""
    flip: bool = False
    """Mirror every other image left to right."""
    mixup: float = 0.0
    """The alpha of mixup (Zhang et al., 2018): images are mixed in shares from Beta(alpha, alpha) with others of other passes."""
    mixup_each: bool = True
    """A share of its own for every image, not one for a whole step."""

    def __post_init__(self) -> None:
        for name in ("rotate", "shift", "scale", "mixup"):
            value = getattr(self, name)
            require(0 <= value < inf, f"augment.{name} must be finite and not negative, got {value}")
        require(self.scale < 1, f"augment.scale must be below 1, got {self.scale}")
        require(0 <= self.crop < 2**15, f"augment.crop must be from 0 to 2^15 - 1, got {self.crop}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment: a dynamic MIMOConv, evaluated with each n, and plain networks of equal cost beside it."""

    task: str = "digits"
    """The data: digits, bundled with scikit-learn, or an image set of the data folder; `run.py data list` shows them."""
    model: MIMOConvConfig = field(default_factory=MIMOConvConfig)
    """The superposed network; its channels, classes and image size must be the task's."""
    n: tuple[int, ...] = (1, 2, 4)
    """Inputs a pass: each step trains with one of these, drawn at random, and each is evaluated."""
    n_odds: tuple[float, ...] = (1, 1, 3)
    """How often each n is drawn, relative to the others."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    controls: bool = True
    """Also train plain CNNs that cost as much as the smallest and the largest n, on the same images."""
    seed: int = 0
    """Start of everything random; the same seed gives the same numbers on the same machine and thread count."""
    threads: int | None = None
    """CPU threads of a process; all cores that it may use, shared between the processes, unless given."""
    data_dir: Path | None = None
    """Folder of data sets in torchvision's layout; else the variable MIMO_DATA, else the platform's cache folder."""
    out: Path | None = None
    """Run directory, which must not exist yet; runs/PRESET-001, -002, .. unless given."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        require(len(self.n) > 0, "n must name at least one number of inputs a pass")
        require(len(set(self.n)) == len(self.n), f"n must not repeat a number, got {self.n}")
        for n in self.n:
            require(
                1 <= n <= self.model.capacity, f"n = {n}, but model.capacity is {self.model.capacity}: n is from 1 to capacity"
            )
        odds = self.n_odds
        require(len(odds) == len(self.n), f"n_odds must hold one number for each of n = {self.n}, got {odds}")
        require(all(0 <= odd < inf for odd in odds), f"n_odds must be finite and not negative, got {odds}")
        require(0 < sum(odds) < inf, f"n_odds must have a finite sum above 0, got {odds}")
        alone = self.augment.mixup > 0 and self.optim.groups < 2
        require(
            not alone, "augment.mixup mixes images of different passes, and optim.groups = 1: there must be at least 2 a step"
        )
        require(0 <= self.seed < 2**32, f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        require(self.threads is None or self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
