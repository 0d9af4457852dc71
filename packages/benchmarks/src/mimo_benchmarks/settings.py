"""What a run is made of: frozen dataclasses that check themselves and fill `--help`."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.datamux import DataMUXConfig, DataMUXConvConfig
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig

ImageConfig = MIMOConvConfig | WideResNetConfig | DataMUXConvConfig
TokenConfig = MIMOFormerConfig | DataMUXConfig
ModelConfig = ImageConfig | TokenConfig
"""The networks that the program trains: those of images, and those of tokens."""
FREE = {"out", "resume", "threads", "device", "tracker", "data_dir", "log_every", "save_every", "controls"}
"""Settings that a resumed run may change, and in which runs that are averaged may differ: none of them changes what is learnt."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a network is trained."""

    steps: int = 650
    """Training steps."""
    groups: int = 32
    """Superpositions a step, over all processes and accumulated batches; each holds n inputs, or n x n in a MIMOFormer."""
    accumulate: int = 1
    """Batches that a step's superpositions are split into; their gradients are added up, which saves memory."""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """Muon updates the hidden layers' weights, and SGD what else there is."""
    lr: float = 8e-3
    """Peak learning rate."""
    rest_lr: float = 0.05
    """The same of what Muon leaves to SGD."""
    momentum: tuple[float, float] = (0.95, 0.95)
    """Of SGD, or of Muon and its SGD: while the rate is lowest, and at its peak. Two values cycle it against the rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    eps: float = 1e-8
    """Of AdamW."""
    weight_decay: float = 0.2
    """Decoupled in AdamW and Muon, added to the gradient in SGD."""
    decay: Literal["published", "usual"] = "published"
    """What decays: all but slopes of activations, or the weights of convolutions and linear layers only."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the rate rises and falls: one cycle (Smith and Topin, 2018)."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    start: float = 0.04
    """The first step's rate, as a share of the peak."""
    end: float = 4e-6
    """The last one's."""
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"
    """Squared: the distance of the answers from 1 for the class and -1 for the others, as DataMUX trains its CNN."""
    label_smoothing: float = 0.2
    """Share of the target spread evenly over all classes."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this norm."""
    reject: float = 0.0
    """Leave out an update whose gradient norm is this many times the mean of the last epoch's or more; 0 leaves none out."""
    average: float = 0.0
    """Decay of a moving average of the weights, which is what is evaluated then; 0 takes the weights themselves."""
    isometry: float = 0.0
    """gamma of MIMOConv's isometry penalty (Menet et al., 2023, Eq. 8 and 9); of wide ResNets too."""
    key_penalty: float = 0.0
    """Factor of the penalty on the binding keys' distance from orthonormal ones."""

    def __post_init__(self) -> None:
        for name in ("steps", "groups", "accumulate"):
            value = getattr(self, name)
            require(1 <= value < 2**31, f"optim.{name} must be from 1 to 2^31 - 1, got {value}")
        require(
            self.groups % self.accumulate == 0,
            f"optim.groups = {self.groups} cannot be split into optim.accumulate = {self.accumulate} equal batches",
        )
        for name in ("lr", "rest_lr", "eps"):
            value = getattr(self, name)
            require(0 < value < inf, f"optim.{name} must be above 0 and finite, got {value}")
        for name in ("weight_decay", "reject", "isometry", "key_penalty"):
            value = getattr(self, name)
            require(0 <= value < inf, f"optim.{name} must be finite and not negative, got {value}")
        for name in ("warmup", "start", "end"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name} is a share, from 0 to 1, got {value}")
        for name in ("momentum", "betas"):
            values = getattr(self, name)
            require(all(0 <= value < 1 for value in values), f"optim.{name} must be from 0 to below 1, got {values}")
        for name in ("label_smoothing", "average"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name} must be from 0 to below 1, got {value}")
        require(self.start > 0, f"optim.start must be above 0, got {self.start}")
        require(self.end > 0, f"optim.end must be above 0, got {self.end}")
        require(0 < self.max_grad_norm <= inf, f"optim.max_grad_norm must be above 0, got {self.max_grad_norm}")
        squared = self.loss == "squared" and self.label_smoothing > 0
        require(not squared, "optim.label_smoothing is of cross_entropy: set it to 0 with optim.loss squared")


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
    """One network, trained on one task."""

    task: str = "digits"
    """The data: digits, bundled with scikit-learn, or another task; `run.py data list` shows their sets."""
    model: ModelConfig = field(default_factory=MIMOConvConfig)
    """The network; what it takes and returns must be the task's."""
    n: tuple[int, ...] = (1, 2, 4)
    """N as the paper counts it: inputs a pass, or the side of a MIMOFormer's grid of n x n. Each step trains with one of these,
    drawn at random, and each is evaluated; a plain network sees as many inputs one by one."""
    n_odds: tuple[float, ...] = (1, 1, 3)
    """How often each n is drawn, relative to the others."""
    curriculum: tuple[int, ...] = ()
    """Other n to begin with, one after the other, for equal parts of the curriculum's share of the steps, with as many inputs a
    step as the largest n has."""
    curriculum_share: float = 0.0
    """Share of the steps that the curriculum takes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Of images; other tasks have none."""
    controls: bool = False
    """Also train the plain networks of equal cost and the thin one, on the same inputs."""
    seed: int = 0
    """Start of everything random; the same seed gives the same numbers on the same machine and thread count."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Of the forward pass; what `accelerate launch --mixed_precision` says unless given."""
    sync_batch_norm: bool = False
    """On several GPUs, BatchNorm over the inputs of all of them; each uses its own otherwise."""
    compile: bool = False
    """Compile the network with torch.compile; with CUDA graphs where every step is one pass of images of one shape."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to run; a GPU if there is one, unless given."""
    threads: int | None = None
    """CPU threads of a process, whatever OMP_NUM_THREADS says; all cores, shared between the processes, unless given."""
    data_dir: Path | None = None
    """Folder of data sets in torchvision's layout; else the variable MIMO_DATA, else the platform's cache folder."""
    out: Path | None = None
    """Run directory, which must not exist yet; runs/PRESET-001, -002, .. unless given."""
    resume: Path | None = None
    """A run directory to go on with, from its newest checkpoint; settings must be what they were."""
    tracker: tuple[str, ...] = ()
    """Also log to these, such as tensorboard or wandb, through accelerate."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    dev_every: int = 0
    """Steps between evaluations of dev accuracy, where a task has a dev split; 0 has none."""
    best: bool = False
    """Test the weights of the best dev accuracy rather than the last ones; none is kept while the curriculum lasts."""
    save_every: int = 1000
    """Steps between checkpoints; the last step has one too."""

    def __post_init__(self) -> None:
        require(len(self.n) > 0, "n must name at least one number of inputs a pass")
        require(len(set(self.n)) == len(self.n), f"n must not repeat a number, got {self.n}")
        for name in ("n", "curriculum"):
            for n in getattr(self, name):
                require(n >= 1, f"{name} must be at least 1, got {n}")
                capacity = sides(self.model)
                require(
                    capacity is None or n <= capacity,
                    f"{name} = {n}, but the model has room for {capacity}: {name} is from 1 to that",
                )
        odds = self.n_odds
        require(len(odds) == len(self.n), f"n_odds must hold one number for each of n = {self.n}, got {odds}")
        require(all(0 <= odd < inf for odd in odds), f"n_odds must be finite and not negative, got {odds}")
        require(0 < sum(odds) < inf, f"n_odds must have a finite sum above 0, got {odds}")
        for n in self.curriculum:
            require(
                max(self.n) % n == 0, f"curriculum = {n} must divide the largest n, {max(self.n)}, whose inputs a step it takes"
            )
        if isinstance(self.model, DataMUXConvConfig | DataMUXConfig):
            always = self.model.capacity
            require(
                self.n == (always,) and not self.curriculum, f"DataMUX has no n but its capacity: give --n {always}, got {self.n}"
            )
        share = self.curriculum_share
        require(0 <= share <= 1, f"curriculum_share must be from 0 to 1, got {share}")
        require((share > 0) == bool(self.curriculum), "curriculum and curriculum_share come together")
        alone = self.augment.mixup > 0 and self.optim.groups < 2
        require(
            not alone, "augment.mixup mixes images of different passes, and optim.groups = 1: there must be at least 2 a step"
        )
        require(0 <= self.seed < 2**32, f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        require(self.threads is None or self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        for name in ("log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.dev_every >= 0, f"dev_every must not be negative, got {self.dev_every}")
        require(not self.best or self.dev_every > 0, "best needs dev accuracies to choose by: give dev_every")

    @property
    def curriculum_steps(self) -> int:
        """Steps that the curriculum takes."""
        return round(self.curriculum_share * self.optim.steps)


def sides(model: ModelConfig) -> int | None:
    """The largest n that a network has room for; None of a plain one, which takes its inputs one by one."""
    if isinstance(model, WideResNetConfig):
        return None
    if isinstance(model, MIMOFormerConfig):
        return min(model.m, model.n) if model.m * model.n > 1 else None
    return model.capacity if model.capacity > 1 else None
