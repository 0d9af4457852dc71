"""FAVOR+S beside exact softmax attention: results and gradients checked first, then medians of interleaved timings.

usage: python packages/mimoformer/benchmarks/attention_speed.py [--lengths 1024 4096] [--tables attention ..] [--cpu] [--out FILE]

On a GPU it prints tables of attention, of causal attention (at the longest of the lengths), of whole Transformer blocks, of
growth with the length, and of decoding, a token at a time; with --cpu one of attention on the CPU, with the lengths from which on
FAVOR+S is faster. Every way of a table is compared with float64 before any is timed: its output and the gradients of its inputs,
for the last group of sequences. On a GPU a way is replayed as a CUDA graph where it can be captured; decoding is timed both ways,
beside a copy of the bytes of its state and an empty kernel. TFLOP/s and TB/s count what `flops` and `moved_bytes` say,
whatever an implementation really computes and moves; peak memory is what a call takes beside its inputs and parameters. --out
writes all tables as JSON.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimoformer import MIMOFormerConfig
from mimoformer.attention import favor_s, favor_s_step
from mimoformer.blocks import build_block
from mimoformer.causal import AttentionState, KeySums
from mimoformer.dispatch import Implementation
from mimoformer.features import PositiveFeatures, RandomFeatures, ReLUFeatures
from mimoformer.layers import SharedAttention, split_heads
from vsa_core import hadamard

GRIDS = (1, 2, 4)
FORWARD, BOTH = "forward", "forward and backward"
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-3}
BLOCK_TOLERANCE = 2e-2  # where rounding to bf16 changes a sign before a ReLU, its whole gradient is wrong


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all tables share; sequences must fill a grid of 4 x 4."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    sequences: int = 32
    heads: int = 8
    dim: int = 64
    features: int = 256
    mlp_dim: int = 2048
    growth: tuple[int, ...] = (1024, 4096, 16384, 65536)
    decoded: tuple[int, ...] = (1, 64, 1024)
    """Sequences that are decoded together, on grids of 2 x 2 if they fill one."""
    layers: int = 12
    """Layers that take a step in turn, each with a state of its own, so that caches do not hold what comes next."""
    rounds: int = 20
    seconds: float = 10.0
    """Time for the rounds of a comparison, of which at least 3 are made."""

    @property
    def embed_dim(self) -> int:
        """Dimension of an embedding."""
        return self.heads * self.dim


@dataclass
class Way:
    """One way to compute something: a function of inputs whose first axis is groups of sequences that do not meet."""

    name: str
    call: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    """The same in float64."""
    inputs: list[Tensor]
    flops: float
    bytes: float
    tolerance: float
    parameters: list[Tensor] = field(default_factory=list)
    expected: Tensor = field(init=False)
    weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = [x.detach().requires_grad_() for x in self.inputs]

    def forward(self) -> tuple[Tensor, ...]:
        """Compute the output alone, for no gradient."""
        with torch.no_grad():
            return (self.call(*self.inputs),)

    def forward_and_backward(self) -> tuple[Tensor, ...]:
        """Compute the output, and gradients of inputs and parameters for random gradients of the output."""
        out = self.call(*self.inputs)
        return out, *torch.autograd.grad(out, [*self.inputs, *self.parameters], self.weights)

    def check(self) -> None:
        """Exit unless output and gradients are right, for the last group."""
        last = [x.detach()[-1:].double().requires_grad_() for x in self.inputs]
        (alone,) = self.forward()
        self.weights = torch.randn_like(alone)
        found = [alone, *self.forward_and_backward()[: len(last) + 1]]
        out = self.exact(*last)
        self.expected = out.detach()
        gradients = torch.autograd.grad(out, last, self.weights[-1:].double())
        names = ["output without gradients", "output", *(f"gradient of input {place}" for place in range(len(last)))]
        for name, one, other in zip(names, found, (out, out, *gradients), strict=True):
            self.compare(one, other, name)

    def compare(self, found: Tensor, expected: Tensor, what: str) -> None:
        """Exit unless a result is within the tolerance, for the last group.

        The worst thousandth of gradients is left out: where rounding changes a sign before a ReLU, it loses a feature's gradient.
        """
        errors = (found.detach()[-1:].double() - expected).norm(dim=-1).flatten()
        if what.startswith("gradient"):
            errors = errors.sort().values[: len(errors) - len(errors) // 1000]
        error = (errors.norm() / expected.norm()).item()
        if not error < self.tolerance:
            raise SystemExit(f"{self.name}: the {what} is wrong by {error:.1e}; expected below {self.tolerance:.0e}")


def flops(
    sizes: Sizes, length: int, grid: int | None, *, causal: bool = False, variant: str | None = None, attention: bool = True
) -> float:
    """Count operations of a forward pass, two for a multiply-add; a backward pass is taken to need twice as many.

    Softmax attention (grid None) makes 4 l^2 d for each head and sequence, half of that if it is causal. FAVOR+S makes 4 l d R
    for each bundle of queries or keys, of which a group of N x N sequences has 2 N, and 2 l R for each denominator, causal or
    not, as if done step by step. A block (`variant`) adds its matrices: 6 l e^2 of queries, keys and values for each sequence,
    and 2 l e^2 + 4 l e mlp_dim of everything behind attention, in variant att+mlp once for every N sequences.
    """
    heads = sizes.sequences * sizes.heads
    count = 0.0
    if attention and grid is None:
        count += heads * 4 * length**2 * sizes.dim / (2 if causal else 1)
    elif attention and grid is not None:
        count += heads * length * sizes.features * (8 * sizes.dim / grid + 2)
    if variant is not None:
        shared = grid if grid and variant == "att+mlp" else 1
        behind = 2 * sizes.embed_dim**2 + 4 * sizes.embed_dim * sizes.mlp_dim
        count += sizes.sequences * length * (6 * sizes.embed_dim**2 + behind / shared)
    return count


def moved_bytes(sizes: Sizes, length: int, *, block: bool = False) -> float:
    """Count the fewest bytes of a forward pass; a backward pass is taken to move twice as many.

    Attention reads q, k and v and writes its output. A block reads and writes float32 embeddings, and reads float32 weights.
    """
    tokens = sizes.sequences * length * sizes.embed_dim
    if block:
        return 4.0 * (2 * tokens + 4 * sizes.embed_dim**2 + 2 * sizes.embed_dim * sizes.mlp_dim)
    return 4.0 * tokens * sizes.dtype.itemsize


def attention_ways(sizes: Sizes, length: int, *, causal: bool = False) -> Iterator[Way]:
    """Softmax attention and FAVOR+S of the same queries, keys and values, each item its own."""
    torch.compiler.reset()
    shape = (sizes.sequences, sizes.heads, length, sizes.dim)
    operands = [torch.randn(shape, device=sizes.device, dtype=sizes.dtype) for _ in range(3)]
    softmax = partial(F.scaled_dot_product_attention, is_causal=causal)
    amount = moved_bytes(sizes, length)
    tolerance = TOLERANCE[sizes.dtype]
    yield Way("softmax", softmax, softmax, operands, flops(sizes, length, None, causal=causal), amount, tolerance)
    implementations = ("plain",) if sizes.device == "cpu" else ("plain", "triton")
    for grid in GRIDS:
        for implementation in implementations:
            name = f"FAVOR+S {grid} x {grid}, {implementation}"
            yield favor_s_way(name, operands, implementation, sizes, length, grid, causal=causal)
    if sizes.device != "cpu" and not causal:
        for implementation in implementations:
            name = f"FAVOR+S 2 x 2, positive features, {implementation}"
            yield favor_s_way(name, operands, implementation, sizes, length, 2, kind=PositiveFeatures)
    if causal:
        yield favor_s_way("FAVOR+S 2 x 2, triton, not causal", operands, "triton", sizes, length, 2)


def favor_s_way(
    name: str, operands: list[Tensor], implementation: str, sizes: Sizes, length: int, grid: int, *, causal: bool = False,
    kind: type[RandomFeatures] = ReLUFeatures,
) -> Way:  # fmt: skip
    """FAVOR+S on a grid; on a GPU the plain form is compiled, on a CPU it is the only one."""
    phi = kind(sizes.dim, sizes.features).to(sizes.device)
    keys = hadamard.random_keys(grid * grid, sizes.dim, device=sizes.device).unflatten(0, (grid, grid))
    chosen = {"causal": causal} if sizes.device == "cpu" else {"causal": causal, "implementation": implementation}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return favor_s(q, k, v, keys, phi, **chosen)

    plain = chosen | ({} if sizes.device == "cpu" else {"implementation": "plain"})
    double = copy.deepcopy(phi).double()

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return favor_s(q, k, v, keys.double(), double, **plain)

    compiled = implementation == "plain" and sizes.device != "cpu" and not causal  # a chunk at a time takes long to compile
    return Way(
        name,
        torch.compile(attend, fullgraph=True, dynamic=False) if compiled else attend,
        exact,
        [x.unflatten(0, (-1, grid, grid)) for x in operands],
        flops(sizes, length, grid, causal=causal),
        moved_bytes(sizes, length),
        TOLERANCE[sizes.dtype],
    )


def block_ways(sizes: Sizes, length: int) -> Iterator[Way]:
    """Blocks under bf16 autocast, compiled, and the same without their attention."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 100  # all ways share the code that is compiled
    x = torch.randn(sizes.sequences, length, sizes.embed_dim, device=sizes.device)
    blocks: list[tuple[str, int | None, str]] = [("softmax", None, "att")]
    blocks += [(f"{variant} {grid} x {grid}", grid, variant) for grid in (2, 4) for variant in ("att", "att+mlp")]
    for name, grid, variant in blocks:
        side = grid or 1
        config = MIMOFormerConfig(
            m=side,
            n=side,
            embed_dim=sizes.embed_dim,
            heads=sizes.heads,
            mlp_dim=sizes.mlp_dim,
            features=sizes.features,
            variant=variant,
            attention="relu" if grid else "softmax",
        )
        for attention in (True, False):
            block = build_block(config).to(sizes.device).eval()
            exact = copy.deepcopy(block).double()
            if not attention:
                drop_attention(block)
                drop_attention(exact)
            yield Way(
                name if attention else f"{name}, without attention",
                torch.compile(partial(under_autocast, block), dynamic=False),
                exact,
                [x.unflatten(0, (-1, side, side))],
                flops(sizes, length, grid, variant=variant, attention=attention),
                moved_bytes(sizes, length, block=True),
                BLOCK_TOLERANCE,
                [weight for weight in block.parameters() if weight.requires_grad],
            )


def under_autocast(block: nn.Module, x: Tensor) -> Tensor:
    """Compute a block under bf16 autocast."""
    with torch.autocast(x.device.type, torch.bfloat16):
        out: Tensor = block(x)
    return out


def drop_attention(block: Any) -> None:
    """Replace attention by the identity on v, between the same projections."""
    layer = block.attention

    def forward(x: Tensor, mask: Tensor | None = None) -> Tensor:
        v = split_heads(layer.project(x, mask))[2]
        return layer.merge_heads(v.sum(1) if isinstance(layer, SharedAttention) else v)

    layer.forward = forward


def record(call: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Warm a call up and record it as a CUDA graph; returns what its replays write too."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = call()
    return graph, out


def capture(way: Way, call: Callable[[], tuple[Tensor, ...]], pool: Any) -> tuple[Callable[[], Any], str]:
    """Return a call as the replay of a CUDA graph, checked; or itself where it cannot be captured."""
    try:
        graph, (out, *_) = record(call, pool)
    except RuntimeError as error:
        print(f"{way.name} cannot be captured: {str(error).splitlines()[0]}\n")
        torch.cuda.synchronize()
        return call, "eager"
    graph.replay()
    way.compare(out, way.expected, "output of the graph")
    return graph.replay, "graph"


def peak_memory(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call takes on the GPU beside what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def milliseconds(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Return the time of one of several calls in a row."""
    if device == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1e3 * (time.perf_counter() - begin) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def measure(ways: list[Way], directions: tuple[str, ...], sizes: Sizes, **about: Any) -> list[dict[str, Any]]:
    """Check all ways, and return a row for each way and direction, from interleaved timings of at least about 5 ms."""
    for way in ways:
        way.check()
    rows = []
    for direction in directions:
        calls, kinds, peaks = [], [], []
        pool = None if sizes.device == "cpu" else torch.cuda.graph_pool_handle()
        for way in ways:
            call = way.forward if direction == FORWARD else way.forward_and_backward
            peaks.append(None if sizes.device == "cpu" else peak_memory(call))
            call, kind = (call, "eager") if sizes.device == "cpu" else capture(way, call, pool)
            calls.append(call)
            kinds.append(kind)
        times = interleave(calls, sizes)
        work = 1 if direction == FORWARD else 3
        for way, kind, peak, found in zip(ways, kinds, peaks, times, strict=True):
            low, median, high = statistics.quantiles(found, n=4)
            rows.append(
                {
                    **about,
                    "direction": direction,
                    "way": way.name,
                    "ms": median,
                    "quartiles": [low, high],
                    "of softmax": median / statistics.median(times[0]),
                    "TFLOP/s": work * way.flops / median / 1e9,
                    "TB/s": work * way.bytes / median / 1e9,
                    "peak bytes": peak,
                    "run as": kind,
                    "rounds": len(found),
                }
            )
    return rows


def interleave(calls: list[Callable[[], Any]], sizes: Sizes) -> list[list[float]]:
    """Time calls in turns, each for at least about 5 ms; returns milliseconds of each in every round."""
    once = [milliseconds(call, sizes.device) for call in calls]
    repeats = [min(50, math.ceil(5 / ms)) for ms in once]
    whole = sum(ms * count for ms, count in zip(once, repeats, strict=True))
    rounds = max(3, min(sizes.rounds, int(1e3 * sizes.seconds / whole)))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, found in zip(calls, repeats, times, strict=True):
            found.append(milliseconds(call, sizes.device, count))
    return times


def attention_table(sizes: Sizes, lengths: list[int]) -> list[dict[str, Any]]:
    """Measure attention of queries, keys and values of every item."""
    return [
        row for length in lengths for row in measure(list(attention_ways(sizes, length)), (FORWARD, BOTH), sizes, length=length)
    ]


def causal_table(sizes: Sizes, lengths: list[int]) -> list[dict[str, Any]]:
    """Measure causal attention at the longest length, and beside it attention that is not causal."""
    length = max(lengths)
    return measure(list(attention_ways(sizes, length, causal=True)), (FORWARD, BOTH), sizes, length=length)


def block_table(sizes: Sizes, lengths: list[int]) -> list[dict[str, Any]]:
    """Measure whole blocks, with and without their attention."""
    return [row for length in lengths for row in measure(list(block_ways(sizes, length)), (FORWARD, BOTH), sizes, length=length)]


def growth_table(sizes: Sizes, _: list[int]) -> list[dict[str, Any]]:
    """Measure FAVOR+S 2 x 2, as fast as it gets, at growing lengths."""
    rows = []
    for length in sizes.growth:
        shape = (sizes.sequences, sizes.heads, length, sizes.dim)
        operands = [torch.randn(shape, device=sizes.device, dtype=sizes.dtype) for _ in range(3)]
        way = favor_s_way("FAVOR+S 2 x 2, triton", operands, "triton", sizes, length, 2)
        rows += measure([way], (FORWARD, BOTH), sizes, length=length)
    for row in rows:
        row["ns per token"] = 1e6 * row["ms"] / sizes.sequences / row["length"]
        del row["of softmax"]
    return rows


@dataclass
class Decoder:
    """All layers of a network that take a step in turn, each from its own state."""

    implementation: Implementation
    operands: list[Tensor]
    """Queries, keys and values (3 b m n h 1 d) of every layer."""
    keys: Tensor
    features: ReLUFeatures
    states: list[AttentionState | None]
    before: list[AttentionState | None] = field(default_factory=list)
    """The states that the last step went on from."""

    def step(self) -> list[tuple[Tensor, AttentionState]]:
        """Take a step in every layer, with new memory for each new state, as in a network."""
        found = [
            favor_s_step(q, k, v, self.keys, self.features, state, implementation=self.implementation)
            for (q, k, v), state in zip(self.operands, self.states, strict=True)
        ]
        self.before, self.states = self.states, [state for _, state in found]
        return found

    def check(self, found: list[tuple[Tensor, AttentionState]], what: str) -> None:
        """Exit unless the last step is right, in its last layer."""
        (q, k, v), phi, state = self.operands[-1].double(), copy.deepcopy(self.features).double(), self.before[-1]
        if state is not None:
            state = AttentionState(KeySums(*(part.double() for part in state.sums)), state.log_scale.double())
        out, after = favor_s_step(q, k, v, self.keys.double(), phi, state, implementation="plain")
        tolerance = TOLERANCE[self.operands[-1].dtype]
        for one, other in zip((found[-1][0], *found[-1][1].sums), (out, *after.sums), strict=True):
            error = ((one.double() - other).norm() / other.norm()).item()
            if not error < tolerance:
                raise SystemExit(f"{self.implementation}: the {what} is wrong by {error:.1e}; expected below {tolerance:.0e}")


class Copier:
    """Copies of as many bytes as the states of all layers have."""

    def __init__(self, states: list[AttentionState]) -> None:
        self.tensors = [torch.cat([x.flatten() for x in (*state.sums, state.log_scale)]) for state in states]

    def step(self) -> list[Tensor]:
        """Copy every layer's bytes to new memory; returns what was copied as well, so that a graph can keep it."""
        before, self.tensors = self.tensors, [torch.empty_like(x).copy_(x) for x in self.tensors]
        return before + self.tensors


def empty_launches(layers: int, device: str) -> Callable[[], None]:
    """Return a call that starts a Triton kernel without work for every layer."""
    import triton

    @triton.jit
    def empty_kernel(x):  # type: ignore[no-untyped-def]
        pass

    x = torch.empty(1, device=device)

    def call() -> None:
        for _ in range(layers):
            empty_kernel[(1,)](x)

    return call


@torch.no_grad()
def decode_rows(sizes: Sizes, sequences: int) -> list[dict[str, Any]]:
    """Measure a step of FAVOR+S for some sequences, eagerly and as a CUDA graph; times are those of a layer."""
    grid = 2 if sequences % 4 == 0 else 1
    shape = (3, sequences // grid**2, grid, grid, sizes.heads, 1, sizes.dim)
    operands = [torch.randn(shape, device=sizes.device, dtype=sizes.dtype) for _ in range(sizes.layers)]
    keys = hadamard.random_keys(grid * grid, sizes.dim, device=sizes.device).unflatten(0, (grid, grid))
    phi = ReLUFeatures(sizes.dim, sizes.features).to(sizes.device)
    implementations: tuple[Implementation, ...] = ("triton", "plain")
    decoders = [Decoder(implementation, operands, keys, phi, [None] * sizes.layers) for implementation in implementations]
    for decoder in decoders:
        for what in ("first step", "second step"):
            decoder.check(decoder.step(), what)
    states = [state for state in decoders[0].states if state is not None]
    amount = 2 * sum(x.nbytes for x in (*states[0].sums, states[0].log_scale))
    ways: dict[str, tuple[Callable[[], Any], int | None]] = {
        "copy of the state": (Copier(states).step, amount),
        "step, kernel": (decoders[0].step, amount),
        "step, plain": (decoders[1].step, amount),
        "empty kernel": (empty_launches(sizes.layers, sizes.device), None),
    }
    rows = []
    for kind in ("eager", "graph"):
        calls = [call for call, _ in ways.values()]
        if kind == "graph":
            recorded = [record(call) for call in calls]
            calls = [graph.replay for graph, _ in recorded]
            for call, decoder, (_, out) in zip(calls[1:], decoders, recorded[1:], strict=False):
                call()
                decoder.check(out, "step of the graph")
        times = interleave(calls, sizes)
        medians = [1e3 * statistics.median(found) / sizes.layers for found in times]
        for (name, (_, count)), us, found in zip(ways.items(), medians, times, strict=True):
            low, _, high = statistics.quantiles(found, n=4)
            rows.append(
                {
                    "sequences": sequences,
                    "grid": f"{grid} x {grid}",
                    "run as": kind,
                    "way": name,
                    "us": us,
                    "quartiles": [1e3 * low / sizes.layers, 1e3 * high / sizes.layers],
                    "TB/s": None if count is None else count / us / 1e6,
                    "of the copy's speed": None if count is None else medians[0] / us,
                    "rounds": len(found),
                }
            )
    return rows


def decode_table(sizes: Sizes, _: list[int]) -> list[dict[str, Any]]:
    """Measure steps of FAVOR+S for growing numbers of sequences."""
    return [row for sequences in sizes.decoded for row in decode_rows(sizes, sequences)]


def crossovers(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """Find the shortest measured length from which on each way is faster than softmax."""
    found: dict[str, int | None] = {}
    beaten = set()
    for row in sorted(rows, key=lambda row: row["length"], reverse=True):
        name = f"{row['way']}, {row['direction']}"
        if row["of softmax"] >= 1:
            beaten.add(name)
        found.setdefault(name, None)
        if name not in beaten:
            found[name] = row["length"]
    return {name: length for name, length in found.items() if not name.startswith("softmax")}


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "length": ("length", "{:,}".format),
        "sequences": ("sequences", "{:,}".format),
        "grid": ("grid", str),
        "direction": ("direction", str),
        "way": ("way", str),
        "ms": ("ms", "{:.3f}".format),
        "us": ("us", "{:.2f}".format),
        "quartiles": ("quartiles", lambda ends: f"{ends[0]:.3f} to {ends[1]:.3f}"),
        "of softmax": ("of softmax", "{:.2f}".format),
        "ns per token": ("ns per token", "{:.2f}".format),
        "TFLOP/s": ("TFLOP/s", "{:.3g}".format),
        "TB/s": ("TB/s", "{:.2g}".format),
        "of the copy's speed": ("of the copy's speed", "{:.2f}".format),
        "peak MiB": ("peak bytes", lambda count: f"{count / 2**20:,.0f}"),
        "run as": ("run as", str),
    }
    shown = {title: column for title, column in columns.items() if rows[0].get(column[0]) is not None}
    print(f"| {' | '.join(shown)} |")
    print("|" + "|".join(" :--- " if title in ("grid", "direction", "way", "run as") else " ---: " for title in shown) + "|")
    for row in rows:
        print(f"| {' | '.join('' if row[key] is None else show(row[key]) for key, show in shown.values())} |")


def ceilings(sizes: Sizes) -> tuple[float, float]:
    """Measure TFLOP/s of a large matrix product, and TB/s of a large copy."""
    side, count = (2048, 2**26) if sizes.device == "cpu" else (8192, 2**30)
    a, b = torch.randn(2, side, side, device=sizes.device, dtype=sizes.dtype)
    source = torch.ones(count, device=sizes.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = []
    for call in (lambda: a @ b, lambda: target.copy_(source)):
        for _ in range(3):
            call()
        best.append(statistics.median(milliseconds(call, sizes.device) for _ in range(10)))
    return 2 * side**3 / best[0] / 1e9, 2 * count / best[1] / 1e9


def about_machine(sizes: Sizes) -> dict[str, Any]:
    """Say what is measured, with what and on what."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    product, copied = ceilings(sizes)
    device = f"CPU, threads: {torch.get_num_threads()}" if sizes.device == "cpu" else torch.cuda.get_device_name()
    return {
        "device": device,
        "torch": torch.__version__,
        "triton": triton,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "matrix product, TFLOP/s": product,
        "copy, TB/s": copied,
        "sizes": {name: str(value) if name == "dtype" else value for name, value in vars(sizes).items()},
    }


def main() -> None:
    """Print all tables, and write them as JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", help="default: 1024 4096, with --cpu 64 128 .. 8192")
    parser.add_argument("--rounds", type=int, default=20, help="most rounds of interleaved timings")
    parser.add_argument("--tables", nargs="+", choices=["attention", "causal", "blocks", "growth", "decode"], help="default: all")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU, in float32")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    sizes = Sizes(rounds=args.rounds)
    tables: dict[str, Callable[[Sizes, list[int]], list[dict[str, Any]]]] = {
        "attention": attention_table,
        "causal": causal_table,
        "blocks": block_table,
        "growth": growth_table,
        "decode": decode_table,
    }
    tables = {name: tables[name] for name in args.tables or tables}
    if args.cpu:
        sizes = replace(sizes, device="cpu", dtype=torch.float32, sequences=16, heads=1, seconds=3.0)
        tables = {"attention on the CPU": attention_table}
    elif not torch.cuda.is_available():
        raise SystemExit("there is no GPU; give --cpu to measure on the CPU")
    lengths = args.lengths or ([2**power for power in range(6, 14)] if args.cpu else [1024, 4096])
    torch.manual_seed(0)
    result = about_machine(sizes)
    product, copied = result["matrix product, TFLOP/s"], result["copy, TB/s"]
    print(f"{result['device']}, torch {result['torch']}, triton {result['triton']}, commit {result['commit']}, {result['date']}")
    print(f"sequences: {sizes.sequences}, heads: {sizes.heads}, d = {sizes.dim}, R = {sizes.features}, {sizes.dtype}")
    print(f"ceilings: a matrix product {product:.3g} TFLOP/s, a copy {copied:.2g} TB/s")
    for title, table in tables.items():
        rows = result[title] = table(sizes, lengths)
        print(f"\n## {title.capitalize()}\n")
        print_rows(rows)
        if args.cpu:
            result["crossovers"] = crossovers(rows)
            print("\nFaster than softmax from which measured length on:\n")
            for name, length in result["crossovers"].items():
                print(f"- {name}: {'no measured length' if length is None else f'{length:,}'}")
        if args.out:
            args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
