"""Read what `mimonets predict` is given: image files, text files and texts."""

import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
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
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the orientation that Exif gives it."""
VISIBLE = 8
"""Least difference, of 255, between pixels of a transparent image that is not blank on white; lossy compression makes a few."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG file with texts and the colour profile."""
File = tuple[str, bool]
"""A file, and whether it was found in a folder rather than named."""
Text = tuple[str, bytes]
"""A text, after the name that answers give it."""
Batch = tuple[Sequence[str], Tensor, Bool[Tensor, "b *pair l"] | None]
"""Names of inputs, the inputs, and which of their tokens are real; None if all are."""


def collect_images(paths: Iterable[str]) -> list[File]:
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
        for file, _ in collect_files([path], [".txt"]):
            try:
                content = Path(file).read_bytes()
            except OSError as error:
                raise ConfigError(f"{file} cannot be read ({error}): name a text file, or give a text with --text") from error
            texts.append((file, content.removesuffix(b"\n").removesuffix(b"\r")))
    require(bool(texts), "there are no texts: name files after the network, or give --text")
    return texts


def collect_files(paths: Iterable[str], suffixes: Sequence[str]) -> list[File]:
    """Return files as they are named, and the files with these suffixes of each folder that is named, sorted by name.

    What is not a file, and the notes that macOS writes beside files as ._NAME, are skipped in folders, and named on stderr.
    """
    files: list[File] = []
    for path in map(Path, paths):
        try:
            if not path.is_dir():
                files.append((str(path), False))
                continue
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error}): name another folder, or its files") from error
        require(bool(found), f"the folder {path} has no files with names that end in {', '.join(suffixes)}: name other inputs")
        for each in found:
            if each.is_file() and not each.name.startswith("._"):
                files.append((str(each), True))
            else:
                print(f"skipped: {each} is {'a note of macOS' if each.is_file() else 'not a file'}", file=sys.stderr)
    return files


def image_batches(network: Network, files: Sequence[File], size: int) -> Iterator[Batch]:
    """Read image files in batches of `size`: as uint8 images, or for a network of tokens as grey levels + 1, row by row.

    Files of a folder that are not images are skipped, and named on stderr.

    Raises:
        ConfigError: the network does not take images from files, a file that was named is not an image, or none is.
    """
    config = network.config
    if network.takes == "tokens":
        channels, side = 1, math.isqrt(config.max_length)
        require(side**2 == config.max_length, f"the network takes {config.max_length} pixels, which are not those of a square")
    else:
        channels, side = config.in_channels, config.image_size
        require(channels in MODES, f"the network takes images of {channels} channels, and files have 1 or 3")
        known = config.mean is not None and config.std is not None
        require(known, "the network does not say how images are normalised: save it with mean and std in its configuration")
    pictures, changed, read = readable_images(files, channels, side), Counter[str](), 0
    while part := list(islice(pictures, size)):
        names, images, changes = zip(*part, strict=True)
        read += len(part)
        changed.update(change for each in changes for change in each)
        levels = torch.stack(images)
        yield names, levels.flatten(1).long() + 1 if network.takes == "tokens" else levels, None
    require(read > 0, "none of the images can be read: name others")
    for change, count in changed.items():
        print(f"{change}: {count} of {read} images", file=sys.stderr)


def readable_images(files: Iterable[File], channels: int, size: int) -> Iterator[tuple[str, UInt8[Tensor, "c h w"], list[str]]]:
    """Yield the name, the pixels and the changes of each image, as `read_image` reads it; skip what is not one in a folder."""
    for name, from_folder in files:
        try:
            pixels, changes = read_image(Path(name), channels, size)
        except ConfigError as error:
            if not from_folder:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            continue
        yield name, pixels, changes


def text_batches(network: Network, texts: Sequence[Text], size: int) -> Iterator[Batch]:
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
        names = [", ".join(name for name, _ in part[i : i + parts]) for i in range(0, len(part), parts)]
        yield names, tokens[..., : config.max_length], mask[..., : config.max_length]
    if cut:
        print(f"cut to {config.max_length} tokens: {cut} of {len(texts)} texts", file=sys.stderr)


def read_image(path: Path, channels: int, size: int) -> tuple[UInt8[Tensor, "c h w"], list[str]]:
    """Return the pixels of an image, upright, on white, and stretched to a square of this size; say which of that was needed.

    Raises:
        ConfigError: it cannot be read, has more than 8 bits per channel, or more pixels than Pillow considers safe; or it is
            blank on white.
    """
    changes = []
    try:
        require(path.is_file(), f"{path} is not {'a file' if path.exists() else 'there'}: name an image")
        picture = open_image(path)
        require(not picture.mode.startswith(("I", "F")), f"{path} has more than 8 bits per channel: save it with 8")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if (np.asarray(picture)[..., 3] < 255).any():
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
                shown = bool(np.ptp(np.asarray(picture), axis=(0, 1)).max() >= VISIBLE)
                require(shown, f"{path} is blank on white: put it on another background")
                changes.append("put on white for their transparency")
        picture = picture.convert(MODES[channels])
    except (MemoryError, ConfigError):
        raise
    except UnidentifiedImageError as error:  # its text can be the address of bytes
        formats = ", ".join(FORMATS)
        raise ConfigError(f"{path} is not an image that can be read (its beginning is not that of a {formats} file)") from error
    except Exception as error:  # Pillow has no common type of error for damaged pixels
        raise ConfigError(f"{path} is not an image that can be read ({error})") from error
    if picture.size != (size, size):
        changes.append(f"resized to {size} x {size} pixels")
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # which averages over what a pixel covers
    return torch.from_numpy(np.array(picture).reshape(size, size, channels)).permute(2, 0, 1), changes


def open_image(path: Path) -> Image.Image:
    """Decode an image, upright; raise whatever Pillow does. A PNG file that is damaged is tried without its notes."""
    with path.open("rb") as file:
        is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
    if not is_png:
        return decode_image(path)
    content = path.read_bytes()
    for chunk in png_chunks(content):  # Pillow does not compare the checksums of pixels
        if chunk[4:8] == b"IDAT" and crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise ValueError("a checksum of its pixels is wrong")
    try:
        return decode_image(BytesIO(content))
    except (OSError, ValueError, SyntaxError):
        kept = [chunk for chunk in png_chunks(content) if chunk[4:8] not in NOTES]
        return decode_image(BytesIO(PNG_SIGNATURE + b"".join(kept)))


def decode_image(file: Path | BytesIO) -> Image.Image:
    """Decode an image and turn it upright, as its Exif data say; damaged ones say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about transparency and damaged notes, which do not matter here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=list(FORMATS)) as image:
            image.load()
            try:
                turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            except Exception:  # Pillow has no common type of error for damaged notes either
                turn = None
            return image if turn is None else image.transpose(turn)


def png_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG file, each with its length, its kind and its checksum."""
    start = len(PNG_SIGNATURE)
    while start < len(content):
        end = start + int.from_bytes(content[start : start + 4]) + 12
        yield content[start:end]
        start = end
