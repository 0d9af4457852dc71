"""The isometry penalty beside its definition, Conv(W, W) in cuDNN: value and gradient compared first, then interleaved medians.

usage: python packages/mimoconv/benchmarks/isometry_speed.py [--model mimoconv_28_10] [--device cuda] [--repeats 21] [--out FILE]

Rows: milliseconds (median and quartiles) of value and gradient over the body of a network; the definition by autograd, ours as it
is, ours compiled, and on GPUs both in a CUDA graph. Errors are those of the value and of the gradient of the worst layer, against
float64. TFLOP/s and TB/s are those implied for ours: all products of matrices in full, though half of the first is the other's
mirror image; and each array written once and read once. Memory is the peak of a call above what was allocated before, gradient
included; a CUDA graph keeps as much as long as it lives.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv import create_model, isometry_penalty
from mimoconv.isometry import has_kernels, strided_filters

Gradients = tuple[Tensor, list[Tensor]]


def definition(model: nn.Module) -> Tensor:
    """Half the squared distance of Conv(W, W) from the identity, summed over the convolutions of the body."""
    total = torch.zeros(())
    for layer in convolutions(model):
        filters = layer.weight if layer.weight.shape[1] >= layer.weight.shape[0] else layer.weight.transpose(0, 1)
        padding = [(k - 1) // s * s for k, s in zip(filters.shape[2:], layer.stride, strict=True)]
        gram = F.conv2d(filters, filters, padding=padding, stride=layer.stride)
        target = torch.zeros_like(gram)
        target[:, :, gram.shape[2] // 2, gram.shape[3] // 2].fill_diagonal_(1)
        total = total + (gram - target).square().sum() / 2
    return total


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """List the convolutions of the body."""
    return [layer for layer in model.body.modules() if isinstance(layer, nn.Conv2d)]


def gradients(measure: Callable[[nn.Module], Tensor], model: nn.Module) -> Gradients:
    """Compute a penalty and its gradient for each convolution."""
    value = measure(model)
    return value.detach(), list(torch.autograd.grad(value, [layer.weight for layer in convolutions(model)]))


def captured(function: Callable[[], Gradients]) -> Callable[[], Gradients]:
    """Capture a function in a CUDA graph, and return one that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # what is compiled is compiled before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Gradients:
        graph.replay()
        return result

    return replay


def work(model: nn.Module) -> tuple[float, float]:
    """Count operations of the matrix products, and bytes of all arrays written and read, of our way to compute the penalty."""
    operations = size = 0.0
    for layer in convolutions(model):
        g, a, b, kh, kw = strided_filters(layer.weight, layer.stride, layer.groups).shape
        parts, frequencies = (1 if kh == kw == 1 else 2), math.ceil((2 * kh - 1) * (2 * kw - 1) / 2)
        operations += g * frequencies * 4 * parts**2 * a * a * b
        halves = g * frequencies * (parts**2 * a * b + parts * a * a + parts * a * b)  # rows, products, gradients
        size += 2 * 2 * halves + 2 * 4 * layer.weight.numel()
    return operations, size


def milliseconds(functions: list[Callable[[], object]]) -> list[list[float]]:
    """Time each function; they are called in turn, so that drift of the machine affects all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(ARGS.repeats + 3):
        for function, record in zip(functions, times, strict=True):
            duration = elapsed(function)
            if repeat >= 3:  # the first rounds warm up
                record.append(duration)
    return times


def elapsed(function: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes, on a GPU by events."""
    if ARGS.device == "cpu":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def peak(function: Callable[[], Gradients]) -> tuple[Gradients, float | None]:
    """Return what a function returns, and the MiB that it takes at its peak, on GPUs."""
    if ARGS.device == "cpu":
        return function(), None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    torch.cuda.synchronize()
    return result, (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    """Print one row per way to compute the penalty, and write them as JSON."""
    torch.manual_seed(0)
    model = create_model(ARGS.model).to(ARGS.device, memory_format=torch.channels_last)
    exact, exact_gradients = gradients(definition, copy.deepcopy(model).double())
    compiled = torch.compile(isometry_penalty)
    ways = {
        "definition": lambda: gradients(definition, model),
        "ours": lambda: gradients(isometry_penalty, model),
        "ours, compiled": lambda: gradients(compiled, model),
    }
    if ARGS.device == "cuda":
        ways |= {f"{name}, in a CUDA graph": captured(ways[name]) for name in ("ours", "ours, compiled")}
    rows, (operations, size) = [], work(model)
    for name, compute in ways.items():
        compute()
        (value, found), memory = peak(compute)
        worst = max(((g - e).norm() / e.norm()).item() for g, e in zip(found, exact_gradients, strict=True))
        memory = None if "graph" in name else memory
        rows.append({"way": name, "value error": abs(value / exact - 1).item(), "gradient error": worst, "MiB": memory})
        if not max(rows[-1]["value error"], worst) <= 2e-3:
            raise SystemExit(f"{name} is wrong, so nothing is timed: {rows[-1]}")
        del value, found
    times = milliseconds(list(ways.values()))
    name = torch.cuda.get_device_name() if ARGS.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    kernels = all(has_kernels(layer.weight) for layer in convolutions(model))
    print(f"torch {torch.__version__}, {name}, {ARGS.model}, ours with{'' if kernels else 'out'} Triton kernels\n")
    print("| way | ms (quartiles) | against the definition | TFLOP/s | TB/s | MiB | value error | gradient error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row, record in zip(rows, times, strict=True):
        row["ms low"], row["ms"], row["ms high"] = statistics.quantiles(record, n=4)
        ours = row["way"] != "definition"
        row["TFLOP/s"], row["TB/s"] = (count / row["ms"] / 1e9 if ours else None for count in (operations, size))
        spread = f"{row['ms']:.2f} ({row['ms low']:.2f} to {row['ms high']:.2f})"
        cells = [
            "" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in (("TFLOP/s", 0), ("TB/s", 2), ("MiB", 0))
        ]
        cells = [row["way"], spread, f"{rows[0]['ms'] / row['ms']:.2f}x", *cells]
        print("|", " | ".join([*cells, f"{row['value error']:.1e}", f"{row['gradient error']:.1e}"]), "|")
    if ARGS.out:
        found = {"torch": torch.__version__, "device": name, "model": ARGS.model, "kernels": kernels, "rows": rows}
        Path(ARGS.out).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mimoconv_28_10")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds")
    parser.add_argument("--out", help="file to write")
    ARGS = parser.parse_args()
    main()
