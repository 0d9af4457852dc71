"""Classification of texts byte by byte: IMDb's reviews, as in the Long Range Arena (Tay et al., 2021; LRA), or the user's own."""

import hashlib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.long_range_arena.text_tables import Table, read_table
from mimo_benchmarks.errors import ConfigError, DatasetError

IMDB = {
    "train": "6c8db4a0191c57e233c757f41a67e8267ac9af443df08956a7cb77a47e92cb10",
    "test": "d629e217bfdfdfc49e4985bbc017b0d87b384aabe6d478912c130b17621b6346",
}
"""The published 25,000 reviews of either split, by `digest`."""

REMEDY = (
    "put the two files of stanfordnlp/imdb (plain_text) on the Hugging Face Hub there, as train.parquet and test.parquet, "
    "or name another folder with --data-dir"
)


def text(
    folder: Path, *, length: int = 4000, published: bool = False, seed: int = 0, remedy: str = REMEDY
) -> dict[str, Sequences]:
    """IMDb's reviews (Maas et al., 2011) as train, dev and test. Label 1 is a good one; ids are bytes + 1.

    LRA's dev set is its test set (google-research/long-range-arena, text_classification/input_pipeline.py): the checkpoint to
    test is chosen by the test set. Here 10 % of train is dev instead, 1,250 reviews of either label.

    Args:
        folder: holds imdb/train.parquet and imdb/test.parquet, written with any settings and with the rows in any order.
        length: bytes kept of a review.
        published: as LRA has it: train is all 25,000 reviews, and dev is test.
        seed: decides which reviews are dev.
        remedy: what the user is to do about files that are not as they should be.

    Raises:
        ConfigError: `length` is not positive.
        DatasetError: a file is missing or cannot be read, or its texts and labels are not those published.
    """
    positive(length)
    train, test = (reviews(folder / "imdb" / f"{split}.parquet", IMDB[split], remedy) for split in ("train", "test"))
    train, dev = (train, test) if published else hold_out(*train, seed=seed)
    return sequences(length, train=train, dev=dev, test=test)


def user_text(*, train: Path, test: Path, dev: Path | None = None, length: int, seed: int = 0) -> dict[str, Sequences]:
    """The user's own texts as train, dev and test, from tables as `read_table` takes them; ids are bytes + 1.

    The labels of `train`, which must be 0, 1, .. without a gap, are the classes.

    Args:
        train: a table.
        test: a table.
        dev: a table. Without it, 10 % of `train` is dev: of each label alike, rounded up.
        length: bytes kept of a text.
        seed: decides which texts are dev, if there is no table of them.

    Raises:
        ConfigError: `length` is not positive.
        DatasetError: as `read_table`; or there is no table for dev, and `train` has a single text of some label.
    """
    positive(length)
    trained = read_table(train)
    classes = max(trained[1]) + 1
    tested = read_table(test, classes=classes)
    if dev is not None:
        developed = read_table(dev, classes=classes)
    elif single := [label for label, number in Counter(trained[1]).items() if number == 1]:
        raise DatasetError(
            f"{train} has a single text with label {min(single)}, so none to hold out: add some, or a table for dev"
        )
    else:
        trained, developed = hold_out(*trained, seed=seed)
    return sequences(length, train=trained, dev=developed, test=tested)


def positive(length: int) -> None:
    """Nothing else is a length.

    Raises:
        ConfigError: it is not.
    """
    if length < 1:
        raise ConfigError(f"length is {length}; it must be at least 1")


def sequences(length: int, **splits: Table) -> dict[str, Sequences]:
    """Of each split, the first `length` bytes of every text."""
    return {name: Sequences.of([text[:length] for text in texts], labels) for name, (texts, labels) in splits.items()}


def reviews(path: Path, expected: str, remedy: str = REMEDY) -> Table:
    """A table with labels 0 and 1 whose digest is known.

    Raises:
        DatasetError: as `read_table`; or its digest is another.
    """
    table = read_table(path, classes=2, remedy=remedy)
    if digest(*table) != expected:
        raise DatasetError(f"{path}: its {len(table[0]):,} texts and labels are not those published: {remedy}")
    return table


def check_imdb(content: bytes, split: str) -> None:
    """Whether this is a Parquet file of a split's published reviews.

    Raises:
        DatasetError: it is not.
    """
    with TemporaryDirectory() as place:
        path = Path(place) / f"{split}.parquet"
        path.write_bytes(content)
        reviews(path, IMDB[split])


def digest(texts: list[bytes], labels: list[int]) -> str:
    """SHA-256, in hex, of the sorted SHA-256 of all rows: the same for the same rows in any order and format."""
    return hashlib.sha256(b"".join(sorted(map(row_digest, texts, labels)))).hexdigest()


def row_digest(text: bytes, label: int) -> bytes:
    """SHA-256 of the label in decimal, a tab, and the text."""
    return hashlib.sha256(f"{label}\t".encode() + text).digest()


def hold_out(texts: list[bytes], labels: list[int], *, seed: int) -> tuple[Table, Table]:
    """A table without 10 % of its rows, of each label alike and rounded up; and a table of these.

    Held out are the rows of lowest SHA-256 taken with the seed: as good as random, but the same on any machine and for any order
    of the rows. Equal rows stay together, except where the 10 % end.
    """
    wanted = {label: -(-number // 10) for label, number in Counter(labels).items()}
    ranks = [hashlib.sha256(f"{seed}\t".encode() + row).digest() for row in map(row_digest, texts, labels)]
    held = set()
    for row in sorted(range(len(ranks)), key=ranks.__getitem__):
        if wanted[labels[row]]:
            wanted[labels[row]] -= 1
            held.add(row)

    def of(rows: list[int]) -> Table:
        return [texts[row] for row in rows], [labels[row] for row in rows]

    return of([row for row in range(len(ranks)) if row not in held]), of(sorted(held))
