"""The kinds of tasks: what a data set is as its networks see it."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.synthetic.tokens import TokenSplit
from mimo_benchmarks.data.vision.images import Split


@lru_cache
def normaliser(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """See `ImageTask.normaliser`."""
    deviation = torch.tensor(std, dtype=torch.float64)
    gain, offset = 1 / (scale * deviation), -torch.tensor(mean) / deviation
    return gain.float()[:, None, None].to(device), offset.float()[:, None, None].to(device)


def normalised(
    images: UInt8[Tensor, "b c h w"], scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b c h w"]:
    """Grey levels as a network sees them: on a scale from 0 to 1, less the mean, over the deviation of each channel."""
    gain, offset = normaliser(scale, mean, std, images.device)
    return images * gain + offset


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Images to classify, as uint8; a network sees them normalised."""

    name: str
    train: Split
    test: Split
    classes: int
    scale: float = 255
    """The value of a white pixel."""
    mean: tuple[float, ...] = (0,)
    """Of each channel, on a scale from 0 to 1; taken off."""
    std: tuple[float, ...] = (1,)
    """Likewise; divided by."""

    def normaliser(self, device: torch.device) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """What grey levels are multiplied with, and what is added then."""
        return normaliser(self.scale, self.mean, self.std, device)

    def pixels(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What a network sees of these images."""
        return normalised(images, self.scale, self.mean, self.std)

    def to(self, device: torch.device) -> "ImageTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class SequenceTask:
    """Sequences to classify, or pairs of them."""

    name: str
    train: Sequences
    dev: Sequences
    test: Sequences
    classes: int
    vocab_size: int
    """Token ids are below this; 0 is padding."""
    max_length: int
    """No sequence is longer."""

    def to(self, device: torch.device) -> "SequenceTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), dev=self.dev.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class TokenTask:
    """Sequences of which some tokens are to be predicted from those before."""

    name: str
    train: TokenSplit
    test: TokenSplit
    vocab_size: int
    guesses: dict[str, float]
    """Shares of the test tokens that guesses get right which need no look at the question."""

    def to(self, device: torch.device) -> "TokenTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


Task = ImageTask | SequenceTask | TokenTask
