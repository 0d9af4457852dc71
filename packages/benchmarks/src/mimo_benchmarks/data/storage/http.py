"""Download from one web address into a file that may already hold the first part of the download."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from mimo_benchmarks import __version__
from mimo_benchmarks.progress import progress_bar

CHUNK = 1 << 20
"""Bytes that are held in memory at a time."""
SLOWEST = 1000
"""Lowest average rate in bytes per second: a slower server is given up, even if it never falls silent."""
RETRYABLE = (408, 425, 429)
"""Status codes below 500 that another try may change: request timeout, too early, too many requests."""


class Refused(Exception):
    """A failure at one address; `final` if another try would fail in the same way."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def is_http_url(url: str) -> bool:
    """Return whether this is an http or https URL that names a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the brackets or the port are malformed
        return False


def receive(url: str, part: Path, most: int, *, exact: bool, timeout: float, progress: bool) -> bool:
    """Download the bytes that a .part file lacks, and append them.

    Args:
        url: http or https address.
        part: path of the .part file, which need not exist.
        most: largest size of the file in bytes; at most one byte more is written.
        exact: whether the file has exactly `most` bytes and a known checksum. Such a file is resumed: its checksum will tell
            whether the two halves belong together, so neither ETag nor If-Range is needed. Other files are fetched whole.
        timeout: seconds that the server may be silent.
        progress: whether to show a progress bar on stderr.

    Returns:
        Whether the download was resumed.

    Raises:
        Refused: the address does not serve such a file, or not to its end; what arrived stays.
        OSError: the .part file cannot be written.
    """
    have = part.stat().st_size if exact and part.is_file() else 0
    if have and have == most:
        return True
    response, start = open_response(url, have if have < most else 0, timeout)
    with response:
        length = response.length
        if exact and length not in {None, most - start}:
            raise Refused(f"it serves {start + (length or 0):,} bytes, but the published file has {most:,}", final=True)
        end = most if exact else min(most + 1, most + 1 if length is None else length)
        with (
            part.open("r+b" if start else "wb") as handle,
            progress_bar(f"downloading {part.stem}", end, start=start, in_bytes=True, hidden=not progress) as bar,
        ):
            handle.seek(start)
            at, begun = start, time.monotonic()
            while at < end and (chunk := read_body(response, end - at)):
                handle.write(chunk)
                at += len(chunk)
                bar.update(len(chunk))
                if time.monotonic() - begun > timeout + (at - start) / SLOWEST:
                    raise Refused(f"it is too slow: {at - start:,} bytes in {time.monotonic() - begun:.0f} s")
    if at < end and (exact or length is not None):
        raise Refused(f"it ended after {at:,} of {end:,} bytes")
    return start > 0


def open_response(url: str, start: int, timeout: float) -> tuple[HTTPResponse, int]:
    """Request a file from byte `start` on; return the response and the byte that it begins with, `start` or 0."""
    headers = {"User-Agent": f"mimo-benchmarks/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    with network_errors_refused():
        try:
            response = http_opener().open(request.Request(url, headers=headers), timeout=timeout)
        except HTTPError as error:
            if not (start and error.code == 416):
                raise
            error.close()
            return open_response(url, 0, timeout)
    if response.status == 200:
        return response, 0
    if response.status == 206 and start:  # if it begins elsewhere, the checksum will tell
        return response, start
    response.close()
    raise Refused(f"it answered {response.status} {response.reason}", final=True)


class Redirects(request.HTTPRedirectHandler):
    """Follow redirects, and close the response also where a redirect leads nowhere."""

    def http_error_302(self, req: request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage) -> HTTPResponse | None:
        """Follow one redirect."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except Exception:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def http_opener() -> request.OpenerDirector:
    """Return an opener that follows redirects and uses proxies, but only over HTTP: no redirect reaches a local file."""
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


def read_body(response: HTTPResponse, room: int) -> bytes:
    """Return the bytes of the body that have arrived, after waiting for some; b"" at the end of the body."""
    with network_errors_refused():
        return response.read1(min(CHUNK, room))


@contextmanager
def network_errors_refused() -> Iterator[None]:
    """Turn errors of the server and the network into Refused, so that they are not taken for errors of the disk."""
    try:
        yield
    except HTTPError as error:
        error.close()
        final = error.code < 500 and error.code not in RETRYABLE
        raise Refused(f"it answered {error.code} {error.reason}", final=final) from error
    except URLError as error:
        raise Refused(f"it cannot be reached ({error.reason})") from error
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        raise Refused(f"the connection failed ({str(error) or type(error).__name__})") from error
