"""LRA's files of Pathfinder, whole and damaged."""

import zlib
from io import BytesIO
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mimo_benchmarks.data.long_range_arena.pathfinder_files import decode_png, read_pathfinder_release
from mimo_benchmarks.data.long_range_arena.pathfinder_scenes import draw_scene, paint_scene
from mimo_benchmarks.errors import DatasetError


@pytest.fixture(scope="module")
def scenes():
    """Return 20 scenes of one seed."""
    random = Random(8).random
    return [draw_scene(random) for _ in range(20)]


def png(image):
    file = BytesIO()
    Image.fromarray(np.frombuffer(image, np.uint8).reshape(32, 32)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def published(tmp_path, scenes):
    """Return a folder of 20 pictures as LRA has them, with two metadata files, and the grey levels and labels."""
    images, labels = [paint_scene(one) for one in scenes], [one.label for one in scenes]
    level = tmp_path / "curv_contour_length_14"
    (level / "metadata").mkdir(parents=True)
    for batch in (2, 10):
        (level / "imgs" / str(batch)).mkdir(parents=True)
        rows = []
        for number in range(10):
            which = number + (10 if batch == 10 else 0)
            (level / f"imgs/{batch}/sample_{number}.png").write_bytes(png(images[which]))
            rows.append(f"imgs/{batch} sample_{number}.png {number} {labels[which]} 1.0 14 4 2 0.5 1 1\n")
        (level / f"metadata/{batch}.npy").write_text("".join(rows))
    return level, images, labels


def levels_and_labels(original):
    values, labels = ([getattr(part, name) for part in original.splits.values()] for name in ("values", "labels"))
    return torch.cat(values).view(-1, 1024), torch.cat(labels)


def test_published_files_are_read_in_order(published):
    level, images, labels = published
    original = read_pathfinder_release(level.parent, count=None)
    values, found = levels_and_labels(original)
    assert [bytes(row.numpy()) for row in values] == images
    assert found.tolist() == labels
    assert [len(part) for part in original.splits.values()] == [16, 2, 2]
    assert original.empty == ()
    assert {part.shift for part in original.splits.values()} == {1}
    assert len(levels_and_labels(read_pathfinder_release(level.parent, count=20))[1]) == 20


def test_empty_pictures_are_left_out_and_named(published):
    level, images, labels = published
    path = level / "imgs/2/sample_3.png"
    path.write_bytes(b"")
    original = read_pathfinder_release(level.parent, count=None)
    values, found = levels_and_labels(original)
    assert original.empty == (path,)
    assert [bytes(row.numpy()) for row in values] == images[:3] + images[4:]
    assert found.tolist() == labels[:3] + labels[4:]


LINE = "imgs/2 sample_3.png 3 1 1.0 14 4 2 0.5 1 1\n"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("\n", "column 1 is b'', but must be the folder imgs/NUMBER"),
        (LINE.replace("imgs/2", "../2"), "column 1 is b'../2', but must be the folder imgs/NUMBER"),
        (LINE.replace("sample_3.png", "/etc/passwd"), "column 2 is b'/etc/passwd', but must be a name sample_NUMBER.png"),
        (LINE.replace("png 3", "png x"), "column 3 is b'x', but must be the number in that name"),
        (LINE.replace("png 3", "png 4"), "column 2 is b'sample_3.png', but column 3 is b'4'"),
        (LINE.replace("3 1", "3 2"), "column 4 is b'2', but must be a label 0 or 1"),
        (LINE.replace("3 1", "3 -1"), "column 4 is b'-1', but must be a label 0 or 1"),
        ("imgs/2 sample_3.png 3\n", "column 4 is b'', but must be a label 0 or 1"),
        (LINE.replace("_3", "_2").replace("png 3", "png 2"), "imgs/2/sample_2.png appears a second time"),
    ],
)
def test_a_wrong_line_is_named(published, wrong, named):
    level, _, _ = published
    table = level / "metadata/2.npy"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*rows[:3], wrong, *rows[4:]]))
    with pytest.raises(DatasetError) as error:
        read_pathfinder_release(level.parent, count=None)
    assert str(error.value).startswith(f"{table}, line 4: {named}")
    assert str(error.value).endswith("unpack LRA's lra_release.gz anew, or generate the set")


@pytest.mark.parametrize("left", [0, 30, -1])
def test_a_cut_off_table_is_named(published, left):
    level, _, _ = published
    table = level / "metadata/2.npy"
    table.write_bytes(table.read_bytes()[:left])
    with pytest.raises(DatasetError, match=r"2\.npy is empty or ends in the middle of a line: unpack"):
        read_pathfinder_release(level.parent, count=None)


def test_arrays_in_place_of_text_are_not_unpickled(published):
    """The generator writes arrays; the remedy that the error names works."""
    level, images, _ = published
    table = level / "metadata/2.npy"
    rows = np.array([row.split(" ") for row in table.read_text().splitlines()])
    np.save(table, rows)
    with pytest.raises(DatasetError, match=r"2\.npy is a NumPy array, .* numpy\.savetxt"):
        read_pathfinder_release(level.parent, count=None)
    np.savetxt(table, np.load(table, allow_pickle=False), fmt="%s")
    assert [bytes(row.numpy()) for row in levels_and_labels(read_pathfinder_release(level.parent, count=None))[0]] == images


def saved(image, **options):
    file = BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (saved(Image.new("L", (32, 31)), format="png"), "is not a PNG of 32 x 32 grey levels with 8 bits"),
        (saved(Image.new("RGB", (32, 32)), format="png"), "is not a PNG of 32 x 32 grey levels with 8 bits"),
        (saved(Image.new("1", (32, 32)), format="png"), "is not a PNG of 32 x 32 grey levels with 8 bits"),
        (saved(Image.new("L", (32, 32)), format="gif"), "is not a PNG"),
        (png(bytes(1024)) + b"\n", "has 1 bytes after its last chunk"),
        (png(bytes(1024))[:45], "is damaged: the chunk at byte 33 is cut off, or its checksum is wrong"),
    ],
    ids=["height", "colour", "bits", "gif", "longer", "shorter"],
)
def test_a_wrong_picture_is_named(published, wrong, named):
    level, _, _ = published
    path = level / "imgs/2/sample_3.png"
    path.write_bytes(wrong)
    with pytest.raises(DatasetError) as error:
        read_pathfinder_release(level.parent, count=None)
    assert str(error.value).startswith(f"{path} {named}")
    assert str(error.value).endswith(": unpack LRA's lra_release.gz anew, or generate the set")


def test_broken_pixels_are_refused_though_checksums_match():
    """A PNG without pixels, and one whose pixels end early."""
    whole = png(bytes(1024))
    start = whole.index(b"IDAT") - 4
    with pytest.raises(DatasetError, match="has pixels that cannot be read"):
        decode_png(whole[:start] + whole[-12:])
    with pytest.raises(DatasetError, match="has pixels that cannot be read"):
        decode_png(whole[:start] + png_chunk(b"IDAT", zlib.compress(bytes(500))) + whole[-12:])


def png_chunk(kind, body):
    """Return a chunk of a PNG with its checksum."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def assembled(*parts):
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_only_whole_pictures_of_one_header_are_read():
    """All checksums match, but rows are missing or too many, the stream is cut off or too long, or headers are repeated."""
    header = png_chunk(b"IHDR", bytes([0, 0, 0, 32, 0, 0, 0, 32, 8, 0, 0, 0, 0]))
    other = png_chunk(b"IHDR", bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0]))
    rows, end = bytes(32 * 33), png_chunk(b"IEND", b"")
    stream = zlib.compress(rows)
    assert decode_png(assembled(header, png_chunk(b"IDAT", stream), end)) == bytes(1024)
    assert decode_png(
        assembled(header, png_chunk(b"IDAT", stream[:5]), png_chunk(b"IDAT", stream[5:]), png_chunk(b"tEXt", b"a"), end)
    ) == bytes(1024)
    for wrong in (rows[:-33], rows[: 2 * 33], rows[:-1], rows + rows[:33]):
        with pytest.raises(DatasetError, match=r"has too few or too many pixels|has pixels that cannot be read"):
            decode_png(assembled(header, png_chunk(b"IDAT", zlib.compress(wrong)), end))
    for wrong in (stream[:-4], stream + b"x"):
        with pytest.raises(DatasetError, match=r"has too few or too many pixels|has pixels that cannot be read"):
            decode_png(assembled(header, png_chunk(b"IDAT", wrong), end))
    for parts in (
        (header, other),
        (header, header),
        (other,),
        (header, png_chunk(b"ABCD", b"")),
        (png_chunk(b"tEXt", b"a"), header),
    ):
        with pytest.raises(DatasetError, match="is not a PNG of 32 x 32 grey levels"):
            decode_png(assembled(*parts, png_chunk(b"IDAT", stream), end))


def test_a_set_that_is_not_whole_is_refused(published):
    level, _, _ = published
    with pytest.raises(DatasetError, match="has 20 pictures in its metadata, not the 200,000 published"):
        read_pathfinder_release(level.parent)
    table = level / "metadata/2.npy"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:7]))
    with pytest.raises(DatasetError, match="has 17 pictures in its metadata, not the 20 published"):
        read_pathfinder_release(level.parent, count=20)


def test_missing_files_are_named(published):
    level, _, _ = published
    path = level / "imgs/10/sample_0.png"
    path.unlink()
    with pytest.raises(DatasetError) as error:
        read_pathfinder_release(level.parent, count=None)
    assert str(error.value).startswith(f"{path}, named in {level / 'metadata/10.npy'}, line 1, cannot be read (No such file")
    with pytest.raises(DatasetError, match=r"metadata has no file like 0\.npy: unpack"):
        read_pathfinder_release(level, count=None)
    (level / "metadata/11.npy").mkdir()
    with pytest.raises(DatasetError, match=r"cannot be read"):
        read_pathfinder_release(level.parent, count=None)


def test_a_set_of_empty_files_is_refused(published):
    level, _, _ = published
    for path in level.glob("imgs/*/*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"all pictures in .* are empty"):
        read_pathfinder_release(level.parent, count=None)


def mutated(whole, random):
    """Change, insert or drop a byte, or cut off the end; the result always differs."""
    while True:
        spot, byte = int(random() * len(whole)), bytes([int(random() * 256)])
        changed = [
            whole[:spot] + byte + whole[spot + 1 :],
            whole[:spot] + byte + whole[spot:],
            whole[:spot] + whole[spot + 1 :],
            whole[: max(spot, 1)],
        ][int(random() * 4)]
        if changed != whole:
            return changed


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_no_damaged_picture_is_read(scenes, tries):
    random = Random(9).random
    whole = png(paint_scene(scenes[0]))
    for _ in range(tries):
        with pytest.raises(DatasetError):
            decode_png(mutated(whole, random))


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_damaged_metadata_is_refused_or_still_names_pictures(published, tries):
    """Only a label, or an argument of the generator, that changes to another valid one goes unnoticed."""
    level, images, labels = published
    table, random = level / "metadata/2.npy", Random(10).random
    whole = table.read_bytes()
    silent = 0
    for _ in range(tries):
        table.write_bytes(mutated(whole, random))
        try:
            values, found = levels_and_labels(read_pathfinder_release(level.parent, count=None))
        except DatasetError:
            continue
        silent += 1
        which = [images.index(bytes(row.numpy())) for row in values]
        assert len(set(which)) == len(which)
        assert set(found.tolist()) <= {0, 1}
        assert sum(labels[place] != label for place, label in zip(which, found.tolist(), strict=True)) <= 1
    assert 0 < silent < tries
