"""Read pairs of papers of the ACL Anthology Network (AAN; Radev et al., 2013) byte by byte: does one cite the other?

The Long Range Arena (Tay et al., 2021; LRA) calls this task Retrieval.
"""

from array import array
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG

import torch

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.errors import DatasetError
from mimo_benchmarks.progress import progress_bar

COUNTS = {"train": 147_086, "dev": 18_090, "test": 17_437}
"""Published number of pairs of each split; each is a line of its file."""

FILES = {"train": "new_aan_pairs.train.tsv", "dev": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
"""File name of each split in the folder tsv_data of LRA's release."""

LENGTH = 4000
"""Bytes that are kept of a paper."""

LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}

REMEDY = (
    "put the three new_aan_pairs files of LRA's release (lra_release.gz, tsv_data) there, or name another folder with --data-dir"
)


def retrieval_splits(folder: Path, *, counts: Mapping[str, int] | None = COUNTS) -> dict[str, Sequences]:
    """Return the pairs of papers as "train", "dev" and "test". Label 1 is a pair of which one cites the other; ids are bytes + 1.

    LRA's reader (google-research/long-range-arena, matching/input_pipeline.py) defines the files: a pair per line, no header,
    five fields separated by tabs: the label, written as a float, the names of the two papers, and their two texts. Quotes
    have no meaning. The texts are Python's notation of bytes, b'..' with \\n for the end of a line; as in LRA and its
    successors, a text is taken as it stands, notation included.

    Files are read line by line, so memory holds one byte per byte kept, 1.2 GB for train.

    Args:
        folder: folder with new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv (dev) and new_aan_pairs.test.tsv.
        counts: number of pairs that each split must have; None allows any number.

    Raises:
        DatasetError: a file is missing, cannot be read, has another form, or another number of pairs; names the line.
    """
    return {split: read_pairs(folder / name, counts[split] if counts else None) for split, name in FILES.items()}


def read_pairs(path: Path, count: int | None) -> Sequences:
    """Return the pairs of one file, which must have `count` lines; None allows any number from 1.

    Raises:
        DatasetError: the file is missing, cannot be read, has another form, or another number of pairs; names the line.
    """
    values, offsets, labels = bytearray(), array("q", [0]), array("q")
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        with path.open("rb") as lines, progress_bar(f"reading {path.name}", path.stat().st_size, in_bytes=True) as bar:
            for number, line in enumerate(lines, 1):
                try:
                    label, texts = parse_pair(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                labels.append(label)
                for text in texts:
                    values += text[:LENGTH]
                    offsets.append(len(values))
                bar.update(len(line))
        if not labels:
            raise ValueError("it is empty")
        if count not in (None, len(labels)):
            raise ValueError(f"it has {len(labels):,} pairs, not the {count:,} published")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DatasetError(f"{path} cannot be read ({reason}): {REMEDY}") from error
    return Sequences(
        values=torch.frombuffer(values, dtype=torch.uint8),  # shares the memory of `values`
        offsets=torch.frombuffer(offsets, dtype=torch.int64),
        labels=torch.frombuffer(labels, dtype=torch.int64),
        parts=2,
    )


def parse_pair(line: bytes) -> tuple[int, list[bytes]]:
    """Return the label and the two texts of a line.

    Raises:
        ValueError: the line has another form.
    """
    fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields, but there must be five: label, name, name, text, text")
    label, *_, first, second = fields
    if label not in LABELS:
        raise ValueError(f"the label is {label[:20]!r}, not 0.0 or 1.0")
    for text in (first, second):
        if not text:
            raise ValueError("a text is empty")
        text.decode()
    return LABELS[label], [first, second]
