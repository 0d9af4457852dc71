"""MIMOConv, and the plain wide ResNet that it is compared with."""

from functools import partial

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv.binding import PositionwiseHRR, Unbinding
from mimoconv.blocks import BatchNormPerN, Body, Stem, conv
from mimoconv.config import BodyConfig, MIMOConvConfig, WideResNetConfig


class MIMOConv(nn.Module):
    """A wide ResNet that classifies up to `capacity` images in one pass of its body (Menet et al., 2023, section 3).

    >>> import torch
    >>> model = MIMOConv(MIMOConvConfig(capacity=4, depth=10, width=1, stem_channels=16)).eval()
    >>> model(torch.zeros(8, 3, 3, 32, 32)).shape  # 8 passes of 3 images each
    torch.Size([8, 3, 10])
    """

    def __init__(self, config: MIMOConvConfig) -> None:
        super().__init__()
        self.config = config
        dim, features = config.stem_channels, config.stages[-1]
        self.stem = Stem(config.in_channels, dim)
        self.binding = PositionwiseHRR(config.capacity, dim, trainable=config.trainable_keys)
        self.body = Body(config, dim, config.capacity, activation=partial(nn.PReLU, init=0.5))
        self.unbinding = Unbinding(config.capacity, features)
        self.head = nn.Linear(features, config.num_classes)

    @property
    def capacity(self) -> int:
        """The most images that can share one pass."""
        return self.config.capacity

    def forward(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n classes"]:
        """Logits of n images a pass, for any n from 1 to capacity; with n < capacity some images fill several slots.

        Raises:
            ValueError: `x` is not (b, n, c, h, w) with the configured channels and 1 <= n <= capacity.
            TypeError: `x` is not floating point.
        """
        check_images(x, self.config, axes="b n c h w")
        n = x.shape[1]
        if not 1 <= n <= self.capacity:
            raise ValueError(f"{n} superposed images, but this network has {self.capacity} slots")
        pooled = self.body(self.superpose(x), n).mean((-2, -1))
        logits: Tensor = self.head(self.unbinding(pooled, n))
        return logits

    def superpose(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b dim h w"]:
        """Stem and binding; both are linear in eval mode, so there they are one convolution over all n images."""
        if self.training:
            maps = self.stem(rearrange(x, "b n c h w -> (b n) c h w"))
            bound: Tensor = self.binding(rearrange(maps, "(b n) dim h w -> b n dim h w", n=x.shape[1]))
            return bound
        weight, bias = self.stem.as_convolution()
        keys = self.binding.matrices(x.shape[1])
        weight = einsum(keys, weight, "n out dim, dim c kh kw -> out n c kh kw")
        bias = einsum(keys, bias, "n out dim, dim -> out")
        images = rearrange(x, "b n c h w -> b (n c) h w")
        return F.conv2d(images, rearrange(weight, "out n c kh kw -> out (n c) kh kw"), bias, padding="same")


class WideResNet(nn.Module):
    """The plain network from the same blocks: one image a pass, ReLU, final BatchNorm and ReLU.

    >>> import torch
    >>> WideResNet(WideResNetConfig(depth=10, width=1)).eval()(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 10])
    """

    capacity = 1

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self.config = config
        features = config.stages[-1]
        self.stem = conv(config.in_channels, config.stem_channels, 3)
        self.body = Body(config, config.stem_channels, 1, activation=lambda _: nn.ReLU())
        self.norm = BatchNormPerN(features, 1)
        self.head = nn.Linear(features, config.num_classes)

    def forward(self, x: Float[Tensor, "b *g c h w"]) -> Float[Tensor, "b *g classes"]:
        """Logits; one or more leading axes, so that it also takes groups of one image, (b, 1, c, h, w), as MIMOConv does.

        Raises:
            ValueError: there is no leading axis, or the channels are not the configured ones.
            TypeError: `x` is not floating point.
        """
        check_images(x, self.config, axes="b ... c h w")
        maps = self.norm(self.body(self.stem(x.flatten(0, -4)), 1), 1)
        logits: Tensor = self.head(maps.relu().mean((-2, -1)))
        return logits.reshape(*x.shape[:-3], self.config.num_classes)


def check_images(x: Tensor, config: BodyConfig, axes: str) -> None:
    """Raise unless `x` holds floating-point images with the configured channels and the named axes."""
    if not x.is_floating_point():
        raise TypeError(f"images have dtype {x.dtype}; scale and normalise them to floating point first")
    fits = x.dim() >= 4 if "..." in axes else x.dim() == len(axes.split())
    if not fits or x.shape[-3] != config.in_channels or 0 in x.shape[-2:]:
        raise ValueError(f"images have shape {tuple(x.shape)}; expected ({axes}) with c = {config.in_channels}, h and w from 1")
