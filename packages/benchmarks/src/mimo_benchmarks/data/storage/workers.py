"""Generate chunks of data in worker processes. Nothing heavy is imported here, so that workers start fast."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from multiprocessing import get_context, parent_process

from mimo_benchmarks.errors import DatasetError

Columns = Mapping[str, list[bytes] | list[int]]
"""Some rows of a set, column by column."""


def produce_in_order(produce: Callable[[int], Columns], workers: int) -> Generator[Columns, None, None]:
    """Yield produce(0), produce(1), .. in order, computed some chunks ahead. Closing the generator ends the workers."""
    if workers == 1:
        yield from map(produce, count())
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent)
    try:
        ahead = deque(pool.submit(produce, chunk) for chunk in range(2 * workers))
        for chunk in count(2 * workers):
            yield ahead.popleft().result()
            ahead.append(pool.submit(produce, chunk))
    except BrokenProcessPool as error:
        raise DatasetError(
            "a process that generates data died: it ran out of memory, or the main program lacks "
            '`if __name__ == "__main__":`. Try again with fewer workers; with workers=1, no processes are started'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Make a worker ignore interrupts, which its parent handles, and end with its parent, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
