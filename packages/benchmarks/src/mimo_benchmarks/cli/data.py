"""`mimonets data`: list the data sets, get them and check them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mimo_benchmarks.data.storage.download import fetch
from mimo_benchmarks.data.storage.files import exists
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.data.storage.generated import CHECKSUMS
from mimo_benchmarks.errors import ConfigError, DatasetError, suggestion
from mimo_benchmarks.tasks import catalogue
from mimo_benchmarks.tasks.catalogue import DataSet
from mimo_benchmarks.tasks.registry import TASKS, load

Name = Annotated[str, tyro.conf.Positional]


def execute_data(arguments: Sequence[str]) -> None:
    """Run `data` with these arguments.

    Raises:
        ConfigError: there is no such data set or task.
        DatasetError: a file of it is missing or wrong.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    verbs: dict[str, Callable[..., None]] = {"list": list_, "prepare": prepare, "verify": verify}
    tyro.extras.subcommand_cli_from_dict(verbs, args=arguments, prog="mimonets data", description=__doc__)


def list_(*, data_dir: Path | None = None) -> None:
    """Show all data sets: their size, terms and source, what is missing, and how to get it.

    Args:
        data_dir: folder of data sets; unless given, the variable MIMO_DATA, else the platform's cache folder.
    """
    folder = data_folder(data_dir)
    print(f"Data folder: {folder}\n")
    for name, wanted in catalogue.sets().items():
        size = f"{wanted.megabytes:,} MB" if wanted.megabytes else "bundled"
        print(f"{name} ({size}): {wanted.about}")
        print(f"    tasks: {', '.join(wanted.tasks)}")
        print(f"    from:  {wanted.origin}")
        print(f"    terms: {wanted.terms}")
        print(f"    state: {state(name, wanted, folder)}\n")
    made = [task for task in TASKS if not any(task in wanted.tasks for wanted in catalogue.sets().values())]
    print(f"Made from a seed whenever they are used: {', '.join(made)}")


def state(name: str, wanted: DataSet, folder: Path) -> str:
    """Say whether a data set is ready, without reading its files as `verify` does."""
    try:
        if wanted.cache is not None:
            made = exists(wanted.cache(folder) / CHECKSUMS)
            return "ready" if made else f"not generated yet: `{catalogue.command('prepare', name, folder)}`"
        missing = wanted.missing(folder)
        return f"missing {', '.join(missing)}: {catalogue.remedy(name, folder)}" if missing else "ready"
    except DatasetError as error:
        return str(error)


def prepare(name: Name, *, data_dir: Path | None = None, download: bool = False) -> None:
    """Get a data set ready: fetch or generate what is missing, and check all of it.

    Args:
        name: name of a data set or a task.
        data_dir: folder of data sets; unless given, the variable MIMO_DATA, else the platform's cache folder.
        download: fetch missing files from where they are published.
    """
    folder = data_folder(data_dir)
    tasks, wanted = find_data(name)
    if wanted is not None and download:
        fetch(wanted.sources, folder)
    for task in tasks:
        print(f"{task}: {load(task, folder).describe()}")


def verify(name: Name, *, data_dir: Path | None = None) -> None:
    """Read and check all of a data set, and describe it; nothing is fetched or generated.

    Args:
        name: name of a data set or a task.
        data_dir: folder of data sets; unless given, the variable MIMO_DATA, else the platform's cache folder.
    """
    folder = data_folder(data_dir)
    _, wanted = find_data(name)
    if wanted is not None and wanted.cache is not None and not exists(cache := wanted.cache(folder)):
        raise DatasetError(f"{cache} is missing: generate it with `{catalogue.command('prepare', name, folder)}`")
    prepare(name, data_dir=data_dir)


def find_data(name: str) -> tuple[tuple[str, ...], DataSet | None]:
    """Return the tasks that a name stands for, and the data set that they need, if any.

    Raises:
        ConfigError: no data set or task has that name.
    """
    sets = catalogue.sets()
    if name in sets:
        return sets[name].tasks, sets[name]
    if name not in TASKS:
        names = list({**sets, **TASKS})
        raise ConfigError(f"there is no data set or task {name!r}: {suggestion(name.lower(), names)}")
    return (name,), next((wanted for wanted in sets.values() if name in wanted.tasks), None)
