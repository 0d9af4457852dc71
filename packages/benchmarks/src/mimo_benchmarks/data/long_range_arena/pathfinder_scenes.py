"""Draw the scenes of Pathfinder, in which contours grow paddle by paddle where there is room, and paint them.

The module pathfinder.py states the rule. Nothing heavy is imported here, so that workers start fast.
"""

import math
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mimo_benchmarks.data.long_range_arena.pathfinder_strokes import (
    BRUSHES,
    DIRECTIONS,
    FIRST_PADDLES,
    FULL,
    ROOM,
    STEPS,
    STRIDE,
    WINDOW,
    Brush,
    FirstPaddle,
    flat_place,
    marker_levels,
)
from mimo_benchmarks.data.storage.workers import Columns

CONTOUR, DISTRACTOR = 14, 4
"""Number of paddles of a contour and of a distractor."""
DISTRACTORS = 5
"""Largest number of distractors in a picture."""
PADDING, TIP_DISTANCE = 1, 7
"""Free pixels at the edge, and pixels between the tips at which the two contours start."""
PADDLE_TRIALS, CONTOUR_TRIALS, PLACES = 3, 5, 200
"""Trials after which the next paddle of a contour, a distractor, and the place of its first paddle are given up."""
LEAST = 25_500
"""Least total weight of the places for a contour's next paddle; below it, the contour ends. It is 1e-4, times FULL and 1e6."""
INK = {"target": 3, "distractor": 4, "marker": 2}
"""Contrasts in halves."""
CHUNK = 100
"""Number of pictures per chunk, about half a second of work."""

Draw = Callable[[], float]
"""Function that returns a uniform random number from 0 to below 1."""


class Paddle(NamedTuple):
    """A dash, drawn from the place `start`. In the first and the last paddle of a contour, `start` is the contour's tip."""

    start: int
    brush: Brush


class Scene(NamedTuple):
    """Everything that a picture shows."""

    targets: tuple[list[Paddle], list[Paddle]]
    distractors: list[list[Paddle]]
    markers: tuple[int, int]
    """Places of the two marked tips."""
    label: int


def generate_pictures(chunk: int, *, seed: int, count: int = CHUNK) -> Columns:
    """Return the pictures and labels of a chunk. They are a function of the arguments."""
    random = Random(f"{seed} {chunk}").random  # all versions of Python keep the numbers of this method
    scenes = [draw_scene(random) for _ in range(count)]
    return {"image": [paint_scene(scene) for scene in scenes], "label": [scene.label for scene in scenes]}


def draw_scene(random: Draw) -> Scene:
    """Draw a scene. If a contour comes to a dead end, both are drawn anew; a distractor is left out after some trials."""
    while (found := grow_contours(random)) is None:
        pass
    contours, field = found
    distractors = []
    for _ in range(DISTRACTORS):
        for _ in range(CONTOUR_TRIALS):
            if (longer := grow_distractor(field, random)) is not None:
                distractors.append(longer[0])
                field = longer[1]
                break
    label, marked = random_below(2, random), random_below(2, random)
    markers = contours[marked][0].start, contours[marked if label else 1 - marked][-1].start
    return Scene(targets=contours, distractors=distractors, markers=markers, label=label)


def paint_scene(scene: Scene) -> bytes:
    """Return the grey levels of a scene, row by row. Where strokes overlap, the brighter one shows."""
    canvas = [0] * STRIDE**2
    for ink, contours in ((INK["target"], scene.targets), (INK["distractor"], scene.distractors)):
        for start, brush in (paddle for contour in contours for paddle in contour):
            for offset, level in brush.ink:
                canvas[start + offset] = max(canvas[start + offset], ink * level)
    image = np.array(canvas).reshape(STRIDE, STRIDE)[ROOM:-ROOM, ROOM:-ROOM]
    for tip in scene.markers:
        image = np.maximum(image, INK["marker"] * marker_levels(*pixel_at(tip)))
    white = image.max()
    return bytes(((2 * FULL * image + white) // (2 * white)).astype(np.uint8))  # rounds FULL * image / white


def place_of(row: int, column: int) -> int:
    """Return the place of a pixel."""
    return flat_place(row + ROOM, column + ROOM)


def pixel_at(place: int) -> tuple[int, int]:
    """Return row and column of the pixel at a place."""
    return place // STRIDE - ROOM, place % STRIDE - ROOM


def random_below(number: int, random: Draw) -> int:
    """Return a uniform random integer from 0 to below `number`."""
    return int(number * random())


def framed_field(width: int, *, edge: int, inner: int) -> bytes:
    """Return a field whose window has a frame of `width` pixels with the value `edge` around `inner`; 0 around the window."""
    inside = np.pad(np.full([WINDOW - 2 * width] * 2, inner), width, constant_values=edge)
    return np.pad(inside, ROOM).astype(np.uint8).tobytes()


def overlay(field: bytearray, start: int, patch: UInt8[np.ndarray, "size size"], combine: np.ufunc) -> None:
    """Combine a field, in place, with a patch that is centred on a place."""
    (row, column), reach = divmod(start, STRIDE), len(patch) // 2
    whole = np.frombuffer(field, np.uint8).reshape(STRIDE, STRIDE)  # shares the memory of the field
    window = whole[row - reach : row + reach + 1, column - reach : column + reach + 1]
    combine(window, patch, out=window)


class Field:
    """Map of the paddles that lie in a picture; at first, none."""

    EDGE = framed_field(PADDING, edge=FULL, inner=0)
    INNER = framed_field(PADDING + 1, edge=0, inner=FULL)

    def __init__(self, other: "Field | None" = None):
        self.taken: bytearray = bytearray(self.EDGE if other is None else other.taken)
        """Footprints of all paddles and of the edge."""
        self.free: bytearray = bytearray(self.INNER if other is None else other.free)
        """How free each place is for the end of another paddle."""

    def add(self, paddle: Paddle) -> None:
        """Add a paddle."""
        overlay(self.taken, paddle.start, paddle.brush.footprint, np.maximum)
        overlay(self.free, paddle.start, paddle.brush.halo, np.minimum)

    def fits(self, paddle: Paddle) -> bool:
        """Return whether a paddle would touch neither another paddle nor the edge."""
        (start, brush), taken = paddle, self.taken
        for offset, limit in brush.limits:  # noqa: SIM110 - all() takes twice the time
            if taken[start + offset] >= limit:
                return False
        return True


class Contour:
    """A contour that grows."""

    def __init__(self, first: FirstPaddle, start: int):
        self.paddles = [Paddle(start, first.brush)]
        self.pivot = start + first.pivot
        """Place one margin beyond the last paddle, around which the next one turns."""
        self.direction = first.direction

    def grow(self, field: Field, random: Draw) -> bool:
        """Grow by one paddle and return True, if there is room. `field` has all paddles but the last one of this contour."""
        pivot = self.pivot + self.direction.ahead
        chances = list(
            accumulate(weight * field.free[pivot + step] for weight, step in zip(self.direction.weights, STEPS, strict=True))
        )
        if chances[-1] < LEAST:
            return False
        for _ in range(PADDLE_TRIALS):
            which = bisect(chances, random_below(chances[-1], random))
            paddle = Paddle(pivot + STEPS[which], BRUSHES[which])
            if field.fits(paddle):
                self.paddles.append(paddle)
                self.pivot, self.direction = pivot, DIRECTIONS[which]
                return True
        return False


def grow_contours(random: Draw) -> tuple[tuple[list[Paddle], list[Paddle]], Field] | None:
    """Grow the two contours in turn and return them with their field; None if one of them came to a dead end.

    The first starts with a paddle in the middle, 2 TIP_DISTANCE from each edge; the second starts TIP_DISTANCE from there.
    """
    first, second = FIRST_PADDLES[random_below(360, random)], FIRST_PADDLES[random_below(360, random)]
    middle = range(2 * TIP_DISTANCE, WINDOW - 2 * TIP_DISTANCE)
    tips = [
        (row, column) for row in middle for column in middle if row + first.head[0] in middle and column + first.head[1] in middle
    ]
    row, column = tips[random_below(len(tips), random)]
    angle = math.radians(random_below(360, random))
    away = [round(TIP_DISTANCE * way, 6) for way in (math.sin(angle), math.cos(angle))]
    both = (Contour(first, place_of(row, column)), Contour(second, place_of(round(row + away[0]), round(column + away[1]))))
    fields = (Field(), Field())  # each one lacks the last paddle of its own contour
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


def grow_distractor(field: Field, random: Draw) -> tuple[list[Paddle], Field] | None:
    """Grow a distractor that starts anywhere; return it and the field with it, or None if it came to a dead end."""
    first = FIRST_PADDLES[random_below(360, random)]
    starts = (place_of(random_below(WINDOW, random), random_below(WINDOW, random)) for _ in range(PLACES))
    start = next((start for start in starts if field.fits(Paddle(start, first.brush))), None)
    if start is None:
        return None
    contour, field = Contour(first, start), Field(field)
    for _ in range(DISTRACTOR - 1):
        if not contour.grow(field, random):
            return None
        field.add(contour.paddles[-2])
    field.add(contour.paddles[-1])
    return contour.paddles, field
