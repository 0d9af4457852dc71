"""Generate Pathfinder32 as in Long Range Arena (Tay et al., 2021), by the rule of Linsley et al. (2018).

Two dashed contours of 14 paddles run through a picture of 32 x 32 grey levels, among shorter distractors. One tip of one contour
has a marker, and so has the far tip of the same contour (label 1) or of the other one (label 0). The rule is that of the
published generator (drewlinsley/pathfinder, snakes2.py) with the arguments that LRA names. Where these are silent or the code
fails, we decided:

- Pictures are stretched to the levels 0 to 255, as scipy.misc did when it wrote the published ones: no picture is empty.
- Contrasts, before that, are 1.5 for contours (2 times 0.75), 2 for distractors and 1 for markers, as in the code.
- Labels are tosses of a fair coin.
- No distractor is a single paddle: the published wrapper turns these off, though its class has them on.
- No two contours touch: each paddle is tested against all others. In the published code, a contour does not see the newest paddle
  of the other one, and distractors do not see the last paddle of the first contour.
- A first paddle has any direction, and lies wherever it fits. The published code looks a pixel aside and takes what lies beyond
  the picture for a collision: all but 31 of 360 directions fail, and with them most distractors.
- A distractor is left out after five trials, as published.
"""

from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

from datasets import Features, Value

from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import generate_pictures
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.generated import Recipe, load_or_generate
from mimo_benchmarks.errors import ConfigError

SHARES = {"train": 8, "dev": 1, "test": 1}
"""Share of each split, in tenths."""
FEATURES = Features({"image": Value("binary"), "label": Value("uint8")})
"""Columns of a generated set; image has one byte per pixel, row by row."""
VERSION = 1
"""Version of the generator. Raise it when the same arguments would give other pictures."""
COUNT = 200_000
"""Number of pictures in the set, as published."""


def pathfinder_recipe(*, seed: int = 0, count: int = COUNT) -> Recipe:
    """Return the recipe of a set of pictures; by default, as many as were published.

    Args:
        seed: seed of the draws.
        count: number of pictures.

    Raises:
        ConfigError: an argument is out of range.
    """
    for name, value, least in (("seed", seed, 0), ("count", count, 10)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    return Recipe(name="pathfinder", version=VERSION, arguments={"seed": seed}, count=count)


def pathfinder_splits(
    folder: Path,
    *,
    seed: int = 0,
    count: int = COUNT,
    published: bool = False,
    workers: int | None = None,
) -> dict[str, Sequences]:
    """Return different pictures of 1024 pixels as "train", "dev" and "test", in shares of 8, 1 and 1 tenths as published.

    The pictures are generated once, then read from the cache. They are another sample than LRA's, and of a rule that differs
    where the published code fails, so accuracies are not comparable to a percent.

    Args:
        folder: data folder.
        seed: seed of the draws.
        count: number of pictures.
        published: use the grey levels as token ids, so that black pixels are padding, as in MIMOFormer's published code.
            Otherwise, ids are the grey levels + 1, and every pixel is a token.
        workers: number of processes that generate; see `load_or_generate`.

    Raises:
        ConfigError: an argument is out of range.
        DatasetError: the set cannot be generated or cached, or its cache was altered; see `load_or_generate`.
    """
    recipe, produce = pathfinder_recipe(seed=seed, count=count), partial(generate_pictures, seed=seed)
    dataset = load_or_generate(folder, recipe, produce=produce, features=FEATURES, workers=workers)
    columns = dataset.with_format("arrow")[:]
    whole = Sequences.of(columns["image"].to_pylist(), columns["label"].to_pylist(), shift=0 if published else 1)
    return split_in_tenths(whole)


def split_in_tenths(whole: Sequences) -> dict[str, Sequences]:
    """Split a set, in order, into 8 tenths to train on, 1 tenth to choose by and 1 tenth to test on."""
    bounds = [tenths * len(whole) // 10 for tenths in accumulate(SHARES.values(), initial=0)]
    return {split: whole.part(start, stop) for split, (start, stop) in zip(SHARES, pairwise(bounds), strict=True)}
