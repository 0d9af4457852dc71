"""Muon's step beside fused SGD's: its update compared with the definition first, then interleaved medians.

usage: python packages/benchmarks/benchmarks/muon_speed.py [--model mimoconv_28_10] [--device cuda] [--repeats 21] [--out FILE]

Columns: milliseconds of a step (median and quartiles) with random gradients, what Muon adds to SGD, and the rates that follow.
Each step is waited for, so its launches count, which in training overlap with work of the device. The rates count the arithmetic
of Muon's products and the fewest bytes: SGD reads weights, gradients and momentum and writes weights and momentum, and Muon also
writes the update twice and reads it twice.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training.optimizers import build_optimizer
from mimoconv import create_model

OPTIONS = {"lr": 0.02, "rest_lr": 0.05, "weight_decay": 5e-4, "momentum": (0.95, 0.95)}


def network() -> nn.Module:
    """Create the network with random gradients."""
    torch.manual_seed(0)
    model = create_model(ARGS.model).to(ARGS.device, memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def defined_update(gradient: Tensor) -> Tensor:
    """Muon's first update (Jordan et al., 2024) of a weight, in float64, at learning rate 1 and without decay."""
    x = gradient.double().flatten(1)
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return -(max(1, x.shape[0] / x.shape[1]) ** 0.5) * x.view(gradient.shape)


def update_error() -> float:
    """Return the relative error of the worst layer's first update."""
    model = network()
    optimizer = build_optimizer(model, OptimConfig(optimizer="muon", **(OPTIONS | {"weight_decay": 0.0, "lr": 1.0})))
    hidden = optimizer.param_groups[0]["params"]
    expected, before = [defined_update(p.grad) for p in hidden], [p.detach().double() for p in hidden]
    optimizer.step()
    return max(
        ((p.double() - old - update).norm() / update.norm()).item()
        for p, old, update in zip(hidden, before, expected, strict=True)
    )


def flops(rows: int, cols: int) -> float:
    """Count operations of a matrix: four products of all its numbers, and 14 of squares of its small side."""
    side = min(rows, cols)
    return 8.0 * side * rows * cols + 28.0 * side**3


def main() -> None:
    """Print a row for each optimizer, and write them as JSON."""
    error = update_error()
    if error > 5e-3:
        raise SystemExit(f"the update is wrong, so nothing is timed: its relative error is {error:.1e}")
    steps = {}
    for name in ("sgd", "muon"):
        model = network()
        steps[name] = build_optimizer(model, OptimConfig(optimizer=name, **OPTIONS))
    times = {name: [] for name in steps}
    for repeat in range(ARGS.repeats + 3):
        for name, optimizer in steps.items():
            synchronize()
            start = time.perf_counter()
            optimizer.step()
            synchronize()
            if repeat >= 3:  # the first rounds warm up
                times[name].append(1e3 * (time.perf_counter() - start))
    hidden = steps["muon"].param_groups[0]["params"]
    size, weights = sum(p.numel() for p in hidden), sum(p.numel() for p in model.parameters())
    work = {
        "sgd": (0.0, 20.0 * weights),
        "muon": (sum(flops(len(p), p[0].numel()) for p in hidden), 20.0 * weights + 16.0 * size),
    }
    device = torch.cuda.get_device_name() if ARGS.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}, {ARGS.model}: {size / 1e6:.1f} of {weights / 1e6:.1f} million weights by Muon")
    print(f"relative error of the worst layer's update: {error:.1e}\n")
    print("| optimizer | ms (quartiles) | over SGD, ms | TFLOP/s | TB/s |\n| --- | ---: | ---: | ---: | ---: |")
    rows = []
    for name, record in times.items():
        low, median, high = statistics.quantiles(record, n=4)
        tflops, terabytes = (amount / median / 1e9 for amount in work[name])
        over = median - statistics.median(times["sgd"])
        print(f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) | {over:.2f} | {tflops:.1f} | {terabytes:.2f} |")
        rows.append({"optimizer": name, "ms": median, "quartiles": [low, high], "TFLOP/s": tflops, "TB/s": terabytes})
    if ARGS.out:
        result = {"torch": torch.__version__, "device": device, "model": ARGS.model, "update error": error, "rows": rows}
        Path(ARGS.out).write_text(json.dumps(result, indent=2))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if ARGS.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mimoconv_28_10")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds")
    parser.add_argument("--out", help="file to write")
    ARGS = parser.parse_args()
    main()
