"""What the program knows of MIMOConv and of plain wide ResNets."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

import mimoconv
from mimo_benchmarks.networks.network import Network, Place
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoconv.hub import LIBRARY
from vsa_core.penalties import key_orthonormality


class ImageNetwork(Network):
    """A network that classifies images (b *axes c h w)."""

    takes = "images"
    memory_format = torch.channels_last  # in which convolutions are faster, on CPUs too

    def example(self, count: int, device: torch.device) -> Float[Tensor, "count c h w"]:
        """Draw normally distributed images of the configured size."""
        config = self.config
        return torch.randn(count, config.in_channels, config.image_size, config.image_size, device=device)

    def predict(
        self, module: nn.Module, inputs: Shaped[Tensor, "count c h w"], n: int, mask: Bool[Tensor, " count"] | None = None
    ) -> Float[Tensor, "count classes"]:
        """Return the logits of a flat batch of images in eval mode; uint8 images are normalised as the configuration says."""
        if inputs.dtype == torch.uint8:
            inputs = mimoconv.normalize(inputs, self.config.mean, self.config.std)
        return super().predict(module, inputs, n)


class WideResNetNetwork(ImageNetwork):
    """A plain wide ResNet."""

    settings: ClassVar[type[Any]] = WideResNetConfig
    library = LIBRARY
    compiled = False

    def predict(
        self, module: Any, inputs: Shaped[Tensor, "count c h w"], n: int, mask: Bool[Tensor, " count"] | None = None
    ) -> Float[Tensor, "count classes"]:
        """Return the logits of a flat batch of images in eval mode."""
        return mimoconv.predict(module, inputs, *self.axes(n))

    def count_macs(self, module: Any, n: int) -> float:
        """Count multiply-adds per image."""
        return mimoconv.count_macs(module, *self.axes(n))

    @property
    def penalties(self) -> Mapping[str, Callable[[Any], Float[Tensor, ""]]]:
        """Return the penalty on the distance of convolutions from isometries."""
        return {"isometry": mimoconv.isometry_penalty}

    def recalibrate(self, module: Any, batches: Iterable[Tensor], n: int) -> None:
        """Estimate the BatchNorm statistics for n afresh on batches of normalised images."""
        mimoconv.recalibrate(module, batches, n)


class MIMOConvNetwork(WideResNetNetwork):
    """A MIMOConv."""

    settings = MIMOConvConfig

    @property
    def any_n(self) -> bool:
        """Return False: no control is a MIMOConv, and one of capacity 1 has room for n = 1 alone."""
        return False

    @property
    def penalties(self) -> Mapping[str, Callable[[Any], Float[Tensor, ""]]]:
        """Return the penalties on the distance of convolutions from isometries, and of trained keys from orthonormal ones."""
        keys = {"key_penalty": lambda module: key_orthonormality(module.binding.keys)} if self.config.trainable_keys else {}
        return {**super().penalties, **keys}

    def crosstalk_places(self, module: Any) -> Mapping[str, Place]:
        """Return the superposition, the stages of the body, and the first slot after unbinding, as places of crosstalk."""
        stages = {f"stage {i}": module.body.get_submodule(f"module.stage{i}") for i in (1, 2, 3)}
        return {
            "superposed": (module.body, "input"),
            **{name: (stage, "output") for name, stage in stages.items()},
            "unbound": (module.unbinding, "first slot"),
        }
