"""The networks that the program trains, behind one set of functions: build, shape of a pass, cost, answers."""

from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

import mimoconv
import mimoformer
from mimo_benchmarks.errors import ConfigError, first_line
from mimo_benchmarks.networks import datamux
from mimo_benchmarks.networks.datamux import DataMUX, DataMUXConfig, DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.settings import ModelConfig
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig
from mimoformer import MIMOFormer, MIMOFormerConfig
from vsa_core import slots
from vsa_core.modules import evaluating

Network = MIMOConv | WideResNet | MIMOFormer | DataMUXConv | DataMUX
KINDS: dict[type[ModelConfig], Callable[..., Network]] = {
    MIMOConvConfig: MIMOConv,
    WideResNetConfig: WideResNet,
    MIMOFormerConfig: MIMOFormer,
    DataMUXConvConfig: DataMUXConv,
    DataMUXConfig: DataMUX,
}
AT_ONCE = 512
"""Passes of DataMUX at a time, to bound memory; the other networks' packages have limits of their own."""


def build(config: ModelConfig) -> Network:
    """The network; ConfigError where its sizes are beyond the machine."""
    try:
        return KINDS[type(config)](config)
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # the allocator's errors, and sizes beyond 64 bits
        raise ConfigError(f"this network is too large to be built ({first_line(error)}): give smaller --model sizes") from error


def plain(config: ModelConfig) -> bool:
    """Whether a network takes its inputs one by one."""
    if isinstance(config, MIMOFormerConfig):
        return config.m * config.n == 1
    return isinstance(config, WideResNetConfig) or config.capacity == 1


def grid(config: ModelConfig, n: int) -> tuple[int, ...]:
    """The axes of the inputs that share a pass: (n,), or (n, n) in a MIMOFormer; of a plain network (1,) or (1, 1)."""
    side = 1 if plain(config) else n
    return (side, side) if isinstance(config, MIMOFormerConfig) else (side,)


def inputs(config: ModelConfig, n: int) -> int:
    """Inputs of a superposition; as many are seen one by one by a plain network."""
    return n * n if isinstance(config, MIMOFormerConfig) else n


def shared(config: ModelConfig, n: int) -> int:
    """How many of them share a pass; 1 in a plain network."""
    return prod(grid(config, n))


def count_macs(network: Network, n: int) -> float:
    """Multiply-adds per input, at the network's own image size or its longest sequence."""
    if isinstance(network, MIMOFormer):
        return mimoformer.count_macs(network, *grid(network.config, n))
    if isinstance(network, MIMOConv | WideResNet):
        return mimoconv.count_macs(network, *grid(network.config, n))
    return datamux.count_macs(network)


def answer(
    network: Network, items: Shaped[Tensor, "count *item"], mask: Bool[Tensor, "count *real"] | None, n: int
) -> Float[Tensor, "count *out"]:
    """Logits of a flat batch in eval mode, n (or n x n) a pass in their order; the last group is filled by repeating items."""
    if isinstance(network, MIMOFormer):
        m, n = grid(network.config, n)
        return mimoformer.predict(network, items, m, n, mask)
    if isinstance(network, MIMOConv | WideResNet):
        return mimoconv.predict(network, items, *grid(network.config, n)[:1])
    with torch.no_grad(), evaluating(network):
        groups = [slots.group(part, n).split(AT_ONCE) for part in (items, mask) if part is not None]
        return slots.ungroup(torch.cat([network(*parts) for parts in zip(*groups, strict=True)]), len(items))


def label(config: ModelConfig) -> str:
    """What tables call a network."""
    if isinstance(config, MIMOConvConfig | WideResNetConfig):
        plain_name = "WideIsoNet" if config.activation == "prelu" else "WideResNet"
        family = "MIMOConv" if isinstance(config, MIMOConvConfig) else plain_name
        return f"{family}-{config.depth}-{config.width:g}"
    if isinstance(config, MIMOFormerConfig):
        size = f"{config.layers}x{config.heads}x{config.dim}"
        if plain(config):
            return f"{'Transformer' if config.attention == 'softmax' else 'Performer'} {size}"
        return f"MIMOFormer {size} {config.variant}"
    return type(config).__name__.removesuffix("Config")
