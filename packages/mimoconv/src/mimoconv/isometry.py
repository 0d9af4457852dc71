"""A penalty that keeps convolutions near-isometric, so that superposed signals stay apart (Qi et al., 2020)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv.model import WideResNet
from mimoconv.superposed import Superposed

__all__ = ["convolution_isometry", "isometry_penalty"]


def isometry_penalty(model: Superposed | WideResNet) -> Float[Tensor, ""]:
    """Sum `convolution_isometry` over the convolutions of the body, as a penalty to add to the loss.

    The stem, binding and unbinding do not count. The caller weights the sum by gamma, 1e-4 in the published runs (Menet et al.,
    2023, Eq. 8 and 9).

    Raises:
        ValueError: a convolution is dilated.

    >>> from mimoconv import WideResNetConfig
    >>> isometry_penalty(WideResNet(WideResNetConfig(depth=10, width=1, init="delta"))).item()
    0.0
    """
    layers = [layer for layer in model.body.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        if set(layer.dilation) != {1}:
            raise ValueError(f"a convolution has dilation {layer.dilation}; the penalty is defined for dilation 1 only")
    penalties = [convolution_isometry(layer.weight, layer.stride, groups=layer.groups) for layer in layers]
    return sum(penalties, torch.zeros(()))


def convolution_isometry(
    weight: Float[Tensor, "out c kh kw"], stride: tuple[int, ...] = (1, 1), *, groups: int = 1
) -> Float[Tensor, ""]:
    """Measure how far a convolution is from isometric: half the squared distance of Conv(W, W) from the identity.

    Conv(W, W) holds the inner products of all pairs of filters, shifted by each offset that is a multiple of the stride. The
    target is 1 for a filter with itself at offset 0 and 0 otherwise; at the target the convolution keeps all inner products.
    Where there are fewer input than output channels, so that the filters cannot all be orthogonal, the two change places (Menet
    et al., 2023, Eq. 8 and 9, gamma = 1; Qi et al., 2020). Computed in the weight's precision, under autocast too.

    Args:
        weight: weight of the convolution.
        stride: stride along h and w.
        groups: groups of the convolution; each is a convolution of its own, and their values add up.
    """
    kernels = rearrange(weight, "(g out) c kh kw -> g out c kh kw", g=groups)
    if kernels.shape[2] < kernels.shape[1]:
        kernels = kernels.transpose(1, 2)
    total = weight.new_zeros(())
    for filters in kernels:
        padding = [(k - 1) // s * s for k, s in zip(filters.shape[2:], stride, strict=True)]
        with torch.autocast(weight.device.type, enabled=False):
            gram = F.conv2d(filters, filters, padding=padding, stride=stride)
        target = torch.zeros_like(gram)
        target[:, :, gram.shape[2] // 2, gram.shape[3] // 2].fill_diagonal_(1)
        total = total + (gram - target).square().sum() / 2
    return total
