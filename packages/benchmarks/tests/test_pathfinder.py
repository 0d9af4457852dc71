"""Pathfinder: pictures drawn a second time with Pillow, and read without the generator's tables."""

import hashlib
import math
from collections import Counter
from functools import cache
from itertools import combinations
from math import sqrt
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import grey_dilation

from mimo_benchmarks.data.long_range_arena.pathfinder import pathfinder_splits
from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import (
    CHUNK,
    Contour,
    Field,
    draw_scene,
    generate_pictures,
    paint_scene,
    pixel_at,
    place_of,
)
from mimo_benchmarks.data.long_range_arena.pathfinder_strokes import BRUSHES, FIRST_PADDLES
from mimo_benchmarks.errors import ConfigError

# The rule a second time, with Pillow as published: a paddle is (row, column, direction), a direction is its end in half pixels.


def rounded_up(length, angle):
    """Return the rows and columns of a step, rounded up."""
    return math.ceil(length * math.sin(angle) - 1e-9), math.ceil(length * math.cos(angle) - 1e-9)


def shrunk(image, size):
    return np.array(Image.fromarray(image.astype(np.uint8)).resize((size, size), Image.Resampling.LANCZOS)).astype(int)


@cache
def stroke(end):
    """Return the levels of a paddle, 9 x 9 around its start, and of its footprint, a pixel wider on all sides."""
    image = Image.new("L", (17, 17))
    ImageDraw.Draw(image).line([(8, 8), (8 + end[1], 8 + end[0])], fill=255, width=1)
    rows, columns = np.mgrid[-2:3, -2:3]
    wide = grey_dilation(np.array(image), footprint=rows**2 + columns**2 <= 4)
    return shrunk(np.array(image), 9), shrunk(wide, 9)


@cache
def disc(row, column):
    rows, columns = np.mgrid[:64, :64]
    return shrunk(255 * ((rows - 2 * row) ** 2 + (columns - 2 * column) ** 2 <= 9), 32)


def laid_down(paddles, which, contrast=1):
    """Return the window with the strokes (`which` 0) or the footprints (1) of some paddles."""
    canvas = np.zeros((48, 48))
    for row, column, end in paddles:
        window = canvas[row + 4 : row + 13, column + 4 : column + 13]
        np.maximum(window, contrast * stroke(end)[which], out=window)
    return canvas[8:40, 8:40]


CIRCLE = sorted({(math.floor(3 * math.sin(i / 3) + 1e-9), math.floor(3 * math.cos(i / 3) + 1e-9)) for i in range(19)})
ANGLES = [math.atan2(*step) for step in CIRCLE]


def turn_weight(angle, step):
    """Return the squared cosine of the turn to a step, 0 from a right angle on."""
    return max(math.cos(math.remainder(math.atan2(*step) - angle, 2 * math.pi)), 0) ** 2


def ways_on(angle):
    """Return the ways to continue from a pivot: end and direction of the next paddle, and step and angle of the next pivot."""
    ahead = rounded_up(4, angle)
    return [
        (ahead[0] + step[0], ahead[1] + step[1], rounded_up(4, way + math.pi), ahead, way)
        for step, way in zip(CIRCLE, ANGLES, strict=True)
        if turn_weight(angle, step) > 1e-6
    ]


ONWARD = {angle: ways_on(angle) for angle in ANGLES}


def first_paddles():
    """Return the direction of each possible first paddle, the step from its start to its pivot, and the ways on."""
    found = {}
    for angle in map(math.radians, range(360)):
        head, back = rounded_up(2, angle), rounded_up(3, angle + math.pi)
        found[rounded_up(4, angle), head[0] + back[0], head[1] + back[1], tuple(ways_on(angle))] = None
    return list(found)


FIRST = first_paddles()


def contour_ends(tip, paddles, there):
    """Return where contours of so many paddles can end that start at a tip, follow the rule, and are there."""
    states = {(tip[0] + row, tip[1] + column, on) for end, row, column, on in FIRST if there(*tip, end)}
    heads = set()
    for _ in range(paddles - 1):
        after = set()
        heads = set()
        for row, column, on in states:
            for down, right, end, ahead, way in on:
                if there(row + down, column + right, end):
                    heads.add((row + down, column + right))
                    after.add((row + ahead[0], column + ahead[1], way))
        states = {(row, column, tuple(ONWARD[way])) for row, column, way in after}
    return heads


@pytest.fixture(scope="module")
def scenes():
    """Return 200 scenes of one seed."""
    random = Random(1).random
    return [draw_scene(random) for _ in range(200)]


def plain_paddles(contour):
    return [(*pixel_at(paddle.start), paddle.brush.end) for paddle in contour]


def picture_of(shown):
    return np.frombuffer(paint_scene(shown), np.uint8).reshape(32, 32).astype(int)


def find_markers(image):
    """Return the pixels around which there is a whole disc of their own level, with this level; no stroke is that wide."""
    bright = [(int(row), int(column)) for row, column in np.argwhere(image > 200) if 2 <= row < 30 and 2 <= column < 30]
    return [(spot, image[spot]) for spot in bright if (image >= disc(*spot) * image[spot] / 255 - 1).all()]


def markers_connected(image):
    """Return whether a contour of 14 paddles, each at least as bright as it should be, joins the markers.

    The level of the markers, whose contrast is 1, gives the level of white.
    """
    (first, level), (second, _) = find_markers(image)

    @cache
    def there(row, column, end):
        if not (0 <= row < 32 and 0 <= column < 32):
            return False
        padded = np.pad(image, 4, constant_values=255)
        return bool((padded[row : row + 9, column : column + 9] >= 1.5 * stroke(end)[0] * level / 255 - 1).all())

    return second in contour_ends(first, 14, there) or first in contour_ends(second, 14, there)


def test_the_label_can_be_read_off_the_picture(scenes, count=80):
    """A reader that knows the rule and sees only the picture finds both markers and the label of every picture.

    The rule does not guarantee an accuracy of 1: other strokes could happen to look like a contour between the markers. With
    this seed, and in 1,000 pictures of another one, none did.
    """
    shown = scenes[:count]
    found = [(sorted(spot for spot, _ in find_markers(image)), markers_connected(image)) for image in map(picture_of, shown)]
    assert found == [(sorted(map(pixel_at, one.markers)), bool(one.label)) for one in shown]
    assert {one.label for one in shown} == {0, 1}


def test_a_picture_shows_its_scene(scenes):
    """The picture equals one drawn in floating point with Pillow and stretched as by scipy.misc."""
    for shown in scenes:
        image = np.zeros((32, 32))
        for contrast, contours in ((1.5, shown.targets), (2, shown.distractors)):
            for contour in contours:
                image = np.maximum(image, laid_down(plain_paddles(contour), 0, contrast))
        for tip in shown.markers:
            image = np.maximum(image, disc(*pixel_at(tip)))
        assert np.array_equal(picture_of(shown), np.floor((image - image.min()) * 255 / (image.max() - image.min()) + 0.5))


def test_scenes_have_the_published_parts(scenes):
    """A scene has two contours of 14 paddles, up to five distractors of 4, and markers as the label says; all follow the rule."""
    distractors = Counter()
    for shown in scenes:
        assert [len(contour) for contour in shown.targets] == [14, 14]
        assert {len(contour) for contour in shown.distractors} <= {4}
        distractors[len(shown.distractors)] += 1
        near, far = zip(*((contour[0].start, contour[-1].start) for contour in shown.targets), strict=True)
        marked = near.index(shown.markers[0])
        assert shown.markers[1] == far[marked if shown.label else 1 - marked]
        for contour in (*shown.targets, *shown.distractors):
            paddles = plain_paddles(contour)
            assert paddles[-1][:2] in contour_ends(paddles[0][:2], len(paddles), lambda *paddle, all=paddles: paddle in all)
        (row, column), (row2, column2) = map(pixel_at, near)
        assert 14 <= row < 18
        assert 14 <= column < 18
        assert abs(math.dist((row, column), (row2, column2)) - 7) <= sqrt(0.5)
    assert max(distractors) == 5
    # 68 % of 3,000 pictures have five: within 5 standard deviations
    assert abs(distractors[5] - 0.68 * len(scenes)) < 5 * sqrt(0.68 * 0.32 * len(scenes))


def test_no_contour_touches_another_or_itself_or_the_edge(scenes, count=100):
    """Footprints, each a pixel wider than its paddle, do not overlap: their sum stays below 1.8 of the full level.

    A paddle may come near the one before it in its own contour.
    """
    edge = np.pad(np.zeros((30, 30)), 1, constant_values=255)
    for shown in scenes[:count]:
        contours = [plain_paddles(contour) for contour in (*shown.targets, *shown.distractors)]
        footprints = [laid_down(contour, 1) for contour in contours]
        assert all((one + other).max() < 1.8 * 255 for one, other in combinations([edge, *footprints], 2))
        for contour in contours:
            for number, paddle in enumerate(contour):
                assert (laid_down(contour[: max(number - 1, 0)], 1) + laid_down([paddle], 1)).max() < 1.8 * 255


def test_a_field_knows_what_is_taken_and_what_is_free(scenes, count=20):
    """Footprints and the edge are taken. Free is what they leave after they grow by a pixel up, down, left and right."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    for shown in scenes[:count]:
        field = Field()
        for paddle in shown.targets[0]:
            field.add(paddle)
        taken = np.maximum(laid_down(plain_paddles(shown.targets[0]), 1), np.pad(np.zeros((30, 30)), 1, constant_values=255))
        found = [np.frombuffer(part, np.uint8).reshape(48, 48) for part in (field.taken, field.free, Field(field).free)]
        assert np.array_equal(found[0][8:40, 8:40], taken)
        assert np.array_equal(found[1][8:40, 8:40], 255 - grey_dilation(taken, footprint=cross, mode="constant"))
        assert found[1].sum() == found[1][8:40, 8:40].sum()
        assert np.array_equal(found[1], found[2])
        assert not any(map(field.fits, shown.targets[0]))
        assert all(map(field.fits, shown.targets[1]))


def test_turns_are_as_likely_as_the_square_of_their_cosine(count=4000):
    """In an empty picture and for 8 directions, the count of each of 18 ends is within 5 standard deviations of a binomial."""
    random = Random(5).random
    for degrees in range(10, 360, 45):
        found = Counter()
        for _ in range(count):
            contour = Contour(FIRST_PADDLES[degrees], place_of(16, 16))
            assert contour.grow(Field(), random)
            found[contour.paddles[1].start, contour.paddles[1].brush.end] += 1
        pivot = pixel_at(contour.pivot)
        weights = [turn_weight(math.radians(degrees), step) for step in CIRCLE]
        for step, way, weight, brush in zip(CIRCLE, ANGLES, weights, BRUSHES, strict=True):
            chance = weight / sum(weights)
            assert brush.end == rounded_up(4, way + math.pi)
            number = found[place_of(pivot[0] + step[0], pivot[1] + step[1]), brush.end]
            assert abs(number - count * chance) <= 5 * sqrt(count * chance * (1 - chance))


@pytest.fixture(scope="module")
def first_chunk():
    """Return the first chunk of seed 0."""
    return generate_pictures(0, seed=0)


def test_pictures_are_the_same_everywhere_and_use_all_grey_levels(first_chunk):
    """The bytes equal those of the machine and the versions that first generated them."""
    made = first_chunk
    assert len(made["image"]) == len(made["label"]) == len(set(made["image"])) == CHUNK
    assert {(len(image), min(image), max(image)) for image in made["image"]} == {(1024, 0, 255)}
    assert pictures_digest(made) == "d9dba219adc584adce493676e72be300f9fed82c0f2bcf174c5b8443306be091"


def pictures_digest(made):
    return hashlib.sha256(b"".join(made["image"]) + bytes(made["label"])).hexdigest()


def test_pictures_follow_seed_and_chunk_alone():
    made = [generate_pictures(chunk, seed=seed, count=5) for chunk, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert pictures_digest(made[0]) == pictures_digest(made[3])
    assert len({pictures_digest(one) for one in made}) == 3


def test_half_of_the_pictures_are_positive(scenes):
    """Both the label and the contour whose first tip is marked are fair coins: within 5 standard deviations."""
    for number in (sum(one.label for one in scenes), sum(one.markers[0] == one.targets[0][0].start for one in scenes)):
        assert abs(number - len(scenes) / 2) < 5 * sqrt(len(scenes)) / 2


@pytest.mark.once
def test_the_set_does_not_depend_on_the_number_of_workers(tmp_path, first_chunk):
    """Two workers give the pictures of the chunks in order: the first chunk, and a part of the second."""
    two = pathfinder_splits(tmp_path, count=CHUNK + 10, workers=2)
    assert [(name, len(part)) for name, part in two.items()] == [("train", 88), ("dev", 11), ("test", 11)]
    second = generate_pictures(1, seed=0, count=10)
    assert b"".join(bytes(part.values.numpy()) for part in two.values()) == b"".join(first_chunk["image"] + second["image"])
    assert torch.cat([part.labels for part in two.values()]).tolist() == first_chunk["label"] + second["label"]


def test_black_pixels_are_padding_only_if_published(tmp_path):
    index = torch.arange(8)
    ours, published = (pathfinder_splits(tmp_path, count=10, workers=1, published=asked)["train"] for asked in (False, True))
    levels = ours.values.view(8, 1024).long()
    ids, mask = ours.tokens(index, 1024)
    assert torch.equal(ids, levels + 1)
    assert mask.all()
    ids, mask = published.tokens(index, 1024)
    assert torch.equal(ids, levels)
    assert torch.equal(mask, levels > 0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": -1}, "seed is -1; it must be at least 0"), ({"count": 9}, "count is 9; it must be at least 10")],
)
def test_arguments_out_of_range_are_refused(tmp_path, changed, named):
    with pytest.raises(ConfigError, match=named):
        pathfinder_splits(tmp_path, **changed)
