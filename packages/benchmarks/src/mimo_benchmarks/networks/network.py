"""The protocol by which the program knows networks; a file of this folder implements it for each kind of network."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from vsa_core import slots
from vsa_core.hub import Library
from vsa_core.modules import in_eval_mode

PASSES_AT_ONCE = 512
"""Passes in one batch of `Network.predict`, which bounds memory."""
Inputs = Literal["images", "tokens"]
Place = tuple[nn.Module, Literal["input", "output", "first slot"]]
"""A module, and what is measured there: its input, its output, or the first slot of its output (b slots ...)."""


@runtime_checkable
class ModelSettings(Protocol):
    """What the configurations of all networks have in common: frozen dataclasses with a capacity and a label."""

    @property
    def capacity(self) -> int:
        """Return the most inputs that a pass can hold; 1 for a plain network."""

    @property
    def label(self) -> str:
        """Return the name of the network in tables."""

    def __hash__(self) -> int: ...


class Network:
    """What the program knows of a network: its configuration, and what can be done with the module that is built from it.

    A kind of network is a subclass, with one line in `registry.NETWORKS`; it must give
    `settings` and `library`, and what it does not inherit from the class for its inputs, such as `ImageNetwork`. `n` is
    counted as in the paper: inputs per pass, or the side of a MIMOFormer's grid.
    """

    config: Any
    """The configuration, an instance of `settings`."""
    settings: ClassVar[type[Any]]
    """Class of the configuration."""
    takes: ClassVar[Inputs]
    """What the inputs are."""
    library: ClassVar[Library[Any]]
    """Saves and loads the finished network."""
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    """Layout in memory in which the network is built and loaded."""
    compiled: ClassVar[bool] = True
    """Whether torch.compile makes training on a GPU faster; it does not where a network has fused kernels of its own."""
    fixed_n: ClassVar[bool] = False
    """Whether every pass must hold as many inputs as the capacity."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def capacity(self) -> int:
        """Return the most inputs that a pass can hold."""
        return int(self.config.capacity)

    @property
    def plain(self) -> bool:
        """Return whether the network takes its inputs one by one, whatever n is."""
        return self.capacity == 1

    @property
    def largest_n(self) -> int:
        """Return the largest n that a superposed network has room for."""
        return self.capacity

    @property
    def any_n(self) -> bool:
        """Return whether it can be trained with any n, as controls are: a plain network takes as many inputs one by one."""
        return self.plain

    def axes(self, n: int) -> tuple[int, ...]:
        """Return the axes of the inputs that share a pass; all 1 for a plain network."""
        return (1 if self.plain else n,)

    def inputs(self, n: int) -> int:
        """Return the inputs per superposition; a plain network sees as many one by one."""
        return int(n ** len(self.axes(n)))

    def inputs_per_pass(self, n: int) -> int:
        """Return how many inputs share a pass; 1 for a plain network."""
        return prod(self.axes(n))

    def evaluated_n(self, ns: Sequence[int]) -> list[int]:
        """Return each n that the network is evaluated with, of those it is trained with."""
        return [1] if self.plain else sorted(ns)

    def accuracy_key(self, n: int) -> int | tuple[int, ...]:
        """Return the key of n among the accuracies that a network is saved with: n itself, or a grid."""
        axes = self.axes(n)
        return axes if len(axes) > 1 else axes[0]

    def build(self) -> nn.Module:
        """Make the network with fresh weights, on torch's default device; on "meta" it takes no memory."""
        make: Any = next(kind for kind, settings in self.library.models.items() if settings is self.settings)
        module: nn.Module = make(self.config)
        return module.to(memory_format=self.memory_format)

    def predict(
        self, module: nn.Module, inputs: Shaped[Tensor, "count *item"], n: int, mask: Bool[Tensor, "count *real"] | None = None
    ) -> Float[Tensor, "count *out"]:
        """Return the logits of a flat batch in eval mode; the last group is filled by repeating inputs."""
        axes, parts = self.axes(n), (inputs,) if mask is None else (inputs, mask)
        groups = [slots.group(part, prod(axes)).unflatten(1, axes).split(PASSES_AT_ONCE) for part in parts]
        answering = in_eval_mode(module)
        with torch.no_grad():
            logits = torch.cat([answering(*batch) for batch in zip(*groups, strict=True)])
        return slots.ungroup(logits.flatten(1, len(axes)), len(inputs))

    def count_macs(self, module: nn.Module, n: int) -> float:
        """Count multiply-adds per input, at the network's own image size or its longest sequence, by torch's flop counter."""
        from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton, which is slow

        with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
            one_pass = self.example(self.inputs_per_pass(n), torch.device("meta")).unflatten(0, (1, *self.axes(n)))
            self.build().eval()(one_pass)
        return float(counter.get_total_flops() / 2 / self.inputs_per_pass(n))

    def example(self, count: int, device: torch.device) -> Shaped[Tensor, "count *item"]:
        """Draw random inputs of the network's own size."""
        raise NotImplementedError

    @property
    def penalties(self) -> Mapping[str, Callable[[nn.Module], Float[Tensor, ""]]]:
        """Return the penalties that can be added to the loss, by the names of their factors in `OptimConfig`."""
        return {}

    def recalibrate(self, module: nn.Module, batches: Any, n: int) -> None:
        """Estimate the BatchNorm statistics for n again on batches of inputs; a network without BatchNorm does nothing."""

    def crosstalk_places(self, module: nn.Module) -> Mapping[str, Place]:
        """Return the places where crosstalk is measured, from the superposition to the answers; empty unless overridden."""
        return {}

    @property
    def takes_texts(self) -> bool:
        """Return whether `tokenize` makes the inputs from texts."""
        return False

    @property
    def takes_pairs(self) -> bool:
        """Return whether an input is a pair of texts."""
        return False

    @property
    def predicts_tokens(self) -> bool:
        """Return whether the network answers with the next token instead of a class."""
        return False

    def tokenize(self, texts: Sequence[Any]) -> tuple[Integer[Tensor, "count *pair l"], Bool[Tensor, "count *pair l"]]:
        """Turn whole texts, or pairs of them, into tokens as the configuration says, and say which tokens are real.

        Raises:
            ValueError: the configuration does not say how, or it does not know a word.
        """
        raise NotImplementedError

    def answer_name(self, place: int) -> str:
        """Return the name of the class, or of the token, with this place among the logits."""
        names = getattr(self.config, "class_names", None) or ()
        return str(names[place]) if place < len(names) else str(place)
