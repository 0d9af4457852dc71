"""Generated data sets, cached as Arrow under a fingerprint of what they were made from."""

import hashlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from itertools import count as counted
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.table import InMemoryTable
from tqdm import tqdm

from mimo_benchmarks.data.storage.files import cores, digest, sync
from mimo_benchmarks.errors import ConfigError, DatasetError

Columns = Mapping[str, list[bytes] | list[int]]
"""Some rows, column by column."""

Arguments = Mapping[str, int | float | str]
"""What the rows depend on, by name."""

FILES = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
"""What `datasets` writes for a set in one piece."""
CHECKSUMS = "SHA256SUMS"
PATIENCE = 100
"""Chunks in a row without a new row that end the search for one."""


def generated(
    folder: Path,
    name: str,
    *,
    version: int,
    arguments: Arguments,
    produce: Callable[[int], Columns],
    features: Features,
    count: int,
    workers: int | None = None,
) -> Dataset:
    """The first `count` different rows of produce(0), produce(1), ..: from the cache, else made in parallel and cached.

    Rows differ if their first column does. They are the same whatever the number of workers. A run that is interrupted leaves no
    cache, and if it is killed an unfinished-* beside, to be deleted. Of two that make the same set at once, the later one takes
    over what the earlier one wrote.

    Args:
        folder: the data folder; the cache lies where `cache` says.
        name: of the data set.
        version: of the code of `produce`; another one is another cache.
        arguments: what the rows depend on.
        produce: the rows of a chunk, no more than a second's work: an interrupt waits for the chunks in work. Can be pickled.
        features: their columns in order; the first is hashable.
        count: rows.
        workers: processes; with 1, this one does all. By default, the cores that this process may use.

    Raises:
        ConfigError: `count` or `workers` is below 1.
        DatasetError: the cache is not as it was written, cannot be read or cannot be written; a worker died; there seem to be
            fewer than `count` different rows.
        Exception: whatever `produce` raises.
    """
    workers = cores() if workers is None else workers
    for what, value in (("count", count), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{what} is {value}; it must be at least 1")
    if "::" in str(folder):
        raise DatasetError(f"{folder} has '::' in its name, which `datasets` takes apart: name another folder with --data-dir")
    path = cache(folder, name, version=version, arguments=arguments, count=count)
    info = DatasetInfo(description=recipe(name, version, arguments, count), features=features)
    with reported(path):
        found = path.exists()
    if not found:
        make(path, info, partial(rows, name, produce, features, count, workers))
    with reported(path):
        return read(path, info)


def cache(folder: Path, name: str, *, version: int, arguments: Arguments, count: int) -> Path:
    """The folder in which such a set is cached, whether it is there or not: FOLDER/generated/NAME-FINGERPRINT."""
    return folder / "generated" / f"{name}-{fingerprint(recipe(name, version, arguments, count))}"


def recipe(name: str, version: int, arguments: Arguments, count: int) -> str:
    """What a set is made from, as JSON."""
    return json.dumps({"name": name, "version": version, "arguments": arguments, "count": count}, sort_keys=True)


def fingerprint(recipe: str) -> str:
    """16 hex digits."""
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Errors of the file system name the cache."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read or written ({error.strerror or error}): make room and see to the rights there, "
            "or name another folder with --data-dir"
        ) from error


def make(path: Path, info: DatasetInfo, rows: Callable[[], pa.Table]) -> None:
    """Write a set beside its place, then move it there whole. No rows are made if the folder cannot be written."""
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = TemporaryDirectory(prefix="unfinished-", dir=path.parent)
    with workplace:
        dataset = Dataset(InMemoryTable(rows()), info=info, fingerprint=fingerprint(info.description))
        with reported(path):
            beside = Path(workplace.name) / path.name
            with no_progress_bars():
                dataset.save_to_disk(beside, num_shards=1)
            (beside / CHECKSUMS).write_bytes(checksums(beside).encode())
            for written in (*beside.iterdir(), beside):
                sync(written)
            try:
                beside.rename(path)
            except OSError:
                if not path.is_dir():  # else another process was faster
                    raise
            sync(path.parent)


def read(path: Path, info: DatasetInfo) -> Dataset:
    """The set there, if it is as it was written, and the one of that description."""
    remedy = f"delete {path}, and it is made anew"
    try:
        intact = (path / CHECKSUMS).read_bytes() == checksums(path).encode()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DatasetError(f"{path} lacks files: {remedy}") from None
    if not intact:
        raise DatasetError(f"{path} is not as it was written, by its checksums: {remedy}")
    dataset = Dataset.load_from_disk(path)
    if (dataset.info.description, dataset.features) != (info.description, info.features):
        raise DatasetError(f"{path} holds another set, {dataset.info.description}: {remedy}")
    return dataset


def checksums(path: Path) -> str:
    """Of the files of a set, as `sha256sum` prints them."""
    return "".join(f"{digest((path / name).read_bytes(), 'sha256').removeprefix('sha256:')}  {name}\n" for name in FILES)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """None by `datasets`, whose setting is left as it was."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def rows(name: str, produce: Callable[[int], Columns], features: Features, count: int, workers: int) -> pa.Table:
    """The first `count` different ones."""
    different: dict[bytes | int, tuple[bytes | int, ...]] = {}
    idle = 0
    with closing(chunks(produce, workers)) as made, tqdm(total=count, desc=name, unit=" rows", disable=None) as progress:
        while len(different) < count:
            chunk = next(made)
            before = len(different)
            for row in zip(*(chunk[column] for column in features), strict=True):
                if len(different) < count:
                    different.setdefault(row[0], row)
            progress.update(len(different) - before)
            idle = 0 if len(different) > before else idle + 1
            if idle == PATIENCE:
                raise DatasetError(
                    f"{name}: {len(different):,} of {count:,} different rows were found, but none in the last {PATIENCE} chunks; "
                    "ask for fewer, or change the arguments"
                )
    columns = dict(zip(features, zip(*different.values(), strict=True), strict=True))
    return pa.Table.from_pydict(columns, schema=features.arrow_schema)


def chunks(produce: Callable[[int], Columns], workers: int) -> Generator[Columns, None, None]:
    """produce(0), produce(1), .. in order, some chunks ahead; closing it ends the workers."""
    if workers == 1:
        yield from map(produce, counted())
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=follow_parent)
    try:
        ahead = deque(pool.submit(produce, chunk) for chunk in range(2 * workers))
        for chunk in counted(2 * workers):
            yield ahead.popleft().result()
            ahead.append(pool.submit(produce, chunk))
    except BrokenProcessPool as error:
        raise DatasetError(
            "a process that generates data died, perhaps for lack of memory, or because others cannot import this program "
            '(it lacks `if __name__ == "__main__":`): try again with fewer workers; with 1, no processes are started'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """A worker leaves interrupts to its parent, and ends with it, even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
