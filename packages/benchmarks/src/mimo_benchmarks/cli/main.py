"""Run the command that a command line names, and end with one line for whatever goes wrong."""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mimo_benchmarks import __version__
from mimo_benchmarks.data.storage.files import cores
from mimo_benchmarks.errors import CheckpointError, ConfigError, DatasetError, NotEnoughMemory, first_line
from mimo_benchmarks.memory import memory_for
from mimo_benchmarks.training.signals import Stopped

SMALLER = {
    "list": "leave out --estimate, or name other presets",
    "report": "name fewer runs",
    "reproduce": "lower --at-once",
    "throughput": "give fewer --passes or another preset",
    "predict": "give fewer --passes",
    "data": "free some, or name another data set",
}
"""What each command can do to need less memory; training has settings for it."""
COMMANDS = ("list", "reproduce", "report", "throughput", "predict", "data")
"""Commands other than train, each with a file in this folder; any other first word is a preset."""


def set_thread_defaults() -> None:
    """Let OpenMP leave one core to other programs, unless OMP_NUM_THREADS is a number; call this before torch is imported.

    An OMP_NUM_THREADS that is empty, 0 or not a number counts as not set; "4,2", a number per level of nesting, is one.
    The threads of an operation wait for each other, so a thread that shares its core with another program holds up all of them:
    two threads beside one other program on two cores can be a hundred times slower than one thread. Launchers set one thread.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    number = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not number.isdecimal() or int(number) == 0:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (cores() - 1) // processes))
    if "OMP_WAIT_POLICY" not in os.environ:  # a thread that waits gives up its core after 0.05 ms; GNU's default is 15 ms
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def import_torch() -> None:
    """Import torch, a fifth faster than usual, and let the program end faster too.

    Nothing that the import makes is garbage: it is not looked for during the import, nor among it later.
    """
    if "torch" not in sys.modules:
        gc.disable()
        try:
            import_module("torch")
            gc.freeze()
        finally:
            gc.enable()


def expand_home(argument: str) -> str:
    """Expand ~ at the start of a flag's value, as in --out=~/runs, where shells leave it; --text is no path."""
    flag, _, value = argument.partition("=")
    path = flag.startswith("--") and flag != "--text" and value.startswith("~")
    return f"{flag}={os.path.expanduser(value)}" if path else argument


def check_processes() -> None:
    """Raise ConfigError if what a launcher says of its processes cannot be."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "1")
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(f"{name} = {value!r}, expected the launcher's number of processes: unset it")
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or int(rank) >= int(world):
        raise ConfigError(f"RANK = {rank!r}, but WORLD_SIZE = {world}: unset RANK, or use a launcher")


def require_current_folder() -> None:
    """Raise ConfigError if the current folder is gone, without which torch's libraries end the process in words of their own."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder is no longer there: go to another one") from error


def is_of_another_process(error: RuntimeError) -> bool:
    """Tell whether an error of torch.distributed says that another process is gone; gloo's have no type of their own."""
    from torch.distributed import DistError

    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and (isinstance(error, DistError) or "/gloo/" in str(error))


def execute_command(arguments: Sequence[str]) -> None:
    """Run the program: exit code 2 for what cannot work, 1 for training that diverged, 130 for Ctrl-C, 143 for SIGTERM."""
    arguments = [expand_home(argument) for argument in arguments]
    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if first == "--version":
        print(f"mimonets {__version__}")
        return
    smaller = SMALLER.get(first, "give a smaller --optim.groups or smaller --model sizes")
    try:
        check_processes()
        set_thread_defaults()  # before torch is imported
        with memory_for(f"mimonets {first if first in COMMANDS else 'train'}", smaller):
            require_current_folder()
            import_torch()
            if first in COMMANDS:
                if os.environ.get("RANK", "0") == "0":  # once, however many processes a launcher starts
                    getattr(import_module(f"mimo_benchmarks.cli.{first}"), f"execute_{first}")(rest)
                return
            from mimo_benchmarks.cli.train import execute_train

            execute_train(rest if first == "train" else arguments, COMMANDS)
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # such as a path that is too long, or that this user may not look at
        print(f"error: {error}: name another file or folder, or fix what is there", file=sys.stderr)
        sys.exit(2)
    except NotEnoughMemory as error:  # of one process alone, where there are several
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        print(f"error: {error}" + f" (process {os.environ.get('RANK', '0')})" * several, file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not is_of_another_process(error):
            raise
        ended = f"another process of the run has ended, or cannot be reached ({first_line(error)})"
        print(f"error: {ended}: see what it said, then resume with --resume", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # several processes print only one line
            print(f"\nInterrupted: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)
