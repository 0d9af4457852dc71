"""Muon (Jordan et al., 2024) for hidden weights and SGD for the rest, in one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd


class Muon(Optimizer):
    """Update groups with `hidden=True` along orthogonalised momentum, and all others as torch.optim.SGD does.

    Hidden weights (out ...) count as matrices of `out` rows. They have Nesterov momentum and decoupled weight decay, and updates
    of tall matrices are scaled by sqrt(rows / columns). One optimizer needs only one learning rate schedule and one state.
    torch's fused SGD does the elementwise work: in few kernels, and none waits for the device to heed `found_inf`.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate; updates of hidden weights have a spectral norm of about 1 before it.
        momentum: momentum of all groups, below 1.
        weight_decay: weight decay, decoupled in hidden groups and added to the gradient in others.
        hidden: what groups are that do not say it themselves.

    Raises:
        ValueError: a hidden group has a parameter with fewer than two axes, or a parameter has gaps in memory.
    """

    # tells GradScaler that `step` heeds `grad_scale` and `found_inf` itself, so that it does not wait for the device
    _step_supports_amp_scaling = True

    def __init__(
        self, params: ParamsT, lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0, hidden: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "hidden": hidden})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if torch.empty_like(parameter).stride() != parameter.stride():
                raise ValueError(f"a parameter of strides {parameter.stride()} has gaps or overlaps in memory: copy it first")
            if group["hidden"] and parameter.dim() < 2:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not a matrix: set hidden=False for its group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure if there is one, update every parameter that has a gradient, and return the closure's result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling: dict[str, Any] = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for group in self.param_groups:
            if params := [parameter for parameter in group["params"] if parameter.grad is not None]:
                buffers = [self._momentum_buffer(parameter) for parameter in params]
                options = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
                grads = [parameter.grad for parameter in params]
                (muon_step if group["hidden"] else sgd_step)(params, grads, buffers, **options, **scaling)
        return loss

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        """Return a parameter's momentum, in the parameter's layout, which may have changed since the last step."""
        state = self.state[parameter]
        buffer = state.get("momentum_buffer")
        state["momentum_buffer"] = torch.zeros_like(parameter) if buffer is None else laid_out_as(parameter, buffer)
        return state["momentum_buffer"]


def laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor with a parameter's strides: fused kernels read and write both in the order of memory."""
    return tensor if tensor.stride() == parameter.stride() else torch.empty_like(parameter).copy_(tensor)


def fused_step(params: list[Tensor], grads: list[Tensor], buffers: Sequence[Tensor | None], **options: Any) -> None:
    """Take a step of torch's fused SGD, which writes nothing where `found_inf` is 1."""
    sgd(params, grads, list(buffers), fused=True, nesterov=False, maximize=False, **options)


def sgd_step(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], **options: Any) -> None:
    """Update parameters and momentum by SGD."""
    fused_step(params, list(map(laid_out_as, params, grads)), buffers, dampening=0.0, **options)


def muon_step(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Update parameters and momentum by Muon; weights of one layout form one stack."""
    alike = defaultdict(list)
    for weight in zip(params, grads, buffers, strict=True):
        alike[weight[0].shape, weight[0].stride(), weight[0].dtype, weight[0].device].append(weight)
    params, grads, buffers = (list(tensors) for tensors in zip(*chain(*alike.values()), strict=True))
    stacks = [
        torch.empty_strided((len(weights), *shape), (shape.numel(), *stride), dtype=dtype, device=device)
        for (shape, stride, dtype, device), weights in alike.items()
    ]
    updates = list(chain(*stacks))
    torch._foreach_copy_(updates, grads)
    if grad_scale is not None:
        torch._foreach_div_(updates, grad_scale)
    # Nesterov's update is momentum * buffer + (1 - momentum) * gradient, of which only the direction matters. SGD computes it
    # where the gradient stands in for the parameter too; it reads both before it writes.
    ahead = {"lr": -momentum / (1 - momentum), "momentum": momentum, "dampening": momentum, "weight_decay": 0.0}
    fused_step(updates, updates, buffers, **ahead, grad_scale=None, found_inf=found_inf)
    orthogonalize_all(stacks)
    plain = {"lr": lr, "momentum": 0.0, "dampening": 0.0, "weight_decay": weight_decay}
    fused_step(params, updates, [None] * len(params), **plain, grad_scale=None, found_inf=found_inf)


def orthogonalize_all(stacks: list[Tensor]) -> None:
    """Orthogonalize stacks of weights (b out ...) in place, those of one small side together; scale tall ones up."""
    sides = defaultdict(list)
    for stack in stacks:
        # columns in the order of memory, which saves a copy; the step does not depend on their order
        order = sorted(range(2, stack.dim()), key=stack.stride, reverse=True)
        side = min(stack.shape[1], stack.shape[2:].numel())
        sides[side, stack.dtype, stack.device].append(stack.permute(0, 1, *order))
    for (_, dtype, device), group in sides.items():
        inner = torch.float16 if device.type == "cuda" else torch.promote_types(dtype, torch.float32)
        for stack, new in zip(group, orthogonalize([stack.flatten(2) for stack in group], inner), strict=True):
            torch.mul(new.view(stack.shape), max(1.0, new.shape[1] / new.shape[2]) ** 0.5, out=stack)


def orthogonalize(stacks: list[Float[Tensor, "_b _rows _cols"]], dtype: torch.dtype) -> list[Float[Tensor, "_b _rows _cols"]]:
    """Bring all singular values near 1 by five Newton-Schulz iterations, X to P X with G = X X^T and P = a + b G + c G^2.

    G becomes P G P, so all but the first and last products are of small square matrices (Gram Newton-Schulz, Dao AI Lab, 2026).
    Errors of small singular values grow with every such step, so after three iterations G is computed from X again.

    Args:
        stacks: matrices whose smaller sides are equal.
        dtype: type of the products and of the result; fp16 is more accurate here than bf16, and nothing in it can overflow.
    """
    wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in stacks]
    norms = [
        torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)) for x in wide
    ]
    xs = [torch.div(x, norm.clamp(min=1e-7), out=torch.empty_like(x, dtype=dtype)) for x, norm in zip(wide, norms, strict=True)]
    for iterations in (3, 2):
        gram = torch.cat([x @ x.mT for x in xs])
        product = factor = newton_schulz_factor(gram)
        for _ in range(iterations - 1):
            gram = factor @ gram @ factor
            factor = newton_schulz_factor(gram)
            product = factor @ product
        xs = [factor @ x for factor, x in zip(product.split([len(x) for x in xs]), xs, strict=True)]
    return [x if x.shape == stack.shape else x.mT for x, stack in zip(xs, stacks, strict=True)]


def newton_schulz_factor(gram: Float[Tensor, "b r r"]) -> Float[Tensor, "b r r"]:
    """Return a + b G + c G^2, with the numbers of Jordan et al. (2024)."""
    factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    factor.diagonal(dim1=1, dim2=2).add_(3.4445)
    return factor
