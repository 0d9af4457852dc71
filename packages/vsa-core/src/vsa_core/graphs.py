"""Replay a network's passes on a GPU as CUDA graphs, which launch all kernels of a pass at once instead of one by one.

A graph is captured when a kind of pass comes for the second time: inputs of the same shapes, the same autocast and precision, and
a network that has not changed since. Graphs read weights where they are, so changes in place, as by an optimizer, count at once;
after any other change this starts anew. So replays compute what the network would. Whether it has changed is seen while a replay
runs already, whose result is dropped if so. The memory of graphs and of a network's weights is kept until a pass that could be
replayed sees such a change, or until `forget`. `disabled` turns all of it off.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import chain, product
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from vsa_core.modules import every_layer, in_eval_mode, is_plain_autograd, unwrapped

__all__ = ["answer", "disabled", "forget", "replay", "replay_known"]

PACKAGES = ("torch.nn.", "torchvision.", "vsa_core.", "mimoconv.", "mimoformer.")
"""Where layers come from whose passes differ only in the numbers in their tensors; networks with others are not captured."""
KINDS = 16
"""Most kinds of passes that are remembered of a network."""
SWITCHES = (
    torch.get_default_dtype,
    torch.are_deterministic_algorithms_enabled,
    cuda.flash_sdp_enabled,
    cuda.math_sdp_enabled,
    cuda.mem_efficient_sdp_enabled,
    cuda.cudnn_sdp_enabled,
    cuda.fp16_bf16_reduction_math_sdp_allowed,
    torch.backends.mha.get_fastpath_enabled,
)
"""Settings of torch that choose kernels."""
MATMUL = ("allow_fp16_accumulation", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
"""Settings of matrix products; not every release of torch has them all."""
Inputs = tuple[Tensor | None, ...]
"""Tensors, or None for a mask that is not given."""
PARTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
"""Attributes of a layer that are dicts whose entries count."""
LAYOUT = (Tensor.data_ptr, Tensor.size, Tensor.stride, attrgetter("dtype"))
"""What changes of a tensor if it gets other `data`."""
Kind = tuple[Any, ...]
"""All but the model that a graph builds in."""
ENABLED = ContextVar("ENABLED", default=True)
LOCK = threading.RLock()
"""Held while a pass is captured or launched: graphs share memory."""


@contextmanager
def disabled() -> Iterator[None]:
    """Let every pass run kernel by kernel, in this thread and within this context; graphs made so far stay.

    >>> with disabled():
    ...     replay(nn.ReLU().eval(), torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    """
    token = ENABLED.set(False)
    try:
        yield
    finally:
        ENABLED.reset(token)


def forget(model: nn.Module) -> None:
    """Drop a model's graphs and free their memory; its next passes start anew, also if a capture failed before."""
    model = unwrapped(model)
    with LOCK:
        PASSES.pop(model, None)
        REFUSED.discard(model)


def answer(model: nn.Module, batches: Iterable[Inputs], is_small: Callable[..., bool]) -> Iterator[tuple[Tensor, dict[Any, Any]]]:
    """Yield what a model in eval mode, else a copy in eval mode, computes for each batch; `replay` runs those that are small.

    With it comes a dict for what the caller finds out about the model. After a replay that needed no new graph it is the same
    one until anything but the numbers in the model's tensors changes, otherwise an empty one. Gradients must be off.
    """
    answering = None
    for inputs in batches:
        small = is_small(*inputs)
        out = replay_known(model, *inputs) if small else None  # before the modes of all layers are looked at, which takes time
        if out is None:
            answering = in_eval_mode(model) if answering is None else answering
            replayed = small and answering is model  # graphs of a copy would be dropped with it
            out = replay(model, *inputs) if replayed else answering(*inputs)
            passes = None
        else:
            passes = PASSES.get(model)
        yield out, passes.known if passes else {}


@torch.no_grad()
def replay(model: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Return `model(*inputs)` without gradients, on a GPU from a CUDA graph if this kind of pass has come before.

    The model must be in eval mode. It runs kernel by kernel where a graph might not compute the same: if it has hooks, parts that
    are compiled, tensors that are plain attributes or on another device, layers or functions that are not from torch, torchvision
    or these packages; and under function transforms, forward-mode differentiation and `parametrize.cached`. There, as in
    `model(*inputs)`, autocast may use casts of weights from before a change in place within its block; replays never do.

    Graphs do not see it if memory of a weight is freed without a new tensor, as by `resize_` of its storage: `forget` it before.

    If a capture fails, a warning says why, and no other is tried until `forget`; if memory ran out, a later pass tries again.
    """
    out = replay_known(model, *inputs, in_eval=False)
    if out is None and can_replay(inputs) and model not in REFUSED:
        with LOCK, torch.inference_mode(False), torch.no_grad():  # a graph's own tensors may be written in any mode
            graph = find_graph(model, inputs)
            out = graph.replay(inputs) if graph else None
    return model(*inputs) if out is None else out


def replay_known(model: nn.Module, *inputs: Tensor | None, in_eval: bool = True) -> Tensor | None:
    """Return what `replay` would if it needs no new graph, else None; with `in_eval` only if all layers are in eval mode.

    Call it where gradients are off: turning them off takes time.
    """
    if not can_replay(inputs):
        return None
    with LOCK:
        passes = PASSES.get(model)
        graph = passes.graphs.get(kind_of_pass(inputs)) if passes else None
        if passes is None or graph is None or (in_eval and passes.built_in.training):
            return None
        out = graph.replay(inputs)  # what follows takes about as long as a small network
        if passes.built_in.fits(model):
            return out
        out.cpu()  # waits, as a graph must not be dropped while it runs
        del PASSES[model]
        return None


def find_graph(model: nn.Module, inputs: Inputs) -> "Graph | None":
    """Return the graph for a pass of a model, captured now if it comes for the second time; None if it runs kernel by kernel."""
    passes = PASSES.get(model)
    if passes is None or not passes.built_in.fits(model):
        PASSES.pop(model, None)
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in every_layer(model)):
            return None
        if not can_capture(model, inputs):
            REFUSED.add(model)
            return None
        passes = PASSES[model] = Passes(model)
    try:
        return passes.graph(model, kind_of_pass(inputs), inputs)
    except RuntimeError as error:
        PASSES.pop(model, None)
        reason = error.__context__ or error  # what ended the capture
        if not isinstance(reason, Exception):  # such as KeyboardInterrupt
            raise reason from None
        if not isinstance(reason, torch.OutOfMemoryError):
            REFUSED.add(model)
            warnings.warn(f"no CUDA graph can be made of this {type(model).__name__}, which runs without: {reason}", stacklevel=1)
        return None


def can_replay(inputs: Inputs) -> bool:
    """Tell whether inputs are on a GPU, operations run as they are, and nothing looks at single ones, such as a compiler."""
    return (
        ENABLED.get()
        and on_gpu(inputs)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and is_plain_autograd()
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and not parametrize._cache_enabled  # its tensors are freed afterwards
    )


def on_gpu(inputs: Inputs) -> bool:
    """Tell whether all inputs are plain tensors on an NVIDIA GPU, on which nothing is being captured."""
    plain = all(x is None or (type(x) is Tensor and x.is_cuda) for x in inputs)
    return plain and torch.version.cuda is not None and not torch.cuda.is_current_stream_capturing()


def device_of(inputs: Inputs) -> torch.device:
    """Return the device of the first tensor."""
    return next(x.device for x in inputs if x is not None)


def can_capture(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether all layers and their functions are from `PACKAGES`, and all tensors plain ones on the device of the inputs."""
    layers, device = every_layer(model), device_of(inputs)
    tensors = (*model.parameters(), *model.buffers())
    return all(
        type(layer).__module__.startswith(PACKAGES) and all(map(is_known, vars(layer).values())) for layer in layers
    ) and all(type(tensor) in (Tensor, nn.Parameter) and tensor.device == device for tensor in tensors)


def is_known(value: Any) -> bool:
    """Tell whether an attribute is not a tensor, and runs no code but that of a class or a function from torch or `PACKAGES`."""
    if isinstance(value, type) or not (callable(value) or isinstance(value, Tensor)):
        return True
    home, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    found = getattr(sys.modules.get(home or ""), name, None)  # a function around another one may only carry its name
    return found is value and f"{home}.".startswith(("torch.", *PACKAGES))


def kind_of_pass(inputs: Inputs) -> Kind:
    """Return all but the model that a graph builds in: layouts of the inputs, and torch's settings."""
    layouts = tuple(None if x is None else (x.device, x.dtype, x.shape, x.stride()) for x in inputs)
    cudnn = torch.backends.cudnn
    switches = [switch() for switch in SWITCHES]
    matmul = [getattr(cuda.matmul, name, None) for name in MATMUL]
    settings = (*switches, *matmul, cudnn.enabled, cudnn.deterministic, cudnn.benchmark)
    try:
        precision = (torch.get_float32_matmul_precision(), cudnn.allow_tf32)
    except RuntimeError:  # it was set by torch's newer names, which the older ones then refuse to tell
        precision = (cuda.matmul.fp32_precision, cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
    return layouts, settings, precision, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


class BuiltIn:
    """What a graph of a model builds in, of which no hooks run at every pass.

    Whether it still fits is told by comparisons of whole lists and arrays, which are fast where they hold the same objects.
    """

    def __init__(self, model: nn.Module) -> None:
        _, *self.inner = every_layer(model)  # the model itself is not kept alive
        layers = [model, *self.inner]
        own = list(map(vars, layers))
        self.classes, self.attributes = list(map(type, layers)), values_of(own)
        parts = list(product(range(len(own)), PARTS))
        self.empty = [own[layer][name] for layer, name in parts if not own[layer][name]]
        self.filled = [(layer, name) for layer, name in parts if own[layer][name]]
        self.names, self.entries = self.find_entries(own)
        self.tensors = [entry for entry in self.entries if isinstance(entry, Tensor)]
        self.layouts = layouts(self.tensors)
        self.training = any(layer.training for layer in layers)

    def fits(self, model: nn.Module) -> bool:
        """Tell whether a model is unchanged, but for the numbers in its tensors."""
        layers = [model, *self.inner]
        own = list(map(vars, layers))
        same = same_objects(values_of(own), self.attributes) and list(map(type, layers)) == self.classes and not any(self.empty)
        if not same:
            return False
        names, entries = self.find_entries(own)
        return names == self.names and same_objects(entries, self.entries) and layouts(self.tensors) == self.layouts

    def find_entries(self, own: list[dict[str, Any]]) -> tuple[list[Any], NDArray[np.object_]]:
        """Return sizes and names, and the values, of all parts that were not empty, given the attributes of all layers."""
        parts = [own[layer][name] for layer, name in self.filled]
        return [*map(len, parts), *chain.from_iterable(parts)], values_of(parts)


def values_of(dicts: list[dict[str, Any]]) -> NDArray[np.object_]:
    """Return the values in all dicts."""
    return np.fromiter(chain.from_iterable(map(dict.values, dicts)), object)


def same_objects(old: NDArray[np.object_], new: NDArray[np.object_]) -> bool:
    """Tell whether two arrays hold the same objects, not only equal ones: their bytes are the addresses of the objects."""
    return old.tobytes() == new.tobytes()


def layouts(tensors: list[Tensor]) -> list[list[Any]]:
    """Return where tensors are in memory, and how."""
    return [list(map(view, tensors)) for view in LAYOUT]


class Passes:
    """The kinds of passes that a model has run since it last changed."""

    def __init__(self, model: nn.Module) -> None:
        self.built_in = BuiltIn(model)
        self.graphs: dict[Kind, Graph | None] = {}
        self.known: dict[Any, Any] = {}

    def graph(self, model: nn.Module, kind: Kind, inputs: Inputs) -> "Graph | None":
        """Return the graph of this kind of pass, captured now if it comes for the second time; None for the first time."""
        if kind not in self.graphs:
            if len(self.graphs) == KINDS:
                once = next((kind for kind, graph in self.graphs.items() if graph is None), None)
                if once is None:
                    return None
                del self.graphs[once]
            self.graphs[kind] = None
            return None
        if self.graphs[kind] is None:
            pool = next((graph.graph.pool() for graph in self.graphs.values() if graph), None)
            self.graphs[kind] = Graph(model, inputs, pool)
        return self.graphs[kind]


class Graph:
    """A captured pass.

    Args:
        model: the network, in eval mode.
        inputs: inputs of the pass, whose layouts and device the graph takes over.
        pool: memory that it shares with other graphs, which never run at the same time.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, pool: Any) -> None:
        self.device = device_of(inputs)
        self.weights = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]  # may be read after a change
        autocast, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with (
            torch.cuda.device(self.device),
            torch.autocast("cuda", dtype, autocast, cache_enabled=False),
        ):  # casts are captured too
            stream, _ = stream_of_graphs(self.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                model(*inputs)  # compiles, loads and tunes kernels, which a capture cannot do
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, pool, stream, "thread_local"):  # other threads may use the GPU meanwhile
                    self.inputs = tuple(None if x is None else torch.empty_like(x) for x in inputs)
                    self.output: Tensor = model(*self.inputs)
            except BaseException:
                generator = torch.cuda.default_generators[self.device.index]
                generator.graphsafe_set_state(generator.clone_state())  # otherwise torch takes it to be captured for ever
                raise

    def replay(self, inputs: Inputs) -> Tensor:
        """Run the pass on other inputs of the same layouts."""
        with torch.cuda.device(self.device):
            stream, (_, done) = torch.cuda.current_stream(), stream_of_graphs(self.device)
            stream.wait_event(done)  # another thread's replay on another stream
            for own, given in zip(self.inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            self.graph.replay()
            out = self.output.clone()
            done.record(stream)
        return out


@cache
def stream_of_graphs(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Event]:
    """Return the stream of a GPU on which graphs are captured, and the event after the last replay."""
    return torch.cuda.Stream(device), torch.cuda.Event()  # type: ignore[no-untyped-call]


PASSES: WeakKeyDictionary[nn.Module, Passes] = WeakKeyDictionary()
REFUSED: WeakSet[nn.Module] = WeakSet()
"""Models of which no graph can be made."""
