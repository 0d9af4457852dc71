"""The controls of a superposed network, plain ones of the same kind: derived, never typed in."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from mimo_benchmarks.networks.registry import ModelConfig, build, describe
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig

STEP = 8
"""Channels come in multiples of this: odd counts waste the machine's vector lanes, which would flatter superposition."""

TOLERANCE = 0.1
"""A network whose multiply-adds are further off, as a share of those asked for, is not called one of equal cost."""

SCALES = 64
"""Steps of a MIMOFormer's own widths, up to twice, among which a Performer of equal cost is found."""


def controls(config: ModelConfig, ns: Sequence[int]) -> dict[str, ModelConfig]:
    """Return the plain networks to be trained beside one that was trained with these n, by name.

    They are equal_cost_nN for the largest and the smallest n, and thin; of equal ones only the first. A plain network and DataMUX
    have none.
    """
    if type(config) not in PLAIN or describe(config).plain:
        return {}
    plain = PLAIN[type(config)]
    chosen = {f"equal_cost_n{n}": plain.equal_cost(config, cost(config, n)) for n in (max(ns), min(ns))}
    chosen["thin"] = plain.thin(config)
    return {name: control for name, control in chosen.items() if name == next(n for n, c in chosen.items() if c == control)}


@cache
def cost(config: Any, n: int = 1) -> float:
    """Multiply-adds per input of a network that is not there yet, at that n."""
    with torch.device("meta"):
        module = build(config)
    return describe(config).count_macs(module, n)


def cost_ratio(config: ModelConfig, control: ModelConfig, n: int) -> float:
    """Multiply-adds of a control as a share of those that the superposed network needs with that n."""
    return cost(control) / cost(config, n)


def equal_wide_resnet(like: MIMOConvConfig, macs: float) -> WideResNetConfig:
    """The widest one that a stem of 16 maps leaves affordable; then the stem, in which cost is linear, grows until it fits.

    The narrowest has STEP channels in its first stage.
    """

    def candidate(steps: int, stem: int = 16) -> WideResNetConfig:
        return wide_resnet(like, width=STEP * steps / 16, stem_channels=stem)

    steps = max(1, bisect_right(range(1, 2**10), macs, key=lambda steps: cost(candidate(steps))))
    plain = cost(candidate(steps))
    rate = cost(candidate(steps, 16 + STEP)) - plain
    return candidate(steps, 16 + STEP * max(0, round((macs - plain) / rate)))


def equal_performer(like: MIMOFormerConfig, macs: float) -> MIMOFormerConfig:
    """All widths scaled by one factor; then mlp_dim, in which cost is linear, makes up for the rest, from half to twice its size.

    Dimensions of tokens and MLPs come in multiples of STEP, those of a head, which are fewer, in multiples of STEP / 2.
    """

    def scaled(size: int, scale: float, step: int = STEP) -> int:
        return step * max(1, round(size * scale / step))

    def candidate(steps: int) -> MIMOFormerConfig:
        scale = steps / SCALES
        head_dim = scaled(like.dim, scale, STEP // 2)
        return performer(like, scaled(like.embed_dim, scale), head_dim, scaled(like.mlp_dim, scale))

    def fitted(config: MIMOFormerConfig) -> MIMOFormerConfig:
        mlp_dim, now = config.mlp_dim, cost(config)
        rate = cost(replace(config, mlp_dim=mlp_dim + 1)) - now
        needed = max(0.5, min(2.0, 1 + (macs - now) / rate / mlp_dim))
        return replace(config, mlp_dim=scaled(mlp_dim, needed))

    sizes = [candidate(steps) for steps in range(1, 2 * SCALES + 1)]
    over = bisect_right(sizes, macs, key=cost)  # the first that costs more
    around = map(fitted, sizes[max(0, over - 1) : over + 1])
    return min(around, key=lambda config: abs(cost(config) - macs))


def thin_wide_resnet(like: MIMOConvConfig) -> WideResNetConfig:
    """Return the plain network that one slot would be if the channels were split evenly between the slots."""
    return wide_resnet(like, width=max(1 / 16, like.width / like.capacity))


def thin_performer(like: MIMOFormerConfig) -> MIMOFormerConfig:
    """Return the plain network that one slot would be if all that slots share were split evenly between them.

    m x n slots share the dimension of a head; with att+mlp, m slots share the dimensions of tokens and MLP.
    """
    shared = like.m if like.variant == "att+mlp" else 1
    return performer(like, share(like.embed_dim, shared), share(like.dim, like.m * like.n), share(like.mlp_dim, shared))


def share(width: int, slots: int) -> int:
    """What each slot has of a width, rounded; at least 1."""
    return max(1, round(width / slots))


def wide_resnet(like: MIMOConvConfig, *, width: float, stem_channels: int = 16) -> WideResNetConfig:
    """A plain wide ResNet for the same images and classes, and of the same depth."""
    shared = {name: getattr(like, name) for name in ("num_classes", "depth", "in_channels", "image_size")}
    return WideResNetConfig(**shared, width=width, stem_channels=stem_channels)


def performer(like: MIMOFormerConfig, embed_dim: int, head_dim: int, mlp_dim: int) -> MIMOFormerConfig:
    """The same network for one sequence a pass, of other widths."""
    plain = replace(like, m=1, n=1, variant="att", trainable_keys=False)
    return replace(plain, embed_dim=embed_dim, head_dim=head_dim, mlp_dim=mlp_dim)


@dataclass(frozen=True)
class PlainNetworks:
    """How the controls of a kind of network are derived from its configuration."""

    equal_cost: Callable[[Any, float], ModelConfig]
    """The plain network whose multiply-adds per input come closest to a number; the smallest if all cost more."""
    thin: Callable[[Any], ModelConfig]
    """The plain network that one slot would be by itself."""


PLAIN: dict[type[ModelConfig], PlainNetworks] = {
    MIMOConvConfig: PlainNetworks(equal_wide_resnet, thin_wide_resnet),
    MIMOFormerConfig: PlainNetworks(equal_performer, thin_performer),
}
