"""Pathfinder32 from the files that Long Range Arena (Tay et al., 2021) published, in lra_release.gz."""

import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mimo_benchmarks.data.long_range_arena.pathfinder import splits
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.errors import DatasetError

LEVEL = "curv_contour_length_14"
"""The hard one, which LRA reports."""
REMEDY = "unpack LRA's lra_release.gz anew, or generate a set"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = bytes([0, 0, 0, 32, 0, 0, 0, 32, 8, 0, 0, 0, 0])
"""32 x 32, 8 bits, grey, not interlaced."""
KINDS = (b"IHDR", b"IDAT", b"IEND")
"""The parts that such a picture can need."""
ROWS = 32 * (1 + 32)
"""Bytes of its rows, each after the number of its filter."""
COLUMNS = {
    "the folder imgs/NUMBER": rb"imgs/\d{1,6}",
    "a name sample_NUMBER.png": rb"sample_\d{1,7}\.png",
    "the number in that name": rb"\d{1,7}",
    "a label 0 or 1": rb"[01]",
}
"""With which a line of metadata begins; the generator's arguments follow."""


class Original(NamedTuple):
    """LRA's set."""

    splits: dict[str, Sequences]
    """ "train", "dev" and "test": 8, 1 and 1 tenths, in the order of the files."""
    empty: tuple[Path, ...]
    """Pictures left out because their files have no content, as at least one published one."""


def read_original(folder: Path, *, published: bool = False, count: int | None = 200_000) -> Original:
    """LRA's pictures, from FOLDER/curv_contour_length_14 with imgs/NUMBER/sample_NUMBER.png and metadata/NUMBER.npy.

    The metadata is text in spite of its names, a line a picture. LRA shuffles before it splits, without a seed; here pictures
    stay in order, which is as good, since each was drawn by itself.

    Args:
        folder: often named pathfinder32.
        published: token ids are the grey levels, and black is padding; see `pathfinder`.
        count: pictures that there must be, empty ones with them; any number if None.

    Raises:
        DatasetError: a file is missing, cannot be read or is not what it should be; names it, the line and the remedy.
    """
    folder = folder / LEVEL
    tables = [path for path in folder.glob("metadata/*.npy") if re.fullmatch(r"\d{1,6}", path.stem)]
    if not tables:
        raise DatasetError(f"{folder / 'metadata'} has no file such as 0.npy: {REMEDY}")
    images, labels, empty, seen = [], [], [], set[Path]()
    for table in sorted(tables, key=lambda path: int(path.stem)):
        for number, line in enumerate(lines(table), 1):
            try:
                name, label = parse(line)
                path = folder / name
                if path in seen:
                    raise DatasetError(f"{name} comes a second time")
                seen.add(path)
                content = path.read_bytes()
            except DatasetError as error:
                raise DatasetError(f"{table}, line {number}: {error}; {REMEDY}") from None
            except OSError as error:
                reason = error.strerror or error
                raise DatasetError(f"{path}, of {table}, line {number}, cannot be read ({reason}): {REMEDY}") from error
            if not content:
                empty.append(path)
                continue
            try:
                images.append(decode(content))
            except DatasetError as error:
                raise DatasetError(f"{path} {error}: {REMEDY}") from error
            labels.append(label)
    if count not in (None, len(seen)):
        raise DatasetError(f"{folder} has {len(seen):,} pictures by its metadata, not the {count:,} published: {REMEDY}")
    if not images:
        raise DatasetError(f"{folder} has no picture that is not empty: {REMEDY}")
    return Original(splits=splits(Sequences.of(images, labels, shift=0 if published else 1)), empty=tuple(empty))


def lines(table: Path) -> list[bytes]:
    """Of a metadata file."""
    try:
        content = table.read_bytes()
    except OSError as error:
        raise DatasetError(f"{table} cannot be read ({error.strerror or error}): {REMEDY}") from error
    if content.startswith(b"\x93NUMPY"):
        raise DatasetError(
            f"{table} is an array, as the generator writes it; LRA's files are text: convert it with "
            "numpy.savetxt(path, numpy.load(path, allow_pickle=False), fmt='%s')"
        )
    if not content.endswith(b"\n"):
        raise DatasetError(f"{table} is empty or ends in the middle of a line: {REMEDY}")
    return content[:-1].split(b"\n")


def parse(line: bytes) -> tuple[str, int]:
    """The picture's path below the level's folder, and its label."""
    columns = line.split(b" ")
    for place, (what, pattern) in enumerate(COLUMNS.items()):
        found = columns[place] if place < len(columns) else b""
        if not re.fullmatch(pattern, found):
            raise DatasetError(f"column {place + 1} is {found[:80]!r}, not {what}")
    folder, name, number, label = columns[:4]
    if name != b"sample_%s.png" % number:
        raise DatasetError(f"column 2 is {name!r}, but column 3 {number!r}")
    return f"{folder.decode()}/{name.decode()}", int(label)


def decode(content: bytes) -> bytes:
    """1024 grey levels from a PNG, every checksum of which is looked at: Pillow skips some, and fills in pixels that are missing.

    Raises:
        DatasetError: it is none of 32 x 32 grey levels; says how, and where.
    """
    if not content.startswith(SIGNATURE):
        raise DatasetError("is no PNG")
    start, kind, packed = len(SIGNATURE), b"", b""
    while kind != b"IEND":
        size, kind = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8]
        end = start + 8 + size
        body, checksum = content[start + 4 : end], content[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(body) != int.from_bytes(checksum):
            raise DatasetError(f"is damaged: the part at byte {start} is cut off, or its checksum is wrong")
        first = start == len(SIGNATURE)
        if first != (kind == b"IHDR") or (first and body[4:] != HEADER) or (kind[:1].isupper() and kind not in KINDS):
            raise DatasetError(f"is no PNG of 32 x 32 grey levels with 8 bits: see its part at byte {start}")
        packed += body[4:] if kind == b"IDAT" else b""
        start = end + 4
    if start != len(content):
        raise DatasetError(f"has {len(content) - start} bytes after its end")
    pixels = zlib.decompressobj()
    try:
        rows = pixels.decompress(packed, ROWS + 1)
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            levels = image.tobytes()
    except Exception as error:  # Pillow names no type for pixels that cannot be had
        raise DatasetError(f"has no pixels that can be read ({error})") from error
    if len(rows) != ROWS or not pixels.eof or pixels.unused_data:
        raise DatasetError("has too few pixels, or too many")
    return levels
