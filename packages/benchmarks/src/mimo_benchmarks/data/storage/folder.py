"""Find the folder that holds the data sets."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_folder(given: Path | None = None) -> Path:
    """Return the given folder, or the one that the variable MIMO_DATA names, or the platform's cache folder."""
    if given is not None:
        return given
    if named := os.environ.get("MIMO_DATA"):
        return Path(named).expanduser()
    return user_cache_path("mimo-benchmarks", appauthor=False)
