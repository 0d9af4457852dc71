"""Notice that memory runs out and say what to lower, and tell how much is free before it is taken."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mimo_benchmarks.errors import CheckpointError, DatasetError, NotEnoughMemory

if TYPE_CHECKING:  # the import of torch may itself run out of memory, which this file then reports
    import torch

SIGNS = re.compile(r"out of memory|allocate memory|enough memory|alloc(ation)?_failed|bad_alloc", re.IGNORECASE)
"""What torch's errors say where a GPU or the main memory is full, on any system."""
LIBRARY = re.compile(
    r"^.*(failed to map segment from shared object|cannot map zero-fill pages|: Cannot allocate memory)(?!: Operation).*$",
    re.MULTILINE,
)
"""The line with which glibc's loader says that a shared library does not fit into memory, in the error of an import.

"Operation not permitted" after it means a disk whose programs may not run.
"""
CGROUP = Path("/sys/fs/cgroup")
"""Folder where Linux tells the limits of a container."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, numpy, torch on any device, or the system says that memory ran out."""
    if isinstance(error, CheckpointError | DatasetError):
        return False
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return (
        full
        or isinstance(error, MemoryError)
        or bool(loader_line(error))
        or (isinstance(error, RuntimeError) and bool(SIGNS.search(str(error))))
    )


@contextmanager
def memory_for(purpose: str, remedy: str) -> Iterator[None]:
    """Turn any error that says that memory ran out into a NotEnoughMemory that says what it was for, and what to do."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        if line := loader_line(error):
            raise NotEnoughMemory(
                f"there is not enough memory to load a library ({line}): free some, or raise the limit that `ulimit -v` shows"
            ) from error
        raise NotEnoughMemory(f"there is not enough memory for {purpose}{amount_asked(error)}: {remedy}") from error


def loader_line(error: BaseException) -> str:
    """Return the line of an error that says that a shared library does not fit into memory; empty if there is none."""
    found = LIBRARY.search(str(error)) if isinstance(error, ImportError | OSError) else None
    return found[0].strip() if found else ""


def amount_asked(error: BaseException) -> str:
    """Return how much memory was asked for when it ran out, as part of a sentence; empty if the error does not say so."""
    found = re.search(r"allocate ([\d.]+) ?([A-Za-z]+)", str(error))
    if found is None:
        return ""
    amount, unit = found.groups()
    return f", which asked for {gigabytes(int(amount)) if unit == 'bytes' else f'{amount} {unit}'} more"


def gigabytes(size: float) -> str:
    """Write a number of bytes in GB."""
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"


def module_bytes(module: "torch.nn.Module") -> int:
    """Return how many bytes the parameters and buffers of a module take, on whatever device they are."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def free_memory(device: "torch.device") -> int | None:
    """Return how many bytes this process can still take on a device; None if the system does not tell.

    On a CPU, that is the least of what the system has, what the container may take, and what the process may address.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    rooms = []
    with suppress(OSError, KeyError, ValueError):
        system = read_table(Path("/proc/meminfo"))
        rooms.append((system["MemAvailable"] + system["SwapFree"]) * 1024)
    with suppress(OSError, KeyError, ValueError):  # a page cache counts as used there, but gives way
        used = int((CGROUP / "memory.current").read_text()) - read_table(CGROUP / "memory.stat")["file"]
        rooms.append(int((CGROUP / "memory.max").read_text()) - used)
    with suppress(OSError, KeyError, ValueError, ImportError):
        import resource  # Windows has none

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - read_table(Path("/proc/self/status"))["VmSize"] * 1024)
    return max(0, min(rooms)) if rooms else None


def read_table(path: Path) -> dict[str, int]:
    """Read the lines of a file of the system that begin with a name and a whole number."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):?\s+(\d+)\b", path.read_text(), re.MULTILINE)}
