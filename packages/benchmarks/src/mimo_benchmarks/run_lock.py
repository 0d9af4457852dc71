"""Let one process at a time write into a run directory."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mimo_benchmarks.data.storage.files import lock_file
from mimo_benchmarks.errors import ConfigError

LOCK = ".lock"


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold a run directory, so that no other process writes into it.

    The operating system locks the file .lock for this process and lets go of it when the process ends, however it ends, so a dead
    owner on this machine is no obstacle. The file also names its owner until that has ended in an orderly way. One on another
    machine is believed, because it cannot be seen from here, and not every file system tells machines of each other's locks.

    Raises:
        ConfigError: another process holds the directory, or may hold it; or the file cannot be written.
    """
    path = run / LOCK
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise not_written(path, error) from error
    with file:
        claim(file, path)
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)


def claim(file: BinaryIO, path: Path) -> None:
    """Lock an open lock file and write this process into it; ConfigError if another process is its owner."""
    try:
        free, has_locks = lock_file(file, wait=False), True
    except OSError:
        free, has_locks = True, False
    try:
        file.seek(0)
        owner, this = read_owner(file.read()), this_process()
        who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown machine')}"
        if not free:
            raise ConfigError(f"{path.parent} is in use by {who}: wait until that ends, or stop it")
        same_machine = any(this[name] and owner.get(name) == this[name] for name in ("host", "boot"))
        if owner and not (has_locks and same_machine):
            unseen = f"{path.parent} is in use by {who}, as {path} says, and from here nobody can see whether that still runs"
            raise ConfigError(f"{unseen}: if it has ended, delete {path}, then resume")
        file.truncate(0)
        file.write(json.dumps(this).encode())
    except OSError as error:
        raise not_written(path, error) from error


def read_owner(content: bytes) -> dict[str, Any]:
    """Return what a lock file says of its owner; nothing if there is none."""
    if not content:
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    return found if found and isinstance(found, dict) else {"pid": "unknown"}


def this_process() -> dict[str, Any]:
    """Return what tells this process from others; a container has a name of its own, and the boot of the machine around it."""
    boot = ""
    with suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "host": platform.node(), "boot": boot}


def not_written(path: Path, error: OSError) -> ConfigError:
    """Return the error for a lock file that the file system refuses."""
    return ConfigError(f"{path} cannot be written ({error}): make room, and check that {path.parent} may be written")
