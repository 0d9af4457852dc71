"""The control that costs the same: derived, never typed in."""

from bisect import bisect_left

import torch

from mimoconv import BodyConfig, WideResNet, WideResNetConfig, count_macs


def equal_cost(like: BodyConfig, macs: float) -> WideResNetConfig:
    """The plain wide ResNet of the same depth whose multiply-adds per image come closest to `macs`.

    Its width moves in steps of 1/16, one channel of the first stage; its stem has as many maps as that stage, at most 16.
    """
    shared = {name: getattr(like, name) for name in ("num_classes", "depth", "in_channels", "image_size")}

    def candidate(channels: int) -> WideResNetConfig:
        return WideResNetConfig(**shared, width=channels / 16, stem_channels=min(16, channels))

    def cost(channels: int) -> float:
        with torch.device("meta"):
            return count_macs(WideResNet(candidate(channels)))

    above = 1 + bisect_left(range(1, 1024), macs, key=cost)
    return candidate(min((max(1, above - 1), above), key=lambda channels: abs(cost(channels) - macs)))
