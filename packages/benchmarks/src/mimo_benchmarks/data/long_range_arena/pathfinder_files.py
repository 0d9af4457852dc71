"""Read Pathfinder32 from the files that the Long Range Arena (Tay et al., 2021; LRA) published in lra_release.gz."""

import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mimo_benchmarks.data.long_range_arena.pathfinder import split_in_tenths
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.errors import DatasetError
from mimo_benchmarks.progress import progress_bar

LEVEL = "curv_contour_length_14"
"""Folder of the hard level, which LRA reports."""
REMEDY = "unpack LRA's lra_release.gz anew, or generate the set"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = bytes([0, 0, 0, 32, 0, 0, 0, 32, 8, 0, 0, 0, 0])
"""IHDR of a picture: 32 x 32 pixels, 8 bits, grey, not interlaced."""
CHUNK_TYPES = (b"IHDR", b"IDAT", b"IEND")
"""Types of the PNG chunks that such a picture needs."""
ROWS = 32 * (1 + 32)
"""Bytes of a picture's rows, each row after one byte for its filter."""
COLUMNS = {
    "the folder imgs/NUMBER": rb"imgs/\d{1,6}",
    "a name sample_NUMBER.png": rb"sample_\d{1,7}\.png",
    "the number in that name": rb"\d{1,7}",
    "a label 0 or 1": rb"[01]",
}
"""First columns of a metadata line, by description; the generator's arguments follow."""


class PathfinderRelease(NamedTuple):
    """LRA's pictures."""

    splits: dict[str, Sequences]
    """Shares of 8, 1 and 1 tenths as "train", "dev" and "test", in the order of the files."""
    empty: tuple[Path, ...]
    """Pictures that are left out because their files are empty; at least one published file is."""


def read_pathfinder_release(folder: Path, *, count: int | None = 200_000) -> PathfinderRelease:
    """Return LRA's pictures from FOLDER/curv_contour_length_14, with imgs/NUMBER/sample_NUMBER.png and metadata/NUMBER.npy.

    The metadata is text in spite of its suffix, one line per picture. LRA shuffles before it splits, without a seed; here the
    pictures stay in order, which is as good, since each was drawn independently.

    Args:
        folder: folder of the release, often named pathfinder32.
        count: number of pictures that there must be, including empty ones; None allows any number.

    Raises:
        DatasetError: a file is missing, cannot be read or is not a picture or metadata; names the file, line and remedy.
    """
    folder = folder / LEVEL
    tables = [path for path in folder.glob("metadata/*.npy") if re.fullmatch(r"\d{1,6}", path.stem)]
    if not tables:
        raise DatasetError(f"{folder / 'metadata'} has no file like 0.npy: {REMEDY}")
    images, labels, empty, seen = [], [], [], set[Path]()
    with progress_bar(f"reading {folder.name}", len(tables), unit=" folders") as bar:
        for table in sorted(tables, key=lambda path: int(path.stem)):
            for number, line in enumerate(metadata_lines(table), 1):
                try:
                    name, label = parse_metadata_line(line)
                    path = folder / name
                    if path in seen:
                        raise DatasetError(f"{name} appears a second time")
                    seen.add(path)
                    content = path.read_bytes()
                except DatasetError as error:
                    raise DatasetError(f"{table}, line {number}: {error}; {REMEDY}") from None
                except OSError as error:
                    reason = error.strerror or error
                    raise DatasetError(f"{path}, named in {table}, line {number}, cannot be read ({reason}): {REMEDY}") from error
                if not content:
                    empty.append(path)
                    continue
                try:
                    images.append(decode_png(content))
                except DatasetError as error:
                    raise DatasetError(f"{path} {error}: {REMEDY}") from error
                labels.append(label)
            bar.update()
    if count not in (None, len(seen)):
        raise DatasetError(f"{folder} has {len(seen):,} pictures in its metadata, not the {count:,} published: {REMEDY}")
    if not images:
        raise DatasetError(f"all pictures in {folder} are empty: {REMEDY}")
    return PathfinderRelease(splits=split_in_tenths(Sequences.of(images, labels)), empty=tuple(empty))


def metadata_lines(table: Path) -> list[bytes]:
    """Return the lines of a metadata file.

    Raises:
        DatasetError: the file cannot be read, is a NumPy array, or is cut off.
    """
    try:
        content = table.read_bytes()
    except OSError as error:
        raise DatasetError(f"{table} cannot be read ({error.strerror or error}): {REMEDY}") from error
    if content.startswith(b"\x93NUMPY"):
        raise DatasetError(
            f"{table} is a NumPy array, as the generator writes it, but LRA's files are text: convert it with "
            "numpy.savetxt(path, numpy.load(path, allow_pickle=False), fmt='%s')"
        )
    if not content.endswith(b"\n"):
        raise DatasetError(f"{table} is empty or ends in the middle of a line: {REMEDY}")
    return content[:-1].split(b"\n")


def parse_metadata_line(line: bytes) -> tuple[str, int]:
    """Return the path of a picture, relative to the level's folder, and its label.

    Raises:
        DatasetError: a column has another form; names the column.
    """
    columns = line.split(b" ")
    for place, (what, pattern) in enumerate(COLUMNS.items()):
        found = columns[place] if place < len(columns) else b""
        if not re.fullmatch(pattern, found):
            raise DatasetError(f"column {place + 1} is {found[:80]!r}, but must be {what}")
    folder, name, number, label = columns[:4]
    if name != b"sample_%s.png" % number:
        raise DatasetError(f"column 2 is {name!r}, but column 3 is {number!r}")
    return f"{folder.decode()}/{name.decode()}", int(label)


def decode_png(content: bytes) -> bytes:
    """Return the 1024 grey levels of a PNG, once all its checksums match. Pillow skips some, and makes up missing pixels.

    Raises:
        DatasetError: it is not a PNG of 32 x 32 grey levels, or it is damaged; says how, and where.
    """
    if not content.startswith(SIGNATURE):
        raise DatasetError("is not a PNG")
    start, kind, packed = len(SIGNATURE), b"", b""
    while kind != b"IEND":
        size, kind = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8]
        end = start + 8 + size
        body, checksum = content[start + 4 : end], content[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(body) != int.from_bytes(checksum):
            raise DatasetError(f"is damaged: the chunk at byte {start} is cut off, or its checksum is wrong")
        first = start == len(SIGNATURE)
        if first != (kind == b"IHDR") or (first and body[4:] != HEADER) or (kind[:1].isupper() and kind not in CHUNK_TYPES):
            raise DatasetError(f"is not a PNG of 32 x 32 grey levels with 8 bits (see its chunk at byte {start})")
        packed += body[4:] if kind == b"IDAT" else b""
        start = end + 4
    if start != len(content):
        raise DatasetError(f"has {len(content) - start} bytes after its last chunk")
    pixels = zlib.decompressobj()
    try:
        rows = pixels.decompress(packed, ROWS + 1)
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            levels = image.tobytes()
    except Exception as error:  # Pillow does not say which exceptions it raises on broken pixels
        raise DatasetError(f"has pixels that cannot be read ({error})") from error
    if len(rows) != ROWS or not pixels.eof or pixels.unused_data:
        raise DatasetError("has too few or too many pixels")
    return levels
