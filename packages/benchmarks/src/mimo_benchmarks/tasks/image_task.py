"""Tasks of classifying images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mimo_benchmarks.data.vision.augment import beta_quantiles, varied_batch
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.networks.network import Inputs, Network
from mimo_benchmarks.settings import AugmentConfig, RunConfig, require
from mimo_benchmarks.tasks.protocol import Batch, Task, class_counts
from mimoconv import normalization_gain_offset, normalize


@cache
def compiled_augmentation(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `varied_batch`, compiled into one function on a GPU; on a CPU it is fast enough as it is."""
    return torch.compile(varied_batch) if device == "cuda" else varied_batch


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Images to classify: kept as uint8, normalised for the network."""

    takes: ClassVar[Inputs] = "images"
    train: Split
    test: Split
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    scale: float = 255
    """The value of a white pixel."""
    mean: tuple[float, ...] = (0,)
    """Mean of each channel, from 0 to 1, which is subtracted from images."""
    std: tuple[float, ...] = (1,)
    """Standard deviation of each channel, which images are divided by."""

    @property
    def saved(self) -> dict[str, Any]:
        """Return mean, standard deviation and class names."""
        return {"mean": self.mean, "std": self.std, "class_names": self.class_names}

    def pixels(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images normalised, as a network takes them."""
        return normalize(images, self.mean, self.std, scale=self.scale)

    def items(self, split: Split, index: Int[Tensor, " b"], length: int | None = None) -> tuple[Float[Tensor, "b c h w"], None]:
        """Return images, normalised, and no mask."""
        return self.pixels(split.images[index.to(split.images.device)]), None

    def training_batch(
        self,
        index: Int[Tensor, " size"],
        inputs: int,
        share: tuple[int, int],
        augment: AugmentConfig,
        key: Int[Tensor, "2"],
        length: int | None = None,
    ) -> Batch:
        """Return augmented images, and the share of each class in them: 1 for the label, less where another image is mixed in."""
        device = self.train.images.device
        images, shares = compiled_augmentation(device.type)(
            self.train.images,
            self.train.labels,
            index.to(device, non_blocking=True),
            key.to(device, non_blocking=True),
            beta_quantiles(augment.mixup, device),
            *normalization_gain_offset(self.mean, self.std, scale=self.scale, device=device),
            config=augment,
            n=inputs,
            classes=len(self.class_names),
            rank=share[0],
            world=share[1],
        )
        return images, None, shares

    def check(self, config: RunConfig, network: Network) -> None:
        """Raise ConfigError unless the network and the settings fit these images."""
        super().check(config, network)
        channels, size = self.train.images.shape[1:3]
        self.require_model(config, in_channels=channels, image_size=size, num_classes=len(self.class_names))
        crop = config.augment.crop
        require(crop < size, f"augment.crop = {crop}, but the images of {self.name} are {size} x {size} pixels: give less")

    def describe(self) -> str:
        """Describe how large the images are, and how many each class has."""
        c, h, w = self.train.images.shape[1:]
        splits = (("train", self.train), ("test", self.test))
        lines = [class_counts(name, split.labels, len(self.class_names)) for name, split in splits]
        return "\n".join([f"images {c} x {h} x {w}", *lines])

    @classmethod
    def random(cls, network: Network, count: int) -> "ImageTask":
        """Return a task of random images of the network's size and number of classes."""
        model, generator = network.config, torch.Generator().manual_seed(0)
        shape = (count, model.in_channels, model.image_size, model.image_size)
        images = torch.randint(256, shape, generator=generator).to(torch.uint8)
        split = Split(images=images, labels=torch.randint(model.num_classes, (count,), generator=generator))
        channels, names = model.in_channels, numbered(model.num_classes)
        return cls(name="random", train=split, test=split, class_names=names, mean=(0.0,) * channels, std=(1.0,) * channels)


def numbered(classes: int) -> tuple[str, ...]:
    """Return the names 0, 1, .. of so many classes."""
    return tuple(map(str, range(classes)))
