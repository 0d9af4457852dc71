"""`mimonets predict`: answer images or texts of your own with a finished network."""

import csv
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimo_benchmarks.cli.inputs import collect_images, collect_texts, image_batches, text_batches
from mimo_benchmarks.errors import ConfigError, first_line
from mimo_benchmarks.memory import memory_for, ran_out_of_memory
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.networks.registry import load_finished
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.result import one_line
from mimo_benchmarks.settings import require

PASSES = 64
"""Default number of passes whose inputs are in memory at a time."""
Answer = tuple[str, float]
"""A class or token, and the probability that the network gives it."""


def execute_predict(arguments: Sequence[str]) -> None:
    """Run `predict` with these arguments.

    Raises:
        ConfigError: the network, an input or n cannot be used.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(predict, args=arguments, prog="mimonets predict")


def predict(
    network: Annotated[str, tyro.conf.Positional],
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    text: tuple[str, ...] = (),
    n: int | None = None,
    passes: int = PASSES,
) -> None:
    """Print what a finished network answers, as CSV: each input, its class, and the probability that the network gives it.

    A network of images takes image files. Each is turned upright, put on white where it is transparent, converted to grey or
    RGB, and stretched to the network's size; of an animation the first frame counts. Files of a folder that cannot be read are
    skipped, and named on stderr. A network of texts takes text files or `--text`; one that judges pairs takes two texts per
    answer. A network that predicts tokens answers with the next token.

    Args:
        network: a run directory, a folder that save_pretrained wrote, or the id of a repository on the Hugging Face Hub.
        inputs: files (PNG, JPEG, BMP, WebP, TIFF, GIF, or text), or folders whose images or .txt files are taken in the order
            of their names; - reads texts from standard input, one per line.
        text: texts, on the command line.
        n: inputs per pass, or the side of a MIMOFormer's grid; the largest that the network was evaluated with unless given.
        passes: passes whose inputs are in memory at a time; less needs less memory.
    """
    require(1 <= passes < 2**31, f"passes must be from 1 to 2^31 - 1, got {passes}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with memory_for(f"the network {network}", "free some, or take a smaller network"):
        known, module = load_finished(network, device)
    n = choose_n(known, module.accuracy, n, network)
    size = passes * known.inputs_per_pass(n)
    if known.takes_texts:
        texts = collect_texts(inputs, text)
        pairs = not known.takes_pairs or len(texts) % 2 == 0
        require(pairs, f"{network} judges pairs of texts, and there are {len(texts)}: give an even number")
        count, batches = len(texts) // (1 + known.takes_pairs), text_batches(known, texts, size)
    else:
        require(not text, f"{network} takes images, and --text gives texts: name image files instead")
        files = collect_images(inputs)
        count, batches = len(files), image_batches(known, files, size)
    names: list[str] = []
    answers: list[Answer] = []
    smaller = "give a smaller --passes" if passes > 1 else "give a smaller --n, or take a smaller network"
    enough = memory_for(f"{passes} passes of {known.inputs_per_pass(n)} inputs", smaller)
    with progress_bar("answering", count, unit=" inputs", brief=True) as bar, enough:
        for part, batch, mask in batches:
            names += part
            answers += answer_batch(known, module, batch.to(device), mask, n)
            bar.update(len(batch))
    if len(names) < known.inputs_per_pass(n):
        print(f"inputs: {len(names)}, fewer than a pass with n = {n} takes, so they were repeated to fill it", file=sys.stderr)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["input", "token" if known.predicts_tokens else "class", "probability"])
    for name, (found, share) in zip(names, answers, strict=True):
        table.writerow([name.encode(errors="surrogateescape").decode(errors="replace"), found, f"{share:.4f}"])


def choose_n(network: Network, accuracy: dict[Any, float], n: int | None, source: str) -> int:
    """Return n, or the largest that can be used unless given; ConfigError if the network cannot be used with it.

    Args:
        network: the network.
        accuracy: test accuracy for each n that the network was evaluated with; if there is none, any n that it has room for
            can be used.
        n: inputs per pass, or the side of a MIMOFormer's grid.
        source: name of the network in messages.
    """
    possible = [network.capacity] if network.fixed_n else range(1, network.largest_n + 1)
    evaluated = [each for each in possible if network.accuracy_key(each) in accuracy]
    allowed = evaluated or list(possible)
    n = max(allowed) if n is None else n
    why = "was evaluated with" if evaluated else "can be used with"
    require(n in allowed, f"n = {n}, but {source} {why} n = {', '.join(map(str, allowed))}: choose one of these")
    return n


def answer_batch(
    network: Network, module: nn.Module, inputs: Tensor, mask: Bool[Tensor, "b *real"] | None, n: int
) -> list[Answer]:
    """Return the likeliest class or next token of each input, and its probability.

    Raises:
        ConfigError: the network refuses the inputs or n, or its answers are not finite.
    """
    try:
        logits: Float[Tensor, "b *l classes"] = network.predict(
            module, inputs, n, None if mask is None else mask.to(inputs.device)
        )
    except (ValueError, TypeError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        raise ConfigError(f"the network cannot be used like this: {first_line(error)}") from error
    require(bool(logits.isfinite().all()), "the network's answers are not finite: its weights are damaged, or training diverged")
    if logits.dim() == 3:  # a next token for each position; the one after the last real token is asked for
        last = torch.full((len(logits),), logits.shape[1] - 1) if mask is None else mask.sum(1) - 1
        logits = logits[torch.arange(len(logits)), last.to(logits.device)]
    shares, found = logits.float().softmax(-1).max(-1)
    return [(one_line(network.answer_name(i)), share) for i, share in zip(found.tolist(), shares.tolist(), strict=True)]
