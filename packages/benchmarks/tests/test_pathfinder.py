"""Pathfinder: pictures drawn again with Pillow, and read without the generator's tables."""

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

from mimo_benchmarks.data.long_range_arena.pathfinder import CHUNK, pathfinder, pictures
from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import Contour, Field, paint, place, position, scene
from mimo_benchmarks.data.long_range_arena.pathfinder_strokes import BRUSHES, SEEDS
from mimo_benchmarks.errors import ConfigError

# --- The rule once more, with Pillow as published: a paddle is (row, column, direction), a direction an end in half pixels.


def up(length, angle):
    """Rows and columns, rounded up."""
    return math.ceil(length * math.sin(angle) - 1e-9), math.ceil(length * math.cos(angle) - 1e-9)


def shrunk(image, size):
    return np.array(Image.fromarray(image.astype(np.uint8)).resize((size, size), Image.Resampling.LANCZOS)).astype(int)


@cache
def stroke(end):
    """A paddle's levels, 9 x 9 around its start, and its footprint's: a pixel more on all sides."""
    image = Image.new("L", (17, 17))
    ImageDraw.Draw(image).line([(8, 8), (8 + end[1], 8 + end[0])], fill=255, width=1)
    rows, columns = np.mgrid[-2:3, -2:3]
    wide = grey_dilation(np.array(image), footprint=rows**2 + columns**2 <= 4)
    return shrunk(np.array(image), 9), shrunk(wide, 9)


@cache
def disc(row, column):
    rows, columns = np.mgrid[:64, :64]
    return shrunk(255 * ((rows - 2 * row) ** 2 + (columns - 2 * column) ** 2 <= 9), 32)


def laid(paddles, which, contrast=1):
    """Strokes (0) or footprints (1) in the window."""
    canvas = np.zeros((48, 48))
    for row, column, end in paddles:
        window = canvas[row + 4 : row + 13, column + 4 : column + 13]
        np.maximum(window, contrast * stroke(end)[which], out=window)
    return canvas[8:40, 8:40]


CIRCLE = sorted({(math.floor(3 * math.sin(i / 3) + 1e-9), math.floor(3 * math.cos(i / 3) + 1e-9)) for i in range(19)})
ANGLES = [math.atan2(*step) for step in CIRCLE]


def likely(angle, step):
    """The squared cosine of the turn to a step, 0 from a right angle on."""
    return max(math.cos(math.remainder(math.atan2(*step) - angle, 2 * math.pi)), 0) ** 2


def ways(angle):
    """From one pivot to the ends of the next paddle: its end and direction, and the next pivot's place."""
    ahead = up(4, angle)
    return [
        (ahead[0] + step[0], ahead[1] + step[1], up(4, way + math.pi), ahead, way)
        for step, way in zip(CIRCLE, ANGLES, strict=True)
        if likely(angle, step) > 1e-6
    ]


ONWARD = {angle: ways(angle) for angle in ANGLES}


def first_paddles():
    """Directions of a first paddle, from its start to the pivot before it, and the ways on; 360 of them, few different."""
    found = {}
    for angle in map(math.radians, range(360)):
        head, back = up(2, angle), up(3, angle + math.pi)
        found[up(4, angle), head[0] + back[0], head[1] + back[1], tuple(ways(angle))] = None
    return list(found)


FIRST = first_paddles()


def ends(tip, paddles, there):
    """Where contours of so many paddles end that start at a tip, by the rule, and are there."""
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


# --- Pictures


@pytest.fixture(scope="module")
def scenes():
    """200 of one seed."""
    random = Random(1).random
    return [scene(random) for _ in range(200)]


def plain(contour):
    return [(*position(paddle.start), paddle.brush.end) for paddle in contour]


def picture(shown):
    return np.frombuffer(paint(shown), np.uint8).reshape(32, 32).astype(int)


def find_markers(image):
    """Pixels around which there is a whole disc at their own level, and this level; no stroke is so wide."""
    bright = [(int(row), int(column)) for row, column in np.argwhere(image > 200) if 2 <= row < 30 and 2 <= column < 30]
    return [(spot, image[spot]) for spot in bright if (image >= disc(*spot) * image[spot] / 255 - 1).all()]


def connected(image):
    """Whether a contour of 14 paddles, each of them in the picture at least as bright as it should be, joins the markers.

    What is white follows from the level of the markers, whose contrast is 1.
    """
    (first, level), (second, _) = find_markers(image)

    @cache
    def there(row, column, end):
        if not (0 <= row < 32 and 0 <= column < 32):
            return False
        padded = np.pad(image, 4, constant_values=255)
        return bool((padded[row : row + 9, column : column + 9] >= 1.5 * stroke(end)[0] * level / 255 - 1).all())

    return second in ends(first, 14, there) or first in ends(second, 14, there)


def test_the_label_can_be_read_off_the_picture(scenes, count=80):
    """By a reader that knows the rule and sees the picture alone: it finds both markers and the label of every one.

    Accuracy 1 is no bound of the rule: strokes of others might happen to look like a contour between the markers. With this
    seed, and 1,000 pictures of another, none did.
    """
    shown = scenes[:count]
    found = [(sorted(spot for spot, _ in find_markers(image)), connected(image)) for image in map(picture, shown)]
    assert found == [(sorted(map(position, one.markers)), bool(one.label)) for one in shown]
    assert {one.label for one in shown} == {0, 1}


def test_a_picture_shows_its_scene(scenes):
    """Drawn again in floating point with Pillow and stretched as scipy.misc did."""
    for shown in scenes:
        image = np.zeros((32, 32))
        for contrast, contours in ((1.5, shown.targets), (2, shown.distractors)):
            for contour in contours:
                image = np.maximum(image, laid(plain(contour), 0, contrast))
        for tip in shown.markers:
            image = np.maximum(image, disc(*position(tip)))
        assert np.array_equal(picture(shown), np.floor((image - image.min()) * 255 / (image.max() - image.min()) + 0.5))


def test_scenes_have_the_published_parts(scenes):
    """Two contours of 14 paddles, five distractors of 4 or fewer distractors; markers where the label says; all by the rule."""
    distractors = Counter()
    for shown in scenes:
        assert [len(contour) for contour in shown.targets] == [14, 14]
        assert {len(contour) for contour in shown.distractors} <= {4}
        distractors[len(shown.distractors)] += 1
        near, far = zip(*((contour[0].start, contour[-1].start) for contour in shown.targets), strict=True)
        marked = near.index(shown.markers[0])
        assert shown.markers[1] == far[marked if shown.label else 1 - marked]
        for contour in (*shown.targets, *shown.distractors):
            paddles = plain(contour)
            assert paddles[-1][:2] in ends(paddles[0][:2], len(paddles), lambda *paddle, all=paddles: paddle in all)
        (row, column), (row2, column2) = map(position, near)
        assert 14 <= row < 18
        assert 14 <= column < 18
        assert abs(math.dist((row, column), (row2, column2)) - 7) <= sqrt(0.5)
    assert max(distractors) == 5
    # five in 68 % of 3,000 pictures: within 5 standard deviations
    assert abs(distractors[5] - 0.68 * len(scenes)) < 5 * sqrt(0.68 * 0.32 * len(scenes))


def test_no_contour_touches_another_or_itself_or_the_edge(scenes, count=100):
    """Footprints, each a margin of a pixel wider than its paddle, share no pixel that both fill: their sum is below 1.8 of full.

    A paddle may come near the one before it in its own contour.
    """
    edge = np.pad(np.zeros((30, 30)), 1, constant_values=255)
    for shown in scenes[:count]:
        contours = [plain(contour) for contour in (*shown.targets, *shown.distractors)]
        footprints = [laid(contour, 1) for contour in contours]
        assert all((one + other).max() < 1.8 * 255 for one, other in combinations([edge, *footprints], 2))
        for contour in contours:
            for number, paddle in enumerate(contour):
                assert (laid(contour[: max(number - 1, 0)], 1) + laid([paddle], 1)).max() < 1.8 * 255


def test_a_field_knows_what_is_taken_and_what_is_free(scenes, count=20):
    """The footprints of all, and the edge; free is what these leave when they grow by a pixel up, down, left and right."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    for shown in scenes[:count]:
        field = Field()
        for paddle in shown.targets[0]:
            field.add(paddle)
        taken = np.maximum(laid(plain(shown.targets[0]), 1), np.pad(np.zeros((30, 30)), 1, constant_values=255))
        found = [np.frombuffer(part, np.uint8).reshape(48, 48) for part in (field.taken, field.free, Field(field).free)]
        assert np.array_equal(found[0][8:40, 8:40], taken)
        assert np.array_equal(found[1][8:40, 8:40], 255 - grey_dilation(taken, footprint=cross, mode="constant"))
        assert found[1].sum() == found[1][8:40, 8:40].sum()
        assert np.array_equal(found[1], found[2])
        assert not any(map(field.fits, shown.targets[0]))
        assert all(map(field.fits, shown.targets[1]))


def test_turns_are_as_likely_as_the_square_of_their_cosine(count=4000):
    """In the middle of an empty picture. Each of 18 ends within 5 standard deviations of a binomial, for 8 directions."""
    random = Random(5).random
    for degrees in range(10, 360, 45):
        found = Counter()
        for _ in range(count):
            contour = Contour(SEEDS[degrees], place(16, 16))
            assert contour.grow(Field(), random)
            found[contour.paddles[1].start, contour.paddles[1].brush.end] += 1
        pivot = position(contour.pivot)
        weights = [likely(math.radians(degrees), step) for step in CIRCLE]
        for step, way, weight, brush in zip(CIRCLE, ANGLES, weights, BRUSHES, strict=True):
            chance = weight / sum(weights)
            assert brush.end == up(4, way + math.pi)
            number = found[place(pivot[0] + step[0], pivot[1] + step[1]), brush.end]
            assert abs(number - count * chance) <= 5 * sqrt(count * chance * (1 - chance))


def test_pictures_are_the_same_everywhere_and_use_all_grey_levels():
    """Bytes are those of the machine and the versions that they were first made with."""
    made = pictures(0, seed=0)
    assert len(made["image"]) == len(made["label"]) == len(set(made["image"])) == CHUNK
    assert {(len(image), min(image), max(image)) for image in made["image"]} == {(1024, 0, 255)}
    assert digest(made) == "d9dba219adc584adce493676e72be300f9fed82c0f2bcf174c5b8443306be091"


def digest(made):
    return hashlib.sha256(b"".join(made["image"]) + bytes(made["label"])).hexdigest()


def test_pictures_follow_seed_and_chunk_alone(monkeypatch):
    monkeypatch.setattr("mimo_benchmarks.data.long_range_arena.pathfinder.CHUNK", 5)
    made = [pictures(chunk, seed=seed) for chunk, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert digest(made[0]) == digest(made[3])
    assert len({digest(one) for one in made}) == 3


def test_half_of_the_pictures_are_positive(scenes):
    """A fair coin: within 5 standard deviations, for the label and for the contour whose first tip is marked."""
    for number in (sum(one.label for one in scenes), sum(one.markers[0] == one.targets[0][0].start for one in scenes)):
        assert abs(number - len(scenes) / 2) < 5 * sqrt(len(scenes)) / 2


@pytest.mark.once
def test_the_set_does_not_depend_on_the_number_of_workers(tmp_path, count=210):
    one, two = (pathfinder(tmp_path / str(workers), count=count, workers=workers) for workers in (1, 2))
    assert [(name, len(part)) for name, part in one.items()] == [("train", 168), ("dev", 21), ("test", 21)]
    for name in one:
        assert torch.equal(one[name].values, two[name].values)
        assert torch.equal(one[name].labels, two[name].labels)
    made = [pictures(chunk, seed=0) for chunk in range(3)]
    images = [image for chunk in made for image in chunk["image"]][:count]
    assert b"".join(bytes(part.values.numpy()) for part in one.values()) == b"".join(images)
    assert torch.cat([part.labels for part in one.values()]).tolist() == [x for chunk in made for x in chunk["label"]][:count]


def test_black_pixels_are_padding_only_where_this_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mimo_benchmarks.data.long_range_arena.pathfinder.CHUNK", 10)
    index = torch.arange(8)
    ours, published = (pathfinder(tmp_path, count=10, workers=1, published=asked)["train"] for asked in (False, True))
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
def test_settings_that_cannot_work_are_refused(tmp_path, changed, named):
    with pytest.raises(ConfigError, match=named):
        pathfinder(tmp_path, **changed)
