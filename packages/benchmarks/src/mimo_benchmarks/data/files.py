"""Files that are opened only after their checksum matched."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mimo_benchmarks.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as it was published."""

    path: str
    """Where it lies below the data folder."""
    size: int
    """Bytes."""
    digest: str
    """Its checksum in hex after the algorithm, as in "sha256:0fa7..": MD5 where nothing better was published."""


def digest(content: bytes, algorithm: str) -> str:
    """Such a checksum, of "sha256" or "md5"."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def read(file: File, folder: Path, remedy: str) -> bytes:
    """The content of a published file, which is what was checked: the file is read once.

    Args:
        file: which.
        folder: the data folder.
        remedy: what the user is to do if this fails; ends the error's message.

    Raises:
        DatasetError: the file is missing, cannot be read, or is not the published one; names it, its place and the remedy.
    """
    path = folder / file.path
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: {remedy}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    if len(content) != file.size:
        raise DatasetError(f"{path} has {len(content):,} bytes, the published file {file.size:,}: {remedy}")
    if digest(content, file.digest.partition(":")[0]) != file.digest:
        raise DatasetError(f"{path} is not the published file, by its checksum: {remedy}")
    return content
