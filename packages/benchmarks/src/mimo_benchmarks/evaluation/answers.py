"""Answers in eval mode, and what sharing a pass does to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.synthetic.tokens import UNSCORED, TokenSplit
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.networks.registry import Network
from mimo_benchmarks.settings import ModelConfig
from mimo_benchmarks.tasks.kinds import ImageTask, Task, TokenTask
from mimo_benchmarks.training.sampling import by_length
from mimoconv import MIMOConv
from vsa_core import interference

AnySplit = Split | Sequences | TokenSplit
TOKENS = 2**19
"""Tokens of sequences that are evaluated at a time."""
LOGITS = 2**27
"""Numbers that answers to them may have, where each token has one for every other."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network says of every item of a split, in the split's order."""

    classes: Int[Tensor, "count *asked"]
    right: Bool[Tensor, "count *asked"]
    scored: Bool[Tensor, "count *asked"]
    """Where anything is asked."""
    slot: Int[Tensor, " count"]
    """Place of each item in its pass."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return (self.right & self.scored).sum().item() / self.scored.sum().item()

    def per_slot(self) -> list[float]:
        """The same apart for the items that come first, second, .. in their pass."""
        places = [self.slot == place for place in range(int(self.slot.max()) + 1)]
        return [(self.right[place] & self.scored[place]).sum().item() / self.scored[place].sum().item() for place in places]


def classify(
    network: Network,
    config: ModelConfig,
    task: Task,
    split: AnySplit,
    n: int,
    *,
    shuffle: torch.Generator | None = None,
    passes: int | None = None,
) -> Answers:
    """The network's answers to all items of a split, grouped in their order, sequences in that of their lengths.

    Args:
        network: in any mode; it is evaluated in eval mode, or in that of `batch_statistics`.
        config: the network's.
        task: the split's.
        split: on the network's device.
        n: as in `RunConfig.n`.
        shuffle: group them otherwise: in a random order, of sequences of like length only.
        passes: at a time; what memory allows unless given.

    Raises:
        FloatingPointError: an answer is not finite.
    """
    shared = models.shared(config, n)
    if passes is None and isinstance(split, TokenSplit):
        assert isinstance(task, TokenTask)
        passes = max(1, LOGITS // (split.inputs.shape[1] * task.vocab_size * shared))
    size = None if passes is None else passes * shared
    chunks = batches(split, shared, size, shuffle)
    logits, slots = [], []
    for index in chunks:
        items, mask = inputs(task, split, index.to(device_of(network)))
        found = models.answer(network, items, mask, n)
        if not found.isfinite().all():
            raise FloatingPointError(
                f"the network's answers with n = {n} are not finite: training diverged; a lower --optim.lr may help"
            )
        logits.append(found.argmax(-1))
        slots.append(torch.arange(len(index)) % shared)
    back = torch.cat(chunks).argsort().to(device_of(network))
    classes, slot = torch.cat(logits)[back], torch.cat(slots).to(back.device)[back]
    targets = split.targets if isinstance(split, TokenSplit) else split.labels
    return Answers(classes=classes, right=classes == targets, scored=targets != UNSCORED, slot=slot)


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next(network.parameters()).device


def batches(split: AnySplit, shared: int, size: int | None, shuffle: torch.Generator | None) -> list[Int[Tensor, " size"]]:
    """All items once, in batches of whole groups but for the last; on the CPU."""
    if isinstance(split, Sequences):
        lengths = split.lengths.cpu()
        size = size or max(1, TOKENS // max(1, int(lengths.max())) // shared) * shared
        chunks = by_length(lengths, size)
        return [chunk[torch.randperm(len(chunk), generator=shuffle)] for chunk in chunks] if shuffle else chunks
    order = torch.randperm(len(split), generator=shuffle) if shuffle else torch.arange(len(split))
    return list(order.split(size or 2048 * shared))


def inputs(
    task: Task, split: AnySplit, index: Int[Tensor, " b"]
) -> tuple[Shaped[Tensor, "b *item"], Bool[Tensor, "b *real"] | None]:
    """Items as a network sees them, and where tokens are real."""
    if isinstance(split, Sequences):
        return split.tokens(index, max(1, int(split.lengths[index].max())))
    if isinstance(split, TokenSplit):
        return split.inputs[index], None
    assert isinstance(task, ImageTask)
    return task.pixels(split.images[index]), None


@contextmanager
def batch_statistics(network: Network) -> Iterator[bool]:
    """Inside, BatchNorm normalises by the batch in hand, as in the paper's evaluation; running statistics stay as they are.

    Gives whether there is any BatchNorm.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]

    def by_batch(norm: nn.Module, _: Any) -> None:
        norm.train()

    calls = [norm.register_forward_pre_hook(by_batch) for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield bool(norms)
    finally:
        for norm, call, buffers in zip(norms, calls, before, strict=True):
            call.remove()
            norm.eval()
            for name, buffer in buffers.items():
                getattr(norm, name).copy_(buffer)


def changed_by_regrouping(network: Network, config: ModelConfig, task: Task, n: int, answers: Answers, seed: int) -> float:
    """Share of the test set's answers that are others when its items share their passes otherwise."""
    generator = torch.Generator().manual_seed(seed)
    other = classify(network, config, task, task.test, n, shuffle=generator)
    return ((other.classes != answers.classes) & answers.scored).sum().item() / answers.scored.sum().item()


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
