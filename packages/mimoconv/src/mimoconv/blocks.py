"""Blocks of a pre-activation wide ResNet (Zagoruyko and Komodakis, 2016)."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain, repeat

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mimoconv.config import Init, NetworkConfig
from mimoconv.fused_norm import is_watched, may_fuse, norm_act, norm_act_skip

__all__ = ["Block", "Layers", "bias_as_channel", "body", "conv", "fold_stem", "is_stem_foldable", "stem"]

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "prelu": lambda channels: nn.PReLU(channels, init=0.5),
}
"""Makes the activation for a number of channels, by its name in the configuration."""


class Layers(nn.Sequential):
    """Layers in a row; what one kernel can do together runs together, where nobody watches it.

    BatchNorm and the activation after it are such, and the sum at the end of a residual block with the norm that reads it.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        layers, branch = list(self), None
        if not may_fuse(x):
            for layer in layers:
                x = layer(x)
            return x
        while layers:
            layer = layers.pop(0)
            if type(layer) is Layers and not is_watched(layer):
                layers = [*layer, *layers]
            elif type(layer) is Block and not is_watched(layer):
                x, branch = layer.parts(x, branch)
            elif isinstance(layer, nn.BatchNorm2d):
                act = layers.pop(0) if layers and isinstance(layers[0], nn.ReLU | nn.PReLU) else None
                x, branch = norm_act_skip(layer, act, x, branch)[0], None
            else:
                x, branch = layer(x if branch is None else x + branch), None
        return x if branch is None else x + branch


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, init: Init = "kaiming") -> nn.Conv2d:
    """Make a convolution without bias that keeps the image size at stride 1.

    Its weights are Kaiming normal with fan-out, as published, or near-isometric: zero at all taps but the centre, where they
    are a (semi-)orthogonal matrix drawn uniformly (`orthogonal`) or the unit matrix (`delta`).
    """
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif init == "delta":
        nn.init.dirac_(layer.weight)
    else:
        nn.init.zeros_(layer.weight)
        nn.init.orthogonal_(layer.weight[:, :, kernel // 2, kernel // 2])
    return layer


def stem(config: NetworkConfig) -> Layers:
    """Make the layers that every image passes alone: the first 3x3 convolution, with BatchNorm and ReLU if configured."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv(config.in_channels, config.stem_channels, 3))
    if config.stem != "conv":
        layers["norm"] = nn.BatchNorm2d(config.stem_channels)
    if config.stem == "conv-norm-relu":
        layers["relu"] = nn.ReLU()
    return Layers(layers)


def is_stem_foldable(stem: nn.Module) -> bool:
    """Tell whether a stem is as `stem` made it, linear in eval mode and without hooks, so that `fold_stem` may replace it."""
    conv, *norms = stem.children()
    return (
        type(conv) is nn.Conv2d
        and (conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias) == ((1, 1), (1, 1), (1, 1), 1, None)
        and (conv.kernel_size, conv.padding_mode) == ((3, 3), "zeros")
        and all(isinstance(norm, _BatchNorm) and norm.affine and norm.running_mean is not None for norm in norms)
        and not any(norm.training for norm in norms)
        and not any(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) for layer in stem.modules())
    )


def fold_stem(stem: nn.Module) -> tuple[Float[Tensor, "dim c kh kw"], Float[Tensor, " dim"]]:
    """Fold BatchNorm in eval mode into the convolution before it; return the weight and bias of the resulting convolution."""
    conv, *norms = stem.children()
    assert isinstance(conv, nn.Conv2d)
    weight, bias = conv.weight, conv.weight.new_zeros(conv.out_channels)
    for norm in norms:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return weight, bias


def bias_as_channel(
    images: Float[Tensor, "b c h w"], weight: Float[Tensor, "out c kh kw"], bias: Float[Tensor, " out"]
) -> tuple[Float[Tensor, "b c+1 h w"], Float[Tensor, "out c+1 kh kw"]]:
    """Return images with a channel of ones, and filters whose centres there are the bias, for a convolution without one."""
    height, width = (size // 2 for size in weight.shape[2:])
    centres = F.pad(bias[:, None, None, None], (width, width, height, height))
    return F.pad(images, (0, 0, 0, 0, 0, 1), value=1), torch.cat([weight, centres], 1)


class Block(nn.Module):
    """Residual block: twice BatchNorm, activation and a 3x3 convolution.

    The shortcut is a 1x1 convolution with BatchNorm where the shape changes, else the identity.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, config: NetworkConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        self.norm1, self.act1 = nn.BatchNorm2d(c_in), activation(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride, config.init)
        self.norm2, self.act2 = nn.BatchNorm2d(c_out), activation(c_out)
        self.conv2 = conv(c_out, c_out, 3, 1, config.init)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            layers = OrderedDict(conv=conv(c_in, c_out, 1, stride, config.init), norm=nn.BatchNorm2d(c_out))
            self.shortcut = Layers(layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        x, branch = self.parts(x)
        return x + branch

    def parts(
        self, x: Float[Tensor, "b c h w"], branch: Float[Tensor, "b c h w"] | None = None
    ) -> tuple[Float[Tensor, "b c2 h2 w2"], Float[Tensor, "b c2 h2 w2"]]:
        """Return the two summands of the block's output; its input is `x + branch` where a branch is given."""
        inner, x = norm_act_skip(self.norm1, self.act1, x, branch)
        inner = norm_act(self.norm2, self.act2, self.conv1(inner))
        return self.shortcut(x), self.conv2(inner)


def body(config: NetworkConfig) -> Layers:
    """Make the three stages, the second and third of which halve the image, then BatchNorm and activation if configured."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    c_in = config.stem_channels
    for number, (channels, stride) in enumerate(zip(config.stages, (1, 2, 2), strict=True), 1):
        shapes = chain([(c_in, stride)], repeat((channels, 1), config.blocks - 1))
        layers[f"stage{number}"] = Layers(*(Block(c, channels, s, config) for c, s in shapes))
        c_in = channels
    if config.final_norm:
        layers["norm"], layers["activation"] = nn.BatchNorm2d(c_in), ACTIVATIONS[config.activation](c_in)
    return Layers(layers)
