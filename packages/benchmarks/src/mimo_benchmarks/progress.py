"""Show on stderr how far a long step is: a bar on a terminal, whole lines in a log."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10
"""Seconds between lines about the same step in a log."""
BRIEF = 1
"""Seconds after which a step inside another one gets a bar on a terminal."""
SHORTEST = 1e-9
"""Fewest seconds that anything is taken to last: a virtual machine's clock may stand still, or jump back."""
open_bars: list[Any] = []
"""Bars that are shown now, the outermost first."""


def seconds_since(start: float) -> float:
    """Return the seconds since `time.perf_counter` said `start`."""
    return max(SHORTEST, time.perf_counter() - start)


class Lines:
    """Takes what tqdm writes for a terminal, and writes it to stderr as whole lines."""

    def write(self, text: str) -> None:
        """Write a line, unless the text only moves the cursor."""
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        """Let all lines out."""
        sys.stderr.flush()


class Hidden:
    """A bar that is not shown."""

    def update(self, count: int = 1) -> None:
        """Do nothing."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Do nothing."""


@contextmanager
def progress_bar(
    name: str,
    total: int | None = None,
    *,
    unit: str = "",
    start: int = 0,
    leave: bool = False,
    brief: bool = False,
    in_bytes: bool = False,
    hidden: bool = False,
) -> Iterator[Any]:
    """Show a bar while a long step runs; only the first of several processes shows it.

    On a terminal, the bar disappears at the end of the step unless it is to stay. A log, such as a file or a pipe, gets a line
    at the start of the step and one every ten seconds; a step inside another one is told there only if it takes longer than that.

    Args:
        name: what is being done.
        total: how much there is to do; None if the step cannot tell how far it is, so that only its name is shown.
        unit: what is counted, with a space before it.
        start: how much was done before.
        leave: whether the bar stays at the end.
        brief: whether the step usually takes no time, so that it is shown only once it has taken some.
        in_bytes: whether bytes are counted, which are shown in kB, MB and so on.
        hidden: whether nothing is shown; then no bar is even made, because it would start a thread.

    Yields:
        A tqdm bar; its `update(count)` advances it, and `set_postfix_str` adds a text.
    """
    if hidden or os.environ.get("RANK", "0") != "0":
        yield Hidden()
        return
    options: dict[str, Any] = {"unit": "B", "unit_scale": True} if in_bytes else {"unit": unit}
    if total is None:
        options["bar_format"] = "{desc} .."
    if sys.stderr.isatty():
        delay = BRIEF if (brief or open_bars) and total is not None else 0
        options |= {"mininterval": 0.5, "leave": leave}
        with suppress(OSError, ValueError):  # a terminal that a program made may have no width, and tqdm would show nothing
            if not os.get_terminal_size(sys.stderr.fileno()).columns:
                options["ncols"] = 80
    else:
        delay = LOG_INTERVAL if brief or open_bars else 0
        options |= {"mininterval": LOG_INTERVAL, "leave": False, "file": Lines(), "position": 0}
        if total is not None:
            options["bar_format"] = "{desc}: {n_fmt} of {total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"
    with tqdm(desc=name, total=total, initial=start, delay=delay, **options) as bar:
        open_bars.append(bar)
        try:
            yield bar
        finally:
            open_bars.remove(bar)
