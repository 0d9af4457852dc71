"""The errors that the program reports in one line; each message names the file or value, and what to do."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting cannot work."""


class OtherVersion(ConfigError):
    """A file of a run was written by another version of this program."""


class DatasetError(RuntimeError):
    """A data set is missing or damaged."""


class CheckpointError(RuntimeError):
    """The files of a run cannot be read or written."""


class NotEnoughMemory(Exception):
    """The memory of the machine or of a GPU does not suffice."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message that the other lines would bury."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return a hint which of the names could be meant by a name that is not one of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
