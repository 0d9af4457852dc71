"""Measure crosstalk along a network: how much of one slot's features the other inputs of the pass cause."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.result import Crosstalk
from mimo_benchmarks.tasks.protocol import Task
from vsa_core import interference

PROBE = 256
"""Number of test items on which crosstalk is measured."""


def measure_crosstalk(network: Network, module: nn.Module, task: Task, ns: Sequence[int], seed: int) -> Crosstalk | None:
    """Return `crosstalk_by_depth` for each n, always with the same draws; None if the network names no places for it."""
    if not network.crosstalk_places(module):
        return None
    items, _ = task.items(task.test, torch.arange(min(PROBE, len(task.test))))
    items = items.to(next(module.parameters()).device)
    draws = {n: torch.Generator().manual_seed(seed) for n in sorted(ns)}
    return {str(n): crosstalk_by_depth(network, module, items, n, generator) for n, generator in draws.items()}


@torch.no_grad()
def crosstalk_by_depth(
    network: Network,
    module: nn.Module,
    items: Shaped[Tensor, "count *item"],
    n: int,
    generator: torch.Generator,
    redraws: int = 4,
) -> dict[str, float | None]:
    """Return `interference.crosstalk` of the first slot along the network: its items held fixed, the others' drawn again.

    The first half of `items` goes into the first slot, the others' come from the second half. Places before unbinding hold all
    slots at once, so there the share is (n - 1) / n where slots add up, and above it where they interact; "unbound" and "logits"
    are the first slot's own. All shares are 0 with one input per pass. Where features do not vary, as of a network that has
    diverged, or are not finite, the share is None.

    Args:
        network: what the program knows of the network, and where to look.
        module: the network; it is left in eval mode.
        items: inputs as the network sees them, an even number.
        n: inputs per pass.
        generator: draws the other slots' items, on the CPU.
        redraws: how often the others are drawn again.
    """
    module.eval()
    own, pool = items.chunk(2)
    places = network.crosstalk_places(module)
    seen: dict[str, list[Tensor]] = {name: [] for name in (*places, "logits")}

    def keep(name: str, what: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any = None) -> None:
            features = inputs[0] if what == "input" else output[:, 0] if what == "first slot" else output
            seen[name].append(features.flatten(1))

        return hook

    hooks = [
        place.register_forward_pre_hook(keep(name, what)) if what == "input" else place.register_forward_hook(keep(name, what))
        for name, (place, what) in places.items()
    ]
    try:
        with progress_bar(f"measuring crosstalk, n = {n}", redraws + 1, unit=" batches") as bar:
            for _ in range(redraws + 1):
                drawn = torch.randint(len(pool), (len(own), n - 1), generator=generator)
                seen["logits"].append(module(torch.cat([own[:, None], pool[drawn.to(pool.device)]], 1))[:, 0].flatten(1))
                bar.update()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: share_of_others(torch.stack(outputs), reference) for name, (reference, *outputs) in seen.items()}


def share_of_others(outputs: Float[Tensor, "redraws b d"], reference: Float[Tensor, "b d"]) -> float | None:
    """Return `interference.crosstalk`, or None where it is not defined."""
    try:
        return interference.crosstalk(outputs, reference).item()
    except ValueError:
        return None
