"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from mimoconv.config import MIMOConvConfig, WideResNetConfig
from mimoconv.model import MIMOConv, WideResNet


def mimoconv(**options: Any) -> MIMOConv:
    """MIMOConv."""
    return MIMOConv(MIMOConvConfig(**options))


def wide_resnet(**options: Any) -> WideResNet:
    """The plain wide ResNet of Zagoruyko and Komodakis (2016)."""
    return WideResNet(WideResNetConfig(**options))


def wide_isonet(**options: Any) -> WideResNet:
    """WideIsoNet, the published baseline of MIMOConv: BatchNorm and ReLU after the stem, trained slopes, no final BatchNorm."""
    published: dict[str, Any] = {"stem": "conv-norm-relu", "activation": "prelu", "final_norm": False}
    return WideResNet(WideResNetConfig(**published | options))


FAMILIES: dict[str, Callable[..., MIMOConv | WideResNet]] = {make.__name__: make for make in (mimoconv, wide_resnet, wide_isonet)}
SIZES = ("10_1", "10_2", "16_4", "16_8", "28_2.5", "28_5", "28_7", "28_10")
"""Depth and width of the sizes that `list_models` names."""


def list_models(pattern: str = "*") -> list[str]:
    """Names for `create_model` that match a pattern with the wildcards of a shell; other depths and widths work too.

    >>> list_models("mimoconv_28*")
    ['mimoconv_28_2.5', 'mimoconv_28_5', 'mimoconv_28_7', 'mimoconv_28_10']
    """
    return [name for family in FAMILIES for size in SIZES if fnmatchcase(name := f"{family}_{size}", pattern)]


def create_model(name: str, **options: Any) -> MIMOConv | WideResNet:
    """A fresh network by its name, FAMILY_DEPTH_WIDTH.

    Args:
        name: `mimoconv`, `wide_resnet` or `wide_isonet`, a depth (6k + 4), a width (which may be fractional: the channels of
            the stages, 16, 32 and 64 times it, are rounded), joined by "_".
        options: fields of `MIMOConvConfig` or `WideResNetConfig`, such as `capacity`, `num_classes`, `in_channels`.

    Raises:
        ValueError: there is no such network, or an option's value cannot work.
        TypeError: there is no such option.

    >>> create_model("mimoconv_10_2", capacity=4, num_classes=100).config.stages
    (32, 64, 128)
    """
    parts = re.fullmatch(r"(.+)_(\d+)_(\d+(?:\.\d+)?)", name)
    if parts is None or parts[1] not in FAMILIES:
        near = difflib.get_close_matches(name, list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names read {' or '.join(FAMILIES)}, then _DEPTH_WIDTH"
        raise ValueError(f"there is no network {name!r}: {hint}")
    return FAMILIES[parts[1]](depth=int(parts[2]), width=float(parts[3]), **options)
