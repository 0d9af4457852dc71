"""BatchNorm and the activation after it by fused kernels, forward and backward, on NVIDIA GPUs; elsewhere by the modules."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from vsa_core.gpu import runs_triton
from vsa_core.modules import is_plain_autograd

__all__ = ["norm_act", "norm_act_skip"]

ACTIVATIONS: dict[type, str] = {type(None): "none", nn.ReLU: "relu", nn.PReLU: "prelu"}
"""The kernels' names of the activations that they know."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""


def norm_act(norm: nn.Module, act: nn.Module | None, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Compute `act(norm(x))`, or `norm(x)` without activation, by fused kernels where they can: see `is_fusible`.

    The kernels compute in float32, so in half precision they round less often than the two modules. Their gradients cannot be
    differentiated again.
    """
    if not is_fusible(norm, act, x):
        return plain(norm, act, x)
    out: Tensor = fused(norm, act, x)
    return out


def norm_act_skip(
    norm: nn.Module, act: nn.Module | None, x: Float[Tensor, "b c h w"], branch: Float[Tensor, "b c h w"] | None = None
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Compute `(act(norm(x)), x)`, or the same of `x + branch`.

    Use this x for a skip connection, so that one kernel adds up the gradients of both; so does the sum cost no kernel of its own.
    """
    if branch is not None and not (is_fusible(norm, act, x) and is_alike(x, branch)):
        x, branch = x + branch, None
    if not is_fusible(norm, act, x):
        return plain(norm, act, x), x
    out: tuple[Tensor, Tensor] = fused(norm, act, x, branch, skip=True)
    return out


def plain(norm: nn.Module, act: nn.Module | None, x: Tensor) -> Tensor:
    """Call the modules."""
    out: Tensor = norm(x) if act is None else act(norm(x))
    return out


def is_fusible(norm: nn.Module, act: nn.Module | None, x: Tensor) -> bool:
    """Tell whether the kernels compute what the modules would, on a GPU that has them, and nobody watches the modules.

    Not so while compiling, tracing, or under function transforms, whose work needs the operators of torch.
    """
    return may_fuse(x) and is_plain_autograd() and fits_kernels(norm, act, x)


def may_fuse(x: Any) -> bool:
    """Tell whether kernels might take these images; nothing is traced or compiled, and there are kernels for where they are."""
    return not torch.compiler.is_compiling() and not torch._C._is_tracing() and type(x) is Tensor and has_kernels(x)


def has_kernels(x: Tensor) -> bool:
    """Tell whether there is Triton and a tensor is on a GPU that it compiles for."""
    return x.is_cuda and runs_triton(x.device)


def fits_kernels(norm: nn.Module, act: nn.Module | None, x: Tensor) -> bool:
    """Tell whether modules and images are what the kernels are written for."""
    if type(norm) is not nn.BatchNorm2d or type(act) not in ACTIVATIONS or is_watched(norm) or is_watched(act):
        return False
    buffers = [norm.running_mean, norm.running_var]
    parameters = [norm.weight, norm.bias, *buffers, *(act.parameters() if act else ())]
    rows = x.numel() // max(1, x.shape[1]) if x.dim() == 4 else 0
    return (
        norm.momentum is not None
        and all(is_row(parameter, norm.num_features, x.device) for parameter in parameters)
        and type(norm.num_batches_tracked) is Tensor
        and norm.num_batches_tracked.device == x.device
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        # PReLU refuses images of another dtype than its slopes, unless autocast converts both.
        and (type(act) is not nn.PReLU or x.dtype == torch.float32 or torch.is_autocast_enabled(x.device.type))
        and rows > (1 if norm.training else 0)  # BatchNorm refuses a batch of one row in training
        and x.shape[1] == norm.num_features
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def is_alike(x: Tensor, branch: Tensor) -> bool:
    """Tell whether two tensors can be added up by a kernel, element by element."""
    same = (x.dtype, x.shape, x.device) == (branch.dtype, branch.shape, branch.device)
    return same and type(branch) is Tensor and branch.is_contiguous(memory_format=torch.channels_last)


def is_watched(module: nn.Module | None) -> bool:
    """Tell whether a module has a forward of its own, compiled or not, or hooks, or whether all modules have hooks."""
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    if module is None:
        return False
    own = "forward" in vars(module) or module._compiled_call_impl is not None
    return own or any(getattr(module, name) for name in HOOKS)


def is_row(x: Tensor | None, channels: int, device: torch.device) -> bool:
    """Tell whether this is a plain float32 tensor with one number for each channel."""
    if x is None or type(x) not in (Tensor, nn.Parameter):
        return False
    return (x.dtype, tuple(x.shape), x.device) == (torch.float32, (channels,), device) and x.is_contiguous()


def fused(norm: Any, act: nn.Module | None, x: Tensor, branch: Tensor | None = None, *, skip: bool = False) -> Any:
    """Run the kernels, whether `is_fusible` or not; return the images, and with `skip` also x, or its sum with a branch."""
    dtype, activation = x.dtype, ACTIVATIONS[type(act)]
    if activation == "prelu" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)  # as `F.prelu` does
    slope = act.weight if isinstance(act, nn.PReLU) else None
    statistics = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    settings = (norm.training, float(norm.momentum), float(norm.eps), activation, dtype)
    return NormAct.apply(x, branch, norm.weight, norm.bias, slope, statistics, settings, skip)


class NormAct(torch.autograd.Function):
    """BatchNorm with an activation, by the kernels of `norm_kernels`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor | None,
        statistics: tuple[Tensor, Tensor, Tensor],
        settings: tuple[bool, float, float, str, torch.dtype],
        skip: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise by the statistics of the batch, which update those given, or by those given."""
        from mimoconv import norm_kernels  # here, because Triton may be missing and takes seconds to import

        ctx.set_materialize_grads(False)
        ctx.training, momentum, ctx.eps, ctx.activation, dtype = settings
        mean, var, batches = statistics
        total, batch = x if branch is None else torch.empty_like(x), norm_kernels.GIVEN
        if ctx.training:
            batch = norm_kernels.slice_statistics(x, branch, total, mean, var, batches, momentum)
            x, branch = total, None
            torch.autograd.graph.increment_version([part for part in statistics if not part.is_inference()])
            mean, var = torch.empty(2, x.shape[1], device=x.device)
        common = (mean, var, weight, bias, slope, ctx.eps, ctx.activation)
        out = norm_kernels.normalize(x, branch, total, *common, dtype, batch)
        ctx.save_for_backward(total, mean, var, weight, bias, slope)
        return (out, total) if skip else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, skip: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Compute the gradients of images, branch, weight, bias and slope.

        The first two are one tensor, to which the gradient of the skip connection is added.
        """
        from mimoconv import norm_kernels

        to_images, to_branch, *needs = ctx.needs_input_grad[:5]
        if gradient is None:
            return (skip if to_images else None, skip if to_branch else None, *[None] * 6)
        x, mean, var, weight, bias, slope = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        common = (mean, var, weight, bias, slope, ctx.eps, ctx.activation)
        parts = sums = by_images = None
        if any(needs) or ((to_images or to_branch) and ctx.training):
            parts = norm_kernels.gradient_sums(x, gradient, *common)
        if to_images or to_branch:
            skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
            by_images, sums = norm_kernels.backward(x, gradient, skip, parts if ctx.training else None, *common)
        if sums is None and parts is not None:
            sums = parts.sum(1)
        rows = [] if sums is None else list(sums)
        images = (by_images if to_images else None, by_images if to_branch else None)
        return (*images, *rows, *[None] * (6 - len(rows)))
