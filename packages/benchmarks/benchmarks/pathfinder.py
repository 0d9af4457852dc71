"""Pathfinder made anew: how long that takes, what is in the pictures, and sixteen of them.

usage: python packages/benchmarks/benchmarks/pathfinder.py [--count 200000] [--workers 2] [--out docs/pathfinder.png]

Prints the time of a whole set and the SHA-256 of its pictures and labels, then shares over the first 3,000 pictures and the time
that one core takes for each.
"""

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from mimo_benchmarks.data.long_range_arena.pathfinder import CHUNK, pathfinder
from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import Scene, paint, scene
from mimo_benchmarks.data.long_range_arena.sequences import Sequences

LOOKED_AT = 3000


def digest(splits: dict[str, Sequences]) -> str:
    """SHA-256 of all pictures, then all labels, a byte each."""
    content = hashlib.sha256()
    for part in splits.values():
        content.update(part.values.numpy().tobytes())
    for part in splits.values():
        content.update(bytes(part.labels.tolist()))
    return content.hexdigest()


def shares(scenes: list[Scene]) -> None:
    """Print what they show."""
    count = len(scenes)
    print(f"label 1: {sum(shown.label for shown in scenes) / count:.2%}")
    for number, found in sorted(Counter(len(shown.distractors) for shown in scenes).items()):
        print(f"{number} distractors: {found / count:.2%}")


def draw(scenes: list[Scene], path: Path) -> None:
    """The first eight positive and the first eight negative pictures."""
    figure, rows = plt.subplots(4, 4, figsize=(7.2, 7.8), layout="constrained")
    for label, axes in ((1, rows[:2].flat), (0, rows[2:].flat)):
        for panel, shown in zip(axes, (shown for shown in scenes if shown.label == label), strict=False):
            panel.imshow(
                list(zip(*[iter(paint(shown))] * 32, strict=True)), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            panel.set_title(f"label {label}", fontsize=9)
            panel.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the figures and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="pictures of the set")
    parser.add_argument("--workers", type=int, default=2, help="processes that generate it")
    parser.add_argument("--out", type=Path, default=Path("docs/pathfinder.png"))
    args = parser.parse_args()
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        splits = pathfinder(Path(folder), count=args.count, workers=args.workers)
        print(f"{args.count:,} pictures, {args.workers} workers: {time.perf_counter() - start:.0f} s")
        positive = sum(int(part.labels.sum()) for part in splits.values()) / args.count
        print(f"SHA-256 {digest(splits)}, label 1: {positive:.2%}")
    start = time.process_time()
    scenes = [shown for chunk in range(LOOKED_AT // CHUNK) for shown in drawn(chunk)]
    made = time.process_time()
    for shown in scenes:
        paint(shown)
    print(
        f"{(made - start) / LOOKED_AT * 1e3:.1f} ms a scene, {(time.process_time() - made) / LOOKED_AT * 1e3:.1f} ms to paint it"
    )
    shares(scenes)
    draw(scenes, args.out)


def drawn(chunk: int) -> list[Scene]:
    """The scenes of `pictures(chunk, seed=0)`."""
    random = Random(f"0 {chunk}").random
    return [scene(random) for _ in range(CHUNK)]


if __name__ == "__main__":
    main()
