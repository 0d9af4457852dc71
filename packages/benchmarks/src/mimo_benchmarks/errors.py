"""One exception a boundary; each message names the file or value and the remedy."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot work."""


class DatasetError(RuntimeError):
    """A data set that is missing or not what it should be."""


class CheckpointError(RuntimeError):
    """A run's files that cannot be read or written."""


def first_line(error: BaseException) -> str:
    """Of an error whose others would only bury what a message says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def suggestion(name: str, names: Iterable[str]) -> str:
    """What else could be meant by a name that is none of these."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
