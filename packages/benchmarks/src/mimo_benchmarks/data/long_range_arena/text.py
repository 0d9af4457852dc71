"""Read IMDb's reviews byte by byte, as in the Long Range Arena (Tay et al., 2021; LRA), whose task Text classifies them."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.long_range_arena.text_tables import Table, read_parquet_table
from mimo_benchmarks.errors import DatasetError

IMDB = {
    "train": "6c8db4a0191c57e233c757f41a67e8267ac9af443df08956a7cb77a47e92cb10",
    "test": "d629e217bfdfdfc49e4985bbc017b0d87b384aabe6d478912c130b17621b6346",
}
"""Digest, by `table_digest`, of the published 25,000 reviews of either split."""

LENGTH = 4000
"""Bytes that are kept of a review."""

REMEDY = (
    "put the two files of stanfordnlp/imdb (plain_text) on the Hugging Face Hub there, as train.parquet and test.parquet, "
    "or name another folder with --data-dir"
)


def text_splits(
    folder: Path, *, published: bool = False, remedy: str = REMEDY, digests: Mapping[str, str] = IMDB
) -> dict[str, Sequences]:
    """Return IMDb's reviews (Maas et al., 2011) as "train", "dev" and "test". Label 1 is a good review; ids are bytes + 1.

    LRA uses the test set as its dev set (google-research/long-range-arena, text_classification/input_pipeline.py), so that
    it chooses the checkpoint to test by the test set. Here, 10 % of the training reviews, 1,250 of each label, are dev instead.

    Args:
        folder: data folder, with imdb/train.parquet and imdb/test.parquet, written with any settings and rows in any order.
        published: split as LRA does: train is all 25,000 reviews, and dev is test.
        remedy: what the user should do if a file is missing or wrong; it ends the error's message.
        digests: digest of each split, by `table_digest`.

    Raises:
        DatasetError: a file is missing or cannot be read, or its reviews and labels are not the published ones.
    """
    train, test = (read_reviews(folder / "imdb" / f"{split}.parquet", digests[split], remedy) for split in ("train", "test"))
    train, dev = (train, test) if published else hold_out(*train)
    splits = {"train": train, "dev": dev, "test": test}
    return {name: Sequences.of([text[:LENGTH] for text in texts], labels) for name, (texts, labels) in splits.items()}


def read_reviews(path: Path, digest: str, remedy: str) -> Table:
    """Return the reviews and labels of a file, once their digest has been checked.

    Raises:
        DatasetError: the file cannot be read, or its digest differs.
    """
    table = read_parquet_table(path, remedy)
    if table_digest(*table) != digest:
        raise DatasetError(f"{path} holds {len(table[0]):,} reviews that are not the published ones: {remedy}")
    return table


def check_imdb(content: bytes, split: str) -> None:
    """Check that a file is a Parquet file of the published reviews of a split.

    Raises:
        DatasetError: it is not.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{split}.parquet"
        path.write_bytes(content)
        read_reviews(path, IMDB[split], REMEDY)


def table_digest(texts: list[bytes], labels: list[int]) -> str:
    """Return the SHA-256, in hex, of the sorted SHA-256 of all rows: the same for the same rows in any order and format."""
    return hashlib.sha256(b"".join(sorted(map(row_digest, texts, labels)))).hexdigest()


def row_digest(text: bytes, label: int) -> bytes:
    """Return the SHA-256 of the label in decimal, a tab, and the text."""
    return hashlib.sha256(f"{label}\t".encode() + text).digest()


def hold_out(texts: list[bytes], labels: list[int], *, seed: int = 0) -> tuple[Table, Table]:
    """Split a table: return it without 10 % of the rows of each label, rounded up, and a table of the rows held out.

    The rows held out have the lowest SHA-256 of seed and row: as good as random, but the same on any machine and for any order
    of the rows. Equal rows stay together, except at the boundary of the 10 %.
    """
    wanted = {label: -(-number // 10) for label, number in Counter(labels).items()}
    ranks = [hashlib.sha256(f"{seed}\t".encode() + row).digest() for row in map(row_digest, texts, labels)]
    held = set()
    for row in sorted(range(len(ranks)), key=ranks.__getitem__):
        if wanted[labels[row]]:
            wanted[labels[row]] -= 1
            held.add(row)

    def selected(rows: list[int]) -> Table:
        return [texts[row] for row in rows], [labels[row] for row in rows]

    return selected([row for row in range(len(ranks)) if row not in held]), selected(sorted(held))
