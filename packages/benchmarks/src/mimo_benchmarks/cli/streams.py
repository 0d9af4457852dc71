"""Keep the program going where a standard stream is closed, full, or cannot show a character."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class Output:
    """A stream that never raises for what it cannot write: what follows an error is dropped, and `error` is the first one.

    A character that the stream's encoding lacks is written as an escape, such as \\xb1 for a plus-minus sign in ASCII.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, unless there is an error."""
        with self.noting_errors():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Let the text out, unless there is an error."""
        with self.noting_errors():
            self.stream.flush()

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Note an error, and send what is buffered and what follows to nowhere."""
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # a reader that closes a pipe, as `head` does, has what it wants
                self.error = self.error or error
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let the program run to its end whatever becomes of its output, then exit with code 2 if standard output was full.

    A stream that is closed from the start counts as /dev/null.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # its descriptor must not become that of a checkpoint, which messages would then damage
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    out, err = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        except SystemExit as exit_:
            out.flush()
            if exit_.code or out.error is None:
                raise
        finally:
            out.flush()
        if out.error is not None:
            print(f"error: standard output cannot be written ({out.error}): make room, or send it elsewhere", file=sys.stderr)
            sys.exit(2)
