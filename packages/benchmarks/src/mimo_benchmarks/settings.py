"""The settings of a run: frozen dataclasses that check themselves and fill `--help`."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.registry import ModelConfig, describe
from mimoconv import MIMOConvConfig

SET_BY_TASK = {"mean", "std", "class_names", "tokenizer", "words"}
"""Fields of a network's configuration that its finished form takes from the task."""
UNRELATED_TO_LEARNING = {
    "out",
    "resume",
    "threads",
    "timeout",
    "device",
    "tracker",
    "data_dir",
    "log_every",
    "save_every",
    "controls",
    "rates",
    "compile",
    "cuda_graphs",
}
"""Settings that do not change what is learnt: a resumed run may change them, and averaged runs may differ in them."""

MOST_STEPS = 10**7
"""Most steps of a run: what chance decides of each is drawn before the first, which takes a gigabyte for as many."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a network is trained.

    Attributes:
        steps: Number of training steps.
        groups: Superpositions per step, over all processes and accumulated batches. Each holds n inputs, or n x n in a
            MIMOFormer.
        accumulate: Number of batches that each step is split into to save memory; their gradients are added up.
        optimizer: Optimizer. With muon, Muon updates hidden weights and SGD updates the rest.
        lr: Peak learning rate.
        rest_lr: Peak learning rate of the parameters that Muon leaves to SGD.
        momentum: Momentum of SGD and Muon while the learning rate is lowest, and at its peak; two values cycle it against the
            rate.
        betas: AdamW's decay rates of the mean and the variance of gradients.
        peak_beta1: AdamW's first beta at the peak of the learning rate. It then cycles against the rate, as momentum does, from
            betas[0] and back; None keeps it constant.
        eps: AdamW's epsilon.
        weight_decay: Weight decay: decoupled in AdamW and Muon, added to the gradient in SGD.
        decay: What decays: all but slopes of activations (published), or only weights of convolutions and linear layers (usual).
        schedule: Shape of the rise and fall of the learning rate: one cycle of half cosines (cosine) or straight lines (linear;
            Smith and Topin, 2018), or a half cosine from the peak at step 0 to the end, whose beginning a linear rise replaces
            (annealing).
        rate_parts: Number of equal parts of the steps, such as epochs, in each of which annealing keeps the learning rate
            constant; 0 changes it at every step.
        warmup: Share of the steps in which the learning rate rises.
        start: Learning rate of the first step, as a share of the peak.
        end: Learning rate at which the schedule ends, one step after the last, as a share of the peak.
        loss: Loss. squared is the distance of the answers from 1 for the class and -1 for the others, as DataMUX trains its CNN.
        label_smoothing: Share of the target that is spread evenly over all classes.
        max_grad_norm: Largest norm of the gradient; larger gradients are scaled down to it.
        reject: Skip an update whose gradient norm, before it is scaled down, is at least this many times the mean of the updates
            made in the last epoch; 0 skips none.
        average: Decay of the moving average of the weights that is evaluated; 0 evaluates the weights themselves.
        isometry: Factor gamma of the isometry penalty of MIMOConv and wide ResNets (Menet et al., 2023, Eq. 8 and 9).
        key_penalty: Factor of the penalty on the distance of MIMOConv's binding keys from orthonormal ones.
    """

    steps: int = 650
    groups: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 8e-3
    rest_lr: float = 0.05
    momentum: tuple[float, float] = (0.95, 0.95)
    betas: tuple[float, float] = (0.9, 0.999)
    peak_beta1: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.2
    decay: Literal["published", "usual"] = "published"
    schedule: Literal["cosine", "linear", "annealing"] = "cosine"
    rate_parts: int = 0
    warmup: float = 0.1
    start: float = 0.04
    end: float = 4e-6
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"
    label_smoothing: float = 0.2
    max_grad_norm: float = 10.0
    reject: float = 0.0
    average: float = 0.0
    isometry: float = 0.0
    key_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("steps", MOST_STEPS), ("groups", 2**31 - 1), ("accumulate", 2**31 - 1)):
            value = getattr(self, name)
            require(1 <= value <= most, f"optim.{name} must be from 1 to {most:,}, got {value}")
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
        if self.peak_beta1 is not None:
            require(0 <= self.peak_beta1 < 1, f"optim.peak_beta1 must be from 0 to below 1, got {self.peak_beta1}")
        require(self.rate_parts >= 0, f"optim.rate_parts must not be negative, got {self.rate_parts}")
        if self.schedule == "annealing":
            lowest, peak = self.momentum_cycle
            name = "peak_beta1" if self.optimizer == "adamw" else "momentum"
            require(lowest == peak, f"optim.{name} cycles, and optim.schedule annealing has no cycle: keep it constant")
        else:
            only = f"optim.rate_parts goes with optim.schedule annealing, not {self.schedule}: leave it out"
            require(self.rate_parts == 0, only)
            for name in ("start", "end"):
                value = getattr(self, name)
                require(value > 0, f"optim.{name} must be above 0 with optim.schedule {self.schedule}, got {value}")
        require(0 < self.max_grad_norm <= inf, f"optim.max_grad_norm must be above 0, got {self.max_grad_norm}")
        squared = self.loss == "squared" and self.label_smoothing > 0
        require(not squared, "optim.label_smoothing goes with cross_entropy only: set it to 0 with optim.loss squared")

    @property
    def momentum_cycle(self) -> tuple[float, float]:
        """Return momentum, or AdamW's first beta, while the learning rate is lowest, and at its peak."""
        if self.optimizer != "adamw":
            return self.momentum
        return self.betas[0], self.betas[0] if self.peak_beta1 is None else self.peak_beta1


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; 0 leaves a transformation out.

    Attributes:
        rotate: Largest rotation in degrees, either way.
        shift: Largest shift in pixels, along either axis.
        scale: Largest relative growth or shrinkage of either axis.
        crop: Pixels of padding on every side, from which a crop of the image's own size is taken at random.
        border: What the padding of crops shows: the image mirrored at its outermost pixels, or black.
        flip: Whether images are mirrored left to right with probability 1/2.
        mixup: Alpha of mixup (Zhang et al., 2018): images are mixed with ones of other passes, in shares from Beta(alpha, alpha).
        mixup_each: Whether mixup draws a share for every image rather than one per step.
    """

    rotate: float = 3.0
    shift: float = 0.2
    scale: float = 0.03
    crop: int = 0
    border: Literal["reflect", "zero"] = "reflect"
    flip: bool = False
    mixup: float = 0.0
    mixup_each: bool = True

    def __post_init__(self) -> None:
        for name in ("rotate", "shift", "scale", "mixup"):
            value = getattr(self, name)
            require(0 <= value < inf, f"augment.{name} must be finite and not negative, got {value}")
        require(self.scale < 1, f"augment.scale must be below 1, got {self.scale}")
        require(0 <= self.crop < 2**15, f"augment.crop must be from 0 to 2^15 - 1, got {self.crop}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One network, trained on one task.

    Attributes:
        task: Task to train on: digits needs no download; `mimonets data list` shows the others.
        model: Network to train; its inputs and classes must be those of the task.
        n: Inputs per pass, N in the paper; for a MIMOFormer the side of its grid of n x n. Each step trains with one of these,
            drawn at random, and each is evaluated. A plain network sees as many inputs one by one.
        n_odds: How often each n is drawn, relative to the others.
        curriculum: Values of n that training begins with, one after the other in equal parts of `curriculum_share`. Steps take as
            many inputs as with the largest n.
        curriculum_share: Share of the steps that the curriculum takes.
        optim: How the network is trained.
        augment: How training images are varied; tasks of tokens have no augmentation.
        controls: Also train the controls: plain networks of equal cost and a thin one, on the same inputs.
        rates: Measure inputs per second after training; leave it out where other programs use the device, which would slow it.
        seed: Seed of everything random; the same seed gives the same numbers on the same machine and thread count.
        precision: Precision of the forward pass; that of `accelerate launch --mixed_precision` unless given.
        sync_batch_norm: On several GPUs, compute BatchNorm statistics over the inputs of all GPUs rather than of each, which
            waits in every layer, so that no step is recorded as a CUDA graph.
        compile: On GPUs, compile networks without fused kernels of their own with torch.compile, which makes training faster.
        cuda_graphs: On GPUs, record each kind of step once as a CUDA graph and replay it, which saves the time of launching its
            kernels. A network that waits for the GPU in its forward pass cannot be recorded.
        device: Device to train on; a GPU if there is one, unless given.
        timeout: Seconds without a sign of life after which one of several processes counts as stopped, which ends the run.
        threads: CPU threads per process; unless given, OMP_NUM_THREADS, which launchers set to 1, else all cores but one.
        data_dir: Folder of data sets in torchvision's layout; unless given, the variable MIMO_DATA, else the platform's cache
            folder.
        out: Run directory to make, which must not exist yet; runs/PRESET-001, -002, .. unless given.
        resume: Run directory to resume from its newest checkpoint; settings must be what they were.
        tracker: Trackers to log to as well, such as tensorboard or wandb, through accelerate.
        log_every: Steps between lines of metrics.jsonl.
        dev_every: Steps between evaluations on the dev split, where a task has one; 0 never evaluates.
        best: Test the weights with the best dev accuracy rather than the last ones. Weights count only after the curriculum.
        save_every: Steps between checkpoints; the last step is saved too.
    """

    task: str = "digits"
    model: ModelConfig = field(default_factory=MIMOConvConfig)
    n: tuple[int, ...] = (1, 2, 4)
    n_odds: tuple[float, ...] = (1, 1, 3)
    curriculum: tuple[int, ...] = ()
    curriculum_share: float = 0.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    controls: bool = False
    rates: bool = True
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] | None = None
    sync_batch_norm: bool = False
    compile: bool = True
    cuda_graphs: bool = True
    device: Literal["cpu", "cuda"] | None = None
    timeout: int = 300
    threads: int | None = None
    data_dir: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    tracker: tuple[str, ...] = ()
    log_every: int = 20
    dev_every: int = 0
    best: bool = False
    save_every: int = 1000

    def __post_init__(self) -> None:
        require(len(self.n) > 0, "n is empty: give at least one number of inputs per pass")
        require(len(set(self.n)) == len(self.n), f"n must not repeat a number, got {self.n}")
        network = describe(self.model)
        for name in ("n", "curriculum"):
            for n in getattr(self, name):
                require(n >= 1, f"{name} must be at least 1, got {n}")
                room = f"{name} = {n}, but the model has room for {network.largest_n}: {name} is from 1 to that"
                require(network.any_n or n <= network.largest_n, room)
        odds = self.n_odds
        require(len(odds) == len(self.n), f"n_odds must hold one number for each of n = {self.n}, got {odds}")
        require(all(0 <= odd < inf for odd in odds), f"n_odds must be finite and not negative, got {odds}")
        require(0 < sum(odds) < inf, f"n_odds must have a finite sum above 0, got {odds}")
        for n in self.curriculum:
            equal = f"curriculum = {n} must divide the largest n, {max(self.n)}, so that steps take as many inputs"
            require(max(self.n) % n == 0, equal)
        if network.fixed_n:
            always = (network.capacity,)
            only = f"{self.model.label} has no n but its capacity: give --n {network.capacity}, got {self.n}"
            require(self.n == always and not self.curriculum, only)
        share = self.curriculum_share
        require(0 <= share <= 1, f"curriculum_share must be from 0 to 1, got {share}")
        together = f"curriculum and curriculum_share come together, got {self.curriculum} and {share}: give both or neither"
        require((share > 0) == bool(self.curriculum), together)
        alone = self.augment.mixup > 0 and self.optim.groups < 2
        require(not alone, "augment.mixup mixes images of different passes, and optim.groups is 1: it must be at least 2")
        require(0 <= self.seed < 2**32, f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        require(self.threads is None or self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        for name in ("log_every", "save_every", "timeout"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.dev_every >= 0, f"dev_every must not be negative, got {self.dev_every}")
        require(not self.best or self.dev_every > 0, "best needs dev accuracies to choose by: give dev_every")

    @property
    def curriculum_steps(self) -> int:
        """Number of steps that the curriculum takes."""
        return round(self.curriculum_share * self.optim.steps)
