"""Which implementation of FAVOR+S computes: Triton kernels where they can, else plain PyTorch."""

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mimoformer.features import AnyFeatureMap, ReLUFeatures
from vsa_core.gpu import runs_triton
from vsa_core.modules import is_plain_autograd

__all__ = ["Form", "Implementation", "uses_triton", "why_plain"]

Implementation = Literal["auto", "plain", "triton"]
"""Plain PyTorch, which computes in float32 at least; Triton kernels; or these wherever they can compute the same."""
Form = Literal["grid", "shared", "blurry"]
"""Which function is computed: `favor_s`, `favor_s_shared` or `favor_s_blurry`."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_DIM, LARGEST_GRID = 128, 16
"""Sizes that the kernels are made for."""


def why_plain(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, feature_map: AnyFeatureMap, causal: bool = False) -> str | None:
    """Say why "auto" computes attention of these operands (b m n h l d) in plain PyTorch; None if it takes the Triton kernels.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 1, 1, 8, 100, 64)
    >>> why_plain(q, k, v, torch.ones(1, 1, 64), ReLUFeatures(64))
    'the tensors are on cpu, where no Triton kernels run'
    """
    phi = getattr(feature_map, "_orig_mod", feature_map)  # compiled or not
    weights = getattr(phi, "projection", keys)
    tensors, dtypes, largest = (q, k, v, keys, weights), {q.dtype, k.dtype, v.dtype}, q.shape[1] * q.shape[2]
    reasons = {
        f"the tensors are on {q.device}, where no Triton kernels run": not kernels_run(q.device),
        "attention is causal": causal,
        f"the features are {type(phi).__name__}; the kernels have ReLUFeatures without hooks": not is_known(phi),
        f"the dtypes are {dtypes}; the kernels take one of {DTYPES}": not (len(dtypes) == 1 and q.dtype in DTYPES),
        "binding keys or the projection need a gradient": keys.requires_grad or weights.requires_grad,
        f"a head has {q.shape[-1]} dimensions; the kernels take up to {LARGEST_DIM}": q.shape[-1] > LARGEST_DIM,
        f"the grid has {largest} slots; the kernels take up to {LARGEST_GRID}": largest > LARGEST_GRID,
        "there are no sequences": q.shape[0] == 0,
        "the tensors are on several devices": any(x.device != q.device for x in tensors),
        "operators are traced, exported, transformed or watched": not is_plain(tensors),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def uses_triton(implementation: Implementation, reason: str | None) -> bool:
    """Decide between plain PyTorch and Triton, given what `why_plain` says.

    Raises:
        ValueError: there is no such implementation, or "triton" cannot compute this.
    """
    if implementation not in ("auto", "plain", "triton"):
        raise ValueError(f"implementation is {implementation!r}; expected auto, plain or triton")
    if implementation == "triton" and reason is not None:
        raise ValueError(f"implementation 'triton' cannot compute this: {reason}")
    return implementation != "plain" and reason is None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernels_run(device: torch.device) -> bool:
    """Tell whether Triton compiles for a device, or interprets on the CPU."""
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and runs_triton(device)


def is_known(phi: Any) -> bool:
    """Tell whether the kernels have these features, and no hooks want to see them."""
    return type(phi) is ReLUFeatures and not (phi._forward_hooks or phi._forward_pre_hooks or phi._backward_hooks)


def is_plain(tensors: tuple[Any, ...]) -> bool:
    """Tell whether operators run as they are: plain tensors, nothing that traces them, or a compiler that knows the kernels."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_dynamo_compiling()  # otherwise a network is exported
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    plain = all(type(x) in (Tensor, nn.Parameter) for x in tensors)
    return plain and not tracing and is_plain_autograd() and not _has_any_global_hook()  # type: ignore[no-untyped-call]
