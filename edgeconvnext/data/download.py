"""Downloading one file of known size over HTTP: resumed where it stopped, bounded in bytes, in attempts and by a least rate."""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from edgeconvnext.errors import DownloadError
from edgeconvnext.escape import for_terminal
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import reason

_CHUNK = 2**16
# One read of the network; a server that says nothing for so long is gone.
TIMEOUT_S = 30.0
# A connection that brings less than LEAST_RATE bytes a second over a whole window is given up.
LEAST_RATE = 1024
WINDOW_S = 60.0
# So many attempts in a row may bring less than LEAST_PROGRESS, and so many may be made in all.
MOST_FAILURES = 5
LEAST_PROGRESS = 64 * 1024
MOST_ATTEMPTS = 100
# Headers, redirects and the framing of chunks, beside the bytes of the file.
_MOST_OVERHEAD = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _WrongAnswer(Exception):
    """The server answers something else than was asked for; the message says what."""


def require_http_address(url: str) -> None:
    """Raise DownloadError unless `url` is an http(s) address with a host, without login and control characters."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port  # raises ValueError where the port is no number
        host.encode("idna")
        place = f"[{host}]" if ":" in host else host
        whole = parts.netloc.lower() in (place, f"{place}:{port}")
        clean = not any(c.isspace() or unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in url)
        good = parts.scheme in ("http", "https") and bool(host) and whole and url.isascii() and clean
    except ValueError:
        good = False
    if not good:
        raise DownloadError(
            f"{for_terminal(url)} is not an http(s) address. Give the mirror's full address, starting with https://, "
            "without a login."
        )


def download(
    url: str,
    size_bytes: int,
    stream: BinaryIO,
    description: str,
    way_out: str,
) -> None:
    """Bring `stream` to `size_bytes`, starting where it ends; a connection that drops is taken up again.

    description: what the progress bar says. way_out: what to do without the server, the end of an error's message.
    Raises DownloadError, with what arrived still in `stream`, where the server refuses, answers wrongly or is too slow. A full
    disk passes as OSError.
    """
    require_http_address(url)
    if _size(stream) > size_bytes:
        stream.truncate(0)
    with progress_bar(description, size_bytes, unit="bytes") as advance:
        advance(_size(stream))
        failures = 0
        for _ in range(MOST_ATTEMPTS):
            before = _size(stream)
            if before == size_bytes:
                return
            error = _attempt(url, size_bytes, stream, advance)
            failures = failures + 1 if _size(stream) - before < LEAST_PROGRESS else 0
            if _size(stream) < size_bytes and (failures >= MOST_FAILURES or _is_final(error)):
                raise _failed(url, stream, error, way_out) from error
            time.sleep(min(0.1 * 2**failures, 5))
        if _size(stream) < size_bytes:
            raise _failed(url, stream, _WrongAnswer(f"the connection dropped {MOST_ATTEMPTS} times"), way_out)


def _attempt(url: str, size_bytes: int, stream: BinaryIO, advance: Callable[[int], None]) -> Exception:
    """Receive over one connection; returns what ended it."""
    try:
        for amount in _receive(url, size_bytes, stream):
            advance(amount)
    except (OSError, http.client.HTTPException, ValueError, _WrongAnswer) as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise
        return error
    return _WrongAnswer("the server sends no more bytes")


def _receive(url: str, size_bytes: int, stream: BinaryIO) -> Iterator[int]:
    """Append what the server sends; yields the bytes added, negative where the server made the download start over."""
    start = _size(stream)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    meter = _Meter(size_bytes - start)
    with _opener(meter).open(request, timeout=TIMEOUT_S) as response:
        if response.status == 206:
            _check_range(response.headers.get("Content-Range"), start, size_bytes)
        elif response.status == 200:
            if start:
                meter.allow(start)
                stream.truncate(0)
                yield -start
        else:
            raise _WrongAnswer(f"the server answers with status {response.status}")
        while chunk := response.read1(_CHUNK):
            if _size(stream) + len(chunk) > size_bytes:
                stream.truncate(0)
                raise DownloadError(
                    f"{for_terminal(url)} is larger than the {size_bytes:,} bytes of the published archive, so it is "
                    "another file. Check the address; nothing was kept."
                )
            stream.write(chunk)
            yield len(chunk)


def _check_range(given: str | None, start: int, size_bytes: int) -> None:
    """Raise _WrongAnswer unless a partial answer is the rest that was asked for, of a file of the published size."""
    match = _CONTENT_RANGE.fullmatch(given or "")
    if match is None:
        raise _WrongAnswer("the server sends a part and does not say which")
    first, last, total = match.groups()
    if int(first) != start or not start <= int(last) < size_bytes or total not in ("*", str(size_bytes)):
        raise _WrongAnswer(
            f"the server sends the part {for_terminal(given)}, and bytes {start}-{size_bytes - 1}/{size_bytes} were asked for"
        )


@dataclass
class _Meter:
    """Counts what comes over a connection, headers and redirects too: too many bytes, or too few for too long, end it."""

    expected: int
    received: int = 0
    window_start: float = field(default_factory=time.monotonic)
    in_window: int = 0

    def allow(self, more: int) -> None:
        self.expected += more

    def count(self, amount: int) -> None:
        self.received += amount
        self.in_window += amount
        if self.received > self.expected + _MOST_OVERHEAD:
            raise _WrongAnswer("the server sends more than was asked for")
        now = time.monotonic()
        if now - self.window_start >= WINDOW_S:
            if self.in_window < LEAST_RATE * WINDOW_S:
                raise TimeoutError(f"the server sent under {LEAST_RATE} bytes a second over {WINDOW_S:.0f} seconds")
            self.window_start, self.in_window = now, 0


class _MeteredSocket(io.RawIOBase):
    """What a connection reads from, with every read counted."""

    def __init__(self, raw: io.RawIOBase, meter: _Meter) -> None:
        self._raw, self._meter = raw, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        amount = self._raw.readinto(buffer)
        self._meter.count(amount or 0)
        return amount

    def close(self) -> None:
        self._raw.close()
        super().close()


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) addresses only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # Python would read the body first, whatever its length
        try:
            require_http_address(newurl)
        except DownloadError as error:
            raise urllib.error.HTTPError(
                req.full_url, code, f"the server redirects to {for_terminal(newurl)[:200]}", headers, fp
            ) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(meter: _Meter) -> urllib.request.OpenerDirector:
    """Return what opens http(s) addresses and nothing else (no file, no FTP), with all that comes counted by `meter`."""

    class Response(http.client.HTTPResponse):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            raw = cast(io.BufferedReader, self.fp).detach()
            self.fp = io.BufferedReader(_MeteredSocket(raw, meter))

    class Connection(http.client.HTTPConnection):
        response_class = Response

    class SecureConnection(http.client.HTTPSConnection):
        response_class = Response

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(SecureConnection, req)  # a connection without a context of its own checks certificates

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Http(),
        Https(),
        _OnlyHttp(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _is_final(error: Exception) -> bool:
    """Say whether asking again is pointless: the server understood and refused."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)


def _failed(url: str, stream: BinaryIO, error: Exception, way_out: str) -> DownloadError:
    kept = _size(stream)
    resume = f" The {kept / 1e6:.1f} MB that arrived are kept: run the command again to go on." if kept else ""
    why = getattr(error, "reason", None) or error
    said = reason(why if isinstance(why, BaseException) else Exception(why)).rstrip(".")
    return DownloadError(f"{for_terminal(url)} could not be downloaded: {said}.{resume} {way_out}")


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, os.SEEK_END)
