"""Configurations of the networks: frozen dataclasses that check themselves."""

import inspect
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

from vsa_core import checks

__all__ = [
    "Activation",
    "Init",
    "MIMOConvConfig",
    "NetworkConfig",
    "Stem",
    "SuperposedConfig",
    "WideResNetConfig",
    "check_task_fields",
]

Stem = Literal["conv", "conv-norm", "conv-norm-relu"]
Activation = Literal["relu", "prelu"]
Init = Literal["kaiming", "orthogonal", "delta"]


def check_task_fields(config: Any) -> None:
    """Raise unless mean and std of each channel and the names of the classes are right or None; make them tuples."""
    if (config.mean is None) != (config.std is None):
        raise ValueError(f"mean is {config.mean} and std is {config.std}: give both or neither")
    if config.mean is not None:
        for name in ("mean", "std"):  # any sequence of numbers
            object.__setattr__(config, name, tuple(map(float, getattr(config, name))))
        mean, std = config.mean, config.std
        if not len(mean) == len(std) == config.in_channels:
            raise ValueError(f"mean {mean} and std {std} must have {config.in_channels} entries, one per channel")
        if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
            raise ValueError(f"mean {mean} must be from 0 to 1, and std {std} above 0 and at most 1")
    names = config.class_names
    if names is not None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names must be a sequence of strings, got {names!r}")
        if len(names) != config.num_classes:
            raise ValueError(f"class_names has {len(names)} names, but num_classes is {config.num_classes}: give one per class")
        object.__setattr__(config, "class_names", tuple(names))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the configurations of MIMOConv and of plain wide ResNets share.

    Attributes:
        num_classes: Number of classes, with one logit each.
        depth: Number of convolutions, 6k + 4: three stages of k blocks of two (10, 16, 22, 28, ..).
        width: Factor on the channels of the three stages, 16, 32 and 64; the products are rounded (see `stages`).
        in_channels: Channels of an image.
        image_size: Height and width, in pixels, for which multiply-adds are counted; the network takes images of any size.
        stem_channels: D: feature maps after the first convolution; in MIMOConv the dimension of the binding keys.
        stem: Layers before binding, or before the first block: a convolution, with BatchNorm and ReLU if named.
        activation: Activation of the blocks: ReLU, or PReLU with one slope per channel, trained from 0.5.
        final_norm: Whether BatchNorm and an activation come before pooling.
        init: Initial weights of the blocks' convolutions: Kaiming normal (fan-out), or near-isometric (see `blocks.conv`).
        mean: Mean of each channel over the training images, from 0 to 1; `predict` normalises uint8 images by it.
        std: Standard deviation of each channel over the training images; `predict` normalises uint8 images by it.
        class_names: Names of the classes, in the order of the logits.
    """

    num_classes: int = 10
    depth: int = 28
    width: float = 10
    in_channels: int = 3
    image_size: int = 32
    stem_channels: int = 16
    stem: Stem = "conv"
    activation: Activation = "relu"
    final_norm: bool = True
    init: Init = "kaiming"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __init_subclass__(cls) -> None:
        if cls.__doc__ and NetworkConfig.__doc__:  # help() shows a class's own docstring alone
            inherited = inspect.cleandoc(NetworkConfig.__doc__).partition("Attributes:\n")[2]
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n{inherited}"

    def __post_init__(self) -> None:
        counts = ("num_classes", "depth", "in_channels", "image_size", "stem_channels")
        checks.positive(**{name: getattr(self, name) for name in counts})
        checks.booleans(final_norm=self.final_norm)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6k + 4 with k >= 1 (10, 16, 22, 28, ..), got {self.depth!r}")
        if not isinstance(self.width, Real) or isinstance(self.width, bool):
            raise TypeError(f"width must be a number, got {self.width!r}")
        if not math.isfinite(64 * self.width) or round(16 * self.width) < 1:
            raise ValueError(f"width must be finite and leave at least one channel of 16, got {self.width!r}")
        for name, choices in (("stem", Stem), ("activation", Activation), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        check_task_fields(self)

    @property
    def stages(self) -> tuple[int, int, int]:
        """Channels of the three stages, rounded."""
        return round(16 * self.width), round(32 * self.width), round(64 * self.width)

    @property
    def blocks(self) -> int:
        """Blocks per stage."""
        return (self.depth - 4) // 6

    @property
    def size(self) -> str:
        """Depth and width as names of networks end, such as 28-10."""
        return f"{self.depth}-{self.width:g}"


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(NetworkConfig):
    """Configuration of a plain wide ResNet (Zagoruyko and Komodakis, 2016), the baseline and control of MIMOConv.

    Attributes:
        capacity: The most images that can share one pass; a plain network takes them one by one.
    """

    capacity: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """Name of the network in tables, such as WideResNet-28-10."""
        return f"WideResNet-{self.size}"


@dataclass(frozen=True, kw_only=True)
class MIMOConvConfig(NetworkConfig):
    """Configuration of MIMOConv (Menet et al., 2023, section 3); the published runs have `stem="conv-norm-relu"`.

    Attributes:
        capacity: N: the most images that can share one pass.
        trainable_keys: Whether the binding keys are trained.
        unbinding_relu: Whether bias and ReLU follow the unbinding matrices, as in the published runs; Eq. 6 has neither.
    """

    stem_channels: int = 64
    stem: Stem = "conv-norm"
    activation: Activation = "prelu"
    final_norm: bool = False
    capacity: int = 4
    trainable_keys: bool = True
    unbinding_relu: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(capacity=self.capacity)
        checks.booleans(trainable_keys=self.trainable_keys, unbinding_relu=self.unbinding_relu)

    @property
    def label(self) -> str:
        """Name of the network in tables, such as MIMOConv-28-10."""
        return f"MIMOConv-{self.size}"


@dataclass(frozen=True, kw_only=True)
class SuperposedConfig:
    """Configuration of `Superposed`: all of it but the stem, body and head, which are the caller's.

    Attributes:
        capacity: N: the most images that can share one pass.
        dim: D: channels that the stem returns, the dimension of the binding keys.
        features: Channels that the body returns.
        trainable_keys: Whether the binding keys are trained.
        unbinding_relu: Whether bias and ReLU follow the unbinding matrices, as in the published runs of MIMOConv.
    """

    capacity: int
    dim: int
    features: int
    trainable_keys: bool = True
    unbinding_relu: bool = True

    def __post_init__(self) -> None:
        checks.positive(capacity=self.capacity, dim=self.dim, features=self.features)
        checks.booleans(trainable_keys=self.trainable_keys, unbinding_relu=self.unbinding_relu)

    @property
    def label(self) -> str:
        """Name of the network in tables."""
        return "Superposed CNN"
