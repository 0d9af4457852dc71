"""The control that costs the same: derived, never typed in."""

import torch

from mimoconv import NetworkConfig, WideResNet, WideResNetConfig, count_macs

STEP = 8
"""Channels come in multiples of this: odd counts waste the machine's vector lanes, which would flatter superposition."""

TOLERANCE = 0.1
"""A network whose multiply-adds are further off, as a share of those asked for, is not called one of equal cost."""


def equal_cost(like: NetworkConfig, macs: float) -> WideResNetConfig:
    """The plain wide ResNet of the same depth whose multiply-adds per image come closest to `macs`.

    The widest one that a stem of 16 maps leaves affordable; then the stem grows until the cost fits. Where even the
    narrowest, with 8 channels in its first stage, costs more than `macs`, it is that one.
    """
    shared = {name: getattr(like, name) for name in ("num_classes", "depth", "in_channels", "image_size")}

    def candidate(channels: int, stem: int = 16) -> WideResNetConfig:
        return WideResNetConfig(**shared, width=channels / 16, stem_channels=stem)

    def cost(config: WideResNetConfig) -> float:
        with torch.device("meta"):
            return count_macs(WideResNet(config))

    channels = STEP
    while cost(candidate(channels + STEP)) <= macs:
        channels += STEP
    stem = 16
    while abs(cost(candidate(channels, stem + STEP)) - macs) < abs(cost(candidate(channels, stem)) - macs):
        stem += STEP
    return candidate(channels, stem)
