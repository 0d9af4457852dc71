"""Derive the controls of a superposed network: plain networks of the same kind that are trained for comparison."""

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
"""Channels of controls are multiples of this, because other counts waste vector lanes, which would flatter superposition."""

TOLERANCE = 0.1
"""Largest relative deviation of multiply-adds at which a network still counts as one of equal cost."""

SCALES = 64
"""Steps between zero and a MIMOFormer's own widths; a Performer of equal cost has up to twice as many."""


def controls(config: ModelConfig, ns: Sequence[int]) -> dict[str, ModelConfig]:
    """Return the controls of a network that is trained with these n, by name.

    They are equal_cost_nN for the largest and the smallest n, and thin; of equal networks only the first. Plain networks and
    DataMUX have none.
    """
    if type(config) not in CONTROL_RULES or describe(config).plain:
        return {}
    rules = CONTROL_RULES[type(config)]
    chosen = {f"equal_cost_n{n}": rules.equal_cost(config, cost(config, n)) for n in (max(ns), min(ns))}
    chosen["thin"] = rules.thin(config)
    return {name: control for name, control in chosen.items() if name == next(n for n, c in chosen.items() if c == control)}


@cache
def cost(config: Any, n: int = 1) -> float:
    """Count the multiply-adds per input of a network at that n, without memory for its weights."""
    with torch.device("meta"):
        module = build(config)
    return describe(config).count_macs(module, n)


def cost_ratio(config: ModelConfig, control: ModelConfig, n: int) -> float:
    """Return the multiply-adds of a control over those of the superposed network at that n."""
    return cost(control) / cost(config, n)


def equal_wide_resnet(like: MIMOConvConfig, macs: float) -> WideResNetConfig:
    """Return the plain wide ResNet whose multiply-adds per input come closest to `macs`.

    It is the widest that is affordable with a stem of 16 feature maps; then the stem, in which cost is linear, grows to fill the
    rest. The narrowest has STEP channels in its first stage.
    """

    def candidate(steps: int, stem: int = 16) -> WideResNetConfig:
        return wide_resnet(like, width=STEP * steps / 16, stem_channels=stem)

    steps = max(1, bisect_right(range(1, 2**10), macs, key=lambda steps: cost(candidate(steps))))
    plain = cost(candidate(steps))
    rate = cost(candidate(steps, 16 + STEP)) - plain
    return candidate(steps, 16 + STEP * max(0, round((macs - plain) / rate)))


def equal_performer(like: MIMOFormerConfig, macs: float) -> MIMOFormerConfig:
    """Return the Performer whose multiply-adds per input come closest to `macs`.

    All widths are scaled by one factor; then mlp_dim, in which cost is linear, makes up for the rest, from half to twice its
    size. Dimensions of tokens and MLPs are multiples of STEP, those of heads, which are smaller, of STEP / 2.
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
    over = bisect_right(sizes, macs, key=cost)  # index of the first that costs more
    around = map(fitted, sizes[max(0, over - 1) : over + 1])
    return min(around, key=lambda config: abs(cost(config) - macs))


def thin_wide_resnet(like: MIMOConvConfig) -> WideResNetConfig:
    """Return the plain network that a single slot would be if channels were split evenly between the slots."""
    return wide_resnet(like, width=max(1 / 16, like.width / like.capacity))


def thin_performer(like: MIMOFormerConfig) -> MIMOFormerConfig:
    """Return the plain network that a single slot would be if shared dimensions were split evenly between the slots.

    m x n slots share the dimension of a head; with att+mlp, m slots share the dimensions of tokens and MLP.
    """
    shared = like.m if like.variant == "att+mlp" else 1
    return performer(
        like, slot_share(like.embed_dim, shared), slot_share(like.dim, like.m * like.n), slot_share(like.mlp_dim, shared)
    )


def slot_share(width: int, slots: int) -> int:
    """Return the part of a width that each slot has, rounded; at least 1."""
    return max(1, round(width / slots))


def wide_resnet(like: MIMOConvConfig, *, width: float, stem_channels: int = 16) -> WideResNetConfig:
    """Return a plain wide ResNet of the same depth, for the same images and classes."""
    shared = {name: getattr(like, name) for name in ("num_classes", "depth", "in_channels", "image_size")}
    return WideResNetConfig(**shared, width=width, stem_channels=stem_channels)


def performer(like: MIMOFormerConfig, embed_dim: int, head_dim: int, mlp_dim: int) -> MIMOFormerConfig:
    """Return the network for one sequence per pass, with other widths."""
    plain = replace(like, m=1, n=1, variant="att", trainable_keys=False)
    return replace(plain, embed_dim=embed_dim, head_dim=head_dim, mlp_dim=mlp_dim)


@dataclass(frozen=True)
class ControlRules:
    """Functions that derive the controls of one kind of network from its configuration."""

    equal_cost: Callable[[Any, float], ModelConfig]
    """Returns the plain network whose multiply-adds per input come closest to a number; the smallest if all cost more."""
    thin: Callable[[Any], ModelConfig]
    """Returns the plain network that a single slot would be."""


CONTROL_RULES: dict[type[ModelConfig], ControlRules] = {
    MIMOConvConfig: ControlRules(equal_wide_resnet, thin_wide_resnet),
    MIMOFormerConfig: ControlRules(equal_performer, thin_performer),
}
