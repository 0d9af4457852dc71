"""Time training steps of presets, beside the published code and on several GPUs: gradients first, then interleaved medians.

usage: python packages/benchmarks/benchmarks/training_speed.py PRESET .. [--published DIR] [--passes 128] [--out FILE]
       accelerate launch packages/benchmarks/benchmarks/training_speed.py PRESET .. [--passes 512]

A row is a preset on random data: milliseconds per step (median and quartiles) over the first steps of a run, the operations per
second of its convolutions and matrix products, and the memory that it takes. Before anything is timed, the gradients of a step
of each n, as they are timed but without dropout, are compared with those of plain modules without fused kernels, compiler and
CUDA graphs, in bfloat16 and in float32. With --published, the folder of github.com/IBM/multiple-input-multiple-output-nets,
each MIMOConv also has a row for its authors' code, without its data loader; where N varies, that takes 512 passes at low N, as
it does in training. Under `accelerate launch` with several processes, each preset has a row for one GPU too.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from mimo_benchmarks.environment import environment
from mimo_benchmarks.evaluation.rates import device_peak, kernel_seconds
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks.registry import TASKS
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.gradients import Gradients
from mimo_benchmarks.training.loop import take_step
from mimo_benchmarks.training.state import Training
from mimoconv import isometry
from mimoformer.layers import SuperposedAttention
from vsa_core.hub.markdown import markdown_table

ITEMS = 4096
STEPS = 10
"""Steps per round: the first of the run, with what n chance gives them."""
TOLERANCE = 1.5
"""How many times the error of plain modules in bfloat16 the error of timed gradients may be."""
EXACT = 1e-2
"""Largest error of timed gradients where both are in float32."""


HAS_KERNELS = isometry.has_kernels


class Alone:
    """An accelerator of several processes, for work that one of them does by itself."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.num_processes = accelerator, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


class Exact(Alone):
    """An accelerator that leaves a network in float32."""

    mixed_precision = "no"

    def prepare_model(self, model: nn.Module, **_: Any) -> nn.Module:
        return model


class Memory:
    """Memory that is taken on the GPU from now on."""

    def __init__(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.allocated, self.reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def peak(self) -> int:
        """Return the most bytes of tensors at a time; or of what torch keeps, as for CUDA graphs, where that is more."""
        torch.cuda.synchronize()
        kept = torch.cuda.memory_reserved() - self.reserved
        return max(torch.cuda.max_memory_allocated() - self.allocated, kept)


class Ours:
    """Steps of a preset, as training takes them."""

    def __init__(self, name: str, config: RunConfig, accelerator: Any) -> None:
        self.name, self.accelerator = name, accelerator
        memory = Memory()
        torch.manual_seed(0)
        network = describe(config.model)
        task = TASKS[config.task].kind.random(network, ITEMS).to(accelerator.device)
        rank = accelerator.process_index if accelerator.num_processes > 1 else 0
        self.feed = Feed(task, config, rank, accelerator.num_processes)
        self.training = Training(build(config.model), config, accelerator)
        self.gradients = Gradients(self.training, self.feed, accelerator)
        for _ in range(3):  # runs, records and replays each n
            self.run()
        self.peak_bytes = memory.peak()
        inputs = sum(len(self.feed.draw(step).items) * network.count_macs(network.build(), self.feed.n[step - 1])
                     for step in range(1, STEPS + 1)) / STEPS  # fmt: skip
        self.operations = 2 * 3 * inputs / accelerator.num_processes  # per GPU; backward has twice the products of forward

    def run(self) -> None:
        """Take the steps of a round."""
        for step in range(1, STEPS + 1):
            take_step(self.training, self.gradients, step)


class Published:
    """Steps of the authors' code on images that are on the GPU already, without its data loader."""

    operations = None

    def __init__(self, name: str, config: RunConfig, folder: Path) -> None:
        sys.path.insert(0, str(folder / "MIMOConv" / "src"))
        from models.superwideisonet import AdjustedISOBlock, SuperWideISONet  # type: ignore[import-not-found]
        from optimizer import construct_optim  # type: ignore[import-not-found]

        self.name, self.accelerator, model, self.n = name, None, config.model, max(config.n)
        self.low = min(config.n)
        memory = Memory()
        torch.manual_seed(0)
        self.network = SuperWideISONet(self.n, "HRR", 10, [4, 4, 4], 4, model.num_classes, block=AdjustedISOBlock).cuda()
        self.optimizer = construct_optim(self.network, weight_decay=1e-5)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.2, total_steps=10_000_000)
        count = config.optim.groups * self.n
        self.images, self.labels = torch.randn(count, 3, 32, 32).cuda(), torch.randint(model.num_classes, (count,)).cuda()
        self.run()
        self.peak_bytes = memory.peak()

    def run(self) -> None:
        """Take the steps of a round: of `train_epoch` in train_superposition.py, what happens on the GPU."""
        for step in range(STEPS):
            self.network.num_img_sup = self.low if step % 5 == 4 else self.n
            share, partner = torch.rand(()).item(), torch.randperm(len(self.images), device="cuda")
            images, labels = share * self.images + (1 - share) * self.images[partner], self.labels
            self.optimizer.zero_grad()
            outputs = self.network(images)
            penalty = 1e-4 * self.network.isometry_regularization("cuda")
            if penalty != 0:
                penalty.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1e3)
            loss = share * F.cross_entropy(outputs, labels) + (1 - share) * F.cross_entropy(outputs, labels[partner])
            loss = loss + 0.1 * self.network.binding_regularization()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1e3)
            if norm.isfinite and norm < 10 * 1e9:
                self.optimizer.step()
            loss.item()
            (outputs.argmax(1) == labels).sum().item()
            (outputs.argmax(1) == labels[partner]).sum().item()
            self.schedule.step()


def gradients_of(config: RunConfig, accelerator: Any, *, plain: bool) -> dict[str, Tensor]:
    """Compute the gradients of a step of each n: as they are timed, by a replay, or by plain modules."""
    torch.manual_seed(0)
    task = TASKS[config.task].kind.random(describe(config.model), ITEMS).to(accelerator.device)
    config = replace(config, model=replace(config.model, **{name: 0.0 for name in vars(config.model) if "dropout" in name}))
    if plain:
        config = replace(config, compile=False, cuda_graphs=False)
    training = Training(build(config.model), config, accelerator)
    torch.backends.cudnn.benchmark = not isinstance(accelerator, Exact)  # trying all algorithms in float32 would take long
    if plain:  # fused kernels leave layers with hooks alone
        for layer in training.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(lambda *_: None)
            elif isinstance(layer, SuperposedAttention):
                layer.implementation = "plain"
    feed, found = Feed(task, config), {}
    gradients = Gradients(training, feed, accelerator)
    with mock.patch.object(isometry, "has_kernels", lambda weight: not plain and HAS_KERNELS(weight)):
        for step in sorted(feed.n.index(n) + 1 for n in {*feed.n[:STEPS]}):
            for _ in range(1 if plain else 3):
                training.network.zero_grad()
                gradients(step)
            for name, parameter in training.network.named_parameters():
                if parameter.grad is not None:
                    taps = parameter.shape[2:].numel() if parameter.dim() == 4 else 1
                    same = taps == 1 or parameter.grad.stride() == parameter.stride()
                    assert same, f"{name}: its gradient has another layout"
                    found[f"{name}, step {step}"] = parameter.grad.float().clone()
    return found


def check(name: str, config: RunConfig, accelerator: Any) -> dict[str, float]:
    """Compare timed gradients with plain ones, both against float32; SystemExit if they are worse."""
    torch.backends.cudnn.allow_tf32 = False
    exact, timed_exact = (gradients_of(config, Exact(accelerator), plain=each) for each in (True, False))
    torch.backends.cudnn.allow_tf32 = True
    timed, plain = (gradients_of(config, accelerator, plain=each) for each in (False, True))

    def error(found: dict[str, Tensor], keys: list[str]) -> float:
        apart = torch.stack([(found[key] - exact[key]).norm() for key in keys]).norm()
        return float(apart / torch.stack([exact[key].norm() for key in keys]).norm())

    weights = [key for key, value in exact.items() if value.dim() > 1]
    errors = {}
    for way, found in {"timed": timed, "plain": plain, "timed in float32": timed_exact}.items():
        errors[way] = error(found, list(exact))
        errors[f"{way}, worst layer"] = max(error(found, [key]) for key in weights)
    print(f"{name}: relative errors of gradients: {', '.join(f'{way} {value:.1e}' for way, value in errors.items())}", flush=True)
    for part, most in (("", EXACT), (", worst layer", 10 * EXACT)):
        if not (errors[f"timed{part}"] <= TOLERANCE * errors[f"plain{part}"] and errors[f"timed in float32{part}"] <= most):
            raise SystemExit(f"{name}: the gradients of timed steps are wrong, so nothing is timed")
    return errors


def milliseconds(ways: list[Any], rounds: int, accelerator: Accelerator) -> list[list[float]]:
    """Time the ways in turn, so that drift of the machine affects all alike; milliseconds per step of each round."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, record in zip(ways, times, strict=True):
            accelerator.wait_for_everyone()
            if accelerator.num_processes > 1 and isinstance(way.accelerator, Alone) and not accelerator.is_main_process:
                continue
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            way.run()
            end.record()
            end.synchronize()
            record.append(start.elapsed_time(end) / STEPS)
    return times


def profile(way: Ours) -> list[dict[str, Any]]:
    """List the kernels of a round by the time they take, in milliseconds per step."""
    kernels = kernel_seconds(way.run, 1).items()
    rows = [{"kernel": name, "calls": len(each) / STEPS, "ms": 1e3 * sum(each) / STEPS} for name, each in kernels]
    return sorted(rows, key=lambda row: -float(row["ms"]))


def main(arguments: argparse.Namespace) -> None:
    """Compare, time, print a table, and write it as JSON with the kernels of each preset."""
    accelerator = Accelerator(mixed_precision="bf16")
    world = accelerator.num_processes
    configs = {}
    for name in arguments.presets:
        config = find_preset(name)
        optim = replace(config.optim, groups=arguments.passes or config.optim.groups)
        configs[name] = replace(config, precision="bf16", optim=optim, compile=arguments.compile)
    errors = {name: check(name, config, Alone(accelerator)) for name, config in configs.items()}
    torch.cuda.empty_cache()
    ways: list[Any] = []
    for name, config in configs.items():
        if world > 1:
            ways.append(Ours(f"{name}, 1 GPU", config, Alone(accelerator)))
            ways.append(Ours(f"{name}, {world} GPUs", config, accelerator))
        else:
            ways.append(Ours(name, config, accelerator))
        if arguments.published and "mimoconv" in name:
            ways.append(Published(f"{name}, published code", config, arguments.published))
    times = milliseconds(ways, arguments.rounds, accelerator)
    if not accelerator.is_main_process:
        return
    peak = device_peak(accelerator.device, torch.bfloat16)
    rows = []
    for way, record in zip(ways, times, strict=True):
        low, median, high = statistics.quantiles(record, n=4)
        rate = way.operations and way.operations / median / 1e9
        rows.append({"way": way.name, "ms": median, "low": low, "high": high, "GB": way.peak_bytes / 1e9, "TFLOP/s": rate})
    lines = [
        [
            row["way"],
            f"{row['ms']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['GB']:.2f}",
            "" if row["TFLOP/s"] is None else f"{row['TFLOP/s']:.0f}",
        ]
        for row in rows
    ]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; its matrix products reach {peak / 1e12:.0f} TFLOP/s\n")
    print(markdown_table(["step of", "ms (quartiles)", "GB", "TFLOP/s"], lines), flush=True)
    kernels = {way.name: profile(way) for way in ways if isinstance(way, Ours) and world == 1}
    for name, found in kernels.items():
        print(f"\n{name}: {sum(row['ms'] for row in found):.2f} ms of kernels, on two streams")
        for row in found[: arguments.kernels]:
            print(f"  {row['ms']:.3f} ms in {row['calls']:.1f} calls: {row['kernel'][:110]}")
    if arguments.out:
        content = {
            "rows": rows,
            "errors": errors,
            "peak": peak,
            "kernels": kernels,
            "environment": environment(accelerator.device),
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    parser.add_argument("--published", type=Path, help="folder of the published code")
    parser.add_argument("--passes", type=int, help="passes per step; the preset's unless given")
    parser.add_argument("--rounds", type=int, default=9, help=f"timed rounds of {STEPS} steps")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="as of mimonets")
    parser.add_argument("--kernels", type=int, default=0, help="kernels to print for each preset")
    parser.add_argument("--out", type=Path, help="file to write")
    main(parser.parse_args())
