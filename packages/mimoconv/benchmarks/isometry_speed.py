"""The isometry penalty beside its definition, Conv(W, W) in cuDNN: value and gradient compared first, then interleaved medians.

usage: python packages/mimoconv/benchmarks/isometry_speed.py [--model mimoconv_28_10] [--device cuda] [--repeats 21] [--out FILE]

Rows: milliseconds (median and quartiles) of value and gradient over the body of a network; the definition by autograd, ours as it
is, and ours compiled. Errors are those of the value and of the gradient of the worst layer, against float64.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimoconv import create_model, isometry_penalty


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


def gradients(measure: Callable[[nn.Module], Tensor], model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Compute a penalty and its gradient for each convolution."""
    value = measure(model)
    return value.detach(), list(torch.autograd.grad(value, [layer.weight for layer in convolutions(model)]))


def milliseconds(functions: list[Callable[[], object]]) -> list[list[float]]:
    """Time each function; they are called in turn, so that drift of the machine affects all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(ARGS.repeats + 3):
        for function, record in zip(functions, times, strict=True):
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if repeat >= 3:  # the first rounds warm up
                record.append(1e3 * (time.perf_counter() - start))
    return times


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if ARGS.device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print one row per way to compute the penalty, and write them as JSON."""
    torch.manual_seed(0)
    model = create_model(ARGS.model).to(ARGS.device, memory_format=torch.channels_last)
    exact, exact_gradients = gradients(definition, copy.deepcopy(model).double())
    ways = {"definition": definition, "ours": isometry_penalty, "ours, compiled": torch.compile(isometry_penalty)}
    rows = []
    for name, measure in ways.items():
        value, found = gradients(measure, model)
        worst = max(((g - e).norm() / e.norm()).item() for g, e in zip(found, exact_gradients, strict=True))
        rows.append({"way": name, "value error": abs(value / exact - 1).item(), "gradient error": worst})
        if max(rows[-1]["value error"], worst) > 2e-3:
            raise SystemExit(f"{name} is wrong, so nothing is timed: {rows[-1]}")
    times = milliseconds([lambda measure=measure: gradients(measure, model) for measure in ways.values()])
    name = torch.cuda.get_device_name() if ARGS.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}, {ARGS.model}\n")
    print("| way | ms (quartiles) | against the definition | value error | gradient error |\n| --- | ---: | ---: | ---: | ---: |")
    for row, record in zip(rows, times, strict=True):
        low, row["ms"], high = statistics.quantiles(record, n=4)
        spread, ratio = f"{row['ms']:.2f} ({low:.2f} to {high:.2f})", f"{rows[0]['ms'] / row['ms']:.2f}x"
        print(f"| {row['way']} | {spread} | {ratio} | {row['value error']:.1e} | {row['gradient error']:.1e} |")
    if ARGS.out:
        Path(ARGS.out).write_text(
            json.dumps({"torch": torch.__version__, "device": name, "model": ARGS.model, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mimoconv_28_10")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds")
    parser.add_argument("--out", help="file to write")
    ARGS = parser.parse_args()
    main()
