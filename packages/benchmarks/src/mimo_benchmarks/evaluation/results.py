"""What a trained network is worth: its answers, its cost, its speed beside the others of the experiment."""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mimo_benchmarks.evaluation.answers import batch_statistics, changed_by_regrouping, classify, crosstalk_by_depth, device_of
from mimo_benchmarks.evaluation.rates import example, inputs_per_second
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.networks.registry import Network
from mimo_benchmarks.presets.find import PRESETS
from mimo_benchmarks.presets.paper import PAPER, Reported
from mimo_benchmarks.run_directory import RunDirectory
from mimo_benchmarks.settings import ModelConfig, RunConfig
from mimo_benchmarks.tasks.kinds import ImageTask, Task, TokenTask
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.loop import Progress
from mimoconv import MIMOConv

PROBE = 256
"""Test images that crosstalk is measured on."""
INPUTS = 960
"""Inputs that throughput is measured on, a multiple of every n up to 6; fewer where that takes too many multiply-adds .."""
BUDGET = {"cpu": 2e10, "cuda": 2e13}
""".. for the machine, a second's worth or so."""
Crosstalk = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A network at the end of its training."""

    config: RunConfig
    name: str
    """The preset, and a dot and the control's name if it is one."""
    network: Network
    directory: RunDirectory
    feed: Feed
    progress: Progress
    peak_memory_bytes: int | None
    """Of its training; on a CPU, of the whole process so far."""


def fresh(config: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> Network:
    """A network in eval mode with these weights, free of what training wraps around it."""
    network = models.build(config).to(device)
    network.load_state_dict(weights)
    return network.eval()


def evaluated_n(config: RunConfig) -> list[int]:
    """Each n that a network is evaluated with; a plain one takes its inputs one by one, whatever n is."""
    return [1] if models.plain(config.model) else sorted(config.n)


def interference(config: RunConfig, task: Task, network: Network) -> Crosstalk | None:
    """`crosstalk_by_depth` of a MIMOConv for each n, always with the same draws; None of other networks."""
    if not isinstance(network, MIMOConv) or not isinstance(task, ImageTask):
        return None
    images = task.pixels(task.test.images[:PROBE].to(device_of(network)))
    draws = {n: torch.Generator().manual_seed(config.seed) for n in sorted(config.n)}
    return {str(n): crosstalk_by_depth(network, images, n, generator) for n, generator in draws.items()}


def throughput(finished: list[Finished], device: torch.device) -> list[dict[int, float]]:
    """Inputs a second of each network at each n, all measured in turn on the same random inputs."""
    settings = [(place, n) for place, one in enumerate(finished) for n in evaluated_n(one.config)]
    whole = math.lcm(*(models.shared(finished[place].config.model, n) for place, n in settings))
    macs = max(models.count_macs(finished[place].network, n) for place, n in settings)
    count = whole * max(1, min(INPUTS, int(BUDGET[device.type] / macs)) // whole)
    networks = [(finished[place].network, n) for place, n in settings]
    while True:
        try:
            rates = inputs_per_second(networks, example(finished[0].config.model, count, device))
            break
        except torch.OutOfMemoryError:
            if count == whole:
                raise
            count = max(whole, count // 2 // whole * whole)
    found: list[dict[int, float]] = [{} for _ in finished]
    for (place, n), rate in zip(settings, rates, strict=True):
        found[place][n] = rate
    return found


def result(one: Finished, task: Task, rates: dict[int, float], before: Crosstalk | None, wall_seconds: float) -> dict[str, Any]:
    """All that was found out about a network, as result.json has it."""
    config, network = one.config, one.network
    preset, *forms = one.name.split(".")
    control = forms.pop() if forms and forms[-1] != "short" else None
    rows = []
    for n in evaluated_n(config):
        answers = classify(network, config.model, task, task.test, n)
        with batch_statistics(network) as norms:
            passes = config.optim.groups
            other = classify(network, config.model, task, task.test, n, passes=passes).accuracy if norms else None
        shared = models.shared(config.model, n)
        rows.append(
            {
                "n": n,
                "inputs": shared,
                "accuracy": answers.accuracy,
                "accuracy_batch_statistics": other,
                "accuracy_per_slot": answers.per_slot(),
                "changed_by_regrouping": changed_by_regrouping(network, config.model, task, n, answers, config.seed)
                if shared > 1
                else None,
                "macs": models.count_macs(network, n),
                "inputs_per_second": rates[n],
            }
        )
    starts = one.directory.starts()
    return {
        "preset": ".".join([preset, *forms]),
        "control": control,
        "model": models.label(config.model),
        "superposed": not models.plain(config.model),
        "task": task.name,
        "seed": config.seed,
        "paper": reported(config, one.name),
        "rows": rows,
        "guesses": guesses(task),
        "crosstalk": before and {"before": before, "after": interference(config, task, network)},
        "steps": one.progress.step,
        "inputs_seen": one.feed.inputs(one.progress.step),
        "skipped_updates": int(one.progress.counts["skipped"]),
        "train_seconds": one.progress.seconds,
        "wall_seconds": wall_seconds,
        "peak_memory_bytes": one.peak_memory_bytes,
        "command": starts[0]["command"],
        **{name: starts[-1][name] for name in ("device", "processes", "versions", "git_revision")},  # of what was measured
    }


def reported(config: RunConfig, name: str) -> Reported:
    """The paper's figures of a preset, where the run is the one that they are of: another network, task or training has none."""
    if name not in PAPER:
        return {}
    of = PRESETS[name]()
    alike = ("task", "model", "n", "n_odds", "curriculum", "curriculum_share", "augment", "dev_every", "best")
    same = all(getattr(config, setting) == getattr(of, setting) for setting in alike)
    return PAPER[name] if same and replace(config.optim, accumulate=of.optim.accumulate) == of.optim else {}


def guesses(task: Task) -> dict[str, float]:
    """Shares of the test set that guesses get right which need no look at the question."""
    if isinstance(task, TokenTask):
        return task.guesses
    labels = task.test.labels
    return {"the most frequent class": torch.bincount(labels).max().item() / len(labels)}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: allocated on a GPU, or by this process on a CPU, where the platform tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
