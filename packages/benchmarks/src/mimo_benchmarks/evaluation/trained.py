"""Networks whose training is finished, read from their run directories."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mimo_benchmarks.errors import CheckpointError
from mimo_benchmarks.evaluation import results
from mimo_benchmarks.networks.registry import Network
from mimo_benchmarks.run_directory import read_config, tuples
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.tasks.kinds import normalised
from mimo_benchmarks.training import checkpoint


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network for images whose training is finished."""

    config: RunConfig
    network: Network
    """In eval mode."""
    pixels: Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
    """What it sees of images on the task's own scale of grey."""
    scale: float
    """The value of a white pixel there."""
    classes: int


def trained(path: Path, device: torch.device) -> Trained:
    """The network of a run directory.

    Raises:
        ConfigError: it is none, or none of images.
        CheckpointError: its weights are missing or damaged.
    """
    _, config = read_config(path)
    kept = checkpoint.load(path / "model", device)
    if kept is None:
        raise CheckpointError(f"{path} has no finished network: go on with `--resume {shlex.quote(str(path))}` first")
    require(bool(kept.state["pixels"]), f"{path} is a run on {config.task}, which has no images")
    seen: dict[str, Any] = tuples(kept.state["pixels"])
    with checkpoint.fitting(kept.path):
        network = results.fresh(config.model, kept.tensors["model"], device)
    return Trained(
        config=config,
        network=network,
        pixels=lambda images: normalised(images, **seen),
        scale=seen["scale"],
        classes=kept.state["classes"],
    )
