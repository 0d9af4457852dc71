"""Brings published files into the data folder: whole and checked, or not at all."""

import errno
import gzip
import hashlib
import os
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mimo_benchmarks.data.storage.files import ByContent, File, Source, sync
from mimo_benchmarks.data.storage.http import CHUNK, Refused, receive
from mimo_benchmarks.errors import ConfigError, DatasetError

BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError, MemoryError)
"""What reading a broken archive raises: the last three come of numbers in its headers."""


def fetch(
    sources: Sequence[Source],
    folder: Path,
    *,
    timeout: float = 30,
    rounds: int = 5,
    backoff: float = 1,
    progress: bool = True,
) -> None:
    """Bring the files of these sources that are not in the folder yet, or are not what was published.

    A file appears under its name only when it is whole and checked, and lasts. Until then its name ends in .part; what arrived
    stays after any failure, and the next call goes on from there. Whether the two halves belong together the checksum decides:
    if not, the file is fetched anew. A second process waits until the first is done, and then finds the files there. If nothing
    is missing, nothing is written and no socket opened. An archive that lies at its own path is used instead of a download.

    Args:
        sources: what to fetch and where from.
        folder: the data folder, made if it is not there.
        timeout: seconds that a server may be silent.
        rounds: how often all mirrors are tried; those that do not have the file only once.
        backoff: seconds before the second round, doubled with each.
        progress: whether to show a bar on stderr.

    Raises:
        ConfigError: a setting that cannot work.
        DatasetError: no mirror served the file, and what each did; or the folder cannot be read or written.
    """
    for name, value, least in (("timeout", timeout, 1e-3), ("rounds", rounds, 1), ("backoff", backoff, 0)):
        if not value >= least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    for source in sources:
        with usable(folder):
            if not lacking(source, folder):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".fetch.lock"):
                if lacking(source, folder):  # still, after waiting for the lock
                    bring(source, folder, timeout, rounds, backoff, progress)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Where the file system fails, an error that names the place."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}): "
            "give it the rights or the space, or name another folder with --data-dir"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time, for which the others wait; it ends with that process, however it ends. The file stays."""
    with path.open("ab") as handle:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError as error:
                    if error.errno != errno.EDEADLK:  # which says that ten seconds are over
                        raise
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def lacking(source: Source, folder: Path) -> list[File | ByContent]:
    """The wanted files that are not there as they should be."""
    return [file for file in source.files if fault(file, folder / file.path)]


def fault(file: File | ByContent, path: Path) -> str | None:
    """What is wrong with the file at that path; None if it is the published one."""
    if not path.is_file():
        return "is missing"
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if isinstance(file, ByContent):
            if size > file.limit:
                return f"has {size:,} bytes, which is more than {file.limit:,}"
            try:
                file.check(handle.read(file.limit))
            except DatasetError as error:
                return f"is not what is meant ({error})"
            return None
        if size != file.size:
            return f"has {size:,} bytes, the published file {file.size:,}"
        algorithm, _, published = file.digest.partition(":")
        found = hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        return None if found == published else "is not the published file, by its checksum"


def bring(source: Source, folder: Path, timeout: float, rounds: int, backoff: float, progress: bool) -> None:
    """Fetch what is served, unless the archive is there, and put what is wanted in its place."""
    served = source.archive or source.files[0]
    path = folder / served.path
    wrong = fault(served, path)
    if wrong is None:  # an archive, put there by hand: it stays
        return unpack(source, path, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    failures, urls = {str(path): wrong}, list(source.urls)
    for delay in (0, *(backoff * 2**i for i in range(rounds - 1))):
        time.sleep(delay)
        for url in tuple(urls):
            try:
                obtain(url, served, part, timeout, progress)
            except Refused as refusal:
                failures[url] = str(refusal)
                if refusal.final:
                    urls.remove(url)
                continue
            if source.archive is None:
                return promote(part, path)
            unpack(source, part, folder)
            return part.unlink()
        if not urls:
            break
    told = "".join(f"\n  {address}: {what}" for address, what in failures.items())
    raise DatasetError(f"no address served {served.path}: put it at {path} by hand, or try again later{told}")


def beside(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f"{path.name}.part")


def promote(part: Path, path: Path) -> None:
    """Give a checked file its name, so that it lasts."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def unpack(source: Source, archive: Path, folder: Path) -> None:
    """Put the wanted files of a checked archive in their places. Links, and members of other names, are passed over."""
    left = {file.path: file for file in lacking(source, folder)}
    try:
        if not str(source.archive and source.archive.path).endswith(".tar.gz"):
            with gzip.open(archive) as stream:
                put(stream.read, left.popitem()[1], folder)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                while left and (member := tar.next()):
                    if member.name in left and member.isreg() and (packed := tar.extractfile(member)):
                        put(packed.read, left.pop(member.name), folder)
    except BROKEN as error:
        raise DatasetError(
            f"{archive} cannot be unpacked ({error}), so its published checksum is that of a broken file"
        ) from error
    if left:
        raise DatasetError(f"{archive} has no file {', '.join(left)} in it: what was published is another archive")


def put(read: Callable[[int], bytes], file: File | ByContent, folder: Path) -> None:
    """Write an unpacked file, of its own size at most, and give it its name if it is the published one."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    with part.open("wb") as handle:
        while (room := most(file) + 1 - handle.tell()) and (chunk := read(min(CHUNK, room))):
            handle.write(chunk)
    if wrong := fault(file, part):
        part.unlink()
        raise DatasetError(f"{path} as it was packed {wrong}: what was published is another archive")
    promote(part, path)


def most(file: File | ByContent) -> int:
    """The most bytes that the file can have."""
    return file.size if isinstance(file, File) else file.limit


def obtain(url: str, served: File | ByContent, part: Path, timeout: float, progress: bool) -> None:
    """Make the part whole from one address; if it was there in part and is wrong now, it is fetched anew, once.

    Raises:
        Refused: that failed.
    """
    resumed = True
    while resumed:
        exact = isinstance(served, File)
        resumed = receive(url, part, most(served), exact=exact, timeout=timeout, progress=progress)
        wrong = fault(served, part)
        if wrong is None:
            return
        part.unlink()
    raise Refused(f"what it serves {wrong}", final=True)
