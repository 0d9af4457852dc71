"""MIMOConv, and the plain wide ResNet that it is compared with."""

import os
from typing import ClassVar

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv import blocks
from mimoconv.config import MIMOConvConfig, NetworkConfig, WideResNetConfig
from mimoconv.statistics_per_n import StatisticsPerN
from mimoconv.superposed import Superposed, check_images, check_types, pool_features
from vsa_core.hub import Pretrained

__all__ = ["MIMOConv", "WideResNet"]


class MIMOConv(Superposed):
    """Wide ResNet that classifies up to `capacity` images in one pass of its body (Menet et al., 2023, section 3).

    >>> import torch
    >>> model = MIMOConv(MIMOConvConfig(capacity=4, depth=10, width=1, stem_channels=16)).eval()
    >>> model(torch.zeros(8, 3, 3, 32, 32)).shape  # 8 passes of 3 images each
    torch.Size([8, 3, 10])
    """

    config: MIMOConvConfig

    def __init__(self, config: MIMOConvConfig) -> None:
        super().__init__(
            blocks.stem(config),
            blocks.body(config),
            nn.Linear(config.stages[-1], config.num_classes),
            config.capacity,
            config.stem_channels,
            features=config.stages[-1],
            trainable_keys=config.trainable_keys,
            unbinding_relu=config.unbinding_relu,
        )
        self.config = config

    @classmethod
    def from_pretrained(  # type: ignore[override] # the configuration describes all modules
        cls, source: str | os.PathLike[str], *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> "MIMOConv":
        """Load a network in eval mode from a folder, a run directory or the hub, as `vsa_core.hub.Library.load` describes.

        Raises:
            ValueError: `source` holds a network of another class, or is damaged.
        """
        return super(Superposed, cls).from_pretrained(source, revision=revision, device=device)

    def superpose(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b dim h2 w2"]:
        """Run the stem on each image, bind its maps and add them up; in eval mode by one convolution over all n images.

        Raises:
            ValueError: `x` does not have the configured channels.
        """
        check_images(x, "b n c h w", self.config.in_channels)
        if self.training or not blocks.is_stem_foldable(self.stem):
            return super().superpose(x)
        # Stem and `binding` are linear in eval mode without a ReLU between them, so their product is one convolution.
        weight, bias = blocks.fold_stem(self.stem)
        keys = self.binding.matrices(int(x.shape[1]))
        weight = einsum(keys, weight, "n out dim, dim c kh kw -> out n c kh kw")
        bias = einsum(keys, bias, "n out dim, dim -> out")
        images = rearrange(x, "b n c h w -> b (n c) h w")
        weight = rearrange(weight, "out n c kh kw -> out (n c) kh kw")
        if x.is_cuda:  # there adding a bias takes a pass over all maps
            images, weight = blocks.bias_as_channel(images, weight, bias)
        first = self.body.module.get_submodule("stage1.0.conv1").weight
        if isinstance(first, Tensor) and not first.is_contiguous():  # then the body's maps have channels last in memory
            weight = weight.to(memory_format=torch.channels_last)
        return F.conv2d(images, weight, None if x.is_cuda else bias, padding="same")

    def extra_repr(self) -> str:
        return size_repr(self.config)


class WideResNet(Pretrained):
    """Plain wide ResNet from the blocks of MIMOConv, with one image per pass.

    >>> import torch
    >>> WideResNet(WideResNetConfig(depth=10, width=1)).eval()(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 10])
    """

    config: WideResNetConfig
    capacity: ClassVar[int] = WideResNetConfig.capacity
    hub_module = "mimoconv.hub"

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = blocks.stem(config)
        self.body = StatisticsPerN(blocks.body(config), 1)
        self.head = nn.Linear(config.stages[-1], config.num_classes)

    def forward(self, x: Float[Tensor, "b *g c h w"]) -> Float[Tensor, "b *g classes"]:
        """Compute logits; there may be several leading axes, so that groups of one image, (b, 1, c, h, w), work as in MIMOConv.

        Raises:
            ValueError: there is no leading axis, or the channels are not the configured ones.
            TypeError: `x` is not floating point, or has another dtype than the weights.
        """
        check_images(x, "b ... c h w", self.config.in_channels)
        check_types(self, x)
        logits: Tensor = self.head(pool_features(self.body(self.stem(x.flatten(0, -4)), 1)))
        return torch.unflatten(logits, 0, x.shape[:-3])

    def extra_repr(self) -> str:
        return size_repr(self.config)


def size_repr(config: NetworkConfig) -> str:
    """Write depth, width and the channels that the width was rounded to."""
    return f"depth={config.depth}, width={config.width} ({', '.join(map(str, config.stages))} channels)"
