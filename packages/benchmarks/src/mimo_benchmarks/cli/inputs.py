"""Read what `mimonets predict` is given: image files, text files and texts."""

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.settings import require

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Formats that are read, and the suffixes by which images are found in folders. Others may make Pillow run programs."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for an image with this number of channels."""
Text = tuple[str, bytes]
"""A text, after the name that answers give it."""


def collect_images(paths: Iterable[str]) -> list[str]:
    """Return image files, those of a folder in the order of their names; ConfigError where there are none."""
    files = collect_files(paths, [suffix for suffixes in FORMATS.values() for suffix in suffixes])
    require(bool(files), "there are no images: name files or folders after the network")
    return files


def collect_texts(paths: Sequence[str], given: Sequence[str]) -> list[Text]:
    """Return the given texts, then those of files, of the .txt files of folders, and of the lines of standard input for "-".

    The line break at the end of a file does not count as text.

    Raises:
        ConfigError: there are no texts, or a file cannot be read.
    """
    texts = [(text, text.encode(errors="surrogateescape")) for text in given]
    for path in paths:
        if path == "-":
            texts += [(line.decode(errors="replace"), line) for line in sys.stdin.buffer.read().splitlines()]
            continue
        for file in collect_files([path], [".txt"]):
            try:
                content = Path(file).read_bytes()
            except OSError as error:
                raise ConfigError(f"{file} cannot be read ({error}): name a text file, or give a text with --text") from error
            texts.append((file, content.removesuffix(b"\n").removesuffix(b"\r")))
    require(bool(texts), "there are no texts: name files after the network, or give --text")
    return texts


def collect_files(paths: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """Return files as they are named, and the files with these suffixes of each folder that is named, sorted by name."""
    files: list[str] = []
    for path in map(Path, paths):
        try:
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes) if path.is_dir() else [path]
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error}): name another folder, or its files") from error
        require(bool(found), f"the folder {path} has no files with names that end in {', '.join(suffixes)}: name other inputs")
        files += map(str, found)
    return files


def image_batches(network: Network, files: Sequence[str], size: int) -> Iterator[tuple[Tensor, None]]:
    """Read image files in batches of `size`: as uint8 images, or for a network of tokens as grey levels + 1, row by row.

    Raises:
        ConfigError: the network does not take images from files, or a file is not an image.
    """
    config, resized = network.config, 0
    if network.takes == "tokens":
        channels, side = 1, math.isqrt(config.max_length)
        require(side**2 == config.max_length, f"the network takes {config.max_length} pixels, which are not those of a square")
    else:
        channels, side = config.in_channels, config.image_size
        require(channels in MODES, f"the network takes images of {channels} channels, and files have 1 or 3")
        known = config.mean is not None and config.std is not None
        require(known, "the network does not say how images are normalised: save it with mean and std in its configuration")
    for start in range(0, len(files), size):
        images = [read_image(Path(file), channels, side) for file in files[start : start + size]]
        resized += sum(was_resized for _, was_resized in images)
        levels = torch.stack([pixels for pixels, _ in images])
        yield (levels.flatten(1).long() + 1 if network.takes == "tokens" else levels), None
    if resized:
        print(f"resized to {side} x {side} pixels: {resized} of {len(files)} images", file=sys.stderr)


def text_batches(
    network: Network, texts: Sequence[Text], size: int
) -> Iterator[tuple[Integer[Tensor, "b *pair l"], Bool[Tensor, "b *pair l"]]]:
    """Turn texts, or pairs of them, into tokens in batches of `size`, and say which tokens are real.

    Raises:
        ConfigError: the network does not say how texts become tokens, does not know a word, or a text has no tokens.
    """
    config, parts, cut = network.config, 2 if network.takes_pairs else 1, 0
    has_rule = config.tokenizer is not None
    require(has_rule, "the network does not say how texts become tokens: save it with a tokenizer in its configuration")
    for start in range(0, len(texts), size * parts):
        part = texts[start : start + size * parts]
        contents = [content for _, content in part]
        try:
            tokens, mask = network.tokenize(list(zip(contents[::2], contents[1::2], strict=True)) if parts == 2 else contents)
        except ValueError as error:
            raise ConfigError(f"a text cannot be turned into tokens: {error}") from error
        lengths = mask.sum(-1).flatten()
        for place, (name, _) in enumerate(part):
            require(bool(lengths[place] > 0), f"text {start + place + 1} ({name!r}) has no tokens: leave it out")
        cut += int((lengths > config.max_length).sum())
        if network.predicts_tokens and lengths.max() > config.max_length:  # what comes next follows from the end
            ends = [row[max(0, n - config.max_length) : n] for row, n in zip(tokens, lengths.tolist(), strict=True)]
            tokens = pad_sequence(ends, batch_first=True)
            mask = torch.arange(tokens.shape[1]) < lengths.clamp(max=config.max_length)[:, None]
        yield tokens[..., : config.max_length], mask[..., : config.max_length]
    if cut:
        print(f"cut to {config.max_length} tokens: {cut} of {len(texts)} texts", file=sys.stderr)


def read_image(path: Path, channels: int, size: int) -> tuple[UInt8[Tensor, "c h w"], bool]:
    """Return the pixels of an image, stretched to a square of this size, and whether that was needed.

    Raises:
        ConfigError: it cannot be read, has more than 8 bits per channel, or more pixels than Pillow considers safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about transparency and damaged metadata, which do not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=list(FORMATS)) as image:
                deep = image.mode.startswith(("I", "F"))
                picture = ImageOps.exif_transpose(image).convert(MODES[channels])
    except MemoryError:
        raise
    except Exception as error:  # Pillow has no common type of error for damaged pixels
        raise ConfigError(f"{path} is not an image that can be read ({error})") from error
    require(not deep, f"{path} has more than 8 bits per channel: save it with 8")
    resized = picture.size != (size, size)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # which averages over what a pixel covers
    return torch.from_numpy(np.array(picture).reshape(size, size, channels)).permute(2, 0, 1), resized
