"""Downloads from a local server that does everything wrong: afterwards, a file is in the folder whole, or not at all."""

import errno
import gc
import gzip
import hashlib
import io
import os
import random
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tqdm import tqdm

from mimo_benchmarks.data.storage.download import fetch
from mimo_benchmarks.data.storage.files import ByContent, File, Source, checksum
from mimo_benchmarks.errors import ConfigError, DatasetError

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(CONTENT))
MEMBERS = {f"set/{name}": random.Random(name).randbytes(size) for name, size in (("a", 40_000), ("b", 1), ("c", 70_000))}
quickly = partial(fetch, timeout=5, rounds=1, backoff=0, progress=False)


class Answer(BaseHTTPRequestHandler):
    """Answer as the site's `answers` say, and note each request and the number of bytes sent in bodies."""

    def do_GET(self):
        self.start = 0
        self.server.asked.append((self.path, self.headers["Range"]))
        self.server.answers[self.path](self)

    def log_message(self, *args):
        pass

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def begin(self, content):
        """Send the head of an answer that honours Range; return the body to send."""
        if self.headers["Range"]:
            self.start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            there = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
            self.head(206, Content_Range=there, Content_Length=len(content) - self.start)
        else:
            self.head(200, Content_Length=len(content))
        return content[self.start :]

    def send(self, body):
        self.server.sent += len(body)
        self.wfile.write(body)


class Site(socketserver.ThreadingTCPServer):
    """A server whose pages are functions."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.asked, self.sent, self.over = {}, [], 0, threading.Event()

    def handle_error(self, request, client_address):
        """Ignore clients that hang up: they are part of the tests."""

    def url(self, answer, name=None):
        """Return the address of a page that answers with this function."""
        path = f"/{name or len(self.answers)}"
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def serving(content):
    return lambda answer: answer.send(answer.begin(content))


def no_ranges(content):
    def page(answer):
        answer.head(200, Content_Length=len(content))
        answer.send(content)

    return page


def no_length(content):
    def page(answer):
        answer.head(200)
        answer.send(content)

    return page


def answering(code):
    return lambda answer: answer.send_error(code)


def short(answer):
    answer.send(answer.begin(CONTENT)[:100_000])


def cut_without_length(answer):
    answer.head(200)
    answer.send(CONTENT[:100_000])


def cut_chunk(answer):
    answer.head(200, Transfer_Encoding="chunked")
    answer.send(b"%x\r\n" % len(CONTENT) + CONTENT[:100_000])


def hang_up(answer):
    """Close the connection with a reset."""
    answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(answer.connection.detach())


def reset(answer):
    answer.send(answer.begin(CONTENT)[:100_000])
    answer.rfile.close()
    hang_up(answer)


def reset_at_once(answer):
    answer.rfile.close()
    hang_up(answer)


def silent(answer):
    if not answer.server.over.wait(2):
        serving(CONTENT)(answer)


def falls_silent(answer):
    body = answer.begin(CONTENT)
    answer.send(body[:100_000])
    if not answer.server.over.wait(2):
        answer.send(body[100_000:])


def drips(answer):
    for byte in answer.begin(CONTENT):
        answer.send(bytes([byte]))
        if answer.server.over.wait(0.02):
            return


def endless(answer):
    answer.head(200)
    while not answer.server.over.is_set():
        answer.send(OTHER)


def redirecting(location):
    return lambda answer: answer.head(302, Location=location, Content_Length=0)


def redirecting_to_itself(answer):
    answer.head(302, Location=answer.path, Content_Length=0)


def sending(text):
    return lambda answer: answer.wfile.write(text)


def published_file(content, path="set/file"):
    return File(path=path, size=len(content), digest=f"sha256:{hashlib.sha256(content).hexdigest()}")


def source_of(*urls, content=CONTENT):
    return Source(urls=urls, files=(published_file(content),))


def tar_gz(members):
    """Return a .tar.gz of files by name, or of members as they are."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def source_of_archive(content, *urls, members=MEMBERS):
    return Source(
        urls=urls,
        archive=published_file(content, "set.tar.gz"),
        files=tuple(published_file(members[path], path) for path in members),
    )


def source_of_gzip(content, *urls):
    return Source(urls=urls, archive=published_file(content, "set/file.gz"), files=(published_file(CONTENT),))


def files_below(folder):
    """Return the files below a folder by path, without the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".fetch.lock"
    }


WHOLE = {"set/file": CONTENT}

FAULTS = {
    "403": (answering(403), "it answered 403 Forbidden", 1),
    "404": (answering(404), "it answered 404 Not Found", 1),
    "429": (answering(429), "it answered 429 Too Many Requests", 2),
    "503": (answering(503), "it answered 503 Service Unavailable", 2),
    "204": (lambda answer: answer.head(204), "it answered 204 No Content", 1),
    "reset": (reset_at_once, "Connection reset by peer", 2),
    "reset in the body": (reset, "Connection reset by peer|it ended after", 2),
    "no answer": (sending(b""), "the connection failed .Remote end closed", 2),
    "no HTTP": (sending(b"SSH-2.0\r\n\r\n"), "the connection failed .SSH-2.0", 2),
    "endless head": (sending(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000), "the connection failed .got more than 100 headers", 2),
    "short": (short, r"it ended after 100,000 of 300,000 bytes|it ended after 200,000 of", 2),
    "short, no length": (cut_without_length, "it ended after 100,000 of 300,000 bytes", 2),
    "short chunk": (cut_chunk, "the connection failed .IncompleteRead", 2),
    "no chunk": (
        sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n"),
        "the connection failed .IncompleteRead",
        2,
    ),
    "another size": (serving(CONTENT + b"!"), "it serves 300,001 bytes, but the published file has 300,000", 1),
    "a page": (serving(b"<html>Please log in"), "it serves 19 bytes, but the published file has 300,000", 1),
    "wrong": (serving(OTHER), "the file it serves is not the published file .its checksum differs", 1),
    "endless": (endless, "the file it serves is not the published file .its checksum differs", 1),
    "to a file": (redirecting("file:///etc/passwd"), "it answered 302 .*not allowed", 1),
    "to FTP": (redirecting("ftp://127.0.0.1/"), "it cannot be reached .unknown url type: ftp", 2),
    "to itself": (redirecting_to_itself, "it answered 302 .*infinite loop", 1),
    "to no host": (redirecting("http://[::1/"), "the connection failed|it cannot be reached", 2),
    "to no port": (redirecting("http://127.0.0.1:99999999999999999999/"), "the connection failed|it cannot be reached", 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_then_a_mirror_succeeds(site, tmp_path, fault):
    """Alone, the address fails, once or in every round, and no file appears; with a mirror, the download succeeds."""
    answer, named, tries = FAULTS[fault]
    bad = site.url(answer)
    told = rf"(?s)no address served set/file: put it at \S*/set/file by hand.*{bad}: .*({named})"
    with pytest.raises(DatasetError, match=told) as error, Disk() as disk:
        quickly([source_of(bad)], tmp_path, rounds=2)
    assert f"{tmp_path / 'set/file'}: is missing" in str(error.value)
    if not fault.startswith("to "):
        assert len(site.asked) == tries
    assert set(files_below(tmp_path)) <= {"set/file.part"}
    assert disk.written <= len(CONTENT)
    quickly([source_of(bad, site.url(serving(CONTENT)))], tmp_path)
    assert files_below(tmp_path) == WHOLE
    if fault.startswith("to "):
        del error
        gc.collect()  # a response that was left open would warn now


@pytest.mark.parametrize(("answer", "named"), [(silent, "timed out"), (falls_silent, "timed out"), (drips, "it is too slow")])
def test_a_silent_or_slow_server_is_given_up(site, tmp_path, answer, named):
    slow = site.url(answer)
    with pytest.raises(DatasetError, match=f"{slow}: .*{named}"):
        quickly([source_of(slow)], tmp_path, timeout=0.25)
    quickly([source_of(slow, site.url(serving(CONTENT)))], tmp_path, timeout=0.25)
    assert files_below(tmp_path) == WHOLE


def test_a_port_where_nobody_listens_and_no_address_at_all(site, tmp_path):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(DatasetError, match=f"{nobody}: it cannot be reached .*refused"):
            quickly([source_of(nobody)], tmp_path)
        quickly([source_of(nobody, site.url(serving(CONTENT)))], tmp_path)
    assert files_below(tmp_path) == WHOLE
    with pytest.raises(DatasetError, match=r"put it at .*/other/set/file by hand"):
        quickly([source_of()], tmp_path / "other")


def test_all_mirrors_are_tried_each_round_after_a_pause_that_doubles(site, tmp_path):
    """An address that does not have the file is not asked again."""
    pauses = []
    gone, busy = site.url(answering(404)), site.url(answering(503))
    with pytest.raises(DatasetError, match=rf"(?s){gone}: it answered 404 .*{busy}: it answered 503 "):
        quickly([source_of(gone, busy)], tmp_path, rounds=4, backoff=3, sleep=pauses.append)
    assert [path for path, _ in site.asked] == ["/0", "/1", "/1", "/1", "/1"]
    assert pauses == [0, 3, 6, 12]


def test_a_server_that_recovers_is_asked_until_it_does(site, tmp_path):
    answers = iter([answering(503), reset, short, serving(CONTENT)])

    def recovers(answer):
        next(answers)(answer)

    quickly([source_of(site.url(recovers))], tmp_path, rounds=4)
    assert files_below(tmp_path) == WHOLE
    assert [ranges for _, ranges in site.asked[:2]] == [None, None]
    assert site.asked[2][1].startswith("bytes=")  # continued where the connection was reset


def test_the_answers_of_ordinary_servers(site, tmp_path):
    there = site.url(serving(CONTENT), "there")
    for number, answer in enumerate([serving(CONTENT), no_length(CONTENT), redirecting(there), redirecting("/there"), chunks]):
        quickly([source_of(site.url(answer))], tmp_path / str(number))
        assert files_below(tmp_path / str(number)) == WHOLE


def chunks(answer):
    answer.head(200, Transfer_Encoding="chunked")
    for i in range(0, len(CONTENT), 70_000):
        part = CONTENT[i : i + 70_000]
        answer.send(b"%x\r\n%s\r\n" % (len(part), part))
    answer.send(b"0\r\n\r\n")


@pytest.mark.parametrize("tries", [150, pytest.param(3_000, marks=pytest.mark.torture)])
def test_random_answers_lead_to_no_other_error(site, tmp_path, tries):
    """In the heads of answers, bytes are replaced, dropped or repeated."""
    rng = random.Random(0)
    content = b"a few bytes"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nContent-Type: text/plain\r\n\r\n" + content
    for number in range(tries):
        text = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.choice([b"", b"\n", b"\r\n", b"-", b"\0", rng.randbytes(1), text[:at]])
        folder = tmp_path / str(number)
        try:
            quickly([source_of(site.url(sending(bytes(text))), content=content)], folder, timeout=0.5)
        except DatasetError:
            assert set(files_below(folder)) <= {"set/file.part"}
        else:
            assert files_below(folder) == {"set/file": content}


def begin_download(folder, content):
    """Write a folder in which a download stopped."""
    part = folder / "set" / "file.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


@pytest.mark.parametrize("through", [lambda site, url: url, lambda site, url: site.url(redirecting(url))], ids=["", "redirected"])
def test_a_download_goes_on_where_it_stopped(site, tmp_path, through):
    begin_download(tmp_path, CONTENT[:123_456])
    quickly([source_of(through(site, site.url(serving(CONTENT))))], tmp_path)
    assert files_below(tmp_path) == WHOLE
    assert site.asked[-1][1] == "bytes=123456-"
    assert site.sent == len(CONTENT) - 123_456


def test_a_complete_part_needs_no_server(tmp_path, no_sockets):
    begin_download(tmp_path, CONTENT)
    quickly([source_of("http://127.0.0.1/")], tmp_path)
    assert files_below(tmp_path) == WHOLE


def wrong_range(answer):
    answer.head(206, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}") if answer.headers["Range"] else answer.begin(
        CONTENT
    )
    answer.send(CONTENT)


def no_416(answer):
    answer.send_error(416) if answer.headers["Range"] else answer.send(answer.begin(CONTENT))


@pytest.mark.parametrize(
    ("there", "answer", "asked"),
    [
        (OTHER[:1000], serving(CONTENT), ["bytes=1000-", None]),
        (OTHER, serving(CONTENT), [None]),
        (CONTENT + b"!", serving(CONTENT), [None]),
        (b"", serving(CONTENT), [None]),
        (CONTENT[:1000], no_ranges(CONTENT), ["bytes=1000-"]),
        (CONTENT[:1000], no_416, ["bytes=1000-", None]),
        (CONTENT[:1000], wrong_range, ["bytes=1000-", None]),
    ],
    ids=["of an older file", "whole but wrong", "too long", "empty", "ranges ignored", "ranges refused", "another range"],
)
def test_a_part_that_cannot_be_resumed_is_fetched_whole_once(site, tmp_path, there, answer, asked):
    begin_download(tmp_path, there)
    quickly([source_of(site.url(answer))], tmp_path)
    assert files_below(tmp_path) == WHOLE
    assert [ranges for _, ranges in site.asked] == asked


def test_a_wrong_server_is_asked_for_the_whole_file_once_only(site, tmp_path):
    begin_download(tmp_path, OTHER[:1000])
    with pytest.raises(DatasetError, match="the file it serves is not the published file"):
        quickly([source_of(site.url(serving(OTHER)))], tmp_path)
    assert [ranges for _, ranges in site.asked] == ["bytes=1000-", None]
    assert files_below(tmp_path) == {}


def test_an_error_page_leaves_the_part_to_the_next_mirror(site, tmp_path):
    begin_download(tmp_path, CONTENT[:1000])
    quickly([source_of(site.url(answering(404)), site.url(no_ranges(b"<html>")), site.url(serving(CONTENT)))], tmp_path)
    assert site.asked[-1][1] == "bytes=1000-"
    assert files_below(tmp_path) == WHOLE


PROGRAM = """
import sys
from pathlib import Path
from mimo_benchmarks.data.storage.download import fetch
from mimo_benchmarks.data.storage.files import File, Source

url, size, digest, folder = sys.argv[1:]
file = File(path="set/file", size=int(size), digest=digest)
fetch([Source(urls=(url,), files=(file,))], Path(folder), progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_leaves_a_part_that_the_next_one_completes(site, tmp_path):
    """Its lock ends too. Up to 8 kB of what arrived can be lost in the buffer."""
    url = site.url(falls_silent)
    wanted, part = published_file(CONTENT), tmp_path / "set" / "file.part"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, url, str(wanted.size), wanted.digest, str(tmp_path)])
    try:
        while not (part.is_file() and part.stat().st_size > 100_000 - 8192):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    have = part.stat().st_size
    assert set(files_below(tmp_path)) == {"set/file.part"}
    site.answers["/0"], site.sent = serving(CONTENT), 0
    quickly([source_of(url)], tmp_path)
    assert files_below(tmp_path) == WHOLE
    assert site.sent == len(CONTENT) - have


def test_the_second_of_two_waits_and_finds_the_files(site, tmp_path):
    """The first request is answered only after a second one had time to arrive."""
    started = threading.Barrier(3)

    def late(answer):
        answer.server.over.wait(0.3)
        serving(CONTENT)(answer)

    def run():
        started.wait()
        quickly([source_of(url)], tmp_path)

    url = site.url(late)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 1
    assert files_below(tmp_path) == WHOLE


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_files(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_what_is_there_is_not_fetched_and_nothing_written(tmp_path, no_sockets, monkeypatch):
    write_files(tmp_path, MEMBERS | WHOLE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    quickly([source_of("http://127.0.0.1/"), source_of_archive(b"", "http://127.0.0.1/")], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before


def test_only_sources_with_something_missing_are_fetched(site, tmp_path):
    """A wrong file is fetched anew; of an archive, only the missing members are written."""
    content = tar_gz(MEMBERS.items())
    write_files(tmp_path, MEMBERS | WHOLE | {"set/b": b"?"})
    kept = (tmp_path / "set" / "a").stat().st_mtime_ns
    quickly([source_of(site.url(serving(CONTENT))), source_of_archive(content, site.url(serving(content)))], tmp_path)
    assert [path for path, _ in site.asked] == ["/1"]
    assert files_below(tmp_path) == MEMBERS | WHOLE
    assert (tmp_path / "set" / "a").stat().st_mtime_ns == kept


def test_an_archive_put_there_by_hand_is_used_and_stays(tmp_path, no_sockets):
    by_hand = {"set.tar.gz": tar_gz(MEMBERS.items()), "set/file.gz": gzip.compress(CONTENT)}
    write_files(tmp_path, by_hand)
    quickly(
        [
            source_of_archive(by_hand["set.tar.gz"], "http://127.0.0.1/"),
            source_of_gzip(by_hand["set/file.gz"], "http://127.0.0.1/"),
        ],
        tmp_path,
    )
    assert files_below(tmp_path) == MEMBERS | WHOLE | by_hand


def test_archives_are_unpacked_and_removed(site, tmp_path):
    tar, single = tar_gz(MEMBERS.items()), gzip.compress(CONTENT)
    quickly([source_of_archive(tar, site.url(serving(tar))), source_of_gzip(single, site.url(serving(single)))], tmp_path)
    assert files_below(tmp_path) == MEMBERS | WHOLE


def tar_member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def tar_header(kind=tarfile.REGTYPE, size=6, **extra):
    """Return a .tar.gz that holds only the beginning of a member."""
    info = tarfile.TarInfo("set/a")
    info.type, info.size, info.pax_headers = kind, size, extra
    return gzip.compress(info.tobuf(tarfile.PAX_FORMAT if extra else tarfile.GNU_FORMAT) + bytes(1024))


OUTSIDE = [
    ("../outside", b"!"),
    ("/outside", b"!"),
    ("set/../../outside", b"!"),
    ("stranger", b"!"),
    tar_member("set", tarfile.SYMTYPE, ".."),
    tar_member("set/a", tarfile.SYMTYPE, "../../outside"),
    tar_member("set/b", tarfile.LNKTYPE, "../outside"),
    tar_member("set/c", tarfile.DIRTYPE),
    tar_member("set/c", tarfile.FIFOTYPE),
    tar_member("set/c", tarfile.CHRTYPE),
]


def test_other_members_are_skipped(tmp_path):
    """They come before and after the wanted members; some have the same names."""
    content = tar_gz([*OUTSIDE, *MEMBERS.items(), *OUTSIDE, ("set/a", b"again")])
    write_files(tmp_path / "data", {"set.tar.gz": content})
    quickly([source_of_archive(content)], tmp_path / "data")
    assert files_below(tmp_path) == {f"data/{path}": text for path, text in (MEMBERS | {"set.tar.gz": content}).items()}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert not Path("/outside").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tar_gz(OUTSIDE), "does not contain set/a, set/b, set/c"),
        (
            tar_gz([("set/a", MEMBERS["set/a"][:-1])]),
            "set/a as it was packed has 39,999 bytes, but the published file has 40,000",
        ),
        (tar_gz([("set/b", b"?")]), "set/b as it was packed is not the published file .its checksum differs"),
        (tar_gz([("set/c", bytes(30_000_000))]), "set/c as it was packed has 70,001 bytes, but the published file has 70,000"),
        (tar_gz(MEMBERS.items())[:30_000], "cannot be unpacked .Compressed file ended"),
        (b"", "cannot be unpacked .empty file"),
        (b"none", "cannot be unpacked .not a gzip file"),
        (
            tar_header(**{"GNU.sparse.map": "none"}),
            "cannot be unpacked .invalid literal for int|cannot be unpacked .invalid header",
        ),
        (tar_header(tarfile.GNUTYPE_LONGNAME, 2**80), "cannot be unpacked"),
        (tar_header(tarfile.GNUTYPE_LONGNAME, 2**60), "cannot be unpacked"),
        (gzip.compress(b"no tar" * 100), "cannot be unpacked .truncated header|cannot be unpacked .invalid header"),
    ],
    ids=[
        "links",
        "short",
        "wrong",
        "huge",
        "truncated",
        "empty",
        "no gzip",
        "no number",
        "beyond numbers",
        "beyond memory",
        "no tar",
    ],
)
def test_an_archive_of_something_else_is_an_error(tmp_path, content, named):
    write_files(tmp_path, {"set.tar.gz": content})
    with pytest.raises(DatasetError, match=named), Disk() as disk:
        quickly([source_of_archive(content)], tmp_path)
    left = files_below(tmp_path)
    assert all(left[path] == MEMBERS.get(path, content) for path in left if not path.endswith(".part"))
    assert disk.written <= sum(map(len, MEMBERS.values())) + 3  # a bomb fills no disk


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (gzip.compress(bytes(30_000_000)), "set/file as it was packed has 300,001 bytes"),
        (gzip.compress(CONTENT)[:-10], "cannot be unpacked .Compressed file ended"),
        (gzip.compress(CONTENT)[:-8] + bytes(8), "cannot be unpacked .CRC check failed"),
        (gzip.compress(CONTENT)[:10] + bytes([255]) * 99, "cannot be unpacked .Error -3 while decompressing"),
        (gzip.compress(OTHER), "set/file as it was packed is not the published file"),
    ],
    ids=["huge", "truncated", "checksum", "no stream", "wrong"],
)
def test_a_gzip_of_something_else_is_an_error(tmp_path, content, named):
    write_files(tmp_path, {"set/file.gz": content})
    with pytest.raises(DatasetError, match=named), Disk() as disk:
        quickly([source_of_gzip(content)], tmp_path)
    assert "set/file" not in files_below(tmp_path)
    assert disk.written <= len(CONTENT) + 1


@pytest.mark.parametrize("tries", [300, pytest.param(5_000, marks=pytest.mark.torture)])
def test_mutated_archives_lead_to_no_other_error(tmp_path, tries):
    """Bytes of archives are replaced before or after packing: every file that appears is the published one."""
    rng = random.Random(0)
    wanted = {name: content[:6] * 100 for name, content in MEMBERS.items()}
    good = tar_gz(wanted.items())
    for number in range(tries):
        bad = bytearray(gzip.decompress(good) if number % 2 else good)
        for _ in range(rng.randrange(1, 6)):
            bad[rng.randrange(len(bad))] = rng.choice([0, 32, 48, 57, 128, 255, rng.randrange(256)])
        content = gzip.compress(bad, 1) if number % 2 else bytes(bad)
        folder = tmp_path / str(number)
        write_files(folder, {"set.tar.gz": content})
        try:
            quickly([source_of_archive(content, members=wanted)], folder)
        except DatasetError:
            pass
        else:
            assert wanted.keys() <= files_below(folder).keys()
        assert all(files_below(folder)[path] == wanted[path] for path in files_below(folder).keys() & wanted.keys())


class Killed(BaseException):
    """Stand for kill -9: no handler catches it."""


class Disk:
    """Count the calls that change files, and the bytes written. Call number `last` fails, a write in its middle."""

    def __init__(self, last=None, error=None):
        self.calls, self.written, self.last, self.error = 0, 0, last, error
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        opened = Path.open
        for owner, name in ((Path, "mkdir"), (Path, "unlink"), (os, "open"), (os, "fsync"), (os, "replace")):
            self.patch.setattr(owner, name, self.counted(getattr(owner, name)))

        def open_(path, mode="r", *args, **kwargs):
            if mode == "rb":
                return opened(path, mode, *args, **kwargs)
            self.call()
            return Written(opened(path, mode, *args, **kwargs), self)

        self.patch.setattr(Path, "open", open_)
        return self

    def __exit__(self, *error):
        self.patch.undo()

    def counted(self, function):
        def call(*args, **kwargs):
            self.call()
            return function(*args, **kwargs)

        return call

    def call(self):
        self.calls += 1
        if self.calls == self.last:
            raise self.error


class Written:
    """Wrap an open file so that its writes are counted."""

    def __init__(self, handle, disk):
        self.handle, self.disk = handle, disk

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.close()

    def write(self, content):
        half = len(content) // 2
        self.handle.write(content[:half])
        self.disk.call()
        self.handle.write(content[half:])
        self.disk.written += len(content)


def failure_at(sources, folder, last, error):
    """Return the exception that fetching ends with if step number `last` fails with this error."""
    try:
        with Disk(last, error):
            quickly(sources, folder)
    except (DatasetError, Killed) as found:
        return found
    return None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied"), Killed()]
)
@pytest.mark.parametrize("kind", ["copy", "gzip", "tar"])
def test_the_disk_fails_or_the_process_ends_at_every_step(site, tmp_path, error, kind):
    """Each file is then missing or whole, and the next call completes all files."""
    served = {"copy": CONTENT, "gzip": gzip.compress(CONTENT), "tar": tar_gz(MEMBERS.items())}[kind]
    expected = MEMBERS if kind == "tar" else WHOLE
    make = {"copy": lambda content, url: source_of(url), "gzip": source_of_gzip, "tar": source_of_archive}[kind]
    sources = [make(served, site.url(serving(served)))]
    last = 1
    while found := failure_at(sources, folder := tmp_path / str(last), last, error):
        if isinstance(error, OSError):
            assert f"cannot be read or written ({error.strerror}): free some space or fix the permissions" in str(found)
        left = files_below(folder)
        assert all(left[path] == expected[path] for path in left if not path.endswith(".part"))
        quickly(sources, folder)
        # an archive stays if the process ended after its last file was in place, but before the archive was removed
        assert files_below(folder) == expected | (left if expected.keys() <= left.keys() else {})
        last += 1
    assert files_below(folder) == expected
    assert last > 8


@pytest.mark.skipif(os.name != "posix", reason="a folder cannot be opened")
def test_files_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    """Otherwise a loss of power could leave the name of a file without its content. The folder is synchronised last."""
    steps = []
    replace = os.replace

    def named(part, path):
        steps.append(("name", os.stat(part).st_ino, os.stat(Path(path).parent).st_ino))
        replace(part, path)

    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(("sync", os.fstat(handle).st_ino)))
    monkeypatch.setattr(os, "replace", named)
    content = tar_gz(MEMBERS.items())
    write_files(tmp_path, {"set.tar.gz": content})
    quickly([source_of_archive(content)], tmp_path)
    assert len(steps) == 3 * len(MEMBERS)
    for before, (_, content, folder), after in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
        assert (before, after) == (("sync", content), ("sync", folder))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_is_really_full(site, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.part").symlink_to("/dev/full")
    with pytest.raises(DatasetError, match=rf"{tmp_path} cannot be read or written .No space left on device.: .* --data-dir"):
        quickly([source_of(site.url(serving(CONTENT)))], tmp_path)
    assert not (tmp_path / "set" / "file").exists()


@pytest.mark.parametrize("at", ["data", "data/set", "data/set/file/x", "data/set/file.part/x", "data/.fetch.lock/x"])
def test_a_place_that_cannot_hold_the_file_is_named(site, tmp_path, at):
    """There is a file in place of a folder, or a folder in place of a file."""
    write_files(tmp_path, {at: b""})
    with pytest.raises(DatasetError, match=rf"{tmp_path}/data\S* cannot be read or written .*(directory|exists).*--data-dir"):
        quickly([source_of(site.url(serving(CONTENT)))], tmp_path / "data")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match=rf"{tmp_path}\S* cannot be read or written .Permission denied.*--data-dir"):
        quickly([source_of()], tmp_path)


def starts_with_four(content):
    if content[:4] != b"PAR1":
        raise DatasetError("it does not start with PAR1")


@pytest.mark.parametrize("answer", [serving, no_length], ids=["length", "no length"])
def test_a_file_without_a_checksum_is_checked_by_its_content(site, tmp_path, answer):
    """Its length is limited too. It is never resumed, since nothing would tell whether the two halves belong together."""
    good = b"PAR1" + CONTENT
    wanted = ByContent(path="set/file", limit=len(good), check=starts_with_four)
    begin_download(tmp_path, b"PAR1")
    pages = [site.url(answer(content)) for content in (b"<html>", b"PAR1" + CONTENT + b"!", good)]
    with pytest.raises(DatasetError) as error:
        quickly([Source(urls=tuple(pages[:2]), files=(wanted,))], tmp_path)
    assert f"{pages[0]}: the file it serves does not have the expected content (it does not start with PAR1)" in str(error.value)
    assert f"{pages[1]}: the file it serves has 300,005 bytes, which is more than 300,004" in str(error.value)
    assert files_below(tmp_path) == {}
    quickly([Source(urls=(site.url(short), *pages), files=(wanted,))], tmp_path)
    assert files_below(tmp_path) == {"set/file": good}
    assert {ranges for _, ranges in site.asked} == {None}


def test_a_file_checked_by_its_content_is_downloaded_with_the_published_bytes_alone(site, tmp_path):
    """One of the right content that lies there already stays, whatever its bytes."""
    good, other = b"PAR1" + CONTENT, b"PAR1" + OTHER
    wanted = ByContent(path="set/file", limit=len(good), check=starts_with_four)
    served = File(path=wanted.path, size=len(good), digest=checksum(good, "sha256"))
    source = Source(urls=(site.url(serving(other)), site.url(serving(good))), files=(wanted,), served=served)
    quickly([source], tmp_path / "empty")
    assert files_below(tmp_path / "empty") == {"set/file": good}
    with pytest.raises(DatasetError, match="is not the published file"):
        quickly([replace(source, urls=source.urls[:1])], tmp_path / "one")
    assert files_below(tmp_path / "one") == {}
    asked = len(site.asked)
    quickly([replace(source, urls=source.urls[:1])], existing(tmp_path / "there", other))
    assert files_below(tmp_path / "there") == {"set/file": other}
    assert len(site.asked) == asked


def existing(folder, content):
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "file").write_bytes(content)
    return folder


def test_the_bar_names_the_file_and_can_be_left_out(site, tmp_path, capsys, monkeypatch):
    """A hidden bar is not even made, because it would start a thread."""
    fetch([source_of(site.url(serving(CONTENT)))], tmp_path / "shown")
    assert "downloading file: 0.00 of 300kB" in capsys.readouterr().err
    monkeypatch.delattr(tqdm, "__init__")
    fetch([source_of(site.url(serving(CONTENT)))], tmp_path / "hidden", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "//host/x",
        "x",
        "",
        "http:",
        "https:///x",
        "http://[x/",
        "http://host:99999/",
        "http://h:x/",
    ],
)
def test_other_addresses_than_http_are_refused(url):
    with pytest.raises(ConfigError, match="is not a web address"):
        source_of("https://host/x", url)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "set/../../x", "", "."])
def test_paths_out_of_the_data_folder_are_refused(path):
    for changed in (
        {"files": (published_file(b"", path),)},
        {"files": (published_file(b""),), "archive": published_file(b"", path)},
    ):
        with pytest.raises(ConfigError, match="must stay below the data folder"):
            Source(urls=(), **changed)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"files": ()}, "0 files"),
        ({"files": (published_file(b"", "a"), published_file(b"", "b"))}, "2 files"),
        ({"files": (published_file(b"", "a"), published_file(b"", "b")), "archive": published_file(b"", "x.gz")}, "2 files"),
        ({"files": (), "archive": published_file(b"", "x.tar.gz")}, "0 files"),
        ({"files": (published_file(b"", "a"),), "archive": published_file(b"", "x.zip")}, "x.zip is neither a .gz nor a .tar.gz"),
    ],
)
def test_files_that_do_not_match_their_source_are_refused(changed, named):
    with pytest.raises(ConfigError, match=named):
        Source(urls=(), **changed)


@pytest.mark.parametrize("setting", [{"timeout": 0}, {"timeout": float("nan")}, {"rounds": 0}, {"backoff": -1}], ids=str)
def test_arguments_out_of_range_are_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .*; it must be at least"):
        fetch([source_of()], tmp_path, **setting)
