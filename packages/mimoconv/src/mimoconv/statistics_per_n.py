"""Running statistics for each n, chosen without changing the module that has them."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from vsa_core import checks, slots
from vsa_core.modules import every_layer

__all__ = ["StatisticsPerN", "has_statistics", "require_own_statistics"]


class StatisticsPerN(nn.Module):
    """Runs a module whose layers with running statistics keep them for every n from 1 to capacity, with shared affine parameters.

    Sums of one and of four bound images have different means and variances, so averages over both would fit neither. The
    statistics of the layers inside, BatchNorm and InstanceNorm, gain a first axis, n - 1: `running_mean` becomes (capacity
    channels), and each n starts from the statistics that the module came with. Afterwards use the module through this one only.

    A pass does not change the module, apart from the statistics in training, so any number of threads may run it in eval mode,
    each with an n of its own. Layers with statistics, and what they are part of, run as copies that share parameters, buffers and
    hooks: hooks get such a copy as their module, and a copy's new attributes are the module's after the pass. Threads that share
    a compiled module need one that compiles whole (`fullgraph=True`): at a break in its graph, buffers are really replaced.

    Raises:
        ValueError: the module is already part of a `StatisticsPerN`.
        TypeError: a part of the module was compiled or scripted on its own.
    """

    def __init__(self, module: nn.Module, capacity: int) -> None:
        super().__init__()
        checks.positive(capacity=capacity)
        require_own_statistics(module)
        for part in module.modules():
            if any(map(has_statistics, part.modules())):
                require_copyable(part)
        self.module, self.capacity = module, capacity
        for norm in self.norms():
            for name, buffer in list(norm.named_buffers(recurse=False)):
                norm.register_buffer(name, buffer.expand(capacity, *buffer.shape).clone())
            if (counts := norm._buffers.get("num_batches_tracked")) is not None:
                counts.zero_()  # the batches counted so far were not superpositions

    def norms(self) -> list[nn.Module]:
        """Return the layers whose statistics depend on n."""
        return [layer for layer in every_layer(self.module) if has_statistics(layer)]

    def forward(self, x: Tensor, n: int) -> Tensor:
        """Run the module on superpositions of n inputs, with the batch's statistics in training, else with those of n.

        Raises:
            ValueError: n is not from 1 to the capacity.
        """
        slots.check(n, self.capacity)
        return run_with_statistics(self.module, x, n)

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}"


def has_statistics(layer: nn.Module) -> bool:
    """Tell whether a layer keeps running statistics, as BatchNorm and InstanceNorm do."""
    return "running_mean" in layer._buffers and layer._buffers["running_mean"] is not None


def rows(norm: nn.Module, n: int, *, copied: bool) -> dict[str, Tensor]:
    """Return the statistics of a layer for n: views, so that updates in place change the layer's own, or copies."""
    return {name: buffer[n - 1].clone() if copied else buffer[n - 1] for name, buffer in norm.named_buffers(recurse=False)}


def run_with_statistics(module: nn.Module, x: Tensor, n: int) -> Tensor:
    """Run a module with the statistics of n, without changing it."""
    copied = module.training and x.shape[0] == 0  # An empty batch has no statistics, so its updates go to copies.
    if torch.compiler.is_compiling():  # A compiler cannot follow `WithRows`; what it follows here it does not do, without breaks.
        own = {f"{path}.{name}" if path else name: row for path, norm in module.named_modules() if has_statistics(norm)
               for name, row in rows(norm, n, copied=copied).items()}  # fmt: skip
        out: Tensor = functional_call(module, own, (x,), tie_weights=False)
    else:
        with_rows = WithRows(n, copied=copied)
        out = with_rows.share(module)(x)
        with_rows.return_attributes()
    return out


def require_copyable(module: nn.Module) -> None:
    """Raise TypeError if a module would still run the original if its attributes were copied."""
    if hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"a {type(module).__name__} is compiled or scripted on its own: compile the whole network instead")


class WithRows:
    """Copies of the layers with statistics, which have those of one n, and of what they are part of; all else is shared."""

    def __init__(self, n: int, *, copied: bool) -> None:
        self.n, self.copied = n, copied
        self.done: dict[nn.Module, nn.Module] = {}
        self.attributes: list[tuple[nn.Module, nn.Module, dict[str, Any]]] = []

    def share(self, module: nn.Module) -> nn.Module:
        """Return the copy of a module, or the module itself if nothing in it has statistics."""
        if module not in self.done:
            parts = {name: part and self.share(part) for name, part in module._modules.items()}
            changes: dict[str, Any] = {}
            if has_statistics(module):
                changes = {"_buffers": {**module._buffers, **rows(module, self.n, copied=self.copied)}}
            if any(part is not module._modules[name] for name, part in parts.items()):
                changes["_modules"] = parts
            self.done[module] = self.copy(module, changes) if changes else module
        return self.done[module]

    def copy(self, module: nn.Module, changes: dict[str, Any]) -> nn.Module:
        """Return a module with the attributes of another one and some changes."""
        require_copyable(module)
        twin = self.done[module] = object.__new__(type(module))
        own = {name: self.adopt(value) for name, value in vars(module).items()} | {"_compiled_call_impl": None} | changes
        vars(twin).update(own)
        self.attributes.append((module, twin, own))
        return twin

    def adopt(self, value: Any) -> Any:
        """Return an attribute in which modules are their copies: a module, a method of one, or a list or tuple of them."""
        if isinstance(value, nn.Module):
            return self.done.get(value, value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.adopt(value.__self__))
        if type(value) in (list, tuple) and any(isinstance(part, nn.Module | MethodType) for part in value):
            return type(value)(map(self.adopt, value))
        return value

    def return_attributes(self) -> None:
        """Give the modules the attributes that the pass has set on their copies."""
        for module, twin, before in self.attributes:
            for name, value in vars(twin).items():
                if name != "training" and (name not in before or before[name] is not value):
                    setattr(module, name, value)


def require_own_statistics(module: nn.Module) -> None:
    """Raise ValueError if a BatchNorm layer of the module keeps its statistics per n already, as a part of another network."""
    for norm in module.modules():
        if isinstance(norm, _NormBase) and norm.running_mean is not None and norm.running_mean.dim() > 1:
            raise ValueError("this module keeps its statistics per n already: give each network a body of its own")
