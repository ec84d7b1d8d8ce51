"""A download resumes, is checked, unpacks only what is safe, and leaves a whole folder or none; on a local server."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import filelock
import pytest

from edgeconvnext.data import download as download_module
from edgeconvnext.data import fetch as fetch_module
from edgeconvnext.data.fetch import default_destination, fetch, fetch_archive
from edgeconvnext.data.sets import ArchiveSection, resolve_image_set
from edgeconvnext.errors import DownloadError, ImageSetError

FOLDER = "imagenette2-160"


def make_archive(*extra: tarfile.TarInfo, size: int = 200_000) -> bytes:
    """Two plain files in the promised folder, and members of one's choice."""
    buffer = io.BytesIO()
    noise = random.Random(0).randbytes(size)
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in ((f"{FOLDER}/train/n01440764/a.JPEG", noise), (f"{FOLDER}/val/n01440764/b.JPEG", b"b")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


@dataclass
class Served:
    """What the server gives, how it misbehaves, and the Range headers it saw."""

    content: bytes
    ranges: list[str | None] = field(default_factory=list)
    honours_range: bool = True
    breaks_off_after: int | None = None
    ends_at: int | None = None
    status: int | None = None


class Server(NamedTuple):
    served: Served
    url: str


@pytest.fixture
def server() -> Iterator[Server]:
    served = Served(make_archive())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.ranges.append(wanted)
            if served.status is not None:
                self.send_error(served.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and served.honours_range else 0
            body = served.content[start : served.ends_at]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
            self.end_headers()
            if served.breaks_off_after is not None:
                body = body[: served.breaks_off_after]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
    yield Server(served, f"http://127.0.0.1:{http_server.server_port}/{FOLDER}.tgz")
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)


def archive_of(server: Server) -> ArchiveSection:
    content = server.served.content
    digest = hashlib.sha256(content).hexdigest()
    return ArchiveSection(url=server.url, sha256=digest, size_bytes=len(content), folder=FOLDER)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


UNPACKED = [f"{FOLDER}/train/n01440764/a.JPEG", f"{FOLDER}/val/n01440764/b.JPEG"]


def test_an_archive_becomes_a_folder_and_nothing_else(server: Server, tmp_path: Path) -> None:
    folder = fetch_archive(archive_of(server), tmp_path / "new" / "cache")
    assert folder == tmp_path / "new" / "cache" / FOLDER
    assert everything(folder.parent) == UNPACKED
    assert len((folder / "train/n01440764/a.JPEG").read_bytes()) == 200_000
    assert server.served.ranges == [None]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch_archive(archive_of(server), tmp_path)
    fetch_archive(archive_of(server), tmp_path)
    assert len(server.served.ranges) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{FOLDER}.part").write_bytes(server.served.content[:70_000])
    fetch_archive(archive_of(server), tmp_path)
    assert server.served.ranges == ["bytes=70000-"]
    assert everything(tmp_path) == UNPACKED


def test_a_connection_that_keeps_dropping_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.served.breaks_off_after = 60_000
    fetch_archive(archive_of(server), tmp_path)
    assert server.served.ranges == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]
    assert everything(tmp_path) == UNPACKED


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.served.honours_range = False
    (tmp_path / f".{FOLDER}.part").write_bytes(b"x" * 70_000)
    fetch_archive(archive_of(server), tmp_path)
    assert everything(tmp_path) == UNPACKED


def test_a_server_that_sends_nothing_more_is_given_up_and_the_part_is_kept(server: Server, tmp_path: Path) -> None:
    archive = archive_of(server)
    server.served.ends_at = 150_000
    server.served.breaks_off_after = 100_000
    with pytest.raises(DownloadError, match=r"The 0\.1 MB that arrived are kept"):
        fetch_archive(archive, tmp_path)
    assert (tmp_path / f".{FOLDER}.part").stat().st_size == 150_000
    assert not (tmp_path / FOLDER).exists()


def test_a_wrong_checksum_deletes_what_arrived(server: Server, tmp_path: Path) -> None:
    archive = archive_of(server).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DownloadError, match="published archive has 000"):
        fetch_archive(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_larger_file_is_not_the_archive(server: Server, tmp_path: Path) -> None:
    archive = archive_of(server).model_copy(update={"size_bytes": 1000})
    with pytest.raises(DownloadError, match="larger than the 1,000 bytes"):
        fetch_archive(archive, tmp_path)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def plain(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = 5
    return member


@pytest.mark.parametrize(
    "member",
    [
        plain("../outside.txt"),
        plain(f"{FOLDER}/../../outside.txt"),
        plain("/tmp/outside.txt"),
        plain(f"{FOLDER}\\..\\outside.txt"),
        link(f"{FOLDER}/link", "/etc/passwd", tarfile.SYMTYPE),
        link(f"{FOLDER}/link", f"{FOLDER}/train", tarfile.SYMTYPE),
        link(f"{FOLDER}/hard", "../outside.txt", tarfile.LNKTYPE),
        link(f"{FOLDER}/pipe", "", tarfile.FIFOTYPE),
        link(f"{FOLDER}/device", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.type.decode()}:{member.name}",
)
def test_an_unsafe_member_ends_the_unpacking(server: Server, tmp_path: Path, member: tarfile.TarInfo) -> None:
    server.served.content = make_archive(member)
    destination = tmp_path / "cache"
    with pytest.raises(DownloadError, match="Nothing was unpacked"):
        fetch_archive(archive_of(server), destination)
    assert everything(tmp_path) == [f"cache/.{FOLDER}.part"]


def test_a_file_that_is_no_archive_is_said_so(server: Server, tmp_path: Path) -> None:
    server.served.content = b"<html>please log in</html>" * 100
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        fetch_archive(archive_of(server), tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_an_archive_without_the_promised_folder_is_an_error(server: Server, tmp_path: Path) -> None:
    archive = archive_of(server).model_copy(update={"folder": "imagenette3"})
    with pytest.raises(DownloadError, match="holds no folder imagenette3"):
        fetch_archive(archive, tmp_path)


def test_a_refusal_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    server.served.status = 404
    with pytest.raises(DownloadError, match="Not Found"):
        fetch_archive(archive_of(server), tmp_path)
    assert len(server.served.ranges) == 1


def test_no_network_says_how_to_do_without(tmp_path: Path) -> None:
    archive = ArchiveSection(url="http://127.0.0.1:9/x.tgz", sha256="0" * 64, size_bytes=100, folder=FOLDER)
    with pytest.raises(DownloadError, match="unpack a copy of the archive"):
        fetch_archive(archive, tmp_path)


def test_other_kinds_of_addresses_are_refused(tmp_path: Path) -> None:
    archive = ArchiveSection(url="file:///etc/passwd", sha256="0" * 64, size_bytes=100, folder=FOLDER)
    with pytest.raises(DownloadError, match="not an http"):
        fetch_archive(archive, tmp_path)


def test_too_little_space_is_said_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match="0 MB free"):
        fetch_archive(archive_of(server), tmp_path)
    assert server.served.ranges == []


def test_a_full_disk_while_unpacking_leaves_no_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real, too small file system, with the look at free space ahead of the download made blind."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 1 << 40))  # type: ignore[attr-defined]
        with pytest.raises(DownloadError, match=r"disk of .* is full"):
            fetch_archive(archive_of(server), disk)
        assert everything(disk) == [f".{FOLDER}.part"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_destination_is_said_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match="Read-only file system"):
        fetch_archive(archive_of(server), tmp_path / "cache")


def test_a_second_process_is_refused(server: Server, tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / f".{FOLDER}.lock"),
        pytest.raises(DownloadError, match="Another process is downloading"),
    ):
        fetch_archive(archive_of(server), tmp_path)
    assert server.served.ranges == []


def test_what_a_killed_process_left_is_removed(server: Server, tmp_path: Path) -> None:
    leftover = tmp_path / f".{FOLDER}-abc" / FOLDER
    leftover.mkdir(parents=True)
    (leftover / "half.JPEG").write_bytes(b"half")
    fetch_archive(archive_of(server), tmp_path)
    assert everything(tmp_path) == UNPACKED


def test_a_mirror_has_to_serve_the_published_archive(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch("imagenette", tmp_path, server.url)
    assert not (tmp_path / FOLDER).exists()


def test_sets_that_cannot_be_downloaded_say_why(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="part of the package"):
        fetch("digits", tmp_path)


def test_an_unknown_set_gets_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="Did you mean imagenette"):
        fetch("imagenete", tmp_path)


def test_a_fetched_set_is_found_by_its_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path))
    assert default_destination() == tmp_path
    fetch_archive(archive_of(server), default_destination())
    assert resolve_image_set("imagenette_val").ids == ("n01440764/b.JPEG",)


def test_without_a_data_folder_downloads_go_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGECONVNEXT_DATA", raising=False)
    assert default_destination() == tmp_path / ".cache" / "edgeconvnext"
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path / "nowhere"))
    assert default_destination() == tmp_path / ".cache" / "edgeconvnext"
