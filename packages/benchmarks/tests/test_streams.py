"""Where output is closed, full, or lacks a character, the program works or ends in one line with exit code 2."""

import io
import os
import subprocess
import sys

import pytest

from mimo_benchmarks import __version__
from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli.streams import Output, lasting_streams

FULL = "standard output cannot be written ([Errno 28] No space left on device): make room, or send it elsewhere"


class Failing(io.StringIO):
    """A stream that raises an error after its first text; its descriptor goes nowhere."""

    error = OSError(28, "No space left on device")

    def write(self, text):
        if self.getvalue():
            raise self.error
        return super().write(text)

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding, monkeypatch):
    """Both those of our tables and names of files that are not UTF-8."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding=encoding))
    with lasting_streams():
        print("1 ± 2 † \udce9")
    shown = {"ascii": r"1 \xb1 2 \u2020 \udce9", "cp1252": r"1 ± 2 † \udce9", "utf-8": r"1 ± 2 † \udce9"}
    assert raw.getvalue().decode(encoding) == shown[encoding] + "\n"


def test_full_output_is_told_at_the_end_and_stops_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", stream := Failing())
    done = []

    def program():
        for step in range(3):
            print(step)
            done.append(step)
        sys.exit(0)

    with pytest.raises(SystemExit) as exit_, lasting_streams():
        program()
    assert (exit_.value.code, done) == (2, [0, 1, 2])
    assert capsys.readouterr().err == f"error: {FULL}\n"
    assert sys.stdout is stream


@pytest.mark.parametrize(("code", "error"), [(1, OSError(28, "")), (0, BrokenPipeError())])
def test_a_code_of_its_own_stays_and_a_reader_may_leave(code, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing())
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(SystemExit) as exit_, lasting_streams():
        sys.exit(print("first") or code)
    assert exit_.value.code == code
    assert capsys.readouterr().err == ""


def test_errors_on_standard_error_are_nobodys(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Failing())
    with pytest.raises(SystemExit) as exit_:
        main(["nothing"])
    assert exit_.value.code == 2
    assert capsys.readouterr().out == ""


def test_what_is_written_after_an_error_goes_nowhere(tmp_path):
    with (tmp_path / "file").open("w") as file:
        output = Output(file)
        output.error = OSError()
        with output.noting_errors():
            raise OSError
        output.write("lost")
        output.flush()
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes streams")
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("<&- >&- 2>&-", (0, "", "")),
        ("2>&-", (0, f"mimonets {__version__}\n", "")),
        pytest.param(
            ">/dev/full",
            (2, "", f"error: {FULL}\n"),
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here"),
        ),
    ],
)
def test_streams_of_a_process(redirection, expected):
    """Python itself neither fails nor complains when it ends."""
    command = f'"{sys.executable}" -m mimo_benchmarks --version {redirection}'
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_closed_streams_are_open_to_the_program(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with lasting_streams():
        assert sys.stdin.read() == ""
        print("nowhere", file=sys.stderr)
        assert not sys.stderr.isatty()
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()
