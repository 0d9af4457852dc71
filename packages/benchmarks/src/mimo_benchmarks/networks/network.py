"""What the program asks of a network: one protocol, which a file of this folder answers for each kind."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from vsa_core.hub import Library

Inputs = Literal["images", "tokens"]
Place = tuple[nn.Module, Literal["input", "output", "first slot"]]
"""A module, and what of it is looked at: its input, its output, or the first slot of its output (b slots ...)."""


@runtime_checkable
class ModelSettings(Protocol):
    """What the configuration of every network has."""

    @property
    def capacity(self) -> int:
        """The most inputs that a pass can hold; 1 for a plain network."""

    @property
    def label(self) -> str:
        """What tables call the network."""

    def __hash__(self) -> int: ...


@runtime_checkable
class Network(Protocol):
    """A network as the program knows it: by its configuration before it is built, and by what can be done with its module.

    Each kind is a subclass, with one line in `registry.NETWORKS`. `n` is counted as in the paper: inputs per pass, or the side
    of a MIMOFormer's grid.
    """

    config: Any
    settings: ClassVar[type[Any]]
    """The class of the configuration, a frozen dataclass."""
    takes: ClassVar[Inputs]
    library: ClassVar[Library[Any]]
    """What saves and loads the finished network."""
    layouts: ClassVar[Sequence[torch.memory_format]]
    """Memory layouts of the weights that may differ in speed; the usual one comes last."""
    fixed_n: ClassVar[bool] = False
    """Whether every pass must hold as many inputs as the capacity."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def capacity(self) -> int:
        """The most inputs that a pass can hold."""
        return int(self.config.capacity)

    @property
    def plain(self) -> bool:
        """Whether the network takes its inputs one by one, whatever n is."""
        return self.capacity == 1

    @property
    def largest_n(self) -> int:
        """The largest n that a superposed network has room for."""
        return self.capacity

    def axes(self, n: int) -> tuple[int, ...]:
        """The axes of the inputs that share a pass; all 1 for a plain network."""
        return (1 if self.plain else n,)

    def inputs(self, n: int) -> int:
        """Inputs per superposition. A plain network sees as many one by one."""
        return int(n ** len(self.axes(n)))

    def inputs_per_pass(self, n: int) -> int:
        """How many inputs share a pass; 1 for a plain network."""
        return prod(self.axes(n))

    def evaluated_n(self, ns: Sequence[int]) -> list[int]:
        """Each n that the network is evaluated with, of those it is trained with."""
        return [1] if self.plain else sorted(ns)

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        raise NotImplementedError

    def predict(
        self, module: nn.Module, inputs: Shaped[Tensor, "count *item"], n: int, mask: Bool[Tensor, "count *real"] | None = None
    ) -> Float[Tensor, "count *out"]:
        """Return the logits of a flat batch in eval mode; the last group is filled by repeating inputs."""
        raise NotImplementedError

    def count_macs(self, module: nn.Module, n: int) -> float:
        """Count multiply-adds per input, at the network's own image size or its longest sequence."""
        raise NotImplementedError

    def example(self, count: int, device: torch.device) -> Shaped[Tensor, "count *item"]:
        """Draw random inputs of the network's own size."""
        raise NotImplementedError

    @property
    def penalties(self) -> Mapping[str, Callable[[nn.Module], Float[Tensor, ""]]]:
        """What can be added to the loss, by the name of its factor in `OptimConfig`."""
        return {}

    def recalibrate(self, module: nn.Module, batches: Any, n: int) -> None:
        """Estimate the BatchNorm statistics for n afresh on batches of inputs; without BatchNorm there is nothing to do."""

    def crosstalk_places(self, module: nn.Module) -> Mapping[str, Place]:
        """Return where crosstalk is measured on the way from the superposition to the answers; nowhere unless overridden."""
        return {}
