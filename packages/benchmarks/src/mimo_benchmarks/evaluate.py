"""Answers in eval mode, and what sharing a pass does to them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mimo_benchmarks.data.images import Split
from mimo_benchmarks.kinds import ImageTask
from mimo_benchmarks.train import Network
from mimoconv import MIMOConv, predict
from vsa_core import interference


def classify(network: Network, task: ImageTask, split: Split, n: int) -> Int[Tensor, " count"]:
    """The class of every image of a split with n a pass, in their order.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    logits = predict(network, task.pixels(split.images), n)
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"the network's answers with n = {n} are not finite: training diverged; a lower --optim.lr may help"
        )
    return logits.argmax(-1)


def accuracy_per_slot(right: Bool[Tensor, " count"], n: int) -> list[float]:
    """Share of right answers, apart for the images that come first, second, .. in their pass of n."""
    return [right[place::n].double().mean().item() for place in range(n)]


def regrouped_share(
    network: Network, task: ImageTask, n: int, classes: Int[Tensor, " count"], generator: torch.Generator
) -> float:
    """Share of test images whose class is another than in `classes` when they share their passes in a random order."""
    order = torch.randperm(len(classes), generator=generator).to(classes.device)
    shuffled = Split(images=task.test.images[order], labels=task.test.labels[order])
    return (classify(network, task, shuffled, n) != classes[order]).double().mean().item()


@torch.no_grad()
def crosstalk_by_depth(
    network: MIMOConv, images: Float[Tensor, "count c h w"], n: int, generator: torch.Generator, redraws: int = 4
) -> dict[str, float]:
    """`interference.crosstalk` of the first slot along the network: its images held fixed, the others' drawn again.

    The first half of `images` goes into the first slot, the others' come from the second half. "superposed" and the stages
    hold all slots at once, so there the share is (n - 1) / n where they add up, and above it where they interact;
    "unbound" and "logits" are the first slot's own. All 0 with one image a pass.

    Args:
        network: a MIMOConv; its mode is left in eval.
        images: normalised images, an even number.
        n: images a pass.
        generator: on the CPU.
        redraws: how often the others are drawn again.
    """
    network.eval()
    own, pool = images.chunk(2)
    places: dict[str, nn.Module] = {f"stage {i}": network.body.get_submodule(f"module.stage{i}") for i in (1, 2, 3)}
    seen: dict[str, list[Tensor]] = {name: [] for name in ("superposed", *places, "unbound", "logits")}

    def keep(name: str, features: Tensor) -> None:
        seen[name].append(features.flatten(1))

    hooks = [
        network.body.register_forward_pre_hook(lambda _, arguments: keep("superposed", arguments[0])),
        *(place.register_forward_hook(lambda *arguments, name=name: keep(name, arguments[-1])) for name, place in places.items()),
        network.unbinding.register_forward_hook(lambda *arguments: keep("unbound", arguments[-1][:, 0])),
    ]
    try:
        for _ in range(redraws + 1):
            drawn = torch.randint(len(pool), (len(own), n - 1), generator=generator)
            keep("logits", network(torch.cat([own[:, None], pool[drawn.to(pool.device)]], 1))[:, 0])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: interference.crosstalk(torch.stack(outputs), reference).item() for name, (reference, *outputs) in seen.items()}
