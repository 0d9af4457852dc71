"""Files as they were published: where they come from, and how they are checked before they are opened."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG

from mimo_benchmarks.data.storage.http import is_web
from mimo_benchmarks.errors import ConfigError, DatasetError


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as it was published."""

    path: str
    """Where it lies below the data folder."""
    size: int
    """Bytes."""
    digest: str
    """Its checksum in hex after the algorithm, as in "sha256:0fa7..": MD5 where nothing better was published."""


@dataclass(frozen=True, kw_only=True)
class ByContent:
    """A file without a published checksum: what it holds is checked instead."""

    path: str
    """Where it lies below the data folder."""
    limit: int
    """The most bytes it can have."""
    check: Callable[[bytes], object]
    """Raises DatasetError unless this is the content that is meant."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files are published.

    Raises:
        ConfigError: an address that is not of the web, a path that leaves the data folder, or files that cannot come of this.
    """

    urls: tuple[str, ...]
    """Mirrors of one and the same file, the best first."""
    files: tuple[File | ByContent, ...]
    """What is wanted: the file that the mirrors serve, or those that are packed in it."""
    archive: File | None = None
    """The file that the mirrors serve if the wanted are packed: a .tar.gz, with members named as their paths, or a .gz of one.

    Its checksum must be known, so that nothing is unpacked before it matched.
    """

    def __post_init__(self) -> None:
        """Refuse what can never be fetched."""
        for url in self.urls:
            if not is_web(url):
                raise ConfigError(f"{url!r} is no address of the web: it must begin with https:// or http:// and name a host")
        for file in (*self.files, *filter(None, [self.archive])):
            path = PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts or not path.name:
                raise ConfigError(f"the path {file.path!r} must stay below the data folder")
        if self.archive is not None and not self.archive.path.endswith(".gz"):
            raise ConfigError(f"{self.archive.path} is neither a .gz nor a .tar.gz")
        if len(self.files) != 1 and not (self.files and self.archive and self.archive.path.endswith(".tar.gz")):
            raise ConfigError(
                f"{len(self.files)} files from {self.urls}: several come from a .tar.gz only, and there must be one"
            )


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


def sync(path: Path) -> None:
    """Have a file or folder on disk, whatever happens next. Windows knows no such thing of folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
