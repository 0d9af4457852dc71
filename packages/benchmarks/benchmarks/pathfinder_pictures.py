"""Generate Pathfinder: measure how long it takes, report what is in the pictures, and draw sixteen of them.

usage: python packages/benchmarks/benchmarks/pathfinder_pictures.py [--count 200000] [--workers 2] [--out docs/pathfinder.png]

Prints the time for a whole set and the SHA-256 of its pictures and labels, then shares among the first 3,000 pictures and the
time per picture on one core.
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

from mimo_benchmarks.data.long_range_arena.pathfinder import pathfinder_splits
from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import CHUNK, Scene, draw_scene, paint_scene
from mimo_benchmarks.data.long_range_arena.sequences import Sequences

COUNTED = 3000
"""Number of pictures whose contents are counted."""


def set_digest(splits: dict[str, Sequences]) -> str:
    """Return the SHA-256 of all pictures, then all labels, one byte each."""
    content = hashlib.sha256()
    for part in splits.values():
        content.update(part.values.numpy().tobytes())
    for part in splits.values():
        content.update(bytes(part.labels.tolist()))
    return content.hexdigest()


def print_shares(scenes: list[Scene]) -> None:
    """Print the share of label 1, and of each number of distractors."""
    count = len(scenes)
    print(f"label 1: {sum(shown.label for shown in scenes) / count:.2%}")
    for number, found in sorted(Counter(len(shown.distractors) for shown in scenes).items()):
        print(f"{number} distractors: {found / count:.2%}")


def draw_figure(scenes: list[Scene], path: Path) -> None:
    """Draw the first eight positive and the first eight negative pictures."""
    figure, rows = plt.subplots(4, 4, figsize=(7.2, 7.8), layout="constrained")
    for label, axes in ((1, rows[:2].flat), (0, rows[2:].flat)):
        for panel, shown in zip(axes, (shown for shown in scenes if shown.label == label), strict=False):
            panel.imshow(
                list(zip(*[iter(paint_scene(shown))] * 32, strict=True)), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            panel.set_title(f"label {label}", fontsize=9)
            panel.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the figures and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="number of pictures in the set")
    parser.add_argument("--workers", type=int, default=2, help="number of processes that generate it")
    parser.add_argument("--out", type=Path, default=Path("docs/pathfinder.png"))
    args = parser.parse_args()
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        splits = pathfinder_splits(Path(folder), count=args.count, workers=args.workers)
        print(f"{args.count:,} pictures, {args.workers} workers: {time.perf_counter() - start:.0f} s")
        positive = sum(int(part.labels.sum()) for part in splits.values()) / args.count
        print(f"SHA-256 {set_digest(splits)}, label 1: {positive:.2%}")
    start = time.process_time()
    scenes = [shown for chunk in range(COUNTED // CHUNK) for shown in scenes_of_chunk(chunk)]
    made = time.process_time()
    for shown in scenes:
        paint_scene(shown)
    print(f"{(made - start) / COUNTED * 1e3:.1f} ms a scene, {(time.process_time() - made) / COUNTED * 1e3:.1f} ms to paint it")
    print_shares(scenes)
    draw_figure(scenes, args.out)


def scenes_of_chunk(chunk: int) -> list[Scene]:
    """Return the scenes of `generate_pictures(chunk, seed=0)`."""
    random = Random(f"0 {chunk}").random
    return [draw_scene(random) for _ in range(CHUNK)]


if __name__ == "__main__":
    main()
