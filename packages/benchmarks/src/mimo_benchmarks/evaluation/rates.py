"""Measure speed: seconds per pass, inputs per second, both with their spread, and the share of what the device can do."""

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from mimo_benchmarks.memory import memory_for, ran_out_of_memory
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.progress import SHORTEST, progress_bar
from mimo_benchmarks.result import Spread
from vsa_core.slots import group

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INPUTS = 960
"""Most inputs on which throughput is measured; a multiple of every n up to 6."""
BUDGET = {"cpu": 2e10, "cuda": 2e13}
"""Multiply-adds per timing round, about one second; large networks get fewer inputs. Other devices get as many as a CPU."""
Candidate = tuple[Network, nn.Module, int]
"""A network, its module in eval mode, and its n."""
WARMUP = 5
"""Passes that warm up the device before those that are timed."""
CALLS = 10
"""Calls whose kernels are timed one by one, on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call: median, lower (`low`) and upper (`high`) quartile over the timing rounds."""

    median: float
    low: float
    high: float
    peak_bytes: int | None
    """Most memory allocated on the GPU while timing, with the weights; None on a CPU."""
    kernels: float | None
    """Seconds that the kernels of a call take, added up; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Speed and cost of a network at one n."""

    n: int
    latency: Timing
    """Time of a single pass."""
    batch: Timing
    """Time of all passes computed at once."""
    inputs_per_second: float
    """Median over the timing rounds of all passes at once."""
    inputs_per_second_quartiles: tuple[float, float]
    """Lower and upper quartile over those rounds."""
    macs: float
    """Multiply-adds per input."""
    share: float
    """Operations per second of all passes at once, as a share of `device_peak`. It can exceed 1 in float32, where by default
    cuDNN's convolutions round to TF32 and matrix products do not."""


def in_passes(network: Network, inputs: Shaped[Tensor, "count *item"], n: int) -> Shaped[Tensor, "b *grid_item"]:
    """Return a flat batch as groups that share a pass, with the axes of the network's pass."""
    return group(inputs, network.inputs_per_pass(n)).unflatten(1, network.axes(n))


def now(device: torch.device) -> float:
    """Return the time in seconds, after all that the device still computes."""
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def durations(call: Callable[[], Any], device: torch.device, rounds: int, warmup: int) -> Iterator[float]:
    """Yield the seconds of each of `rounds` calls after `warmup` others: by CUDA events on a GPU, else by the clock."""
    call = torch.inference_mode()(call)
    for _ in range(warmup):
        call()
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            yield start.elapsed_time(end) / 1000
        else:
            before = now(device)
            call()
            yield max(SHORTEST, now(device) - before)


def kernel_seconds(call: Callable[[], Any], calls: int) -> dict[str, list[float]]:
    """Return the seconds of all kernels and copies of some calls on the GPU, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:  # type: ignore[attr-defined]
            seconds[event.name].append(event.time_range.elapsed_us() / 1e6)
    return seconds


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return low, median, high


def inputs_per_second(candidates: Sequence[Candidate], inputs: Shaped[Tensor, "count *item"], rounds: int = 15) -> list[Spread]:
    """Return the throughput of each candidate in eval mode: median and quartiles over the rounds.

    Candidates take turns, so that a drift of the machine hits all alike. Each gets all `inputs` at once, in groups of its n: one
    call to warm up, then one that is timed.
    """
    calls = [partial(module, in_passes(network, inputs, n)) for network, module, n in candidates]
    times: list[list[float]] = [[] for _ in calls]
    with progress_bar("measuring throughput", rounds, unit=" rounds") as bar:
        for _ in range(rounds):
            for call, record in zip(calls, times, strict=True):
                record.extend(durations(call, inputs.device, 1, 1))
            bar.update()
    found = [quartiles(record) for record in times]
    return [Spread(value=len(inputs) / median, low=len(inputs) / high, high=len(inputs) / low) for low, median, high in found]


def measure_throughput(candidates: Sequence[Candidate], device: torch.device) -> list[Spread]:
    """Return the throughput of each candidate, measured in turn on the same random inputs; fewer if memory runs out."""
    whole = math.lcm(*(network.inputs_per_pass(n) for network, _, n in candidates))
    macs = max(network.count_macs(module, n) for network, module, n in candidates)
    count = whole * max(1, min(INPUTS, int(BUDGET.get(device.type, BUDGET["cpu"]) / macs)) // whole)
    while True:
        try:
            return inputs_per_second(candidates, candidates[0][0].example(count, device))
        except (RuntimeError, MemoryError) as error:
            if count == whole or not ran_out_of_memory(error):
                raise
            count = max(whole, count // 2 // whole * whole)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second of a large matrix product, the best of several: what the device really reaches."""
    size = 8192 if device.type == "cuda" else 1024
    a, b, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return 2 * size**3 / min(durations(lambda: torch.mm(a, b, out=out), device, 10, 3))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Let a network compute in this precision where torch holds it to be safe; "no" leaves float32."""
    return torch.autocast(device.type, DTYPES[precision]) if precision != "no" else nullcontext()


def measure(
    network: Network,
    module: nn.Module,
    n: int,
    passes: int,
    *,
    peak: float,
    rounds: int = 30,
    precision: str = "no",
    compiled: bool = False,
    after_call: Callable[[], object] = lambda: None,
) -> Measurement:
    """Measure the latency of one pass and the throughput of many, on random inputs, as `Network.predict` computes them.

    So on a GPU batches are replayed as CUDA graphs, as far as `predict` does and unless that is disabled; and the time of one
    pass holds all that Python does for it.

    Args:
        network: what the program knows of the network.
        module: the network, in eval mode, on the device.
        n: inputs per pass, or the side of a grid, as in `RunConfig.n`.
        passes: number of passes in the batch on which throughput is measured.
        peak: operations per second that the device can do, such as `device_peak`.
        rounds: number of timed calls, after `WARMUP` others.
        precision: "no" for float32, or "bf16" or "fp16" for autocast.
        compiled: use torch.compile, anew for each shape.
        after_call: called after each timed call, for a progress bar.

    Raises:
        NotEnoughMemory: the passes do not fit into memory.
    """
    device = next(module.parameters()).device
    macs, inputs = network.count_macs(module, n), network.inputs_per_pass(n)

    def timing(passes: int) -> Timing:
        x, run = network.example(passes * inputs, device), module
        if compiled:
            torch.compiler.reset()  # otherwise shapes become symbolic, and after eight of them nothing is compiled
            run = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        record = []
        with autocast(device, precision):
            for seconds in durations(lambda: network.predict(run, x, n), device, rounds, WARMUP):
                record.append(seconds)
                after_call()
        low, median, high = quartiles(record)
        used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        kernels = None
        if device.type == "cuda":
            with torch.inference_mode(), autocast(device, precision):
                kernels = sum(map(sum, kernel_seconds(lambda: network.predict(run, x, n), CALLS).values())) / CALLS
        return Timing(median=median, low=low, high=high, peak_bytes=used, kernels=kernels)

    with warnings.catch_warnings(), memory_for(f"{passes} passes with n = {n}", "give fewer --passes"):
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # the caller chose the precision
        latency, batch = timing(1), timing(passes)
    rate = passes * inputs / batch.median
    return Measurement(
        n=n,
        latency=latency,
        batch=batch,
        inputs_per_second=rate,
        inputs_per_second_quartiles=(passes * inputs / batch.high, passes * inputs / batch.low),
        macs=macs,
        share=2 * macs * rate / peak,
    )
