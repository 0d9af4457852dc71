"""Generate data sets and cache them as Arrow files, under a fingerprint of the recipe that they were made by."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.table import InMemoryTable

from mimo_benchmarks.data.storage.files import checksum, cores, os_errors_explained, sync
from mimo_benchmarks.data.storage.workers import Columns, produce_in_order
from mimo_benchmarks.errors import ConfigError, DatasetError
from mimo_benchmarks.progress import progress_bar

FILES = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
"""Files that `datasets` writes for a set in one piece."""
CHECKSUMS = "SHA256SUMS"
PATIENCE = 100
"""Chunks in a row without a new row after which the search for new rows ends."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the rows of a generated set depend on. Another recipe is another cache."""

    name: str
    """Name of the set."""
    version: int
    """Version of the code that generates the rows."""
    arguments: Mapping[str, int]
    """Arguments of that code, by name."""
    count: int
    """Number of rows."""

    def as_json(self) -> str:
        """Return the recipe as text, the same for equal recipes."""
        return json.dumps(asdict(self), sort_keys=True)

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for the recipe."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:16]

    def cache_folder(self, folder: Path) -> Path:
        """Return the folder that caches the set, whether it exists or not: FOLDER/generated/NAME-FINGERPRINT."""
        return folder / "generated" / f"{self.name}-{self.fingerprint()}"


def load_or_generate(
    folder: Path, recipe: Recipe, *, produce: Callable[[int], Columns], features: Features, workers: int | None = None
) -> Dataset:
    """Return the first different rows of produce(0), produce(1), ..: read from the cache, or generated in parallel and cached.

    Rows differ if their first columns differ. The rows do not depend on the number of workers. An interrupted run leaves no
    cache; a killed one may leave a folder unfinished-*, which can be deleted. If two processes generate the same set at the
    same time, the later one uses what the earlier one wrote.

    Args:
        folder: data folder; `Recipe.cache_folder` says where in it the cache lies.
        recipe: everything that the rows depend on, and their number.
        produce: function from the number of a chunk to its rows; can be pickled. A chunk should take less than a second,
            because an interrupt waits for the chunks in progress.
        features: columns of the rows in order; the first one is hashable.
        workers: number of processes; with 1, this process generates all rows. By default, the cores that it may use.

    Raises:
        ConfigError: the number of rows or of workers is below 1.
        DatasetError: the cache was altered, cannot be read or cannot be written; a worker died; there seem to be too few
            different rows.
        Exception: whatever `produce` raises.
    """
    workers = cores() if workers is None else workers
    for name, value in (("count", recipe.count), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if "::" in str(folder):
        raise DatasetError(f"{folder} contains '::', which `datasets` reads as a URL: name another folder with --data-dir")
    path = recipe.cache_folder(folder)
    info = DatasetInfo(description=recipe.as_json(), features=features)
    with os_errors_explained(path):
        found = path.exists()
    if not found:
        write_cache(path, info, recipe.fingerprint(), partial(different_rows, recipe, produce, features, workers))
    with os_errors_explained(path):
        return read_cache(path, info)


def write_cache(path: Path, info: DatasetInfo, fingerprint: str, make_rows: Callable[[], pa.Table]) -> None:
    """Write a set into a temporary folder, then rename that. If the folder cannot be written, no rows are generated."""
    with os_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = TemporaryDirectory(prefix="unfinished-", dir=path.parent)
    with workplace:
        dataset = Dataset(InMemoryTable(make_rows()), info=info, fingerprint=fingerprint)
        with os_errors_explained(path):
            unfinished = Path(workplace.name) / path.name
            with progress_bars_disabled(), progress_bar(f"saving {path.name}"):
                dataset.save_to_disk(unfinished, num_shards=1)
            (unfinished / CHECKSUMS).write_bytes(checksum_lines(unfinished).encode())
            for written in (*unfinished.iterdir(), unfinished):
                sync(written)
            try:
                unfinished.rename(path)
            except OSError:
                if not path.is_dir():  # otherwise another process has written the same set in the meantime
                    raise
            sync(path.parent)


def read_cache(path: Path, info: DatasetInfo) -> Dataset:
    """Return the cached set, once its checksums and its recipe have been checked."""
    remedy = f"delete {path}, and it will be generated anew"
    try:
        with progress_bar(f"checking {path.name}"):
            intact = (path / CHECKSUMS).read_bytes() == checksum_lines(path).encode()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DatasetError(f"{path} lacks files: {remedy}") from None
    if not intact:
        raise DatasetError(f"{path} was altered after it was written (its checksums differ): {remedy}")
    dataset = Dataset.load_from_disk(path)
    if (dataset.info.description, dataset.features) != (info.description, info.features):
        raise DatasetError(f"{path} holds another set, {dataset.info.description}: {remedy}")
    return dataset


def checksum_lines(path: Path) -> str:
    """Return the checksums of a set's files, in the format of `sha256sum`."""
    return "".join(f"{checksum((path / name).read_bytes(), 'sha256').removeprefix('sha256:')}  {name}\n" for name in FILES)


@contextmanager
def progress_bars_disabled() -> Iterator[None]:
    """Disable the progress bars of `datasets`, and restore the setting afterwards."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def different_rows(recipe: Recipe, produce: Callable[[int], Columns], features: Features, workers: int) -> pa.Table:
    """Generate chunks until the recipe's number of different rows is found."""
    name, count = recipe.name, recipe.count
    different: dict[bytes | int, tuple[bytes | int, ...]] = {}
    idle = 0
    with (
        closing(produce_in_order(produce, workers)) as chunks,
        progress_bar(f"generating {name}", count, unit=" rows") as progress,
    ):
        while len(different) < count:
            chunk = next(chunks)
            before = len(different)
            for row in zip(*(chunk[column] for column in features), strict=True):
                if len(different) < count:
                    different.setdefault(row[0], row)
            progress.update(len(different) - before)
            idle = 0 if len(different) > before else idle + 1
            if idle == PATIENCE:
                raise DatasetError(
                    f"{name}: only {len(different):,} of {count:,} different rows were found, and none in the last {PATIENCE} "
                    "chunks; ask for fewer, or change the arguments"
                )
    columns = dict(zip(features, zip(*different.values(), strict=True), strict=True))
    return pa.Table.from_pydict(columns, schema=features.arrow_schema)
