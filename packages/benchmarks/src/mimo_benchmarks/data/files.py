"""Files that are opened only after their checksum matched."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

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


def there(path: Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
        DatasetError: it cannot be told, or it is neither: reading from a pipe would wait for ever.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise DatasetError(f"{path} is no file: put the file there, or name another folder with --data-dir")
    return True


def unreadable(path: Path, error: OSError) -> DatasetError:
    """What to say where the file system refuses."""
    reason = error.strerror or error
    return DatasetError(f"{path} cannot be read ({reason}): see to what is there, or name another folder with --data-dir")


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
    if not there(path):
        raise DatasetError(f"{path} is missing: {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) != file.size:
        raise DatasetError(f"{path} has {len(content):,} bytes, the published file {file.size:,}: {remedy}")
    if digest(content, file.digest.partition(":")[0]) != file.digest:
        raise DatasetError(f"{path} is not the published file, by its checksum: {remedy}")
    return content
