"""Which implementation of FAVOR+S computes: Triton kernels where they can, else plain PyTorch."""

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mimoformer.features import AnyFeatureMap, PositiveFeatures, RandomFeatures, ReLUFeatures
from vsa_core.gpu import runs_triton
from vsa_core.modules import is_plain_autograd

__all__ = ["Form", "Implementation", "steps_by_triton", "uses_triton", "why_plain", "why_plain_step"]

Implementation = Literal["auto", "plain", "triton"]
"""Plain PyTorch, which computes in float32 at least; Triton kernels; or these wherever they can compute the same."""
Form = Literal["grid", "shared", "blurry"]
"""Which function is computed: `favor_s`, `favor_s_shared` or `favor_s_blurry`."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_DIM, LARGEST_GRID, MOST_HEADS = 128, 16, 2**16 - 1
"""Sizes that the kernels are made for, and programs that CUDA starts along an axis."""


def why_plain(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, feature_map: AnyFeatureMap, causal: bool = False) -> str | None:
    """Say why "auto" computes attention of these operands (b m n h l d) in plain PyTorch; None if it takes the Triton kernels.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 1, 1, 8, 100, 64)
    >>> why_plain(q, k, v, torch.ones(1, 1, 64), ReLUFeatures(64))
    'the tensors are on cpu, where no Triton kernels run'
    """
    phi: Any = getattr(feature_map, "_orig_mod", feature_map)  # compiled or not
    name = type(phi).__name__
    known = is_known(feature_map, phi, (ReLUFeatures, PositiveFeatures))
    weights = phi.projection if known else keys
    tensors, dtypes, slots = (q, k, v, keys, weights), {q.dtype, k.dtype, v.dtype}, q.shape[1] * q.shape[2]
    trained = torch.is_grad_enabled() and (keys.requires_grad or weights.requires_grad)
    reasons = {
        f"the tensors are on {q.device}, where no Triton kernels run": not kernels_run(q.device),
        f"the features are {name}; the kernels have ReLUFeatures and PositiveFeatures, unchanged and without hooks": not known,
        f"the dtypes are {dtypes}; the kernels take one of {DTYPES}": not (len(dtypes) == 1 and q.dtype in DTYPES),
        "binding keys or the projection need a gradient": trained,
        f"a head has {q.shape[-1]} dimensions; the kernels take up to {LARGEST_DIM}": q.shape[-1] > LARGEST_DIM,
        f"the features take vectors of {weights.shape[-1]} dimensions": weights.shape[-1] != q.shape[-1],
        f"the grid has {slots} slots; the kernels take up to {LARGEST_GRID}": slots > LARGEST_GRID,
        "a tile of causal attention takes more shared memory than the GPU has": causal and not tile_fits(q),
        "there are no tokens": 0 in q.shape,
        f"there are more than {MOST_HEADS} heads in all groups": q.shape[0] * q.shape[3] > MOST_HEADS,
        "a group has more than 2**31 numbers": any(extent(x) >= 2**31 for x in (q, k, v)),
        "the tensors are on several devices": any(x.device != q.device for x in tensors),
        "operators are traced, exported, transformed or watched": not is_plain(tensors),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def uses_triton(
    implementation: Implementation, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, feature_map: AnyFeatureMap, causal: bool
) -> bool:
    """Decide between plain PyTorch and Triton for the operands of `why_plain`.

    Raises:
        ValueError: there is no such implementation, or "triton" cannot compute this.
    """
    return decide(implementation, lambda: why_plain(q, k, v, keys, feature_map, causal))


def why_plain_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    feature_map: AnyFeatureMap,
    state: tuple[Tensor, ...] = (),
    mask: Tensor | None = None,
) -> str | None:
    """Say why "auto" takes a step of causal attention in plain PyTorch; None if it takes the Triton kernel.

    The state is that of `mimoformer.kernels.step.favor_step`.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 1, 1, 8, 3, 64)
    >>> why_plain_step(q, k, v, torch.ones(1, 1, 64), ReLUFeatures(64))
    'there are 3 new tokens; the kernel takes one'
    """
    phi: Any = getattr(feature_map, "_orig_mod", feature_map)  # compiled or not
    name = type(phi).__name__
    known = is_known(feature_map, phi, (ReLUFeatures,))
    weights = phi.projection if known else keys
    (b, m, n, h, length, d), r = q.shape, weights.shape[0]
    tensors = (q, k, v, keys, weights, *state) if mask is None else (q, k, v, keys, weights, *state, mask)
    shapes = [(b, h, r, d), (b, m, n, h, r), (b, h, r), (b, h)]
    reasons = {
        f"there are {length} new tokens; the kernel takes one": length != 1,
        f"the tensors are on {q.device}, where no Triton kernels run": not kernels_run(q.device),
        f"the features are {name}; the kernel has ReLUFeatures, unchanged and without hooks": not known,
        f"q, k and v are not all in one of {DTYPES}": not (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES),
        "a gradient is needed": torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
        f"a head has {d} dimensions; the kernel takes up to {LARGEST_DIM}": d > LARGEST_DIM,
        f"the features take vectors of {weights.shape[-1]} dimensions": weights.shape[-1] != d,
        f"the grid has {m * n} slots; the kernel takes up to {LARGEST_GRID}": m * n > LARGEST_GRID,
        "there are no sequences": b == 0,
        "the state is not of these tokens, or not in float32": len(state) > 0
        and ([x.shape for x in state] != shapes or any(x.dtype != torch.float32 for x in state)),
        "the tensors are on several devices": any(x.device != q.device for x in tensors),
        "operators are traced, exported, transformed or watched": not is_plain(tensors),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def steps_by_triton(
    implementation: Implementation,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    feature_map: AnyFeatureMap,
    state: tuple[Tensor, ...],
    mask: Tensor | None,
) -> bool:
    """Decide between plain PyTorch and Triton for the operands of `why_plain_step`, with the errors of `uses_triton`."""
    return decide(implementation, lambda: why_plain_step(q, k, v, keys, feature_map, state, mask))


def decide(implementation: Implementation, why_plain: Callable[[], str | None]) -> bool:
    """Tell whether Triton computes, given what says why it should not."""
    if implementation not in ("auto", "plain", "triton"):
        raise ValueError(f"implementation is {implementation!r}; expected auto, plain or triton")
    reason = "it is asked for" if implementation == "plain" else why_plain()
    if implementation == "triton" and reason is not None:
        raise ValueError(f"implementation 'triton' cannot compute this: {reason}")
    return reason is None


def tile_of(dtype: torch.dtype, bundles: int) -> int:
    """Return how many tokens of each of so many bundles causal attention computes at once: 64 rows, or 32 of larger numbers."""
    rows = 64 if dtype == torch.bfloat16 else 32
    return int(max(16, rows // 2 ** (bundles - 1).bit_length()))


def tile_fits(q: Tensor) -> bool:
    """Tell whether a GPU has shared memory for the tiles of causal attention; float32 is multiplied in two parts."""
    side, dim = (2 ** (size - 1).bit_length() for size in (int(max(q.shape[1:3])), max(16, int(q.shape[-1]))))
    size = {torch.bfloat16: 2, torch.float16: 4}.get(q.dtype, 8)
    return q.device.type != "cuda" or 6 * tile_of(q.dtype, side) * side * dim * size <= shared_memory(q.device)


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program on a GPU may use; 0 on a CPU."""
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin) if device.type == "cuda" else 0


def extent(x: Tensor) -> int:
    """Return how far apart the numbers of a group lie in memory, or will lie in the output, at most."""
    apart = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return max(apart, math.prod(x.shape[1:]))


def kernels_run(device: torch.device) -> bool:
    """Tell whether Triton compiles for a device, or interprets on the CPU."""
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and runs_triton(device)


# What torch.compiler.assume_constant_result sets, which would import all of torch's compiler.
kernels_run._dynamo_marked_constant = shared_memory._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_known(feature_map: Any, phi: Any, kinds: tuple[type[RandomFeatures], ...]) -> bool:
    """Tell whether these are features that the kernels have, compiled or not, with a number as eps and without hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    methods = ("forward", "project", "exponent", "masked_exponent", "query", "key", "running_key")
    known = type(phi) in kinds and not isinstance(getattr(phi, "eps", None), Tensor)
    known = known and not any(method in vars(phi) for method in methods)
    return known and not any(getattr(each, hook) for each in (feature_map, phi) for hook in hooks)


def is_plain(tensors: tuple[Any, ...]) -> bool:
    """Tell whether operators run as they are: plain tensors, nothing that traces them, or a compiler that knows the kernels."""
    if torch.compiler.is_compiling():
        exported = torch.compiler.is_exporting() or not torch.compiler.is_dynamo_compiling()
        return not exported and is_plain_autograd()
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    plain = all(type(x) in (Tensor, nn.Parameter) for x in tensors)
    return plain and not tracing and is_plain_autograd() and not _has_any_global_hook()  # type: ignore[no-untyped-call]
