"""Modules that own keys, one for each algebra; the algebra's functions compute. And any module in eval mode."""

import copy
from types import FunctionType
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vsa_core import checks, hadamard, hrr, mbat, superposition

__all__ = [
    "Algebra",
    "Binding",
    "HRRBinding",
    "HadamardBinding",
    "MBATBinding",
    "eval_copy",
    "every_layer",
    "in_eval_mode",
    "is_plain_autograd",
    "unwrapped",
]

Module = TypeVar("Module", bound=nn.Module)
WRAPPERS = (AveragedModel, nn.DataParallel, DistributedDataParallel)
"""Classes of torch whose `module` is the network."""


class Algebra(Protocol):
    """The functions that `hrr`, `hadamard` and `mbat` have in common."""

    def bind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def unbind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def random_keys(self, n: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor: ...


class Binding(nn.Module):
    """Binds n vectors to n keys of its own, which are trained by default; subclasses name the algebra."""

    algebra: ClassVar[Algebra]
    """Module whose functions bind, unbind and draw the keys."""

    def __init__(self, n: int, dim: int, *, trainable: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.keys = nn.Parameter(self.algebra.random_keys(n, dim, generator=generator), requires_grad=trainable)

    def forward(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b n dim"]:
        """Bind vector i of the n to key i.

        Raises:
            ValueError: `x` is not (*b n dim).
        """
        checks.one_key_per_vector(x, self.keys)
        return self.algebra.bind(x, self.keys)

    def superpose(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b dim"]:
        """Bind each vector to its key, then add them up.

        Raises:
            ValueError: `x` is not (*b n dim).
        """
        return superposition.superpose(x, self.keys, self.algebra.bind)

    def unbind(self, s: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b n dim"]:
        """Retrieve from a superposition what is bound to each of the n keys."""
        checks.vectors(s=s)
        return self.algebra.unbind(s[..., None, :], self.keys)

    def extra_repr(self) -> str:
        return f"n={self.keys.shape[0]}, dim={self.keys.shape[-1]}, trainable={self.keys.requires_grad}"


class HRRBinding(Binding):
    """Binds by circular convolution with Gaussian keys (n dim).

    >>> import torch
    >>> binding = HRRBinding(4, 64)
    >>> binding.unbind(binding.superpose(torch.randn(10, 4, 64))).shape
    torch.Size([10, 4, 64])
    """

    algebra: ClassVar[Algebra] = hrr


class HadamardBinding(Binding):
    """Binds by the elementwise product with bipolar keys (n dim)."""

    algebra: ClassVar[Algebra] = hadamard


class MBATBinding(Binding):
    """Binds by the product with orthogonal matrices (n dim dim)."""

    algebra: ClassVar[Algebra] = mbat


def in_eval_mode(model: Module) -> Module:
    """Return the model itself if all its layers are in eval mode, else a copy in eval mode, as `eval_copy` makes it."""
    return eval_copy(model) if any(layer.training for layer in every_layer(model)) else model


def every_layer(model: nn.Module) -> list[nn.Module]:
    """List a model and the layers inside, each once, in a fifth of the time of `modules`, which also makes their names."""
    layers, known = [model], {model}
    for layer in layers:
        for part in layer._modules.values():
            if part is not None and part not in known:
                known.add(part)
                layers.append(part)
    return layers


def unwrapped(model: nn.Module) -> Any:
    """Return the module inside torch's wrappers that call it as it is: AveragedModel, DataParallel, DistributedDataParallel."""
    while isinstance(model, WRAPPERS):
        model = model.module
    return model


def is_plain_autograd() -> bool:
    """Tell whether operators run as they are: no vmap or other transform, forward mode or dispatch mode."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not transformed and not is_in_torch_dispatch_mode()


def eval_copy(model: Module) -> Module:
    """Copy a model into eval mode, while parameters, buffers and hooks stay shared with the original.

    The model itself does not change, so other threads may use it, or train it, meanwhile. The copy of a compiled model is not
    compiled.

    Raises:
        TypeError: the model holds something that cannot be copied, such as a lock, or a `forward` that was put in place of its
            own and would still run the original.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    >>> copied = eval_copy(model)
    >>> model.training, copied.training, copied[0].weight is model[0].weight
    (True, False, True)
    """
    original: Module = getattr(model, "_orig_mod", model)
    held = [entry for layer in original.modules() for entry in held_by(layer)]
    shared = [value for name, value in held if "hooks" in name or isinstance(value, Tensor)]
    try:
        if any(name == "forward" and isinstance(value, FunctionType) for name, value in held):
            raise TypeError("forward is a function that may hold the original")
        return copy.deepcopy(original, {id(value): value for value in shared}).eval()
    except Exception as error:
        raise TypeError(f"a {type(model).__name__} in training mode cannot be copied ({error}): call its eval() first") from error


def held_by(layer: nn.Module) -> list[tuple[str, Any]]:
    """List attributes, parameters and buffers of a layer."""
    return [*vars(layer).items(), *layer._parameters.items(), *layer._buffers.items()]
