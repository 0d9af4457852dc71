"""Pathfinder32 as in Long Range Arena (Tay et al., 2021), by the rule of Linsley et al. (2018).

Two dashed contours of 14 paddles run through a picture of 32 x 32 grey levels, among shorter ones that distract. One tip of one
of them has a marker, and so has the far tip of the same one (label 1) or of the other one (label 0). The rule is that of the
published generator (drewlinsley/pathfinder, snakes2.py) with the arguments that LRA names. Settled here, where these leave it
open or the code fails:

- Pictures are stretched to the levels 0 to 255, as scipy.misc did that wrote the published ones: none is empty.
- Contrasts, before that, are 1.5 of contours (2 times 0.75), 2 of distractors and 1 of markers, as the code has it.
- Labels are a fair coin's.
- There are no distractors of a single paddle: the published wrapper turns them off, though its class has them on.
- No two contours touch: every paddle is held against all others. In the published code a contour does not see the newest paddle
  of the other one, nor do distractors see the last paddle of the first.
- A first paddle has any direction, and lies wherever it fits. The published code looks a pixel aside, and takes what lies beyond
  the picture for a fault: all but 31 of 360 directions fail, and with them most distractors.
- A distractor is left out after five trials, as published.
"""

from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from datasets import Features, Value

from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import paint, scene
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.generated import Columns, cache, generated
from mimo_benchmarks.errors import ConfigError

SHARES = {"train": 8, "dev": 1, "test": 1}
"""In tenths."""
FEATURES = Features({"image": Value("binary"), "label": Value("uint8")})
"""Of a generated set: a byte a pixel, row by row."""
VERSION = 1
"""Of the generator: to be raised when the same arguments would give other pictures."""
COUNT = 200_000
CHUNK = 100
"""Pictures; about half a second of work."""


def pathfinder(
    folder: Path,
    *,
    seed: int = 0,
    count: int = COUNT,
    published: bool = False,
    workers: int | None = None,
) -> dict[str, Sequences]:
    """Pictures of 1024 pixels, no two of them equal, as "train", "dev" and "test": 8, 1 and 1 tenths, as published.

    They are generated once, then come from the cache. This is another sample than LRA's, and of a rule that differs where the
    published code fails: accuracies are not comparable to a percent.

    Args:
        folder: the data folder; see `generated`.
        seed: another one gives other pictures.
        count: pictures.
        published: token ids are the grey levels, so black pixels are padding, as in MIMOFormer's published code; else the levels
            and one, and every pixel is a token.
        workers: processes that generate; see `generated`.

    Raises:
        ConfigError: an argument that cannot work.
        DatasetError: see `generated`.
    """
    for name, value, least in (("seed", seed, 0), ("count", count, 10)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    dataset = generated(
        folder,
        "pathfinder",
        version=VERSION,
        arguments={"seed": seed},
        produce=partial(pictures, seed=seed),
        features=FEATURES,
        count=count,
        workers=workers,
    )
    columns = dataset.with_format("arrow")[:]
    return splits(Sequences.of(columns["image"].to_pylist(), columns["label"].to_pylist(), shift=0 if published else 1))


def cached(folder: Path) -> Path:
    """Where `pathfinder` keeps the set that it makes by default, whether it is there or not."""
    return cache(folder, "pathfinder", version=VERSION, arguments={"seed": 0}, count=COUNT)


def splits(whole: Sequences) -> dict[str, Sequences]:
    """The first 8 tenths to train on, one for choices, one to test."""
    bounds = [tenths * len(whole) // 10 for tenths in accumulate(SHARES.values(), initial=0)]
    return {split: whole.part(start, stop) for split, (start, stop) in zip(SHARES, pairwise(bounds), strict=True)}


def pictures(chunk: int, *, seed: int) -> Columns:
    """CHUNK pictures with their labels: a function of the arguments."""
    random = Random(f"{seed} {chunk}").random  # the one method whose numbers no version of Python may change
    scenes = [scene(random) for _ in range(CHUNK)]
    return {"image": [paint(shown) for shown in scenes], "label": [shown.label for shown in scenes]}
