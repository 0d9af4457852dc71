"""Tabulate what Pathfinder is drawn with: paddles, markers and directions, in integers.

The published generator (drewlinsley/pathfinder, snakes.py) draws at twice the size and shrinks to grey levels by Pillow's Lanczos
filter. This code gives the same levels without Pillow. Floating-point results are rounded, to six decimals or more coarsely,
before anything depends on them: a last bit that differs between machines changes nothing.

A place is one integer, STRIDE times the row plus the column, in a field that has ROOM pixels around the window on each side.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

WINDOW = 32
"""Rows and columns of a picture."""
LENGTH, MARGIN, RADIUS = 2, 1, 1.5
"""Length of a paddle, free margin around it, and radius of a marker. A paddle is half a pixel thick."""
CONTINUITY = 1.0
"""Factor by which the angle of a turn is multiplied before its weight is computed."""
ANTIALIAS = 2
"""Factor by which everything is drawn larger, before it is shrunk."""
PATCH_RADIUS = LENGTH + MARGIN + 1
"""Pixels on each side of a paddle's start in the patch that shows the paddle."""
ROOM = 8
"""Pixels around the window, more than a contour can leave it by: a pivot by 4 pixels, and the next paddle by 3 more."""
STRIDE = WINDOW + 2 * ROOM
"""Pixels per row of a field."""
FULL, TOUCH = 255, 459
"""The highest grey level, and the sum of levels from which two masks touch: 1.8 times the highest level."""
BITS = 22
"""Fractional bits of the filter's weights."""

Pixels = tuple[tuple[int, int], ...]
"""Places relative to another one, each with a number."""


class Brush(NamedTuple):
    """The pixels of a paddle of one direction, relative to its start."""

    end: tuple[int, int]
    """Rows and columns from its start to its end, in half pixels."""
    ink: Pixels
    """Grey levels of the paddle."""
    footprint: UInt8[np.ndarray, "size size"]
    """Grey levels of the paddle, thickened by the margin, with its start in the middle."""
    halo: UInt8[np.ndarray, "size+2 size+2"]
    """FULL minus the footprint, after the footprint is grown by a pixel up, down, left and right."""
    limits: Pixels
    """Lowest level at which a mask touches the footprint, at each place where it can."""


class Direction(NamedTuple):
    """How a contour continues in one direction."""

    ahead: int
    """Step from one pivot to the next, over a paddle and two margins."""
    weights: tuple[int, ...]
    """Weight, in millionths, of each of STEPS from there as the end of the next paddle."""


class FirstPaddle(NamedTuple):
    """The first paddle of a contour, in one direction."""

    brush: Brush
    head: tuple[int, int]
    """Rows and columns from its start to its end, in pixels."""
    pivot: int
    """Step from its start to the pivot, which lies one margin before it."""
    direction: Direction


def rounded_step(angle: float, length: float) -> tuple[int, int]:
    """Return the rows and columns of a step of this angle and length, rounded up as in the published code."""
    return math.ceil(round(length * math.sin(angle), 6)), math.ceil(round(length * math.cos(angle), 6))


def flat_place(row: int, column: int) -> int:
    """Return a place, or a step between places, as one integer."""
    return STRIDE * row + column


def lanczos_weights(before: int, after: int) -> Int[np.ndarray, "after before"]:
    """Return the weights of Lanczos' filter with three lobes, in units of 2**-BITS, as Pillow rounds them."""
    distance = (np.arange(before) + 0.5) * after / before - (np.arange(after)[:, None] + 0.5)
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return np.rint(weights / weights.sum(1, keepdims=True) * 2**BITS).astype(np.int64)


def shrink_image(image: Int[np.ndarray, "before before"], after: int) -> Int[np.ndarray, "after after"]:
    """Shrink an image by Lanczos' filter: rows first, then columns, each time rounded to grey levels."""
    weights = lanczos_weights(len(image), after)
    image = (image @ weights.T + 2 ** (BITS - 1) >> BITS).clip(0, FULL)
    return (weights @ image + 2 ** (BITS - 1) >> BITS).clip(0, FULL)


@cache
def make_brush(end: tuple[int, int]) -> Brush:
    """Draw the paddle whose end lies at `end`, in half pixels, from its start."""
    n, reach = max(map(abs, end)), ANTIALIAS * PATCH_RADIUS
    line = [[int(math.copysign((2 * i * abs(way) + n) // (2 * n), way)) for way in end] for i in range(n + 1)]  # Bresenham

    def drawn(radius: int) -> Int[np.ndarray, "size size"]:
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        near = np.any([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column in line], 0)
        return shrink_image(FULL * near, 2 * PATCH_RADIUS + 1)

    footprint = drawn(MARGIN * ANTIALIAS)
    around = np.pad(footprint, 2)
    halo = np.max([np.roll(around, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))], 0)[1:-1, 1:-1]
    return Brush(
        end=end,
        ink=bright_pixels(drawn(0)),
        footprint=footprint.astype(np.uint8),
        halo=(FULL - halo).astype(np.uint8),
        limits=tuple((place, TOUCH - level) for place, level in bright_pixels(footprint) if TOUCH - level <= FULL),
    )


def bright_pixels(image: Int[np.ndarray, "size size"]) -> Pixels:
    """Return the pixels that are not black, relative to the middle."""
    rows, columns = image.nonzero()
    middle = len(image) // 2
    return tuple(zip(((rows - middle) * STRIDE + columns - middle).tolist(), image[rows, columns].tolist(), strict=True))


@cache
def marker_levels(row: int, column: int) -> Int[np.ndarray, "window window"]:
    """Return the grey levels of a picture with one disc, centred on a pixel."""
    y, x = np.ogrid[: ANTIALIAS * WINDOW, : ANTIALIAS * WINDOW]
    disc = (y - ANTIALIAS * row) ** 2 + (x - ANTIALIAS * column) ** 2 <= (ANTIALIAS * RADIUS) ** 2
    return shrink_image(FULL * disc, WINDOW)


def circle_pixels(length: int) -> list[tuple[int, int]]:
    """Return the pixels of a circle as rows and columns, rounded down, at angles one pixel apart."""
    angles = [i / length for i in range(math.ceil(2 * math.pi * length))]
    return sorted({(math.floor(round(length * math.sin(a), 6)), math.floor(round(length * math.cos(a), 6))) for a in angles})


def make_direction(angle: float) -> Direction:
    """Return how a contour continues at an angle. The weight of a turn is its squared cosine, and 0 from a right angle on."""
    turns = [abs((math.atan2(*step) - angle + math.pi) % (2 * math.pi) - math.pi) for step in circle_pixels(LENGTH + MARGIN)]
    weights = tuple(round(1e6 * math.cos(min(CONTINUITY * turn, math.pi / 2)) ** 2) for turn in turns)
    return Direction(ahead=flat_place(*rounded_step(angle, LENGTH + 2 * MARGIN)), weights=weights)


def make_first_paddle(degrees: int) -> FirstPaddle:
    """Draw the first paddle of a contour in a direction, given in degrees clockwise from the right."""
    angle = math.radians(degrees)
    head = rounded_step(angle, LENGTH)
    pivot = flat_place(*head) + flat_place(*rounded_step(angle + math.pi, LENGTH + MARGIN))
    brush = make_brush(rounded_step(angle, LENGTH * ANTIALIAS))
    return FirstPaddle(brush=brush, head=head, pivot=pivot, direction=make_direction(angle))


FIRST_PADDLES = tuple(map(make_first_paddle, range(360)))
"""First paddle of a contour, by its direction in degrees."""
CIRCLE = circle_pixels(LENGTH + MARGIN)
STEPS = tuple(flat_place(*step) for step in CIRCLE)
"""Steps from a pivot to the 18 places at which a paddle may end."""
DIRECTIONS = tuple(make_direction(math.atan2(*step)) for step in CIRCLE)
"""Direction of the contour after each step."""
BRUSHES = tuple(make_brush(rounded_step(math.atan2(*step) + math.pi, LENGTH * ANTIALIAS)) for step in CIRCLE)
"""Paddle at each step, drawn from its end back to one margin from the pivot."""
