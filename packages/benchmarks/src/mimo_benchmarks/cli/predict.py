"""`mimonets predict`: what a finished network answers to images or texts of your own."""

import csv
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.networks.registry import load_finished
from mimo_benchmarks.settings import require

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Formats that are read, whatever a file is called, and suffixes of images in folders; others may make Pillow run programs."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name for images of so many channels."""
PASSES = 64
"""Passes whose inputs are in memory at a time."""
Answer = tuple[str, float]
"""A class or token, and the probability that the network gives it."""


def execute_predict(arguments: Sequence[str]) -> None:
    """Run `predict` with these arguments.

    Raises:
        ConfigError: an input, a network or an n that cannot be used.
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
    """Print what a finished network answers, as CSV: each input, its class and the probability that the network gives it.

    A network of images takes image files. Each is turned upright, made grey or RGB without transparency, and stretched to the
    network's size; of an animation the first frame counts. A network of texts takes text files, or `--text`; one that judges
    pairs takes two texts for each answer. A network that predicts tokens answers with the next token.

    Args:
        network: a run directory, a folder that save_pretrained wrote, or the id of a repository on the Hugging Face hub.
        inputs: files, or folders whose images (PNG, JPEG, BMP, WebP, TIFF, GIF) or .txt files are taken in the order of their
            names; - reads texts from standard input, one per line.
        text: texts given on the command line.
        n: inputs per pass, or the side of a MIMOFormer's grid; the largest that the network was evaluated with unless given.
        passes: passes whose inputs are in memory at a time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known, module = load_finished(network, device)
    evaluated = sorted({key[0] if isinstance(key, tuple) else key for key in module.accuracy})
    n = n or max(evaluated, default=1 if known.plain else known.largest_n)
    allowed = f"n = {n}, but {network} was evaluated with n = {', '.join(map(str, evaluated))}: choose one of these"
    require(n in evaluated or not evaluated, allowed)
    if known.takes == "images" or known.config.tokenizer == "pixels":
        require(not text, f"{network} takes images: name files rather than --text")
        names = collect_files(inputs, [suffix for each in FORMATS.values() for suffix in each])
        batches: Iterator[tuple[Tensor, Tensor | None]] = image_batches(known, names, passes * known.inputs_per_pass(n))
    else:
        names, texts = collect_texts(inputs, text)
        batches = text_batches(known, texts, passes * known.inputs_per_pass(n))
    pair = known.takes == "tokens" and known.config.head == "pair"
    require(not pair or len(names) % 2 == 0, f"{network} judges pairs, and there are {len(names)} texts: give an even number")
    labels = [f"{a}, {b}" for a, b in zip(names[::2], names[1::2], strict=True)] if pair else names
    answers = [each for batch, mask in batches for each in answer(known, module, batch.to(device), mask, n)]
    if len(labels) < known.inputs_per_pass(n):
        print(f"inputs: {len(labels)}, fewer than a pass with n = {n} takes, so they were repeated to fill it", file=sys.stderr)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["input", "token" if predicts_tokens(known) else "class", "probability"])
    table.writerows((name, found, f"{share:.4f}") for name, (found, share) in zip(labels, answers, strict=True))


def predicts_tokens(network: Network) -> bool:
    """Whether the network answers with the next token rather than a class."""
    return network.takes == "tokens" and network.config.head in ("tokens", "last")


def answer(network: Network, module: nn.Module, inputs: Tensor, mask: Bool[Tensor, "b *real"] | None, n: int) -> list[Answer]:
    """Return the likeliest class or next token of each input, and its probability."""
    logits: Float[Tensor, "b *l classes"] = network.predict(module, inputs, n, mask if mask is None else mask.to(inputs.device))
    if logits.dim() == 3:  # the next token everywhere: what follows the last real one is asked for
        last = torch.full((len(logits),), logits.shape[1] - 1) if mask is None else mask.sum(1) - 1
        logits = logits[torch.arange(len(logits)), last.clamp(min=0).to(logits.device)]
    found = logits.float().softmax(-1).max(-1)
    names = network.config.words if predicts_tokens(network) else network.config.class_names
    first = 1 if predicts_tokens(network) and names else 0  # id 0 is padding
    classes = [names[i - first] if names and i >= first else str(i) for i in found.indices.tolist()]
    return list(zip(classes, found.values.tolist(), strict=True))


def image_batches(network: Network, files: Sequence[str], size: int) -> Iterator[tuple[Tensor, None]]:
    """Read image files in batches, as uint8 images or, for a network of tokens, as grey levels plus one, row by row."""
    config, resized = network.config, 0
    tokens = network.takes == "tokens"
    channels, side = (1, math.isqrt(config.max_length)) if tokens else (config.in_channels, config.image_size)
    require(channels in MODES, f"the network takes images of {channels} channels, and files have 1 or 3")
    normalised = tokens or config.mean is not None
    require(normalised, "the network does not say how its images are normalised: save it with mean and std in its configuration")
    for start in range(0, len(files), size):
        chunk = [read_image(Path(file), channels, side) for file in files[start : start + size]]
        resized += sum(stretched for _, stretched in chunk)
        levels = torch.stack([levels for levels, _ in chunk])
        yield (levels.flatten(1).long() + 1 if tokens else levels), None
    if resized:
        print(f"resized to {side} x {side} pixels: {resized} of {len(files)} images", file=sys.stderr)


def text_batches(network: Any, texts: Sequence[bytes], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Turn texts into tokens by the network's own rule, in batches."""
    require(network.config.tokenizer is not None, "the network does not say how texts become tokens: save it with a tokenizer")
    items: Sequence[Any] = texts
    if network.config.head == "pair":
        items = list(zip(texts[::2], texts[1::2], strict=False))
    for start in range(0, len(items), size):
        try:
            yield network.tokenize(items[start : start + size])
        except ValueError as error:
            raise ConfigError(str(error)) from error


def collect_files(paths: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """Return the files that are meant, those of a folder sorted by name; ConfigError where there are none."""
    files: list[str] = []
    for path in map(Path, paths):
        try:
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes) if path.is_dir() else [path]
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error})") from error
        require(bool(found), f"the folder {path} has no files in it with names that end in {', '.join(suffixes)}")
        files += map(str, found)
    require(bool(files), "there are no inputs: name files or folders after the network")
    return files


def collect_texts(paths: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[bytes]]:
    """Return the texts that are meant and what to call each: its file, or the text itself; ConfigError where there are none."""
    names, texts = list(given), [each.encode(errors="surrogateescape") for each in given]
    for path in paths:
        if path == "-":
            lines = sys.stdin.buffer.read().splitlines()
            names += [line.decode(errors="replace") for line in lines]
            texts += lines
            continue
        for file in collect_files([path], [".txt"]):
            try:
                texts.append(Path(file).read_bytes())
            except OSError as error:
                raise ConfigError(f"{file} cannot be read ({error}); give a text itself with --text") from error
            names.append(file)
    require(bool(texts), "there are no texts: name files after the network, or give --text")
    return names, texts


def read_image(path: Path, channels: int, size: int) -> tuple[UInt8[Tensor, "c h w"], bool]:
    """Return the pixels of an image, stretched to a square of this size, and whether that was needed.

    Raises:
        ConfigError: it cannot be read, or has more than 8 bits per channel or more pixels than Pillow holds to be safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about transparency and damaged notes, which we leave out
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=list(FORMATS)) as image:
                deep = image.mode.startswith(("I", "F"))
                picture = ImageOps.exif_transpose(image).convert(MODES[channels])
    except Exception as error:  # Pillow names no type for pixels that cannot be had
        raise ConfigError(f"{path} is not an image that can be read ({error})") from error
    require(not deep, f"{path} has more than 8 bits per channel: save it with 8")
    resized = picture.size != (size, size)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # which averages over what a pixel covers
    return torch.from_numpy(np.array(picture).reshape(size, size, channels)).permute(2, 0, 1), resized
