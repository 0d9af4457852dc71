"""Find the folder that holds the data sets."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_folder(given: Path | None = None) -> Path:
    """Return the given folder, or the one that the variable MIMO_DATA names, or the platform's cache folder.

    Where the user has no home folder, and so no cache folder, it is mimo-benchmarks in the current folder.
    """
    if given is not None:
        return given
    if named := os.environ.get("MIMO_DATA"):
        return Path(os.path.expanduser(named))  # unlike Path.expanduser, it leaves a user who does not exist, as a shell does
    try:
        return user_cache_path("mimo-benchmarks", appauthor=False)
    except RuntimeError:
        return Path("mimo-benchmarks")
