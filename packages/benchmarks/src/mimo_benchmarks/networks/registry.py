"""The networks that the program trains, each with one line here."""

from functools import reduce
from operator import or_
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mimo_benchmarks.errors import ConfigError, first_line
from mimo_benchmarks.networks.convolutional import MIMOConvNetwork, WideResNetNetwork
from mimo_benchmarks.networks.datamux import DataMUXConvNetwork, DataMUXNetwork
from mimo_benchmarks.networks.network import ModelSettings, Network
from mimo_benchmarks.networks.transformers import MIMOFormerNetwork
from vsa_core.hub.library import class_name, resolve

NETWORKS: tuple[type[Network], ...] = (
    MIMOConvNetwork,
    WideResNetNetwork,
    DataMUXConvNetwork,
    MIMOFormerNetwork,
    DataMUXNetwork,
)

if TYPE_CHECKING:
    ModelConfig = ModelSettings
else:  # what the command line chooses from
    ModelConfig = reduce(or_, (network.settings for network in NETWORKS))


def describe(config: ModelConfig) -> Network:
    """Return what the program knows of the network with this configuration."""
    return next(network for network in NETWORKS if network.settings is type(config))(config)


def build(config: ModelConfig) -> nn.Module:
    """Make a network with fresh weights.

    Raises:
        ConfigError: its sizes are beyond the machine.
    """
    try:
        return describe(config).build()
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # the allocator's errors, and sizes beyond 64 bits
        raise ConfigError(f"this network is too large to be built ({first_line(error)}): give smaller --model sizes") from error


def load_finished(source: str | PathLike[str], device: torch.device) -> tuple[Network, Any]:
    """Load a finished network of any kind: a run directory, a folder that save_pretrained wrote, or an id on the hub.

    Returns:
        What the program knows of the network, and the network in eval mode.

    Raises:
        ConfigError: there is none, or its files are missing or damaged.
    """
    try:
        folder = resolve(source)
        name = class_name(folder)
        libraries = {kind.__name__: network.library for network in NETWORKS for kind in network.library.models}
        if name not in libraries:
            raise ConfigError(f"{source} holds a {name}, expected one of {', '.join(libraries)}")
        module = libraries[name].load(folder, device=device)
    except ConfigError:
        raise
    except Exception as error:  # huggingface_hub names no common type
        raise ConfigError(f"{source} holds no finished network that can be read ({first_line(error)})") from error
    return describe(module.config), module
