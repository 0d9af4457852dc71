"""Read Parquet tables of texts with labels.

`datasets` would read them too, but it asks a server on the way, to count how often a format is loaded.
"""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from pyarrow.parquet import ParquetFile

from mimo_benchmarks.errors import DatasetError

Table = tuple[list[bytes], list[int]]
"""Texts in UTF-8 and their labels."""


def read_parquet_table(path: Path, remedy: str) -> Table:
    """Return the texts and labels of a Parquet file, row by row. Nothing is downloaded, and no file is left behind.

    Args:
        path: Parquet file with a column "text" of strings and a column "label" of 0 and 1; other columns are ignored.
        remedy: what the user should do if this fails; it ends the error's message.

    Raises:
        DatasetError: there is no such file, or it is not such a table; names the row, what is wrong, and the remedy.
    """
    texts: list[bytes] = []
    labels: list[int] = []
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        for number, (text, label) in enumerate(parquet_rows(path), 1):
            try:
                texts.append(utf8_bytes(text))
                labels.append(binary_label(label))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        if not texts:
            raise ValueError("it has no rows")
    except MemoryError:
        raise
    except Exception as error:  # pyarrow raises nearly any exception on a damaged file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DatasetError(f"{path} cannot be read ({reason}): {remedy}") from error
    return texts, labels


def parquet_rows(path: Path) -> Iterator[tuple[object, object]]:
    """Yield the text and label of each row, decoding a thousand rows at a time and checking pages that have a checksum."""
    with path.open("rb") as content, ParquetFile(content, page_checksum_verification=True) as table:
        names = table.schema_arrow.names
        for name in ("text", "label"):
            if names.count(name) != 1:
                raise ValueError(f"{names.count(name) or 'no'} columns {name!r} among {reprlib.repr(names)}")
        number = 0
        for batch in table.iter_batches(1000, columns=["text", "label"]):
            for text, label in zip(batch["text"], batch["label"], strict=True):
                number += 1
                try:
                    row = text.as_py(), label.as_py()
                except UnicodeDecodeError as error:
                    raise ValueError(f"row {number}: the text is not UTF-8") from error
                yield row


def utf8_bytes(text: object) -> bytes:
    """Return the bytes of a text.

    Raises:
        ValueError: it is not a text, or not in UTF-8.
    """
    if text is None:
        raise ValueError("the text is missing")
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if isinstance(text, str):
            return text.encode()
    except UnicodeError as error:
        raise ValueError("the text is not UTF-8") from error
    raise ValueError(f"the text is not a string but {reprlib.repr(text)}")


def binary_label(label: object) -> int:
    """Return a label that is the integer 0 or 1.

    Raises:
        ValueError: it is not.
    """
    if label is None:
        raise ValueError("the label is missing")
    if isinstance(label, bool) or not isinstance(label, int) or label not in (0, 1):
        raise ValueError(f"the label is {reprlib.repr(label)}, not 0 or 1")
    return label
