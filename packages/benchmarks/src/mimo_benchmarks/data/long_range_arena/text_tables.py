"""Tables of texts with labels, in the formats that users have, read as they stand.

`datasets` would read them all, but asks a server on the way (to count how often a format is loaded), and guesses the types of
what has none: texts that look like dates become dates, and where all rows of CSV have a field more than there are names, every
column moves by one.
"""

import codecs
import csv
import io
import json
import re
import reprlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pyarrow.parquet import ParquetFile

from mimo_benchmarks.errors import DatasetError

Table = tuple[list[bytes], list[int]]
"""Texts in UTF-8 and their labels."""

Row = tuple[str, object, object]
"""A row's place in its file, then its text and label as they are there."""

REMEDY = 'a table needs a column "text", of strings, and a column "label", of integers from 0 without a gap'


def read_table(path: Path, *, classes: int | None = None, remedy: str = REMEDY) -> Table:
    """The texts and labels of a table, row by row. Nothing is fetched, and nothing written that stays.

    Args:
        path: what it is shows by its suffix. .parquet; .csv or .tsv, with names in the first line and quotes as in RFC 4180;
            .jsonl or .json, with an object on each line, or with one array of objects. All but Parquet are in UTF-8. Columns
            other than "text" and "label" are ignored.
        classes: labels are below this. If None, they must be 0, 1, .. without a gap.
        remedy: what the user is to do if this fails; ends the error's message.

    Raises:
        DatasetError: there is no such file, or it is no such table; names its line or row, what is wrong, and the remedy.
    """
    texts: list[bytes] = []
    labels: list[int] = []
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        for place, text, label in rows(path):
            try:
                texts.append(utf8(text))
                labels.append(class_index(label, classes))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
        if not texts:
            raise ValueError("it has no rows")
        seen = set(labels)
        gap = next(label for label in count() if label not in seen)
        if classes is None and gap < max(labels):
            raise ValueError(f"there is a label {max(labels)}, but no label {gap}")
    except Exception as error:  # pyarrow raises nearly anything on a damaged file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DatasetError(f"{path} cannot be read ({reason}): {remedy}") from error
    return texts, labels


def rows(path: Path) -> Iterator[Row]:
    """The rows of a table in any of the formats.

    Raises:
        ValueError: there is no such format.
    """
    match path.suffix.lower():
        case ".parquet":
            return parquet_rows(path)
        case ".csv":
            return csv_rows(path, ",")
        case ".tsv":
            return csv_rows(path, "\t")
        case ".jsonl" | ".json":
            return json_rows(path)
    raise ValueError("it is none of .parquet, .csv, .tsv, .jsonl and .json")


def parquet_rows(path: Path) -> Iterator[Row]:
    """Decoded a thousand at a time, each page by its checksum if it has one."""
    number = 0
    with path.open("rb") as content, ParquetFile(content, page_checksum_verification=True) as table:
        column_indices(table.schema_arrow.names)
        for batch in table.iter_batches(1000, columns=["text", "label"]):
            for text, label in zip(batch["text"], batch["label"], strict=True):
                number += 1
                try:
                    row = f"row {number}", text.as_py(), label.as_py()
                except UnicodeDecodeError as error:
                    raise ValueError(f"row {number}: the text is no UTF-8") from error
                yield row


def csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """An empty field is an empty text; labels of at most nine digits are integers."""
    csv.field_size_limit(2**31 - 1)  # of the process; by default, 128 KiB
    lines = csv.reader(io.StringIO(decoded(path), newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(lines, [])
        text, label = column_indices(names)
        for fields in lines:
            if not fields:  # an empty line
                continue
            place = f"line {lines.line_num}"
            if len(fields) != len(names):
                raise ValueError(f"{place} has {len(fields)} fields, but there are {len(names)} names")
            yield place, fields[text], int(fields[label]) if re.fullmatch("[0-9]{1,9}", fields[label]) else fields[label]
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error


def column_indices(names: list[str]) -> tuple[int, int]:
    """Where the columns of text and label are.

    Raises:
        ValueError: one of them is missing or there twice.
    """
    for name in ("text", "label"):
        if names.count(name) != 1:
            raise ValueError(f"{names.count(name) or 'no'} columns {name!r} among {reprlib.repr(names)}")
    return names.index("text"), names.index("label")


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of an array, or one of each line."""
    content = decoded(path)
    if content.lstrip().startswith("["):
        objects = ((f"item {number}", item) for number, item in enumerate(parsed(content, 1), 1))
    else:
        lines = enumerate(content.split("\n"), 1)
        objects = ((f"line {number}", parsed(line, number)) for number, line in lines if line.strip())
    for place, item in objects:
        if not isinstance(item, dict):
            raise ValueError(f"{place} is no object but {reprlib.repr(item)}")
        yield place, item.get("text"), item.get("label")


def parsed(document: str, line: int) -> Any:
    """A JSON document that starts in that line.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(document, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line + error.lineno - 1}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"from line {line}: {error}") from error


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of these names and values.

    Raises:
        ValueError: a name is there twice.
    """
    if len(item := dict(pairs)) < len(pairs):
        raise ValueError(f"an object has the same name twice, of {reprlib.repr([name for name, _ in pairs])}")
    return item


def decoded(path: Path) -> str:
    """A text file.

    Raises:
        ValueError: it is not in UTF-8.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is no UTF-8") from error


def utf8(text: object) -> bytes:
    """The bytes of a text.

    Raises:
        ValueError: it is no text, or not one in UTF-8.
    """
    if text is None:
        raise ValueError("the text is missing")
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if isinstance(text, str):
            return text.encode()
    except UnicodeError as error:
        raise ValueError("the text is no UTF-8") from error
    raise ValueError(f"the text is no string but {reprlib.repr(text)}")


def class_index(label: object, classes: int | None) -> int:
    """A label that is an integer from 0 to `classes` - 1, or any from 0.

    Raises:
        ValueError: it is not.
    """
    if label is None:
        raise ValueError("the label is missing")
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise ValueError(f"the label is {reprlib.repr(label)}, no integer from 0")
    if classes is not None and label >= classes:
        raise ValueError(f"the label is {reprlib.repr(label)}, but the last one is {classes - 1}")
    return label
