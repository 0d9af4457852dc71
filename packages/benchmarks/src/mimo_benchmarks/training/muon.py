"""Muon (Jordan et al., 2024), and SGD for what is no hidden layer's weight, as one optimizer."""

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
    """Groups with `hidden=True` move along orthogonalised momentum, the others as in torch.optim.SGD.

    Hidden weights (out ...) are matrices of `out` rows. Their momentum is Nesterov's and their decay decoupled, and updates of
    tall matrices are scaled by sqrt(rows / columns). Being one optimizer, it has one learning rate schedule and one state.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate, of updates with a spectral norm of about 1 where hidden.
        momentum: of both sorts.
        weight_decay: decoupled in hidden groups, added to the gradient in others.
        hidden: the sort of groups that do not say.

    Raises:
        ValueError: a hidden group has a parameter that is no matrix.
    """

    # a GradScaler then leaves it to `step` to heed its `grad_scale` and `found_inf`, and waits for nothing
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
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is no matrix: set hidden=False for its group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure does, which is called first."""
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
                moved = (step_hidden if group["hidden"] else step_rest)(params, grads, buffers, *options)
                refused = getattr(self, "found_inf", torch.zeros((), device=params[0].device)) == 1
                for old, new in zip([*params, *buffers], [*moved[0], *moved[1]], strict=True):
                    torch.where(refused, old, new, out=old)
        return loss


def step_rest(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: float, momentum: float, decay: float
) -> tuple[Tensors, Tensors]:
    """Parameters and momentum after a step of SGD."""
    buffers = torch._foreach_mul(buffers, momentum)
    torch._foreach_add_(buffers, torch._foreach_add(grads, params, alpha=decay))
    return torch._foreach_add(params, buffers, alpha=-lr), buffers


def step_hidden(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: float, momentum: float, decay: float
) -> tuple[Tensors, Tensors]:
    """Parameters and momentum after a step of Muon; weights of one shape are orthogonalised together."""
    buffers = torch._foreach_lerp(buffers, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, buffers, momentum)
    params = torch._foreach_mul(params, 1 - lr * decay)
    stacks = defaultdict(list)
    for parameter, update in zip(params, updates, strict=True):
        # columns as they lie in memory: the step does not depend on their order
        order = sorted(range(1, update.dim()), key=update.stride, reverse=True)
        stacks[parameter.shape, *order].append((parameter.permute(0, *order), update.permute(0, *order)))
    for pairs in stacks.values():
        alike, matrices = zip(*pairs, strict=True)
        stack = orthogonalised(torch.stack(matrices).flatten(2))
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        torch._foreach_add_(alike, [matrix.view(alike[0].shape) for matrix in stack], alpha=-lr * scale)
    return params, buffers


def orthogonalised(x: Float[Tensor, "b rows cols"]) -> Float[Tensor, "b rows cols"]:
    """U S V^T to U S' V^T with S' about 1, by five Newton-Schulz iterations; in bf16 on a GPU, in fp32 or better elsewhere."""
    if x.shape[1] > x.shape[2]:
        return orthogonalised(x.mT).mT
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.to(dtype)
