"""What a network of this package is made of: plain frozen dataclasses that check themselves."""

from dataclasses import dataclass


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
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6k + 4 with k >= 1 (10, 16, 22, 28, ..), got {self.depth}")
        if round(16 * self.width) < 1:
            raise ValueError(f"width must leave at least one channel of 16, got {self.width}")
        for name in ("num_classes", "in_channels", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

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
        for name in ("capacity", "stem_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(BodyConfig):
    """A plain wide ResNet (Zagoruyko and Komodakis, 2016) from the same blocks: the control beside MIMOConv."""

    stem_channels: int = 16
    """Feature maps after the first convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem_channels < 1:
            raise ValueError(f"stem_channels must be at least 1, got {self.stem_channels}")
