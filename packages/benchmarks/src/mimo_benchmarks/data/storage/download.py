"""Download published files into the data folder: each one appears there whole and checked, or not at all."""

import gzip
import hashlib
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mimo_benchmarks.data.storage.files import ByContent, File, Source, lock_file, os_errors_explained, sync
from mimo_benchmarks.data.storage.http import CHUNK, Refused, receive
from mimo_benchmarks.errors import ConfigError, DatasetError
from mimo_benchmarks.progress import progress_bar

ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError, MemoryError)
"""Exceptions that reading a broken archive raises; the last three come from impossible numbers in its headers."""


def fetch(
    sources: Sequence[Source],
    folder: Path,
    *,
    timeout: float = 30,
    rounds: int = 5,
    backoff: float = 1,
    progress: bool = True,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Download the files of these sources that are missing from the folder or differ from the published ones.

    A file gets its name only once it is whole, checked and safe on disk. Until then its name ends in .part; after a failure
    the part stays, and the next call resumes it. If the resumed file has the wrong checksum, it is downloaded anew. A second
    process waits until the first has finished, and then finds the files. If nothing is missing, nothing is written and no
    socket is opened. An archive that already lies at its own path is used instead of a download.

    Args:
        sources: what to fetch and where from.
        folder: data folder; created if it does not exist.
        timeout: seconds that a server may be silent.
        rounds: how often to try all mirrors; a mirror that does not have the file is tried only once.
        backoff: seconds to wait before the second round, doubled for each further round.
        progress: whether to show a progress bar on stderr.
        sleep: function that waits for this many seconds.

    Raises:
        ConfigError: a setting is out of range.
        DatasetError: no mirror served the file (the message says what each one did), or the folder cannot be read or written.
    """
    for name, value, least in (("timeout", timeout, 1e-3), ("rounds", rounds, 1), ("backoff", backoff, 0)):
        if not value >= least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    delays = (0, *(backoff * 2**i for i in range(rounds - 1)))
    for source in sources:
        with os_errors_explained(folder):
            with progress_bar(f"checking {source.files[0].path}", hidden=not progress):
                missing = files_to_fetch(source, folder)
            if not missing:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder / ".fetch.lock"):
                if files_to_fetch(source, folder):  # another process may have fetched them while this one waited
                    fetch_source(source, folder, timeout, delays, progress, sleep)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock file that other processes wait for. The lock ends with this process, however it ends; the file stays."""
    with path.open("ab") as handle:
        lock_file(handle, wait=True)
        yield


def files_to_fetch(source: Source, folder: Path) -> list[File | ByContent]:
    """Return the files of a source that are missing from the folder or differ from the published ones."""
    return [file for file in source.files if file_fault(file, folder / file.path)]


def file_fault(file: File | ByContent, path: Path) -> str | None:
    """Describe how the file at this path differs from the published one; None if it does not."""
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
                return f"does not have the expected content ({error})"
            return None
        if size != file.size:
            return f"has {size:,} bytes, but the published file has {file.size:,}"
        algorithm, _, published = file.digest.partition(":")
        found = hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        return None if found == published else "is not the published file (its checksum differs)"


def fetch_source(
    source: Source,
    folder: Path,
    timeout: float,
    delays: Sequence[float],
    progress: bool,
    sleep: Callable[[float], object],
) -> None:
    """Download what the mirrors serve, unless the archive is already there, and move the files to their places."""
    served = source.archive or source.served or source.files[0]
    path = folder / served.path
    fault = file_fault(served, path)
    if fault is None:  # the user put the archive there by hand, so it stays
        return unpack_archive(source, path, folder, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    failures, urls = {str(path): fault}, list(source.urls)
    for delay in delays:
        sleep(delay)
        for url in tuple(urls):
            try:
                download_part(url, served, part, timeout, progress)
            except Refused as refusal:
                failures[url] = str(refusal)
                if refusal.final:
                    urls.remove(url)
                continue
            if source.archive is None:
                return move_into_place(part, path)
            unpack_archive(source, part, folder, progress)
            return part.unlink()
        if not urls:
            break
    reasons = "".join(f"\n  {address}: {reason}" for address, reason in failures.items())
    raise DatasetError(f"no address served {served.path}: put it at {path} by hand, or try again later{reasons}")


def part_path(path: Path) -> Path:
    """Return the path of a file while it is incomplete."""
    return path.with_name(f"{path.name}.part")


def move_into_place(part: Path, path: Path) -> None:
    """Give a checked file its name, so that the file and then its name survive a loss of power."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def unpack_archive(source: Source, archive: Path, folder: Path, progress: bool) -> None:
    """Unpack the missing files of a checked archive into the folder. Links and members of other names are skipped."""
    left = {file.path: file for file in files_to_fetch(source, folder)}
    size = sum(map(size_limit, left.values()))
    try:
        with progress_bar(f"unpacking {archive.name.removesuffix('.part')}", size, in_bytes=True, hidden=not progress) as bar:

            def unpack(read: Callable[[int], bytes], file: File | ByContent) -> None:
                write_unpacked_file(read, file, folder)
                bar.update(size_limit(file))

            if not str(source.archive and source.archive.path).endswith(".tar.gz"):
                with gzip.open(archive) as stream:
                    unpack(stream.read, left.popitem()[1])
            else:
                with tarfile.open(archive, "r:gz") as tar:
                    while left and (member := tar.next()):
                        if member.name in left and member.isreg() and (packed := tar.extractfile(member)):
                            unpack(packed.read, left.pop(member.name))
    except ARCHIVE_ERRORS as error:
        raise DatasetError(
            f"{archive} cannot be unpacked ({error}), though it has the published checksum: the published archive is broken"
        ) from error
    if left:
        raise DatasetError(f"{archive} does not contain {', '.join(left)}: the published archive has changed")


def write_unpacked_file(read: Callable[[int], bytes], file: File | ByContent, folder: Path) -> None:
    """Write an unpacked file and check it; an archive bomb is cut off one byte beyond the file's size."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    with part.open("wb") as handle:
        while (room := size_limit(file) + 1 - handle.tell()) and (chunk := read(min(CHUNK, room))):
            handle.write(chunk)
    if fault := file_fault(file, part):
        part.unlink()
        raise DatasetError(f"{path} as it was packed {fault}: the published archive has changed")
    move_into_place(part, path)


def size_limit(file: File | ByContent) -> int:
    """Return the largest number of bytes that the published file can have."""
    return file.size if isinstance(file, File) else file.limit


def download_part(url: str, served: File | ByContent, part: Path, timeout: float, progress: bool) -> None:
    """Complete a .part file from one address. If a resumed file is wrong, download it anew, once.

    Raises:
        Refused: the address does not serve the published file.
    """
    resumed = True
    while resumed:
        exact = isinstance(served, File)
        resumed = receive(url, part, size_limit(served), exact=exact, timeout=timeout, progress=progress)
        fault = file_fault(served, part)
        if fault is None:
            return
        part.unlink()
    raise Refused(f"the file it serves {fault}", final=True)
