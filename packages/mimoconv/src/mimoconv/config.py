"""What a network of this package is made of: plain frozen dataclasses that check themselves."""

import math
from dataclasses import dataclass
from numbers import Integral


def positive(**counts: int) -> None:
    """Raise ValueError unless every named setting is a whole number and at least 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """What MIMOConv and the plain wide ResNet share."""

    num_classes: int = 10
    """Number of classes, one logit each."""
    depth: int = 28
    """Layers, 6k + 4: three stages of k blocks of two convolutions (10, 16, 22, 28, ..)."""
    width: float = 10
    """Multiplies the channels of the three stages, 16, 32 and 64, each rounded to a whole number."""
    in_channels: int = 3
    """Channels of an image."""
    image_size: int = 32
    """Height and width, in pixels, that multiply-adds are counted for; the network takes any size."""

    def __post_init__(self) -> None:
        if not isinstance(self.depth, Integral) or self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6k + 4 with k >= 1 (10, 16, 22, 28, ..), got {self.depth!r}")
        if not math.isfinite(self.width) or round(16 * self.width) < 1:
            raise ValueError(f"width must be finite and leave at least one channel of 16, got {self.width}")
        positive(num_classes=self.num_classes, in_channels=self.in_channels, image_size=self.image_size)

    @property
    def stages(self) -> tuple[int, int, int]:
        """Channels of the three stages, rounded."""
        return round(16 * self.width), round(32 * self.width), round(64 * self.width)

    @property
    def blocks(self) -> int:
        """Blocks a stage."""
        return (self.depth - 4) // 6


@dataclass(frozen=True, kw_only=True)
class MIMOConvConfig(BodyConfig):
    """MIMOConv (Menet et al., 2023, section 3)."""

    capacity: int = 4
    """N: the most images that can share one forward pass."""
    stem_channels: int = 64
    """D: feature maps after the first convolution, the dimension that keys bind in."""
    trainable_keys: bool = True
    """Whether the binding keys are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(capacity=self.capacity, stem_channels=self.stem_channels)


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(BodyConfig):
    """A plain wide ResNet (Zagoruyko and Komodakis, 2016) from the same blocks: the control beside MIMOConv."""

    stem_channels: int = 16
    """Feature maps after the first convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(stem_channels=self.stem_channels)
