"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from mimoconv.config import MIMOConvConfig, WideResNetConfig
from mimoconv.model import MIMOConv, WideResNet

__all__ = ["create_model", "list_models", "mimoconv", "wide_isonet", "wide_resnet"]


def mimoconv(**options: Any) -> MIMOConv:
    """Make a MIMOConv."""
    return MIMOConv(MIMOConvConfig(**options))


def wide_resnet(**options: Any) -> WideResNet:
    """Make a plain wide ResNet (Zagoruyko and Komodakis, 2016)."""
    return WideResNet(WideResNetConfig(**options))


def wide_isonet(**options: Any) -> WideResNet:
    """Make a WideIsoNet, the published baseline: a wide ResNet with BatchNorm and ReLU after the stem and no final BatchNorm.

    The published WideResNet is the same network; what makes it a WideIsoNet is training with `isometry_penalty`.
    """
    published: dict[str, Any] = {"stem": "conv-norm-relu", "final_norm": False}
    return WideResNet(WideResNetConfig(**published | options))


FAMILIES: dict[str, Callable[..., MIMOConv | WideResNet]] = {make.__name__: make for make in (mimoconv, wide_resnet, wide_isonet)}
SIZES = ("10_1", "10_2", "16_4", "16_8", "28_2.5", "28_5", "28_7", "28_10")
"""Depths and widths that `list_models` names."""


def list_models(pattern: str = "*") -> list[str]:
    """List names for `create_model` that match a pattern with shell wildcards; other depths and widths work too.

    >>> list_models("mimoconv_28*")
    ['mimoconv_28_2.5', 'mimoconv_28_5', 'mimoconv_28_7', 'mimoconv_28_10']
    """
    return [name for family in FAMILIES for size in SIZES if fnmatchcase(name := f"{family}_{size}", pattern)]


def create_model(name: str, **options: Any) -> MIMOConv | WideResNet:
    """Make a network by its name, FAMILY_DEPTH_WIDTH.

    Args:
        name: `mimoconv`, `wide_resnet` or `wide_isonet`, a depth (6k + 4) and a width, joined by "_". A fractional width is fine:
            the stages have 16, 32 and 64 times as many channels, rounded.
        options: fields of `MIMOConvConfig` or `WideResNetConfig`, such as `capacity`, `num_classes`, `in_channels`.

    Raises:
        ValueError: there is no such network, or an option is out of its range.
        TypeError: there is no such option, or it has the wrong type.

    >>> create_model("mimoconv_10_2", capacity=4, num_classes=100).config.stages
    (32, 64, 128)
    """
    parts = re.fullmatch(r"(.+)_(\d+)_(\d+(?:\.\d+)?)", name)
    if parts is None or parts[1] not in FAMILIES:
        near = difflib.get_close_matches(name, list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names are {' or '.join(FAMILIES)}, then _DEPTH_WIDTH"
        raise ValueError(f"there is no network {name!r}: {hint}")
    return FAMILIES[parts[1]](depth=int(parts[2]), width=float(parts[3]), **options)
