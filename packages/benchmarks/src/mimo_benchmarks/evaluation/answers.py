"""Let a network answer all items of a split, and see how the answers depend on which items share a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.memory import memory_for
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.tasks.protocol import DataSplit, Task


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A network's answers to every item of a split, in the split's order."""

    classes: Int[Tensor, "count *asked"]
    """Class that the network chooses."""
    right: Bool[Tensor, "count *asked"]
    """Whether the class is right."""
    scored: Bool[Tensor, "count *asked"]
    """Whether the answer counts: tokens that are not asked for do not."""
    slot: Int[Tensor, " count"]
    """Slot of each item in its pass, from 0."""

    @property
    def accuracy(self) -> float:
        """Share of right answers among those that count."""
        return (self.right & self.scored).sum().item() / self.scored.sum().item()

    def per_slot(self) -> list[float]:
        """Return the accuracy of the items that come first, second, .. in their pass."""
        places = [self.slot == place for place in range(int(self.slot.max()) + 1)]
        return [(self.right[place] & self.scored[place]).sum().item() / self.scored[place].sum().item() for place in places]


def classify(
    network: Network,
    module: nn.Module,
    task: Task,
    split: DataSplit,
    n: int,
    *,
    shuffle: torch.Generator | None = None,
    passes: int | None = None,
    name: str = "answering",
) -> Answers:
    """Return a network's answers to all items of a split; items share passes in their order, sequences by length.

    Args:
        network: what the program knows of the network.
        module: the network; it answers in eval mode, or in the mode of `batch_statistics`.
        task: the task.
        split: a split of the task, on the device of the network.
        n: inputs per pass, or the side of a grid, as in `RunConfig.n`.
        shuffle: generator for grouping items at random (sequences only with others of like length).
        passes: number of passes computed at a time; chosen to fit into memory unless given.
        name: name of the progress bar, to which n is added.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    shared = network.inputs_per_pass(n)
    chunks = task.evaluation_batches(split, shared, passes, shuffle)
    remedy = "give a smaller --optim.groups" if passes else "give smaller --model sizes"
    found, slots = [], []
    with (
        progress_bar(f"{name}, n = {n}", len(split), unit=" items") as bar,
        memory_for(f"{-(-len(chunks[0]) // shared)} passes with n = {n}", remedy),
    ):
        for index in chunks:
            items, mask = task.items(split, index)
            logits = network.predict(module, items, n, mask)
            if not logits.isfinite().all():
                raise FloatingPointError(f"answers with n = {n} are not finite: training diverged; a lower --optim.lr may help")
            found.append(logits.argmax(-1))
            slots.append(torch.arange(len(index)) % shared)
            bar.update(len(index))
    back = torch.cat(chunks).argsort().to(split.targets.device)
    classes, slot = torch.cat(found)[back], torch.cat(slots).to(back.device)[back]
    return Answers(classes=classes, right=classes == split.targets, scored=split.targets != UNSCORED, slot=slot)


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[bool]:
    """Make BatchNorm normalise by the batch at hand, as the paper evaluates; running statistics stay as they are.

    Yields:
        Whether the network has any BatchNorm.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]

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


def changed_by_regrouping(network: Network, module: nn.Module, task: Task, n: int, answers: Answers, seed: int) -> float:
    """Return the share of the test answers that change when items share their passes with other items, drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    other = classify(network, module, task, task.test, n, shuffle=generator, name="testing in other passes")
    return ((other.classes != answers.classes) & answers.scored).sum().item() / answers.scored.sum().item()
