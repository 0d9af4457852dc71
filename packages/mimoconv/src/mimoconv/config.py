"""What a network of this package is made of: plain frozen dataclasses that check themselves."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

Stem = Literal["conv", "conv-norm", "conv-norm-relu"]
Activation = Literal["relu", "prelu"]
Init = Literal["kaiming", "orthogonal", "delta"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What MIMOConv and the plain wide ResNets share."""

    num_classes: int = 10
    """Number of classes, one logit each."""
    depth: int = 28
    """Convolutions, 6k + 4: three stages of k blocks of two (10, 16, 22, 28, ..)."""
    width: float = 10
    """Multiplies the channels of the three stages, 16, 32 and 64, each rounded to a whole number (`stages`)."""
    in_channels: int = 3
    """Channels of an image."""
    image_size: int = 32
    """Height and width, in pixels, that multiply-adds are counted for; the network takes any size."""
    stem_channels: int = 16
    """D: feature maps after the first convolution."""
    stem: Stem = "conv"
    """The first layers: a convolution, then BatchNorm, then ReLU."""
    activation: Activation = "relu"
    """Of the blocks: ReLU, or one slope per channel, trained from 0.5."""
    final_norm: bool = True
    """Whether BatchNorm and an activation come before pooling."""
    init: Init = "kaiming"
    """Start of the blocks' convolutions: Kaiming normal (fan-out), or at the centre tap an orthogonal matrix or the unit one."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel over the training images, from 0 to 1: what `predict` subtracts from uint8 images."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, what it divides them by."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "image_size", "stem_channels"):
            positive(name, getattr(self, name))
        if not isinstance(self.depth, Integral) or self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6k + 4 with k >= 1 (10, 16, 22, 28, ..), got {self.depth!r}")
        if not isinstance(self.width, Real) or not math.isfinite(64 * self.width) or round(16 * self.width) < 1:
            raise ValueError(f"width must be finite and leave at least one channel of 16, got {self.width!r}")
        for name, choices in (("stem", Stem), ("activation", Activation), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std come together, got {self.mean} and {self.std}")
        if self.mean is not None and self.std is not None:
            for name in ("mean", "std"):  # any sequence of numbers
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if not len(self.mean) == len(self.std) == self.in_channels:
                raise ValueError(f"mean {self.mean} and std {self.std} must have {self.in_channels} entries, one a channel")
            if not all(0 <= value <= 1 for value in self.mean) or not all(0 < value <= 1 for value in self.std):
                raise ValueError(f"mean {self.mean} must be from 0 to 1, and std {self.std} above 0 and at most 1")

    @property
    def stages(self) -> tuple[int, int, int]:
        """Channels of the three stages, rounded."""
        return round(16 * self.width), round(32 * self.width), round(64 * self.width)

    @property
    def blocks(self) -> int:
        """Blocks a stage."""
        return (self.depth - 4) // 6


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(NetworkConfig):
    """A plain wide ResNet (Zagoruyko and Komodakis, 2016): the baseline and the control beside MIMOConv."""


@dataclass(frozen=True, kw_only=True)
class MIMOConvConfig(NetworkConfig):
    """MIMOConv (Menet et al., 2023, section 3); the published runs have `stem="conv-norm-relu"`."""

    stem_channels: int = 64
    """D: feature maps after the first convolution, the dimension that keys bind in."""
    stem: Stem = "conv-norm"
    activation: Activation = "prelu"
    final_norm: bool = False
    capacity: int = 4
    """N: the most images that can share one forward pass."""
    trainable_keys: bool = True
    """Whether the binding keys are trained."""
    unbinding_relu: bool = True
    """Whether bias and ReLU follow the unbinding matrices, as in the published runs; the plain operator of Eq. 6 otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("capacity", self.capacity)


def positive(name: str, value: int) -> None:
    """Raise ValueError unless a setting is a whole number and at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")
