"""Where data sets live."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_folder(given: Path | None = None) -> Path:
    """The folder that was given, else that of the variable MIMO_DATA, else the platform's cache folder."""
    if given is not None:
        return given
    if named := os.environ.get("MIMO_DATA"):
        return Path(named).expanduser()
    return user_cache_path("mimo-benchmarks", appauthor=False)
