"""The tasks: data sets as their networks see them, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mimo_benchmarks.catalogue import RELEASE, remedy
from mimo_benchmarks.data import images
from mimo_benchmarks.data.images import Split
from mimo_benchmarks.data.sequences import Sequences
from mimo_benchmarks.data.tokens import TokenSplit
from mimo_benchmarks.errors import ConfigError


@lru_cache
def normaliser(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """See `ImageTask.normaliser`."""
    deviation = torch.tensor(std, dtype=torch.float64)
    gain, offset = 1 / (scale * deviation), -torch.tensor(mean) / deviation
    return gain.float()[:, None, None].to(device), offset.float()[:, None, None].to(device)


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Images to classify, as uint8; a network sees them normalised."""

    name: str
    train: Split
    test: Split
    classes: int
    scale: float = 255
    """The value of a white pixel."""
    mean: tuple[float, ...] = (0,)
    """Of each channel, on a scale from 0 to 1; taken off."""
    std: tuple[float, ...] = (1,)
    """Likewise; divided by."""

    def normaliser(self, device: torch.device) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """What grey levels are multiplied with, and what is added then."""
        return normaliser(self.scale, self.mean, self.std, device)

    def pixels(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What a network sees of these images."""
        gain, offset = self.normaliser(images.device)
        return images * gain + offset

    def to(self, device: torch.device) -> "ImageTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class SequenceTask:
    """Sequences to classify, or pairs of them."""

    name: str
    train: Sequences
    dev: Sequences
    test: Sequences
    classes: int
    vocab_size: int
    """Token ids are below this; 0 is padding."""
    max_length: int
    """No sequence is longer."""

    def to(self, device: torch.device) -> "SequenceTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), dev=self.dev.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class TokenTask:
    """Sequences of which some tokens are to be predicted from those before."""

    name: str
    train: TokenSplit
    test: TokenSplit
    vocab_size: int
    guesses: dict[str, float] = field(default_factory=dict)
    """Shares of the test tokens that guesses get right which need no look at the question."""

    def to(self, device: torch.device) -> "TokenTask":
        """The whole set on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


Task = ImageTask | SequenceTask | TokenTask


def digits(folder: Path) -> ImageTask:
    """scikit-learn's handwritten digits, 8 x 8 pixels, bundled with it."""
    train, test = images.digits()
    return ImageTask(name="digits", train=train, test=test, classes=10, scale=16)


def mnist(folder: Path) -> ImageTask:
    """MNIST: handwritten digits of 28 x 28 pixels."""
    train, test = images.mnist(folder, remedy("mnist", folder))
    return ImageTask(name="mnist", train=train, test=test, classes=10, mean=(0.1307,), std=(0.3081,))


def mnist20(folder: Path) -> ImageTask:
    """Their inner 20 x 20 pixels, as in Figure 4 of Menet et al. (2023)."""
    task = mnist(folder)
    return replace(task, name="mnist20", train=images.centre(task.train, 20), test=images.centre(task.test, 20))


def cifar10(folder: Path) -> ImageTask:
    """CIFAR-10: colour photographs of 32 x 32 pixels in ten classes."""
    train, test = images.cifar10(folder, remedy("cifar10", folder))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return ImageTask(name="cifar10", train=train, test=test, classes=10, mean=mean, std=std)


def cifar100(folder: Path) -> ImageTask:
    """CIFAR-100: such photographs in a hundred classes; normalised as Menet et al. (2023) do."""
    train, test = images.cifar100(folder, remedy("cifar100", folder))
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return ImageTask(name="cifar100", train=train, test=test, classes=100, mean=mean, std=std)


def svhn(folder: Path) -> ImageTask:
    """SVHN: house numbers' digits of 32 x 32 pixels in colour; normalised as Menet et al. (2023) do."""
    train, test = images.svhn(folder, remedy("svhn", folder))
    mean, std = (109.9 / 255, 109.7 / 255, 113.8 / 255), (50.1 / 255, 50.6 / 255, 50.8 / 255)
    return ImageTask(name="svhn", train=train, test=test, classes=10, mean=mean, std=std)


def listops(folder: Path) -> SequenceTask:
    """ListOps: nested minima, maxima, medians and sums, generated by the long range arena's rule."""
    from mimo_benchmarks.data.listops import listops as splits

    return SequenceTask(name="listops", **splits(folder), classes=10, vocab_size=16, max_length=2000)


def text(folder: Path, *, published: bool = False) -> SequenceTask:
    """Text: the sentiment of IMDb's reviews, byte by byte; 10 % of the training reviews are held out to choose by.

    As published, the test reviews are those to choose by, too.
    """
    from mimo_benchmarks.data.text import text as splits

    name = "text_published" if published else "text"
    return SequenceTask(name=name, **splits(folder, published=published), classes=2, vocab_size=257, max_length=4000)


def retrieval(folder: Path) -> SequenceTask:
    """Retrieval: whether one paper of the AAN cites another, byte by byte."""
    from mimo_benchmarks.data.retrieval import retrieval as splits

    return SequenceTask(name="retrieval", **splits(folder), classes=2, vocab_size=257, max_length=4000)


def image(folder: Path, *, published: bool = False) -> SequenceTask:
    """Image: CIFAR-10 in grey levels, pixel by pixel; the last 5,000 training images are held out to choose by.

    As published, black pixels are padding.
    """
    colour = cifar10(folder)
    train, test = (
        Sequences.rows(split.images.flatten(1), split.labels, shift=0 if published else 1)
        for split in (images.grey(colour.train), images.grey(colour.test))
    )
    name = "image_published" if published else "image"
    parts = {"train": train.part(0, 45_000), "dev": train.part(45_000, 50_000), "test": test}
    return SequenceTask(name=name, **parts, classes=10, vocab_size=257, max_length=1024)


def pathfinder(folder: Path, *, published: bool = False) -> SequenceTask:
    """Pathfinder32: whether two markers lie on the same dashed line, pixel by pixel, generated by the published rule.

    As published, black pixels are padding.
    """
    from mimo_benchmarks.data.pathfinder import pathfinder as splits

    name = "pathfinder_published" if published else "pathfinder"
    return SequenceTask(name=name, **splits(folder, published=published), classes=2, vocab_size=257, max_length=1024)


def listops_lra(folder: Path) -> SequenceTask:
    """ListOps as the long range arena released it."""
    from mimo_benchmarks.data.listops import read_tsv

    place = folder / RELEASE / "listops-1000"
    splits = {
        name: read_tsv(place / f"basic_{file}.tsv") for name, file in (("train", "train"), ("dev", "val"), ("test", "test"))
    }
    return SequenceTask(name="listops_lra", **splits, classes=10, vocab_size=16, max_length=2000)


def pathfinder_lra(folder: Path) -> SequenceTask:
    """Pathfinder32 as the long range arena released it."""
    from mimo_benchmarks.data.pathfinder import read_original

    splits = read_original(folder / RELEASE / "pathfinder32")
    return SequenceTask(name="pathfinder_lra", **splits, classes=2, vocab_size=257, max_length=1024)


def recall(folder: Path, *, name: str = "recall", vocab_size: int = 20, pairs: int = 20) -> TokenTask:
    """Associative recall as in H3: which value belonged to the key."""
    from mimo_benchmarks.data.recall import guesses, recall_splits

    train, test = recall_splits(vocab_size=vocab_size, pairs=pairs, generator=portable())
    return TokenTask(name=name, train=train, test=test, vocab_size=vocab_size, guesses=guesses(test, vocab_size=vocab_size))


def induction(folder: Path) -> TokenTask:
    """The induction head as in H3: which symbol followed "=>" the first time."""
    from mimo_benchmarks.data.induction import guesses, induction_splits

    train, test = induction_splits(generator=portable())
    return TokenTask(name="induction", train=train, test=test, vocab_size=20, guesses=guesses(test, vocab_size=20))


def mqar(folder: Path, *, length: int) -> TokenTask:
    """Multi-query associative recall as in Zoology's figure 2, with sequences of this many tokens."""
    from mimo_benchmarks.data.mqar import MQAR, guesses, mqar_splits

    setting = MQAR[length]
    train, test = mqar_splits(setting, generator=portable())
    blind = guesses(test, vocab_size=setting.vocab_size)
    return TokenTask(name=f"mqar_{length}", train=train, test=test, vocab_size=setting.vocab_size, guesses=blind)


def portable() -> torch.Generator:
    """What the sequences of these tasks come from: a CPU's, so that they are the same everywhere, whatever a run's seed."""
    return torch.Generator().manual_seed(0)


Load = Callable[[Path], Task]
PLAIN: tuple[Load, ...] = (
    *(digits, mnist, mnist20, cifar10, cifar100, svhn),
    *(listops, listops_lra, text, retrieval, image, pathfinder, pathfinder_lra, recall, induction),
)
TASKS: dict[str, Load] = {
    **{task.__name__: task for task in PLAIN},
    **{f"{task.__name__}_published": partial(task, published=True) for task in (text, image, pathfinder)},
    "recall_vs10": partial(recall, name="recall_vs10", vocab_size=10, pairs=10),
    **{f"mqar_{length}": partial(mqar, length=length) for length in (64, 128, 256, 512)},
}
"""How each task is loaded from the data folder, by name."""


def load(name: str, folder: Path) -> Task:
    """The task of that name; `folder` holds the sets that are not bundled.

    Raises:
        ConfigError: there is no such task.
        DatasetError: its files are missing or wrong.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name](folder)
