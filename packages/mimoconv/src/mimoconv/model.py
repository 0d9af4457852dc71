"""MIMOConv, and the plain wide ResNet that it is compared with."""

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv import blocks
from mimoconv.config import MIMOConvConfig, WideResNetConfig
from mimoconv.superposed import StatisticsPerN, Superposed, check_images, pooled
from vsa_core.hub import Pretrained


class MIMOConv(Superposed):
    """A wide ResNet that classifies up to `capacity` images in one pass of its body (Menet et al., 2023, section 3).

    >>> import torch
    >>> model = MIMOConv(MIMOConvConfig(capacity=4, depth=10, width=1, stem_channels=16)).eval()
    >>> model(torch.zeros(8, 3, 3, 32, 32)).shape  # 8 passes of 3 images each
    torch.Size([8, 3, 10])
    """

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

    def superpose(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b dim h2 w2"]:
        """Stem, binding and bundling; without a ReLU they are linear in eval mode, so there one convolution over all n images.

        Raises:
            ValueError: `x` does not have the configured channels.
        """
        check_images(x, "b n c h w", self.config.in_channels)
        if self.training or not blocks.foldable(self.stem):
            return super().superpose(x)
        weight, bias = blocks.folded(self.stem)
        keys = self.binding.matrices(x.shape[1])
        weight = einsum(keys, weight, "n out dim, dim c kh kw -> out n c kh kw")
        bias = einsum(keys, bias, "n out dim, dim -> out")
        images = rearrange(x, "b n c h w -> b (n c) h w")
        return F.conv2d(images, rearrange(weight, "out n c kh kw -> out (n c) kh kw"), bias, padding="same")

    def extra_repr(self) -> str:
        return described(self.config)


class WideResNet(Pretrained):
    """The plain network from the same blocks: one image a pass.

    >>> import torch
    >>> WideResNet(WideResNetConfig(depth=10, width=1)).eval()(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 10])
    """

    capacity = 1
    hub_module = "mimoconv.hub"

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = blocks.stem(config)
        self.body = StatisticsPerN(blocks.body(config), 1)
        self.head = nn.Linear(config.stages[-1], config.num_classes)

    def forward(self, x: Float[Tensor, "b *g c h w"]) -> Float[Tensor, "b *g classes"]:
        """Logits; one or more leading axes, so that it also takes groups of one image, (b, 1, c, h, w), as MIMOConv does.

        Raises:
            ValueError: there is no leading axis, or the channels are not the configured ones.
            TypeError: `x` is not floating point.
        """
        check_images(x, "b ... c h w", self.config.in_channels)
        logits: Tensor = self.head(pooled(self.body(self.stem(x.flatten(0, -4)), 1)))
        return logits.reshape(*x.shape[:-3], logits.shape[-1])

    def extra_repr(self) -> str:
        return described(self.config)


def described(config: MIMOConvConfig | WideResNetConfig) -> str:
    """Depth, width and the channels that the width was rounded to."""
    return f"depth={config.depth}, width={config.width} ({', '.join(map(str, config.stages))} channels)"
