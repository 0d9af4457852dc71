"""Muon (Jordan et al., 2024) for hidden weights and SGD for the rest, in one optimizer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Tensors = list[Tensor] | tuple[Tensor, ...]


class Muon(Optimizer):
    """Update groups with `hidden=True` along orthogonalised momentum, and all others as torch.optim.SGD does.

    Hidden weights (out ...) count as matrices of `out` rows. They have Nesterov momentum and decoupled weight decay, and updates
    of tall matrices are scaled by sqrt(rows / columns). One optimizer needs only one learning rate schedule and one state.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate; updates of hidden weights have a spectral norm of about 1 before it.
        momentum: momentum of all groups.
        weight_decay: weight decay, decoupled in hidden groups and added to the gradient in others.
        hidden: what groups are that do not say it themselves.

    Raises:
        ValueError: a hidden group has a parameter with fewer than two axes.
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
            if group["hidden"] and parameter.dim() < 2:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not a matrix: set hidden=False for its group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure if there is one, update every parameter that has a gradient, and return the closure's result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [parameter for parameter in group["params"] if parameter.grad is not None]:
                for parameter in params:
                    if "momentum_buffer" not in self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
                grads: Tensors = [parameter.grad for parameter in params]
                if (scale := getattr(self, "grad_scale", None)) is not None:
                    grads = torch._foreach_div(grads, scale)
                options = (group[name] for name in ("lr", "momentum", "weight_decay"))
                moved = (muon_step if group["hidden"] else sgd_step)(params, grads, buffers, *options)
                refused = getattr(self, "found_inf", torch.zeros((), device=params[0].device)) == 1
                for old, new in zip([*params, *buffers], [*moved[0], *moved[1]], strict=True):
                    torch.where(refused, old, new, out=old)
        return loss


def sgd_step(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: float, momentum: float, decay: float
) -> tuple[Tensors, Tensors]:
    """Return parameters and momentum after a step of SGD."""
    buffers = torch._foreach_mul(buffers, momentum)
    torch._foreach_add_(buffers, torch._foreach_add(grads, params, alpha=decay))
    return torch._foreach_add(params, buffers, alpha=-lr), buffers


def muon_step(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: float, momentum: float, decay: float
) -> tuple[Tensors, Tensors]:
    """Return parameters and momentum after a step of Muon; weights of one shape are orthogonalised together."""
    buffers = torch._foreach_lerp(buffers, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, buffers, momentum)
    params = torch._foreach_mul(params, 1 - lr * decay)
    stacks = defaultdict(list)
    for parameter, update in zip(params, updates, strict=True):
        # columns in the order of memory, which saves a copy; the step does not depend on their order
        order = sorted(range(1, update.dim()), key=update.stride, reverse=True)
        stacks[parameter.shape, *order].append((parameter.permute(0, *order), update.permute(0, *order)))
    for pairs in stacks.values():
        alike, matrices = zip(*pairs, strict=True)
        stack = orthogonalize(torch.stack(matrices).flatten(2))
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        torch._foreach_add_(alike, [matrix.view(alike[0].shape) for matrix in stack], alpha=-lr * scale)
    return params, buffers


def orthogonalize(x: Float[Tensor, "b rows cols"]) -> Float[Tensor, "b rows cols"]:
    """Bring all singular values near 1 by five Newton-Schulz iterations; in bf16 on a GPU, else in fp32 or better."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.to(dtype)
