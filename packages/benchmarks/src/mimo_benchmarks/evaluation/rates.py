"""Speed: seconds of a pass, inputs a second, and what the device could do at most."""

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.networks.registry import Network
from mimo_benchmarks.settings import ModelConfig, TokenConfig
from vsa_core.slots import group

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
"""Which is faster depends on network and machine, so networks of images are measured in both; the usual one comes last."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARMUP = 5
"""Passes before those that are timed."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that a call takes: median, 5th and 95th percentile."""

    median: float
    low: float
    high: float
    layout: str
    """Memory layout of the weights, the faster one."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A network at one n."""

    n: int
    latency: Timing
    """Of a single pass."""
    batch: Timing
    """Of all passes at once."""
    inputs_per_second: float
    peak_bytes: int | None
    """Most memory allocated on a GPU meanwhile, weights included; not known of a CPU."""
    macs: float
    """Multiply-adds per input."""
    share: float
    """Of `device_peak`, of all passes at once. Above 1 it can be where that is float32 and cuDNN's convolutions round to TF32,
    as torch has it by default, and matrix products do not."""


def grouped(config: ModelConfig, inputs: Shaped[Tensor, "count *item"], n: int) -> Shaped[Tensor, "b *grid_item"]:
    """A flat batch in the groups that share a pass."""
    return group(inputs, models.shared(config, n)).unflatten(1, models.grid(config, n))


def layouts(config: ModelConfig) -> list[str]:
    """The memory layouts that make a difference: both for images, the usual one for tokens."""
    return ["contiguous"] if isinstance(config, TokenConfig) else list(LAYOUTS)


@torch.inference_mode()
def durations(call: Callable[[], Any], device: torch.device, rounds: int, warmup: int) -> list[float]:
    """Seconds of each of `rounds` calls, after `warmup` others: between CUDA events on a GPU, by the clock on a CPU."""
    for _ in range(warmup):
        call()
    record = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            record.append(start.elapsed_time(end) / 1000)
        else:
            before = time.perf_counter()
            call()
            record.append(time.perf_counter() - before)
    return record


def inputs_per_second(
    networks: list[tuple[Network, int]], inputs: Shaped[Tensor, "count *item"], rounds: int = 15
) -> list[float]:
    """Throughput of each (network, n) in eval mode, in the layout that suits it: the median over the rounds.

    All take turns, so that a drift of the machine hits all alike. Each is given all `inputs` at once, in groups of its n: a pass
    to warm up, then one that is timed.
    """
    groups = [grouped(network.config, inputs, n) for network, n in networks]
    settings = [(place, layout) for place, (network, _) in enumerate(networks) for layout in layouts(network.config)]
    times: dict[tuple[int, str], list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for place, layout in settings:
            network = networks[place][0].to(memory_format=LAYOUTS[layout])
            times[place, layout] += durations(partial(network, groups[place]), inputs.device, 1, 1)
    medians = {setting: float(np.median(record)) for setting, record in times.items()}
    best = [min(medians[at, layout] for at, layout in settings if at == place) for place in range(len(networks))]
    return [len(inputs) / seconds for seconds in best]


def example(config: ModelConfig, count: int, device: torch.device) -> Shaped[Tensor, "count *item"]:
    """Random inputs of a network's own size: images, or sequences of its greatest length, or pairs of them."""
    if isinstance(config, TokenConfig):
        pair = (2,) if config.head == "pair" else ()
        return torch.randint(config.vocab_size, (count, *pair, config.max_length), device=device)
    return torch.randn(count, config.in_channels, config.image_size, config.image_size, device=device)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of several: what the device really does."""
    size = 8192 if device.type == "cuda" else 1024
    a, b, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return 2 * size**3 / min(durations(lambda: torch.mm(a, b, out=out), device, 10, 3))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Inside, a network computes in this precision where torch holds that to be safe; "no" leaves float32."""
    return torch.autocast(device.type, DTYPES[precision]) if precision != "no" else nullcontext()


def measure(
    network: Network,
    n: int,
    passes: int,
    *,
    peak: float,
    rounds: int = 30,
    precision: str = "no",
    compiled: bool = False,
) -> Measurement:
    """Latency of one pass and throughput of many, on random inputs.

    Args:
        network: in eval mode, on the device.
        n: as in `RunConfig.n`.
        passes: in the batch that throughput is measured with.
        peak: operations a second that count as all that the device can do, as by `device_peak`.
        rounds: calls that are timed, of each layout, after `WARMUP` others.
        precision: "no" for float32, or "bf16" or "fp16" for autocast.
        compiled: through torch.compile, afresh for each shape.

    Raises:
        ConfigError: the passes do not fit into memory.
    """
    config, device = network.config, next(network.parameters()).device
    macs, inputs = models.count_macs(network, n), models.shared(config, n)

    def timing(passes: int) -> Timing:
        x = grouped(config, example(config, passes * inputs, device), n)
        found = []
        for layout in layouts(config):
            run: Callable[[Tensor], Tensor] = network.to(memory_format=LAYOUTS[layout])
            if compiled:
                torch.compiler.reset()  # else shapes become symbols, and after eight nothing is compiled at all
                run = torch.compile(network, dynamic=False)
            with autocast(device, precision):  # anew, since it may keep weights that it has cast, in their layout
                record = durations(lambda: run(x), device, rounds, WARMUP)  # noqa: B023
            low, median, high = np.quantile(record, (0.05, 0.5, 0.95)).tolist()
            found.append(Timing(median=median, low=low, high=high, layout=layout))
        return min(found, key=lambda each: each.median)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # which precision is meant was said
        try:
            latency = timing(1)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            batch = timing(passes)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise ConfigError(f"{passes} passes with n = {n} do not fit into memory: give fewer --passes") from error
            raise
    rate = passes * inputs / batch.median
    return Measurement(
        n=n,
        latency=latency,
        batch=batch,
        inputs_per_second=rate,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        macs=macs,
        share=2 * macs * rate / peak,
    )
