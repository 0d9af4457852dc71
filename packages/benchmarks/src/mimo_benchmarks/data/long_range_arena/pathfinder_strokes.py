"""What Pathfinder is drawn with: paddles, markers and directions, as tables of whole numbers.

The published generator (drewlinsley/pathfinder, snakes.py) draws at twice the size and shrinks to grey levels by Pillow's Lanczos
filter. This gives the same levels, without Pillow. What floating point computes is rounded, to six decimals or more coarsely,
before it decides anything: a last bit that differs between machines changes nothing.

A place is one number, STRIDE times its row plus its column, in a field that has ROOM pixels around the window on each side.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

WINDOW = 32
LENGTH, MARGIN, RADIUS = 2, 1, 1.5
"""Of a paddle; free around it; of a marker. A paddle is half a pixel thick, which is one when drawn at twice the size."""
CONTINUITY = 1.0
"""Of contours: turns are so many times less likely."""
ANTIALIAS = 2
"""At how many times the size everything is drawn."""
REACH = LENGTH + MARGIN + 1
"""A paddle's picture has its start in the middle and so many pixels on each side."""
ROOM = 8
"""More than a contour can leave the window by: a pivot by 4 pixels, and the next paddle by 3 more."""
STRIDE = WINDOW + 2 * ROOM
FULL, TOUCH = 255, 459
"""The highest grey level; two masks whose levels add up to 1.8 times that touch."""
BITS = 22

Pixels = tuple[tuple[int, int], ...]
"""Places relative to another, each with a number that goes with it."""


class Brush(NamedTuple):
    """A paddle in one direction, relative to its start."""

    end: tuple[int, int]
    """Rows and columns from its start to its end, in half pixels."""
    ink: Pixels
    """Grey levels."""
    footprint: UInt8[np.ndarray, "size size"]
    """Grey levels of the paddle made thicker by the margin, with its start in the middle."""
    halo: UInt8[np.ndarray, "size+2 size+2"]
    """What that leaves free: FULL less the footprint, where this is grown by a pixel up, down, left and right."""
    limits: Pixels
    """The least levels of a mask that touch the footprint, where there are any."""


class Direction(NamedTuple):
    """How a contour goes on."""

    ahead: int
    """From one pivot to the next: a paddle and two margins."""
    weights: tuple[int, ...]
    """How likely the next paddle ends at each of STEPS from there, in millionths."""


class Seed(NamedTuple):
    """The first paddle of a contour."""

    brush: Brush
    head: tuple[int, int]
    """Rows and columns from its start to its end."""
    pivot: int
    """From its start to the pivot, which lies a margin before."""
    direction: Direction


def reach(angle: float, length: float) -> tuple[int, int]:
    """Rows and columns to go, rounded up as published."""
    return math.ceil(round(length * math.sin(angle), 6)), math.ceil(round(length * math.cos(angle), 6))


def flat(row: int, column: int) -> int:
    """The same as one number."""
    return STRIDE * row + column


def lanczos(before: int, after: int) -> Int[np.ndarray, "after before"]:
    """Weights of Lanczos' filter with three lobes, in units of 2**-BITS, as Pillow rounds them."""
    distance = (np.arange(before) + 0.5) * after / before - (np.arange(after)[:, None] + 0.5)
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return np.rint(weights / weights.sum(1, keepdims=True) * 2**BITS).astype(np.int64)


def shrink(image: Int[np.ndarray, "before before"], after: int) -> Int[np.ndarray, "after after"]:
    """Rows first, then columns, each rounded to grey levels."""
    weights = lanczos(len(image), after)
    image = (image @ weights.T + 2 ** (BITS - 1) >> BITS).clip(0, FULL)
    return (weights @ image + 2 ** (BITS - 1) >> BITS).clip(0, FULL)


@cache
def brush(end: tuple[int, int]) -> Brush:
    """The paddle whose end lies so many half pixels from its start."""
    n = max(map(abs, end))
    line = [[int(math.copysign((2 * i * abs(way) + n) // (2 * n), way)) for way in end] for i in range(n + 1)]  # Bresenham's

    def drawn(radius: int) -> Int[np.ndarray, "size size"]:
        y, x = np.ogrid[-ANTIALIAS * REACH : ANTIALIAS * REACH + 1, -ANTIALIAS * REACH : ANTIALIAS * REACH + 1]
        near = np.any([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column in line], 0)
        return shrink(FULL * near, 2 * REACH + 1)

    footprint = drawn(MARGIN * ANTIALIAS)
    around = np.pad(footprint, 2)
    halo = np.max([np.roll(around, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))], 0)[1:-1, 1:-1]
    return Brush(
        end=end,
        ink=pixels(drawn(0)),
        footprint=footprint.astype(np.uint8),
        halo=(FULL - halo).astype(np.uint8),
        limits=tuple((place, TOUCH - level) for place, level in pixels(footprint) if TOUCH - level <= FULL),
    )


def pixels(image: Int[np.ndarray, "size size"]) -> Pixels:
    """Those that are not black, relative to the middle."""
    rows, columns = image.nonzero()
    middle = len(image) // 2
    return tuple(zip(((rows - middle) * STRIDE + columns - middle).tolist(), image[rows, columns].tolist(), strict=True))


@cache
def marker(row: int, column: int) -> Int[np.ndarray, "window window"]:
    """Grey levels of a disc around a pixel."""
    y, x = np.ogrid[: ANTIALIAS * WINDOW, : ANTIALIAS * WINDOW]
    disc = (y - ANTIALIAS * row) ** 2 + (x - ANTIALIAS * column) ** 2 <= (ANTIALIAS * RADIUS) ** 2
    return shrink(FULL * disc, WINDOW)


def circle(length: int) -> list[tuple[int, int]]:
    """Rows and columns to the pixels of a circle, rounded down, by angles a pixel apart."""
    angles = [i / length for i in range(math.ceil(2 * math.pi * length))]
    return sorted({(math.floor(round(length * math.sin(a), 6)), math.floor(round(length * math.cos(a), 6))) for a in angles})


def direction(angle: float) -> Direction:
    """That of a contour at an angle; the weight of a turn is its squared cosine, and 0 from a right angle on."""
    turns = [abs((math.atan2(*step) - angle + math.pi) % (2 * math.pi) - math.pi) for step in circle(LENGTH + MARGIN)]
    weights = tuple(round(1e6 * math.cos(min(CONTINUITY * turn, math.pi / 2)) ** 2) for turn in turns)
    return Direction(ahead=flat(*reach(angle, LENGTH + 2 * MARGIN)), weights=weights)


def seed(degrees: int) -> Seed:
    """The first paddle in a direction, clockwise from the right."""
    angle = math.radians(degrees)
    head = reach(angle, LENGTH)
    pivot = flat(*head) + flat(*reach(angle + math.pi, LENGTH + MARGIN))
    return Seed(brush=brush(reach(angle, LENGTH * ANTIALIAS)), head=head, pivot=pivot, direction=direction(angle))


SEEDS = tuple(map(seed, range(360)))
CIRCLE = circle(LENGTH + MARGIN)
STEPS = tuple(flat(*step) for step in CIRCLE)
"""Where a paddle may end, from its pivot: 18 places."""
DIRECTIONS = tuple(direction(math.atan2(*step)) for step in CIRCLE)
"""Of the contour then."""
BRUSHES = tuple(brush(reach(math.atan2(*step) + math.pi, LENGTH * ANTIALIAS)) for step in CIRCLE)
"""The paddle then, drawn from its end back to a margin from the pivot."""
