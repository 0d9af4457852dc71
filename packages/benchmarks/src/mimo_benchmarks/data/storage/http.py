"""The bytes of one address of the web, added to a file that has some of them already."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from mimo_benchmarks import __version__

CHUNK = 1 << 20
"""The most bytes in memory at a time."""
SLOWEST = 1000
"""Bytes a second, on average: a server that sends fewer is given up, even if it never falls silent."""
AGAIN = (408, 425, 429)
"""Answers below 500 that another try may change: timed out, too early, too many requests."""


class Refused(Exception):
    """What went wrong at one address; `final` if it would go wrong again."""

    def __init__(self, what: str, *, final: bool = False) -> None:
        super().__init__(what)
        self.final = final


def is_web(url: str) -> bool:
    """Whether that is an address of http or https, with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        return False


def receive(url: str, part: Path, most: int, *, exact: bool, timeout: float, progress: bool) -> bool:
    """Add to the part what it lacks.

    Args:
        url: an address of http or https.
        part: the file, which need not be there.
        most: the most bytes it can have; it never gets more than one more.
        exact: whether it has that many, and a checksum that will tell whether two halves belong together. That is why neither
            ETag nor If-Range is needed: a file that changed on the server is wrong anyway. If not exact, it is fetched whole.
        timeout: seconds that the server may be silent.
        progress: whether to show a bar on stderr.

    Returns:
        Whether some of it was there before.

    Raises:
        Refused: the address does not serve such a file, or did not to its end; what arrived stays.
        OSError: the part cannot be written.
    """
    have = part.stat().st_size if exact and part.is_file() else 0
    if have and have == most:
        return True
    response, start = ask(url, have if have < most else 0, timeout)
    with response:
        length = response.length
        if exact and length not in {None, most - start}:
            raise Refused(f"it serves {start + (length or 0):,} bytes, the published file has {most:,}", final=True)
        end = most if exact else min(most + 1, most + 1 if length is None else length)
        with part.open("r+b" if start else "wb") as handle, meter(part.stem, end, start, progress) as advance:
            handle.seek(start)
            at, begun = start, time.monotonic()
            while at < end and (chunk := read(response, end - at)):
                handle.write(chunk)
                at += len(chunk)
                advance(len(chunk))
                if time.monotonic() - begun > timeout + (at - start) / SLOWEST:
                    raise Refused(f"it is too slow: {at - start:,} bytes in {time.monotonic() - begun:.0f} s")
    if at < end and (exact or length is not None):
        raise Refused(f"it ended after {at:,} of {end:,} bytes")
    return start > 0


def ask(url: str, start: int, timeout: float) -> tuple[HTTPResponse, int]:
    """The answer of a server, and which byte its body begins with: `start`, or 0 if it cannot begin there."""
    headers = {"User-Agent": f"mimo-benchmarks/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    with network():
        try:
            response = opener().open(request.Request(url, headers=headers), timeout=timeout)
        except HTTPError as error:
            if not (start and error.code == 416):
                raise
            error.close()
            return ask(url, 0, timeout)
    if response.status == 200:
        return response, 0
    if response.status == 206 and start:  # from there on, or what comes of it will have another checksum
        return response, start
    response.close()
    raise Refused(f"it answered {response.status} {response.reason}", final=True)


class Redirects(request.HTTPRedirectHandler):
    """Closes the answer also where its redirect leads nowhere."""

    def http_error_302(self, req: request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage) -> HTTPResponse | None:
        """Follow a redirect."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except Exception:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def opener() -> request.OpenerDirector:
    """Follows redirects and uses proxies, but speaks HTTP alone: no redirect leads to a file of this machine."""
    director = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        Redirects,
        request.HTTPErrorProcessor,
        request.HTTPDefaultErrorHandler,
        request.UnknownHandler,
    ):
        director.add_handler(handler())
    return director


def read(response: HTTPResponse, room: int) -> bytes:
    """What has arrived of the body, waiting for some; b"" at its end."""
    with network():
        return response.read1(min(CHUNK, room))


@contextmanager
def network() -> Iterator[None]:
    """Whatever a server, or the way to it, does wrong is Refused: it cannot be taken for a failure of the disk."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise Refused(f"it answered {error.code} {error.reason}", final=error.code < 500 and error.code not in AGAIN) from error
    except URLError as error:
        raise Refused(f"it cannot be reached ({error.reason})") from error
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        raise Refused(f"the connection failed ({str(error) or type(error).__name__})") from error


@contextmanager
def meter(name: str, total: int, start: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Takes the numbers of bytes that arrive. A bar is made only to be shown, since a hidden one starts a thread, too."""
    if not shown:
        yield lambda count: None
        return
    with tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True) as bar:
        yield bar.update
