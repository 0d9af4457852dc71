"""What a picture of Pathfinder shows: contours that grow paddle by paddle where there is room. pathfinder.py has the rule."""

import math
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mimo_benchmarks.data.long_range_arena.pathfinder_strokes import (
    BRUSHES,
    DIRECTIONS,
    FULL,
    ROOM,
    SEEDS,
    STEPS,
    STRIDE,
    WINDOW,
    Brush,
    Seed,
    flat,
    marker,
)

CONTOUR, DISTRACTOR = 14, 4
"""Paddles of a contour and of a distractor."""
DISTRACTORS = 5
"""In a picture, at most."""
PADDING, SEED_DISTANCE = 1, 7
"""Pixels free at the edge; between the tips at which the two contours start."""
PADDLE_TRIALS, CONTOUR_TRIALS, PLACES = 3, 5, 200
"""After so many a paddle that continues a contour, a distractor, and the place for its first paddle are given up."""
LEAST = 25_500
"""A contour ends where all places for its next paddle together are less free than this: 1e-4 in units of FULL and millionths."""
INK = {"target": 3, "distractor": 4, "marker": 2}
"""Contrasts, in halves."""

Draw = Callable[[], float]
"""A number at random, from 0 to less than 1."""


class Paddle(NamedTuple):
    """A dash. It is drawn from `start`, which is the tip of its contour if it is the first or the last one."""

    start: int
    brush: Brush


class Scene(NamedTuple):
    """What a picture shows."""

    targets: tuple[list[Paddle], list[Paddle]]
    distractors: list[list[Paddle]]
    markers: tuple[int, int]
    """Places of the two tips."""
    label: int


def scene(random: Draw) -> Scene:
    """What one picture shows. Contours that cannot go on are drawn anew, both; distractors are left out after some trials."""
    while (found := targets(random)) is None:
        pass
    contours, field = found
    distractors = []
    for _ in range(DISTRACTORS):
        for _ in range(CONTOUR_TRIALS):
            if (longer := distractor(field, random)) is not None:
                distractors.append(longer[0])
                field = longer[1]
                break
    label, marked = below(2, random), below(2, random)
    markers = contours[marked][0].start, contours[marked if label else 1 - marked][-1].start
    return Scene(targets=contours, distractors=distractors, markers=markers, label=label)


def paint(shown: Scene) -> bytes:
    """Its grey levels, row by row. Where strokes overlap, the brighter one shows."""
    canvas = [0] * STRIDE**2
    for ink, contours in ((INK["target"], shown.targets), (INK["distractor"], shown.distractors)):
        for start, brush in (paddle for contour in contours for paddle in contour):
            for offset, level in brush.ink:
                canvas[start + offset] = max(canvas[start + offset], ink * level)
    image = np.array(canvas).reshape(STRIDE, STRIDE)[ROOM:-ROOM, ROOM:-ROOM]
    for tip in shown.markers:
        image = np.maximum(image, INK["marker"] * marker(*position(tip)))
    white = image.max()
    return bytes(((2 * FULL * image + white) // (2 * white)).astype(np.uint8))  # FULL image / white, rounded


def place(row: int, column: int) -> int:
    """Of a pixel."""
    return flat(row + ROOM, column + ROOM)


def position(place: int) -> tuple[int, int]:
    """The pixel's row and column."""
    return place // STRIDE - ROOM, place % STRIDE - ROOM


def below(number: int, random: Draw) -> int:
    """A whole number from 0."""
    return int(number * random())


def framed(width: int, *, edge: int, inner: int) -> bytes:
    """A field with a frame of so many pixels in the window, and 0 around this."""
    inside = np.pad(np.full([WINDOW - 2 * width] * 2, inner), width, constant_values=edge)
    return np.pad(inside, ROOM).astype(np.uint8).tobytes()


def overlay(field: bytearray, start: int, patch: UInt8[np.ndarray, "size size"], combine: np.ufunc) -> None:
    """Combine a field with a patch around a place."""
    (row, column), reach = divmod(start, STRIDE), len(patch) // 2
    whole = np.frombuffer(field, np.uint8).reshape(STRIDE, STRIDE)  # the same memory
    window = whole[row - reach : row + reach + 1, column - reach : column + reach + 1]
    combine(window, patch, out=window)


class Field:
    """Where paddles lie; at first, none."""

    EDGE = framed(PADDING, edge=FULL, inner=0)
    INNER = framed(PADDING + 1, edge=0, inner=FULL)

    def __init__(self, other: "Field | None" = None):
        self.taken: bytearray = bytearray(self.EDGE if other is None else other.taken)
        """The footprints of all."""
        self.free: bytearray = bytearray(self.INNER if other is None else other.free)
        """How welcome the end of another one is."""

    def add(self, paddle: Paddle) -> None:
        """Have it lie there."""
        overlay(self.taken, paddle.start, paddle.brush.footprint, np.maximum)
        overlay(self.free, paddle.start, paddle.brush.halo, np.minimum)

    def fits(self, paddle: Paddle) -> bool:
        """Whether it would touch no other, nor the edge."""
        (start, brush), taken = paddle, self.taken
        for offset, limit in brush.limits:  # noqa: SIM110 - all() takes twice the time
            if taken[start + offset] >= limit:
                return False
        return True


class Contour:
    """One that grows."""

    def __init__(self, seed: Seed, start: int):
        self.paddles = [Paddle(start, seed.brush)]
        self.pivot = start + seed.pivot
        """A margin before the last paddle."""
        self.direction = seed.direction

    def grow(self, field: Field, random: Draw) -> bool:
        """By one paddle, if there is room; `field` has all others but the last one of this contour."""
        pivot = self.pivot + self.direction.ahead
        chances = list(
            accumulate(weight * field.free[pivot + step] for weight, step in zip(self.direction.weights, STEPS, strict=True))
        )
        if chances[-1] < LEAST:
            return False
        for _ in range(PADDLE_TRIALS):
            which = bisect(chances, below(chances[-1], random))
            paddle = Paddle(pivot + STEPS[which], BRUSHES[which])
            if field.fits(paddle):
                self.paddles.append(paddle)
                self.pivot, self.direction = pivot, DIRECTIONS[which]
                return True
        return False


def targets(random: Draw) -> tuple[tuple[list[Paddle], list[Paddle]], Field] | None:
    """The two contours, growing in turn, and where they lie; None if one of them came to a dead end.

    The first starts with a paddle in the middle, 2 SEED_DISTANCE from each edge; the other SEED_DISTANCE from there.
    """
    first, second = SEEDS[below(360, random)], SEEDS[below(360, random)]
    middle = range(2 * SEED_DISTANCE, WINDOW - 2 * SEED_DISTANCE)
    tips = [
        (row, column) for row in middle for column in middle if row + first.head[0] in middle and column + first.head[1] in middle
    ]
    row, column = tips[below(len(tips), random)]
    angle = math.radians(below(360, random))
    away = [round(SEED_DISTANCE * way, 6) for way in (math.sin(angle), math.cos(angle))]
    both = (Contour(first, place(row, column)), Contour(second, place(round(row + away[0]), round(column + away[1]))))
    fields = (Field(), Field())  # for each, without its own last paddle
    for contour, others in zip(both, fields[::-1], strict=True):
        others.add(contour.paddles[0])
    if not fields[1].fits(both[1].paddles[0]):
        return None
    for _ in range(CONTOUR - 1):
        for contour, field, others in zip(both, fields, fields[::-1], strict=True):
            if not contour.grow(field, random):
                return None
            field.add(contour.paddles[-2])
            others.add(contour.paddles[-1])
    fields[0].add(both[0].paddles[-1])
    return (both[0].paddles, both[1].paddles), fields[0]


def distractor(field: Field, random: Draw) -> tuple[list[Paddle], Field] | None:
    """A contour of DISTRACTOR paddles that starts anywhere, and the field with it; None if it came to a dead end."""
    seed = SEEDS[below(360, random)]
    starts = (place(below(WINDOW, random), below(WINDOW, random)) for _ in range(PLACES))
    start = next((start for start in starts if field.fits(Paddle(start, seed.brush))), None)
    if start is None:
        return None
    contour, field = Contour(seed, start), Field(field)
    for _ in range(DISTRACTOR - 1):
        if not contour.grow(field, random):
            return None
        field.add(contour.paddles[-2])
    field.add(contour.paddles[-1])
    return contour.paddles, field
