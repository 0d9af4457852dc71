"""Whether one paper cites the other: pairs from the ACL Anthology Network (AAN; Radev et al., 2013), byte by byte, as in the Long
Range Arena (Tay et al., 2021; LRA), which calls the task Retrieval.
"""

from array import array
from pathlib import Path
from stat import S_ISREG

import torch

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.long_range_arena.text import positive
from mimo_benchmarks.errors import DatasetError

COUNTS = {"train": 147_086, "dev": 18_090, "test": 17_437}
"""Pairs of each split, one a line."""

FILES = {"train": "new_aan_pairs.train.tsv", "dev": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
"""Their names in LRA's release, in its folder tsv_data."""

LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}

REMEDY = (
    "put the three new_aan_pairs files of LRA's release (lra_release.gz, tsv_data) there, or name another folder with --data-dir"
)


def retrieval(folder: Path, *, length: int = 4000, complete: bool = True) -> dict[str, Sequences]:
    """Pairs of papers as train, dev and test. Label 1 is a pair of which one cites the other; ids are bytes + 1.

    LRA's reader (google-research/long-range-arena, matching/input_pipeline.py) says what a file is: a pair on each line, no line
    of names, five fields with tabs between them: the label, written as a float, two names of papers, and their two texts.
    Quotes are nothing special. The texts there are Python's notation of bytes, b'..' with \\n for the end of a line; as LRA and
    its successors do, a text is taken as it stands, notation included.

    A file is read line by line: what stays in memory is a byte for every byte kept, 1.2 GB for train at 4000.

    Args:
        folder: holds new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv (dev) and new_aan_pairs.test.tsv.
        length: bytes kept of a text.
        complete: refuse files with another number of pairs than published, 147,086, 18,090 and 17,437.

    Raises:
        ConfigError: `length` is not positive.
        DatasetError: a file is missing, cannot be read, is of another form, or has too few or too many pairs; names the line.
    """
    positive(length)
    return {split: pairs(folder / name, length, COUNTS[split] if complete else None) for split, name in FILES.items()}


def pairs(path: Path, length: int, count: int | None) -> Sequences:
    """One file, of so many lines; None allows any number from 1.

    Raises:
        DatasetError: as `retrieval`.
    """
    values, offsets, labels = bytearray(), array("q", [0]), array("q")
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    label, texts = pair(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                labels.append(label)
                for text in texts:
                    values += text[:length]
                    offsets.append(len(values))
        if not labels:
            raise ValueError("it is empty")
        if count not in (None, len(labels)):
            raise ValueError(f"it has {len(labels):,} pairs, not the {count:,} published")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DatasetError(f"{path} cannot be read ({reason}): {REMEDY}") from error
    return Sequences(
        values=torch.frombuffer(values, dtype=torch.uint8),  # which is `values`, not a copy
        offsets=torch.frombuffer(offsets, dtype=torch.int64),
        labels=torch.frombuffer(labels, dtype=torch.int64),
        parts=2,
    )


def pair(line: bytes) -> tuple[int, list[bytes]]:
    """The label and the two texts of a line.

    Raises:
        ValueError: it is not of that form.
    """
    fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields, not the five label, name, name, text, text")
    label, *_, first, second = fields
    if label not in LABELS:
        raise ValueError(f"the label is {label[:20]!r}, neither 0.0 nor 1.0")
    for text in (first, second):
        if not text:
            raise ValueError("a text is empty")
        text.decode()
    return LABELS[label], [first, second]
