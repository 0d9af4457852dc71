"""Compute the gradients of convolutions' weights on a stream of their own, beside the rest of the backward pass."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimoconv.fused_norm import is_plain_autograd, is_watched

__all__ = ["conv2d", "overlapped_weight_gradients"]


class Overlap:
    """A stream for the gradients of weights, and how often each weight is used."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.uses = stream, Counter[int]()


ACTIVE: ContextVar[Overlap | None] = ContextVar("ACTIVE", default=None)


@contextmanager
def overlapped_weight_gradients(stream: torch.cuda.Stream) -> Iterator[None]:
    """Let the backward passes of what is computed inside leave weights' gradients to a stream.

    Nothing in a backward pass waits for these gradients, so they run while kernels of BatchNorm wait for memory. Run a forward
    and its backward pass inside, with `grad` of all weights None and without hooks on gradients, such as those of
    DistributedDataParallel. When it ends, the current stream waits for the other, so that gradients can be read.
    """
    token = ACTIVE.set(Overlap(stream))
    try:
        yield
    finally:
        ACTIVE.reset(token)
        torch.cuda.current_stream().wait_stream(stream)


def conv2d(layer: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
    """Run a convolution; within `overlapped_weight_gradients`, the gradient of its weight is left to the other stream."""
    overlap = ACTIVE.get()
    if overlap is None or not fits(layer, x):
        out: Tensor = layer(x)
        return out
    overlap.uses[id(layer.weight)] += 1
    result: Tensor = Convolution.apply(x, layer.weight, (layer.stride, layer.padding, layer.dilation, layer.groups), overlap)
    return result


def fits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether `Convolution` computes what the layer would, and nobody watches the layer or its weight."""
    weight = layer.weight
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
    return (
        type(layer) is nn.Conv2d
        and (layer.bias, layer.padding_mode) == (None, "zeros")
        and not isinstance(layer.padding, str)
        and not is_watched(layer)
        and x.is_cuda
        and x.dtype == dtype
        and type(weight) is nn.Parameter
        and weight.grad is None
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
        and not torch.compiler.is_compiling()
        and is_plain_autograd()
    )


class Convolution(torch.autograd.Function):
    """A convolution without bias, the gradient of whose weight is computed on another stream."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: Any, overlap: Overlap) -> Tensor:
        """Convolve in the dtype of x."""
        ctx.options, ctx.overlap, ctx.weight = options, overlap, weight
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        with torch.autocast("cuda", enabled=False):
            return torch.nn.functional.conv2d(x, cast, None, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Compute the gradient of x, and start to compute that of the weight."""
        x, weight = ctx.saved_tensors
        (stride, padding, dilation, groups), side = ctx.options, ctx.overlap.stream

        def gradients(mask: list[bool]) -> Any:
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
            )

        alone = ctx.overlap.uses[id(ctx.weight)] == 1 and ctx.weight.grad is None  # otherwise it would be added to, too early
        to_x = to_weight = None
        if ctx.needs_input_grad[1] and alone:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                to_weight = gradients([False, True, False])[1].to(ctx.weight.dtype)
            for tensor in (gradient, x):  # their memory may be used again only after that
                tensor.record_stream(side)
        elif ctx.needs_input_grad[1]:
            to_weight = gradients([False, True, False])[1].to(ctx.weight.dtype)
        if ctx.needs_input_grad[0]:
            to_x = gradients([True, False, False])[0]
        return to_x, to_weight, None, None
