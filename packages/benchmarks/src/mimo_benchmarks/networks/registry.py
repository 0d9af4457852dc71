"""The networks that the program can train: each has one line in NETWORKS."""

import os
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mimo_benchmarks.errors import ConfigError, first_line
from mimo_benchmarks.memory import free_memory, gigabytes, module_bytes, ran_out_of_memory
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
else:  # the union that the command line chooses from
    ModelConfig = reduce(or_, (network.settings for network in NETWORKS))


def describe(config: ModelConfig) -> Network:
    """Return the `Network` with this configuration."""
    return next(network for network in NETWORKS if network.settings is type(config))(config)


def build(config: ModelConfig) -> nn.Module:
    """Make a network with fresh weights.

    Raises:
        ConfigError: the network is too large for this machine.
    """
    try:
        if torch.get_default_device().type != "meta":
            check_weights(config)
        return describe(config).build()
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # from the allocator, and from sizes beyond 64 bits
        raise ConfigError(f"the network is too large to be built ({first_line(error)}): give smaller --model sizes") from error


def check_weights(config: ModelConfig) -> None:
    """Raise MemoryError if the weights of a network do not fit into the free memory; no random numbers are drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        need = module_bytes(describe(config).build())
    room = free_memory(torch.device("cpu"))
    if room is not None and need > room:
        raise MemoryError(f"its weights take {gigabytes(need)} of memory, and {gigabytes(room)} are free")


def load_finished(source: str | PathLike[str], device: torch.device) -> tuple[Network, Any]:
    """Load a finished network of any kind.

    Args:
        source: a run directory, a folder that save_pretrained wrote, or the id of a repository on the Hugging Face Hub.
        device: where the weights go.

    Returns:
        The `Network`, and its module in eval mode.

    Raises:
        ConfigError: there is no such network, or its files are missing or damaged.
    """
    path = Path(source)
    is_path = os.path.exists(path) or path.is_absolute() or (path.parent != Path() and os.path.exists(path.parent))
    what = "name a finished run, a folder that save_pretrained wrote, or a repository on the Hugging Face Hub"
    if is_path and not os.path.isdir(path):
        raise ConfigError(f"{source} is not a folder: {what}")
    libraries = {kind.__name__: network.library for network in NETWORKS for kind in network.library.models}
    try:
        folder = resolve(source)
        name = class_name(folder)
        if name not in libraries:
            raise ValueError(f"it holds a {name}; expected one of {', '.join(libraries)}")
        module = libraries[name].load(folder, device=device)
    except Exception as error:  # huggingface_hub has no common type of error
        if ran_out_of_memory(error):
            raise
        if isinstance(error, FileNotFoundError) and path.is_dir():  # its message says what to name
            raise ConfigError(str(error)) from error
        where = "" if is_path else ", which is not a folder here and was looked up on the Hugging Face Hub,"
        raise ConfigError(f"no network can be read from {source}{where} ({first_line(error)}): {what}") from error
    network = describe(module.config)
    return network, module.to(memory_format=network.memory_format)
