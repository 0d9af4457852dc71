"""BatchNorm + PReLU of a residual block in training: fused kernels beside the modules, eager and compiled; errors first.

usage: python packages/mimoconv/benchmarks/norm_speed.py [--passes 128] [--width 10] [--repeats 21] [--out FILE]

Rows: microseconds (median and quartiles) of forward and backward at each stage of the network, with the gradient of the skip
connection added, in bf16 autocast, channels last, replayed as CUDA graphs over data that are not in the cache; and of each kernel
by itself, of which normalize and backward also add up what the one before them found in slices. TB/s are those of the bytes of
images that the kernels read and write, so for the modules they are a speed, not a traffic. Errors are the largest of a tensor, as
a share of its largest number, against the modules in float64.
"""

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mimoconv import fused_norm, norm_kernels

DEVICE = "cuda"
CACHED = 256e6
"""Bytes of images that a graph goes through: several times what the cache of a GPU holds."""

PASSES_OVER_IMAGES = {"statistics": 1, "normalize": 2, "sums": 2, "backward": 4}
"""How often each kernel reads or writes the images."""


class Data:
    """Layers of one stage, and as many batches of images and gradients as do not fit in the cache."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.norm, self.act = nn.BatchNorm2d(shape[1], device=DEVICE), nn.PReLU(shape[1], init=0.5, device=DEVICE)
        for parameter in (self.norm.weight, self.norm.bias, self.act.weight):
            nn.init.normal_(parameter, 0.5, 0.2)
        self.bytes = 2 * math.prod(shape)
        count = max(4, math.ceil(CACHED / self.bytes))
        offset = torch.randn(1, shape[1], 1, 1, device=DEVICE)
        self.images = [(images(shape) + offset).to(torch.bfloat16).requires_grad_() for _ in range(count)]
        self.gradients = [(images(shape).to(torch.bfloat16), images(shape).to(torch.bfloat16)) for _ in range(count)]

    def first(self, dtype: torch.dtype = torch.float32) -> "Data":
        """Copy layers, in a dtype, and the first batch, in double precision if they are."""
        one = copy.copy(self)
        one.norm, one.act = copy.deepcopy(self.norm).to(dtype), copy.deepcopy(self.act).to(dtype)
        dtype = torch.float64 if dtype == torch.float64 else torch.bfloat16
        one.images = [self.images[0].detach().to(dtype).requires_grad_()]
        one.gradients = [(self.gradients[0][0].to(dtype), self.gradients[0][1].to(dtype))]
        return one

    def run(self, way: Callable[..., tuple[Tensor, Tensor]], index: int = 0) -> list[Tensor]:
        """Compute outputs and gradients of one batch."""
        x, parameters = self.images[index], [*self.norm.parameters(), *self.act.parameters()]
        with torch.autocast(DEVICE, torch.bfloat16):
            outs = way(self.norm, self.act, x)
        return [outs[0].detach(), *torch.autograd.grad(outs, [x, *parameters], self.gradients[index])]


def images(shape: tuple[int, ...]) -> Tensor:
    """Random images, channels last."""
    return torch.randn(shape, device=DEVICE).to(memory_format=torch.channels_last)


def modules(norm: nn.Module, act: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what a residual block computes first, and the input of its skip connection."""
    return fused_norm.plain(norm, act, x), x


NAMES = ["out", "images", "weight", "bias", "slope", "running mean", "running var"]


def errors(way: Callable[..., tuple[Tensor, Tensor]], data: Data) -> dict[str, float]:
    """Measure the largest error of each result against the modules in float64."""
    exact, rounded = data.first(torch.float64), data.first()
    found = [*rounded.run(way), rounded.norm.running_mean, rounded.norm.running_var]
    right = [*exact.run(modules), exact.norm.running_mean, exact.norm.running_var]
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in zip(NAMES, found, right, strict=True)}


def is_repeatable(way: Callable[..., tuple[Tensor, Tensor]], data: Data) -> bool:
    """Tell whether two runs give the same bits."""
    return all(map(torch.equal, data.run(way), data.run(way)))


def kernels(data: Data) -> dict[str, Callable[[int], object]]:
    """Make functions that launch each kernel, with what it adds up, on one of the batches."""
    norm, slope = data.norm, data.act.weight.detach()
    batch = norm_kernels.slice_statistics(data.images[0].detach(), None, None, *own_statistics(norm), 0.1)
    mean, var = torch.empty(2, data.shape[1], device=DEVICE)
    common = (mean, var, norm.weight.detach(), norm.bias.detach(), slope, norm.eps, "prelu")
    inputs = [x.detach() for x in data.images]
    norm_kernels.normalize(inputs[0], None, None, *common, torch.bfloat16, batch)
    parts = norm_kernels.gradient_sums(inputs[0], data.gradients[0][0], *common)
    return {
        "statistics": lambda i: norm_kernels.slice_statistics(inputs[i], None, None, *own_statistics(norm), 0.1),
        "normalize": lambda i: norm_kernels.normalize(inputs[i], None, None, *common, torch.bfloat16, batch),
        "sums": lambda i: norm_kernels.gradient_sums(inputs[i], data.gradients[i][0], *common),
        "backward": lambda i: norm_kernels.backward(inputs[i], *data.gradients[i], parts, *common),
    }


def own_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Return the running statistics and the count of batches."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def graph(function: Callable[[int], object], batches: int) -> torch.cuda.CUDAGraph:
    """Capture a function over all batches; results stay in memory of their own, as they would in a network."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles
        function(0)
        function(0)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        kept = [function(index) for index in range(batches)]
    del kept
    return captured


def microseconds(graphs: list[torch.cuda.CUDAGraph], batches: int, repeats: int) -> list[list[float]]:
    """Time graphs, per batch; they are replayed in turn, so that drift of the machine affects all alike."""
    times: list[list[float]] = [[] for _ in graphs]
    for repeat in range(repeats + 2):
        for captured, record in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            captured.replay()
            end.record()
            end.synchronize()
            if repeat >= 2:  # the first rounds warm up
                record.append(1e3 * start.elapsed_time(end) / batches)
    return times


def stages(passes: int, width: int) -> list[tuple[int, int, int, int]]:
    """List the shapes of the images in a WRN-28."""
    return [(passes, 16 * width * scale, 32 // scale, 32 // scale) for scale in (1, 2, 4)]


def main() -> None:
    """Print errors, then one row per stage and way, and write them as JSON."""
    torch.manual_seed(0)
    rows, every = [], []
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {ARGS.passes} passes\n")
    for shape in stages(ARGS.passes, ARGS.width):
        ways = {"modules": modules, "compiled": torch.compile(modules, dynamic=False), "ours": fused_norm.norm_act_skip}
        data, found = Data(shape), {}
        for name, way in ways.items():
            found[name] = errors(way, data)
            print(f"{shape[1]:4} {name:9} " + ", ".join(f"{key} {value:.1e}" for key, value in found[name].items()))
        wrong = [name for name in NAMES if not found["ours"][name] <= 2 * found["modules"][name] + 1e-4]
        with torch.autocast(DEVICE, torch.bfloat16):
            if not fused_norm.is_fusible(data.norm, data.act, data.images[0]):
                raise SystemExit("the kernels do not run here, so there is nothing to time")
        if wrong or not is_repeatable(ways["ours"], data):
            raise SystemExit(f"{', '.join(wrong) or 'a second run'} is wrong, so nothing is timed")
        rows.append({"shape": shape, "errors": found})
        every.append((data, ways))
    print("\n| stage | what | us (quartiles) | against compiled | TB/s |\n| ---: | --- | ---: | ---: | ---: |")
    for row, (data, ways) in zip(rows, every, strict=True):
        row["us"] = measure(data, ways)
    if ARGS.out:
        about = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "passes": ARGS.passes, "rows": rows}
        Path(ARGS.out).write_text(json.dumps(about, indent=2))


def measure(data: Data, ways: dict[str, Callable[..., tuple[Tensor, Tensor]]]) -> dict[str, list[float]]:
    """Time all ways and kernels at one stage; print and return quartiles."""
    functions: dict[str, Callable[[int], object]] = {
        name: lambda index, way=way: data.run(way, index) for name, way in ways.items()
    }
    functions |= kernels(data)
    count = len(data.images)
    times = microseconds([graph(function, count) for function in functions.values()], count, ARGS.repeats)
    quartiles = {name: statistics.quantiles(record, n=4) for name, record in zip(functions, times, strict=True)}
    for name, (low, median, high) in quartiles.items():
        speed = PASSES_OVER_IMAGES.get(name, sum(PASSES_OVER_IMAGES.values())) * data.bytes / median / 1e6
        ratio = f"{quartiles['compiled'][1] / median:.2f}x" if name in ways else ""
        print(f"| {data.shape[1]} | {name} | {median:.1f} ({low:.1f} to {high:.1f}) | {ratio} | {speed:.2f} |")
    return quartiles


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=128)
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds")
    parser.add_argument("--out", help="file to write")
    ARGS = parser.parse_args()
    main()
