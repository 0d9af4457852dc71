"""`run.py predict`: what a trained network makes of images of your own."""

import csv
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.evaluation.results import evaluated_n
from mimo_benchmarks.evaluation.trained import trained
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.settings import TokenConfig, require

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""What is read, whatever a file is called, and which files of a folder are images; for other kinds Pillow may run programs."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name for images of so many channels."""
PASSES = 64
"""Whose images are in memory at a time."""


def execute(arguments: Sequence[str]) -> None:
    """Run `predict` with these arguments.

    Raises:
        ConfigError: an image, a run or an n that cannot be used.
        CheckpointError: the run's network cannot be read.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(predict, args=arguments, prog="run.py predict")


def predict(
    run: Annotated[Path, tyro.conf.Positional], images: Annotated[tuple[Path, ...], tyro.conf.Positional], *, n: int | None = None
) -> None:
    """Classify images with the network of a run: prints CSV with each file's class and the probability that it is given.

    An image is turned upright, made grey or RGB without transparency, and stretched to the network's size, whatever that needs.
    Of animations, the first frame counts.

    Args:
        run: directory of a finished run on an image task.
        images: files (PNG, JPEG, BMP, WebP, TIFF, GIF), or folders, whose images are taken in the order of their names.
        n: images that share a pass, one of the run's n; the largest unless given.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one = trained(run, device)
    model, known = one.config.model, evaluated_n(one.config)
    assert not isinstance(model, TokenConfig)  # it sees images
    n = max(known) if n is None else n
    require(n in known, f"n = {n}, but {run} was trained for n = {', '.join(map(str, known))}: choose one of these")
    require(model.in_channels in MODES, f"{run} takes images of {model.in_channels} channels, and files have 1 or 3")
    files = collect(images)
    classes: list[int] = []
    shares: list[float] = []
    resized = 0
    for start in range(0, len(files), PASSES * n):
        chunk = [read(file, model.in_channels, model.image_size) for file in files[start : start + PASSES * n]]
        resized += sum(stretched for _, stretched in chunk)
        levels = torch.stack([levels for levels, _ in chunk]).to(device) * (one.scale / 255)
        logits = models.answer(one.network, one.pixels(levels.round().to(torch.uint8)), None, n)
        found = logits.float().softmax(-1).max(-1)
        shares += found.values.tolist()
        classes += found.indices.tolist()
    if resized:
        print(f"resized to {model.image_size} x {model.image_size} pixels: {resized} of {len(files)} images", file=sys.stderr)
    if len(files) < n:
        print(f"images: {len(files)}, fewer than n = {n}, so they were repeated to fill the pass", file=sys.stderr)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "class", "probability"])
    table.writerows((file, label, f"{share:.4f}") for file, label, share in zip(files, classes, shares, strict=True))


def collect(paths: Iterable[Path]) -> list[Path]:
    """The files that are meant, those of a folder sorted by name; ConfigError where there are none."""
    suffixes = [suffix for each in FORMATS.values() for suffix in each]
    files = []
    for path in paths:
        try:
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes) if path.is_dir() else [path]
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error})") from error
        require(bool(found), f"the folder {path} has no images in it, with names that end in {', '.join(suffixes)}")
        files += found
    require(bool(files), "there are no images: name files or folders after the run")
    return files


def read(path: Path, channels: int, size: int) -> tuple[UInt8[Tensor, "c h w"], bool]:
    """The pixels of an image, stretched to a square of this size, and whether that was needed.

    Raises:
        ConfigError: it cannot be read, or has more than 8 bits a channel or more pixels than Pillow holds to be safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transparency and damaged notes, which we leave out
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=list(FORMATS)) as image:
                deep = image.mode.startswith(("I", "F"))
                picture = ImageOps.exif_transpose(image).convert(MODES[channels])
    except Exception as error:  # Pillow names no type for pixels that cannot be had
        raise ConfigError(f"{path} is no image that can be read ({error})") from error
    require(not deep, f"{path} has more than 8 bits a channel: save it with 8")
    resized = picture.size != (size, size)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # which averages over what a pixel covers
    return torch.from_numpy(np.array(picture).reshape(size, size, channels)).permute(2, 0, 1), resized
