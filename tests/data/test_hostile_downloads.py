"""Servers and archives that mean harm: every download ends, nothing is written elsewhere, and nothing unpacks without limit."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import struct
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeconvnext.data import download as module
from edgeconvnext.data import unpack as unpack_module
from edgeconvnext.data.download import download, require_http_address
from edgeconvnext.data.fetch import fetch_archive
from edgeconvnext.data.names import unsafe_name
from edgeconvnext.data.sets import ArchiveSection
from edgeconvnext.data.unpack import unpack
from edgeconvnext.errors import DownloadError

CONTENT = bytes(range(256)) * 1000
SIZE = len(CONTENT)
START = 100_000
Answer = Callable[[socket.socket, str], None]


class Server:
    """Answers every connection as `answer` says, on a raw socket; requests: what was asked."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/set.tgz"
        self.requests: list[str] = []
        self.answer: Answer = lambda connection, request: None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                try:
                    request = connection.recv(65_536).decode("latin-1")
                    self.requests.append(request)
                    self.answer(connection, request)
                except OSError:
                    pass


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.socket.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", FastTime)


class FastTime:
    """Waiting between attempts takes no time; measuring it does."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(seconds: float) -> None:
        pass


def says(status: str, body: bytes = b"", **headers: object) -> Answer:
    """Send one answer; names of headers with underscores for hyphens."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return lambda connection, request: connection.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body)


def part_of(first: int, last: int, total: object = SIZE) -> Answer:
    return says("206 Partial Content", CONTENT[first : last + 1], Content_Range=f"bytes {first}-{last}/{total}")


def first_asked(request: str) -> int:
    """Return the first byte that a request asks for."""
    return int(request.partition("Range: bytes=")[2].partition("-")[0] or 0)


def fetched(server: Server, start: int = START) -> bytes:
    stream = io.BytesIO(CONTENT[:start])
    download(server.url, SIZE, stream, "Downloading", "Do without.")
    return stream.getvalue()


def test_the_rest_is_asked_for_and_appended(server: Server) -> None:
    server.answer = part_of(START, SIZE - 1)
    assert fetched(server) == CONTENT
    assert len(server.requests) == 1 and f"Range: bytes={START}-\r\n" in server.requests[0]
    server.answer = part_of(START, SIZE - 1, total="*")
    assert fetched(server) == CONTENT


def test_a_whole_answer_to_a_range_starts_over(server: Server) -> None:
    server.answer = says("200 OK", CONTENT, Content_Length=SIZE)
    assert fetched(server) == CONTENT
    assert len(server.requests) == 1


WRONG_RANGES = {
    "none": says("206 Partial Content", CONTENT[START:]),
    "another start": part_of(START - 1, SIZE - 2),
    "another total": part_of(START, SIZE - 1, SIZE + 1),
    "beyond the end": says("206 Partial Content", CONTENT[START:], Content_Range=f"bytes {START}-{SIZE}/{SIZE}"),
    "backwards": says("206 Partial Content", CONTENT[START:], Content_Range=f"bytes {START}-{START - 1}/{SIZE}"),
    "another unit": says("206 Partial Content", CONTENT[START:], Content_Range=f"rows {START}-{SIZE - 1}/{SIZE}"),
    "words": says("206 Partial Content", CONTENT[START:], Content_Range="\x1b[2Jall of it"),
    "many digits": says("206 Partial Content", CONTENT[START:], Content_Range=f"bytes {'9' * 5000}-2/3"),
    "several": says("206 Partial Content", CONTENT[START:], Content_Type="multipart/byteranges; boundary=x"),
}


@pytest.mark.parametrize("kind", WRONG_RANGES)
def test_a_part_that_was_not_asked_for_is_not_appended(server: Server, kind: str) -> None:
    server.answer = WRONG_RANGES[kind]
    stream = io.BytesIO(CONTENT[:START])
    with pytest.raises(
        DownloadError, match=r"sends (a|the) part .*0\.1 MB that arrived are kept.* Do without"
    ) as error:
        download(server.url, SIZE, stream, "Downloading", "Do without.")
    assert stream.getvalue() == CONTENT[:START]
    assert len(server.requests) == module.MOST_FAILURES
    assert str(error.value).isprintable()


BAD_ANSWERS = {
    "nothing": says("200 OK", Content_Length=0),
    "hangs up": lambda connection, request: None,
    "no HTTP": lambda connection, request: connection.sendall(b"\x00\xff" * 100),
    "a status of its own": says("299 Fine", CONTENT[START:]),
    "no content": says("204 No Content"),
    "the wrong unit of chunks": says("200 OK", b"zz\r\n" + CONTENT, Transfer_Encoding="chunked"),
    "a header of a megabyte": says("200 OK", CONTENT, X="y" * 2**20),
    "thousands of headers": says("200 OK", CONTENT, **{f"X{n}": n for n in range(5000)}),
    "a length that is no number": says("200 OK", CONTENT[:1000], Content_Length="many"),
    "a negative length": says("200 OK", b"", Content_Length=-1),
    "fewer bytes than announced": says("200 OK", CONTENT[:10_000], Content_Length=SIZE),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_server_that_makes_no_sense_is_given_up(server: Server, kind: str) -> None:
    server.answer = BAD_ANSWERS[kind]
    with pytest.raises(DownloadError, match="could not be downloaded") as error:
        fetched(server, start=0)
    assert 1 <= len(server.requests) <= module.MOST_FAILURES + 1
    assert str(error.value).isprintable() and len(str(error.value)) < 700


def test_more_bytes_than_announced_are_not_read(server: Server) -> None:
    server.answer = says("200 OK", CONTENT + b"more", Content_Length=SIZE)
    assert fetched(server) == CONTENT
    server.answer = says("200 OK", CONTENT + b"more")
    with pytest.raises(DownloadError, match="is larger than the 256,000 bytes"):
        fetched(server)


def test_an_endless_answer_of_another_kind_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python skips 100 Continue, and reads the body of a redirect, for as long as they come."""
    monkeypatch.setattr(module, "_MOST_OVERHEAD", 2**16)

    def endless(first: bytes, again: bytes) -> Answer:
        def answer(connection: socket.socket, request: str) -> None:
            connection.sendall(first)
            while True:
                connection.sendall(again)

        return answer

    continues = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000
    server.answer = endless(continues, continues)
    with pytest.raises(DownloadError, match="sends more than was asked for"):
        fetched(server)
    server.answer = endless(b"HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n", bytes(2**16))
    with pytest.raises(DownloadError, match="infinite loop"):
        fetched(server)


@pytest.mark.parametrize("kind", ["header", "body"])
def test_a_server_that_drips_is_given_up_and_what_came_is_kept(
    server: Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps every read alive; the rate over a window does not."""
    monkeypatch.setattr(module, "WINDOW_S", 0.1)
    monkeypatch.setattr(module, "MOST_FAILURES", 2)

    def drip(connection: socket.socket, request: str) -> None:
        if kind == "body":
            first = first_asked(request)
            connection.sendall(f"HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{SIZE - 1}/{SIZE}\r\n\r\n".encode())
        else:
            connection.sendall(b"HTTP/1.1 206 P\r\nX: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)

    server.answer = drip
    stream = io.BytesIO(CONTENT[:START])
    with pytest.raises(DownloadError, match=r"under 1024 bytes a second over 0 seconds.*0\.1 MB that arrived are kept"):
        download(server.url, SIZE, stream, "Downloading", "")
    assert stream.getvalue()[:START] == CONTENT[:START]
    assert len(stream.getvalue()) < START + 2 * module.LEAST_PROGRESS


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "MOST_FAILURES", 2)
    silence = threading.Event()
    server.answer = lambda connection, request: silence.wait(0.3)
    with pytest.raises(DownloadError, match="timed out"):
        fetched(server)


def test_little_progress_again_and_again_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(amount: int) -> Answer:
        def answer(connection: socket.socket, request: str) -> None:
            first = first_asked(request)
            part_of(first, min(first + amount, SIZE) - 1)(connection, request)

        return answer

    server.answer = some(100)
    with pytest.raises(DownloadError, match="sends no more bytes"):
        fetched(server)
    assert len(server.requests) == module.MOST_FAILURES
    server.requests.clear()
    monkeypatch.setattr(module, "LEAST_PROGRESS", 100)
    monkeypatch.setattr(module, "MOST_ATTEMPTS", 20)
    with pytest.raises(DownloadError, match="dropped 20 times"):
        fetched(server)
    assert len(server.requests) == 20
    server.answer = some(10_000)
    assert fetched(server) == CONTENT  # (256,000 - 100,000) / 10,000 = 16 attempts


REDIRECTS = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "gopher://x/",
    "http://[::1",
    "http://",
    "data:,x",
    "//",
    "http://\x00/",
]


@pytest.mark.parametrize("target", REDIRECTS)
def test_redirects_lead_to_http_only(server: Server, target: str) -> None:
    server.answer = says("302 Found", Location=target, Content_Length=0)
    with pytest.raises(DownloadError, match="could not be downloaded") as error:
        fetched(server)
    assert len(server.requests) <= module.MOST_FAILURES
    assert str(error.value).isprintable()


def test_a_circle_of_redirects_ends_and_one_redirect_is_followed(server: Server) -> None:
    server.answer = says("302 Found", Location="/set.tgz", Content_Length=0)
    with pytest.raises(DownloadError, match="infinite loop"):
        fetched(server)
    assert len(server.requests) < 20

    def once(connection: socket.socket, request: str) -> None:
        moved = says("302 Found", Location="/moved", Content_Length=0)
        (part_of(START, SIZE - 1) if "/moved" in request else moved)(connection, request)

    server.answer = once
    assert fetched(server) == CONTENT


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "https://",
        "http:///x",
        "http://[::1",
        "http://[::1]x/",
        "https://\x00",
        "https://host/\n",
        "https://host/a b",
        "http://user:pw@host:notaport/",
        "http://user:pw@host/",
        "http://host:notaport/",
        "http://host:99999/",
        "http://host:-1/",
        "http://..",
        "http://" + "a" * 64 + ".example/",
        "https://h\u00f6st/",
        "https://host/\u202e",
        "https://host/\ud800",
        "file:///etc/passwd",
        "ftp://host/x",
        "javascript:alert(1)",
        "host/x",
        "/etc/passwd",
    ],
)
def test_what_is_no_address_is_said_so(url: str, tmp_path: Path) -> None:
    archive = ArchiveSection(url=url, sha256="0" * 64, size_bytes=100, folder="set")
    with pytest.raises(DownloadError, match="is not an http") as error:
        fetch_archive(archive, tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "url", ["http://host", "https://host:8443/a/b.tgz?c=d%20e#f", "http://127.0.0.1:80/", "http://[::1]/x"]
)
def test_addresses_are_addresses(url: str) -> None:
    require_http_address(url)


# Where the download goes


@pytest.mark.parametrize("name", [".set.part", ".set.lock"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_written_is_a_file_of_ones_own(tmp_path: Path, server: Server, name: str, kind: str) -> None:
    victim, data = tmp_path / "victim", tmp_path / "data"
    data.mkdir()
    victim.write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(data / name)
    elif kind == "folder":
        (data / name).mkdir()
    else:
        (data / name).symlink_to(victim if kind == "link" else tmp_path / "new")
    archive = ArchiveSection(url=server.url, sha256="0" * 64, size_bytes=SIZE, folder="set")
    with pytest.raises(DownloadError, match=rf"{name} is a link, a folder, a pipe or a device"):
        fetch_archive(archive, data)
    assert victim.read_bytes() == b"precious" and not (tmp_path / "new").exists()
    assert server.requests == []


# Archives


def member(name: str, size: int = 5, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def packed(*members: tarfile.TarInfo, compressed: bool = True, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return gzip.compress(buffer.getvalue()) if compressed else buffer.getvalue()


def unpacked(content: bytes, folder: Path, size_bytes: int | None = None) -> None:
    unpack(
        io.BytesIO(content), len(content) if size_bytes is None else size_bytes, folder / "set", "http://host/set.tgz"
    )


def refused(content: bytes, folder: Path, said: str, size_bytes: int | None = None) -> None:
    with pytest.raises(DownloadError, match=said) as error:
        unpacked(content, folder, size_bytes)
    assert list(folder.iterdir()) == []
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_plain_and_packed_archives_are_unpacked(tmp_path: Path) -> None:
    for number, compressed in enumerate((True, False)):
        (tmp_path / str(number)).mkdir()
        content = packed(
            member("./", 0, tarfile.DIRTYPE), member("./set/a.jpg"), member("set/b/c.jpg", 0), compressed=compressed
        )
        unpacked(content, tmp_path / str(number))
        names = sorted(path.relative_to(tmp_path / str(number)).as_posix() for path in tmp_path.glob(f"{number}/**/*"))
        assert names == ["set", "set/a.jpg", "set/b", "set/b/c.jpg"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("/etc/passwd", "leads outside"),
        ("set/../../x", "leads outside"),
        ("..", "leads outside"),
        ("set\\..\\x", "backslash"),
        ("set/a\nb", "control"),
        ("set/\x1b[2J", "control"),
        ("set/\u2028", "control"),
        ("set/" + "a" * 256, "too long"),
        ("set/" + "\u00e9" * 128, "too long"),
        ("a/" * 2100 + "b", "too long"),
        ("", "is empty"),
        (".", "is empty"),
        ("\ud800", "control"),
    ],
)
def test_names_are_checked_as_text(name: str, fault: str) -> None:
    assert fault in (unsafe_name(name) or "")


@pytest.mark.parametrize(
    "name", ["a", "set/a b.jpg", "./set", "\u00e9\u4e2d\U0001f600.png", "a..b/.hidden", "a" * 255, "...", "a:b"]
)
def test_names_below_a_folder_are_names(name: str) -> None:
    assert unsafe_name(name) is None


@pytest.mark.parametrize(
    "info",
    [
        member("/etc/passwd"),
        member("set/../../x"),
        member("set/a\nb"),
        member("set/" + "a" * 300),
        member("set/link", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("set/hard", 0, tarfile.LNKTYPE, linkname="set/a"),
        member("set/hard", 0, tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("set/pipe", 0, tarfile.FIFOTYPE),
        member("set/device", 0, tarfile.CHRTYPE),
        member("set/disk", 0, tarfile.BLKTYPE),
        member("set/unknown", 0, b"Z"),
        member("set/sparse", 0, pax_headers={"GNU.sparse.map": "0,5", "GNU.sparse.size": "99999999999"}),
    ],
    ids=lambda info: f"{info.type.decode()}:{info.name[:20]!r}",
)
def test_anything_but_plain_files_and_folders_ends_the_unpacking(tmp_path: Path, info: tarfile.TarInfo) -> None:
    content = packed(member("set/a"), info, format=tarfile.PAX_FORMAT)
    refused(content, tmp_path, "do not trust where it came from")


def test_an_old_sparse_member_is_refused(tmp_path: Path) -> None:
    """1 TB in one block: the header's own sparse map says where its 512 bytes lie."""
    block = bytearray(member("set/sparse", 512, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0" % (2**30) + b"%011o\0" % 512
    block[483:495] = b"%011o\0" % (2**32)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    refused(packed(member("set/a"), compressed=False)[:1024] + bytes(block) + bytes(2048), tmp_path, "sparse file")


def test_an_archive_unpacks_to_three_times_its_size_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_module, "_SLACK_BYTES", 0)
    content = packed(member("set/a", 100_000), compressed=True)
    # One header, 196 blocks of 512 and the archive's end: tarfile looks at one block of zeros.
    needed = 512 + 196 * 512 + 512
    refused(content, tmp_path, "unpacks to more than", size_bytes=(needed - 1) // 3)
    unpacked(content, tmp_path, size_bytes=-(-needed // 3))


@pytest.mark.parametrize("kind", ["file", "many files", "long name", "pax header", "padding"])
def test_bombs_end_early_and_take_little_memory(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB of zeros are 100 kB packed."""
    monkeypatch.setattr(unpack_module, "MOST_MEMBERS", 1000)
    big = 100 * 2**20

    def header(info: tarfile.TarInfo) -> bytes:
        return info.tobuf(tarfile.GNU_FORMAT)

    content = {
        "file": lambda: header(member("set/a", big)) + bytes(big),
        "many files": lambda: b"".join(header(member(f"set/{n}", 0)) for n in range(1001)),
        "long name": lambda: header(member("././@LongLink", big, tarfile.GNUTYPE_LONGNAME)) + bytes(big),
        "pax header": lambda: header(member("x", big, tarfile.XHDTYPE)) + bytes(big),
        "padding": lambda: header(member("set/a", 2**33)) + bytes(big),
    }[kind]()
    small = gzip.compress(content + bytes(1024), 1)
    del content
    said = {"many files": "more than 1,000 members", "long name": "too large", "pax header": "too large"}
    tracemalloc.start()
    try:
        refused(small, tmp_path, said.get(kind, "unpacks to more than"))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    """A size of minus one block leads back to the same header for ever (CVE-2025-8194)."""
    block = bytearray(member("set/a", 0).tobuf())
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -512)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    refused(bytes(block) + bytes(2048), tmp_path, "negative|cannot be unpacked")


@pytest.mark.parametrize(
    "members",
    [
        [member("set/a"), member("set/a/b")],
        [member("set/a/b"), member("set/a")],
        [member("set")],
    ],
)
def test_files_and_folders_of_one_name_are_a_fault_of_the_archive(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    refused(packed(*members), tmp_path, "cannot be unpacked|holds no folder set")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x00" + bytes(100),
        packed(member("set/a", 5000))[:60],
        packed(member("set/a", 5000), compressed=False)[:600],
        b"\xff" * 512,
        b"BZh9" + bytes(500),
        b"\xfd7zXZ\x00" + bytes(500),
        b"PK\x03\x04" + bytes(500),
    ],
    ids=lambda content: f"{len(content)} of {content[:2].hex()}",  # gzip writes the time into its header
)
def test_what_is_no_archive_is_said_so(tmp_path: Path, content: bytes) -> None:
    refused(content, tmp_path, "cannot be unpacked")


def test_a_whole_fetch_leaves_neither_part_nor_lock(tmp_path: Path, server: Server) -> None:
    content = packed(member("set/a.jpg"))
    server.answer = says("200 OK", content, Content_Length=len(content))
    digest = hashlib.sha256(content).hexdigest()
    fetch_archive(ArchiveSection(url=server.url, sha256=digest, size_bytes=len(content), folder="set"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
