"""Blocks of a pre-activation wide ResNet whose BatchNorm knows how many inputs share the pass."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv.config import BodyConfig

Activation = Callable[[int], nn.Module]
"""Makes the activation for a number of channels."""


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A bias-free convolution that keeps the image size at stride 1; Kaiming normal start, fan-out, as published."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Stem(nn.Module):
    """The first 3x3 convolution and BatchNorm; every image goes through alone, so the statistics do not depend on n."""

    def __init__(self, c_in: int, dim: int) -> None:
        super().__init__()
        self.conv, self.norm = conv(c_in, dim, 3), nn.BatchNorm2d(dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b dim h w"]:
        out: Tensor = self.norm(self.conv(x))
        return out

    def as_convolution(self) -> tuple[Float[Tensor, "dim c kh kw"], Float[Tensor, " dim"]]:
        """Weight and bias of the one convolution that both layers are in eval mode."""
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        scale = self.norm.weight * (var + self.norm.eps).rsqrt()
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - mean * scale


class BatchNormPerN(nn.Module):
    """BatchNorm with one affine map and a set of running statistics for every n from 1 to capacity.

    Sums of one and of four bound images have other means and variances, so averages over both would fit neither.
    """

    def __init__(self, channels: int, capacity: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(capacity, channels))
        self.register_buffer("running_var", torch.ones(capacity, channels))
        self.register_buffer("batches_seen", torch.zeros(capacity, dtype=torch.long))

    running_mean: Tensor
    running_var: Tensor
    batches_seen: Tensor

    def forward(self, x: Float[Tensor, "b c h w"], n: int) -> Float[Tensor, "b c h w"]:
        """Normalise superpositions of n inputs: by the batch's statistics in training, by those kept for n otherwise."""
        training = self.training and x.shape[0] > 0  # an empty batch has no statistics
        if training:
            self.batches_seen[n - 1] += 1
        mean, var = self.running_mean[n - 1], self.running_var[n - 1]
        return F.batch_norm(x, mean, var, self.weight, self.bias, training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        capacity, channels = self.running_mean.shape
        return f"{channels}, capacity={capacity}, momentum={self.momentum}, eps={self.eps}"


class Block(nn.Module):
    """BN, activation, 3x3, BN, activation, 3x3, and a shortcut: 1x1 and BN where the shape changes, else the identity."""

    def __init__(self, c_in: int, c_out: int, stride: int, capacity: int, activation: Activation) -> None:
        super().__init__()
        self.norm1, self.act1 = BatchNormPerN(c_in, capacity), activation(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.norm2, self.act2 = BatchNormPerN(c_out, capacity), activation(c_out)
        self.conv2 = conv(c_out, c_out, 3)
        self.shortcut = Shortcut(c_in, c_out, stride, capacity) if stride != 1 or c_in != c_out else None

    def forward(self, x: Float[Tensor, "b c h w"], n: int) -> Float[Tensor, "b c2 h2 w2"]:
        inner = self.conv1(self.act1(self.norm1(x, n)))
        out: Tensor = self.conv2(self.act2(self.norm2(inner, n)))
        return out + (x if self.shortcut is None else self.shortcut(x, n))


class Shortcut(nn.Module):
    """1x1 convolution and BN, where a block changes the shape."""

    def __init__(self, c_in: int, c_out: int, stride: int, capacity: int) -> None:
        super().__init__()
        self.conv = conv(c_in, c_out, 1, stride)
        self.norm = BatchNormPerN(c_out, capacity)

    def forward(self, x: Float[Tensor, "b c h w"], n: int) -> Float[Tensor, "b c2 h2 w2"]:
        out: Tensor = self.norm(self.conv(x), n)
        return out


class Body(nn.Module):
    """The three stages; the second and third halve the image."""

    def __init__(self, config: BodyConfig, c_in: int, capacity: int, activation: Activation) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for channels, stage_stride in zip(config.stages, (1, 2, 2), strict=True):
            for index in range(config.blocks):
                self.blocks.append(Block(c_in, channels, stage_stride if index == 0 else 1, capacity, activation))
                c_in = channels

    def forward(self, x: Float[Tensor, "b c h w"], n: int) -> Float[Tensor, "b c2 h2 w2"]:
        for block in self.blocks:
            x = block(x, n)
        return x
