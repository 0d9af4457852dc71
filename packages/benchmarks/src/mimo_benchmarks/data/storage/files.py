"""Describe published files, and check each one before it is opened."""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from mimo_benchmarks.data.storage.http import is_http_url
from mimo_benchmarks.errors import ConfigError, DatasetError


@dataclass(frozen=True, kw_only=True)
class File:
    """A published file whose size and checksum are known."""

    path: str
    """Path of the file, relative to the data folder."""
    size: int
    """Size of the file in bytes."""
    digest: str
    """Algorithm and checksum in hex, as in "sha256:0fa7..". All published files have SHA-256."""


@dataclass(frozen=True, kw_only=True)
class ByContent:
    """A published file without a known checksum: its content is checked instead."""

    path: str
    """Path of the file, relative to the data folder."""
    limit: int
    """Largest size of the file in bytes."""
    check: Callable[[bytes], object]
    """Function of the file's content that raises DatasetError unless it is the expected content."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The addresses at which files are published.

    Raises:
        ConfigError: an address is not an http(s) URL, a path leaves the data folder, or the files do not match the archive.
    """

    urls: tuple[str, ...]
    """Mirrors of one and the same file, the best first."""
    files: tuple[File | ByContent, ...]
    """Files to put into the data folder: the file that the mirrors serve, or the files that its archive packs."""
    archive: File | None = None
    """Archive that the mirrors serve: a .tar.gz whose members are named like the files' paths, or a .gz of a single file.

    Its checksum must be known, because nothing is unpacked before the checksum matched.
    """
    served: File | None = None
    """What the mirrors serve for a file that is checked by its content where it lies already, with other bytes perhaps."""

    def __post_init__(self) -> None:
        """Refuse a source that could never be fetched."""
        for url in self.urls:
            if not is_http_url(url):
                raise ConfigError(f"{url!r} is not a web address: it must begin with https:// or http:// and name a host")
        for file in (*self.files, *filter(None, [self.archive, self.served])):
            path = PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts or not path.name:
                raise ConfigError(f"the path {file.path!r} must stay below the data folder")
        if self.archive is not None and not self.archive.path.endswith(".gz"):
            raise ConfigError(f"{self.archive.path} is neither a .gz nor a .tar.gz")
        if len(self.files) != 1 and not (self.files and self.archive and self.archive.path.endswith(".tar.gz")):
            raise ConfigError(
                f"the source {self.urls} has {len(self.files)} files: name one file, or several files of a .tar.gz archive"
            )


def checksum(content: bytes, algorithm: str) -> str:
    """Return the checksum of some bytes as `File.digest` writes it; the algorithm is "sha256" or "md5"."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


@contextmanager
def os_errors_explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a DatasetError that names the file, or `path` where the error names none.

    Raises:
        DatasetError: the file system refused an operation.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{error.filename or path} cannot be read or written ({error.strerror or error}): free some space or fix the "
            "permissions there, or name another folder with --data-dir"
        ) from error


def exists(path: Path) -> bool:
    """Return whether there is a file or a folder at this path.

    Raises:
        DatasetError: the file system does not tell, or the path is neither a file nor a folder (reading a pipe would hang).
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable_file_error(path, error) from error
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise DatasetError(f"{path} is not a file: put the file there, or name another folder with --data-dir")
    return True


def unreadable_file_error(path: Path, error: OSError) -> DatasetError:
    """Return the error to raise when the file system refuses to read a file."""
    reason = error.strerror or error
    return DatasetError(f"{path} cannot be read ({reason}): fix what is there, or name another folder with --data-dir")


def read_published_file(file: File, folder: Path, remedy: str) -> bytes:
    """Read a published file once, and return its content only if its size and checksum match.

    Args:
        file: file to read.
        folder: data folder.
        remedy: what the user should do if this fails; it ends the error's message.

    Raises:
        DatasetError: the file is missing, cannot be read, or is not the published one; names the path and the remedy.
    """
    path = folder / file.path
    if not exists(path):
        raise DatasetError(f"{path} is missing: {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable_file_error(path, error) from error
    if len(content) != file.size:
        raise DatasetError(f"{path} has {len(content):,} bytes, but the published file has {file.size:,}: {remedy}")
    if checksum(content, file.digest.partition(":")[0]) != file.digest:
        raise DatasetError(f"{path} is not the published file (its checksum differs): {remedy}")
    return content


def sync(path: Path) -> None:
    """Write a file or folder through to the disk, so that it survives a loss of power. Windows cannot sync folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder and those above it that are missing, so that they survive a loss of power."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=exist_ok)
    for each in reversed(missing):
        sync(each.parent)


def lock_file(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file against other processes until it is closed, or this process ends; return whether it could be locked.

    Raises:
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            os.lseek(file.fileno(), 2**30, os.SEEK_SET)  # far behind the content, because bytes that are locked cannot be read
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError as error:
                if not wait and error.errno in (errno.EACCES, errno.EDEADLK):
                    return False
                if error.errno != errno.EDEADLK:  # this one only says that ten seconds have passed
                    raise
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
