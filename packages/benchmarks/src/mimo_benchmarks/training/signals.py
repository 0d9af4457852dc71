"""SIGINT and SIGTERM end a run after the step in hand, with a checkpoint; a second one of a kind ends it at once.

Of a kind, because a launcher of several processes answers Ctrl-C with a SIGTERM of its own to each.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run was asked to end, and has been saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.code = 128 + number
        """Exit code by the shells' custom: 130 for SIGINT, 143 for SIGTERM."""


class Request:
    """Whether the run is to end."""

    signal = 0
    """The number of the signal that came; 0 for none."""


@contextmanager
def listening() -> Iterator[Request]:
    """Inside, the first SIGINT and the first SIGTERM are noted, and the next of a kind has its usual effect."""
    request = Request()
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
