"""Stop a run on SIGINT or SIGTERM: the step in hand ends and is saved; a second signal of the same kind kills the process.

Each kind counts alone, because a launcher of several processes answers Ctrl-C by sending SIGTERM to each of them.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal ended the run, which was saved first."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.code = 128 + number
        """Exit code by the shells' convention: 130 for SIGINT, 143 for SIGTERM."""


class StopRequest:
    """Tells whether a signal has asked the run to end."""

    signal = 0
    """Number of the first signal that came; 0 if none did."""


@contextmanager
def note_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in a request instead of dying of them; only a second one of a kind has its usual effect."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = request.signal or number
        signal.signal(number, signal.SIG_DFL)

    try:
        for number in SIGNALS:
            signal.signal(number, note)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
