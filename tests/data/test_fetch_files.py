"""Sets of single files: terms first, several at once, each checked, finished ones used again; on a local server."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgeconvnext.data import download as download_module
from edgeconvnext.data import fetch_files as module
from edgeconvnext.data.fetch import fetch, terms_of
from edgeconvnext.data.fetch_files import ListedFile, fetch_files, read_list
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.sets import FilesSection, load_set_file, resolve_image_set
from edgeconvnext.errors import ConfigFileError, DownloadError
from edgeconvnext.resources import resource_dir
from tests.in_process import fails, run_command

CONTENT = {
    f"n0144{number:04d}_kind of {number}.JPEG": random.Random(number).randbytes(2000 + number) for number in range(9)
}


class Server:
    """asked: names that were requested. served: what the server gives, by name; a name without content is refused."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.served = dict(CONTENT)
        self.url = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2].replace("%20", " ")
            state.asked.append(name)
            content = state.served.get(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http_server.server_port}/commit/"
    yield state
    http_server.shutdown()
    http_server.server_close()


def listed(content: dict[str, bytes] = CONTENT) -> list[ListedFile]:
    return [ListedFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()]


def section(server: Server) -> FilesSection:
    return FilesSection(url=server.url, list="none.tsv", folder="samples", terms="Be kind.")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {f"{name.partition('_')[0]}/{name}": data for name, data in CONTENT.items()}


def test_every_file_arrives_in_the_folder_of_its_class(server: Server, tmp_path: Path) -> None:
    folder = fetch_files(section(server), tmp_path / "data", listed())
    assert folder == tmp_path / "data" / "samples"
    assert content_of(tmp_path / "data") == {f"samples/{name}": data for name, data in EXPECTED.items()}
    assert fetch_files(section(server), tmp_path / "data", listed()) == folder
    assert sorted(server.asked) == sorted(CONTENT)


def test_what_arrived_before_an_interruption_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    gone, half = list(CONTENT)[5], list(CONTENT)[7]
    del server.served[gone]
    with pytest.raises(DownloadError, match="Not Found"):
        fetch_files(section(server), tmp_path, listed())
    assert not (tmp_path / "samples").exists()
    part = tmp_path / ".samples.part"
    before = {path.name for path in part.rglob("n*") if path.is_file()}
    damaged = part / half.partition("_")[0] / half
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(bytes(len(CONTENT[half])))
    server.served, server.asked = dict(CONTENT), []
    assert content_of(fetch_files(section(server), tmp_path, listed())) == EXPECTED
    assert sorted(server.asked) == sorted({*CONTENT} - before | {half, gone})


@pytest.mark.parametrize("wrong", [bytes(2003), CONTENT["n01440003_kind of 3.JPEG"] + b"more"])
def test_another_file_is_refused_and_leaves_no_set(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.served["n01440003_kind of 3.JPEG"] = wrong
    with pytest.raises(DownloadError, match=r"kind%20of%203.*(sha256|larger)"):
        fetch_files(section(server), tmp_path, listed())
    assert not (tmp_path / "samples").exists()
    assert "n01440003/n01440003_kind of 3.JPEG" not in content_of(tmp_path / ".samples.part")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize(
    "place", [".samples.part", ".samples.part/n01440003", ".samples.part/n01440003/n01440003_kind of 3.JPEG"]
)
def test_nothing_is_written_through_a_link(server: Server, tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "data" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(DownloadError, match="is a link"):
        fetch_files(section(server), tmp_path / "data", listed())
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("n1_a.JPEG\t12", "line 2: not a name"),
        ("n1_a.JPEG\t12\t" + "0" * 63, "line 2: not a name"),
        ("../n1_a.JPEG\t12\t" + "0" * 64, "line 2: the name"),
        ("..\t12\t" + "0" * 64, "line 2: the name"),
        ("n0_a.jpeg\t12\t" + "0" * 64, "twice"),
    ],
)
def test_lists_hold_safe_names_once(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "list.tsv"
    path.write_text(f"n0_A.jpeg\t12\t{'0' * 64}\n{line}\n")
    with pytest.raises(ConfigFileError, match=said):
        read_list(path)


def test_the_shipped_list_has_one_photograph_of_each_class(tmp_path: Path) -> None:
    description = load_set_file("imagenet_1k_subset")
    assert description.files is not None and description.expected is not None
    files = read_list(resource_dir("calib") / description.files.list)
    assert sorted(one.place.partition("/")[0] for one in files) == sorted(imagenet_classes())
    assert 100e6 < sum(one.size_bytes for one in files) < 120e6
    for one in files:
        (tmp_path / one.place).parent.mkdir()
        (tmp_path / one.place).touch()
    assert resolve_image_set(tmp_path).list_sha256 == description.expected.list_sha256


def test_terms_are_shown_and_agreed_to_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_set_file("imagenet_1k_subset").files
    assert shipped is not None and terms_of("digits") is None
    with pytest.raises(DownloadError, match="--accept-terms"):
        fetch("imagenet_1k_subset", tmp_path, server.url)
    fails(run_command("data", "get", "imagenet_1k_subset", "--destination", tmp_path), 1, "--accept-terms")
    assert server.asked == []
    monkeypatch.setattr(module, "read_list", lambda path: listed())
    monkeypatch.setattr(download_module, "LEAST_RATE", 0)
    folder = fetch("imagenet_1k_subset", tmp_path, server.url, accept_terms=True)
    assert content_of(folder) == EXPECTED
    done = run_command("data", "get", "imagenet_1k_subset", "--accept-terms", "--destination", tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == f"ready: {folder}"
    assert "non-commercial research" in " ".join(done.stderr.split())
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path))
    assert len(resolve_image_set("imagenet_1k_subset")) == len(CONTENT)
