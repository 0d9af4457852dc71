"""Compile networks with torch.compile, around the releases of torch that are known to compile wrong gradients."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mimo_benchmarks.errors import ConfigError


def compiled(network: nn.Module) -> Any:
    """Return a network that is compiled when it is first used, with dropout that draws what it draws uncompiled.

    Dropout is left to PyTorch's kernel, which takes less time than code that the compiler fuses, as that is bound by drawing.
    Mix-order reductions, which some releases from 2.10 on get wrong (pytorch #193061), are turned off in this process.

    Raises:
        ConfigError: this release of torch is known to compile wrong gradients for the network.
    """
    release = torch.__version__.split("+")[0]
    biases = any(isinstance(layer, _ConvNd) and layer.bias is not None for layer in network.modules())
    if release == "2.10.0" and biases:
        wrong = f"torch {release} compiles wrong gradients for the biases of convolutions (pytorch #190796)"
        raise ConfigError(f"{wrong}: give --no-compile, or install another release")
    from torch._inductor import config  # here, because the import takes a second

    if hasattr(config.triton, "mix_order_reduction"):
        config.triton.mix_order_reduction = False
    return torch.compile(network, options={"fallback_random": True})
