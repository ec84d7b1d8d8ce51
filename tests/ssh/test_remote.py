"""A kit runs on another machine: here one that is reached over a real OpenSSH server, with onnxruntime."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback import Server

from edgeconvnext.backends import backends
from edgeconvnext.errors import RemoteError, RunDirectoryError, RuntimeMissingError
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.run.manifest import load_run
from edgeconvnext.ssh import connection, kit_run
from edgeconvnext.ssh.connection import Connection

pytestmark = [pytest.mark.usefixtures("ssh_config"), pytest.mark.slow]


class Listener:
    """Keeps what was said and printed; `then` is called at the first printed line."""

    def __init__(self, then: Callable[[], object] | None = None) -> None:
        self.said: list[str] = []
        self.printed: list[str] = []
        self.then = then

    def say(self, text: str) -> None:
        self.said.append(text)

    def print_(self, text: str) -> None:
        self.printed.append(text)
        if self.then is not None:
            then, self.then = self.then, None
            then()


@pytest.fixture(autouse=True)
def _quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECONNECT_WAITS", (0.1, 0.2, 0.5))


@pytest.fixture
def kit(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's kit, so that results of one test do not lie about in another."""
    return Path(shutil.copytree(run / "device", tmp_path / "device"))


def work_folders(server: Server) -> list[Path]:
    return list((server.home / ".cache").glob("edgeconvnext/*"))


def run_kit(kit: Path, server: Server, python: str, listener: Listener, workdir: str | None = None) -> dict:
    results = kit_run.run_kit(
        kit, Connection(server.host), python=python, workdir=workdir, say=listener.say, print_=listener.print_
    )
    return json.loads(results.read_text())


def test_the_command_runs_the_kit_merges_the_results_and_leaves_nothing_there(
    run: Path, server: Server, python: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    command = [sys.executable, "-m", "edgeconvnext", "remote", str(copy), "--host", server.host, "--python", python]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Checking in onnxruntime" in done.stderr and "fidelity to the simulation" in done.stderr
    assert "layers ran in" in done.stdout
    assert "Passed: All 3 gates are met." in done.stdout or "Passed as far as measured: 2 of 3 gates" in done.stdout
    report = json.loads((copy / "report.json").read_text())
    assert report["device"]["images"] == 32
    assert report["device"]["fidelity_db"] > 40
    assert report["device"]["latency"]["artifact"]["runs"] >= 10
    assert report["device"]["runtime"].startswith("onnxruntime ")
    passed = {gate["name"]: gate["passed"] for gate in report["gates"]}
    assert passed.pop("min_speedup") is not False, "noisy timings decide nothing"
    assert all(passed.values())
    assert "device" in (copy / "report.html").read_text()
    assert json.loads((copy / "device" / "layers.json").read_text())["artifact"]
    load_run(copy)
    assert not (server.home / ".cache" / "edgeconvnext").exists()


def test_a_connection_cut_while_copying_goes_on_inside_the_file(
    kit: Path, server: Server, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PIECE", 1 << 14)
    sent = 0

    @contextmanager
    def cut_once(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(amount: int) -> None:
            nonlocal sent
            sent += amount
            if 300_000 < sent < 10_000_000:
                sent += 10_000_000
                time.sleep(0.3)  # what is under way arrives
                assert server.drop_connections() >= 1

        yield advance

    monkeypatch.setattr(kit_run, "progress_bar", cut_once)
    listener = Listener()
    assert run_kit(kit, server, python, listener)["check"]["images"] == 32
    assert any("connection dropped" in text for text in listener.said)
    resumed = [text for text in listener.said if "going on from there" in text]
    assert len(resumed) == 1 and resumed[0].startswith("model.onnx: 0.")


def test_a_connection_cut_while_the_kit_runs_loses_no_line(kit: Path, server: Server, python: str) -> None:
    listener = Listener(then=server.drop_connections)
    run_kit(kit, server, python, listener)
    assert any("connection dropped" in text for text in listener.said)
    assert listener.printed == list(dict.fromkeys(listener.printed)), "no line comes twice"
    assert listener.printed[0].startswith("Checking in onnxruntime")
    assert listener.printed[-1].startswith("Wrote ")
    assert work_folders(server) == []


def test_an_interrupted_command_finds_its_run_again(kit: Path, server: Server, python: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_kit(kit, server, python, Listener(then=interrupt))
    assert len(work_folders(server)) == 1
    again = Listener()
    assert run_kit(kit, server, python, again)["check"]["images"] == 32
    assert any("was started earlier" in text for text in again.said)
    assert again.printed[0].startswith("Checking in onnxruntime"), "what was printed before is shown again"
    assert work_folders(server) == []


@pytest.mark.exhaustive
def test_a_file_that_is_there_but_wrong_is_replaced(kit: Path, server: Server, python: str) -> None:
    folder = server.home / "own place" / (kit_run.FOLDER_PREFIX + kit_run.tree_sha256(kit / "kit.json")[:12])
    folder.mkdir(parents=True)
    (folder / "vectors.bin").write_bytes(b"something else")
    (folder / "model.onnx").write_bytes((kit / "model.onnx").read_bytes()[:-1] + b"?")
    listener = Listener()
    assert run_kit(kit, server, python, listener, "~/own place")["check"]["images"] == 32
    assert not folder.exists()
    assert (server.home / "own place").is_dir(), "the user's own folder stays"


def test_a_device_without_that_python_says_so_before_anything_is_copied(kit: Path, server: Server) -> None:
    with pytest.raises(RuntimeMissingError, match=r"board has no Python called python9.*--python") as caught:
        run_kit(kit, server, "python9", Listener())
    assert caught.value.exit_code == 4
    assert work_folders(server) == []


def test_a_python_without_the_runtime_says_so(kit: Path, server: Server, python: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {python} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RuntimeMissingError, match="cannot import onnxruntime: No module named") as caught:
        run_kit(kit, server, str(bare), Listener())
    assert caught.value.exit_code == 4
    assert work_folders(server) == []


def test_an_old_python_says_so(kit: Path, server: Server, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\necho "edgeconvnext python 3.6.9"\n')
    old.chmod(0o755)
    with pytest.raises(RuntimeMissingError, match=r"is Python 3\.6\.9; the kit needs 3\.8"):
        run_kit(kit, server, str(old), Listener())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount the small file system this test fills")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_device_without_room_says_so_before_copying(kit: Path, server: Server, python: str, small_disk: Path) -> None:
    with pytest.raises(RemoteError, match=r"board is full: .* need \d+ MiB, of which 1 MiB are free.*--workdir"):
        run_kit(kit, server, python, Listener(), str(small_disk))


def test_a_disk_that_fills_up_while_copying_says_so(
    kit: Path, server: Server, python: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_run.KitRun, "_check_room", lambda self, there: None)
    with pytest.raises(RemoteError, match="board is full: no space is left there"):
        run_kit(kit, server, python, Listener(), str(small_disk))


def test_a_folder_that_cannot_be_made_says_so(kit: Path, server: Server, python: str) -> None:
    (server.home / "file").write_text("in the way")
    with pytest.raises(RemoteError, match=r"folder ~/file cannot be used on board.*--workdir"):
        run_kit(kit, server, python, Listener(), "~/file")


@pytest.mark.exhaustive
def test_a_script_that_the_system_ends_says_so(kit: Path, server: Server, python: str) -> None:
    def kill() -> None:
        (folder,) = work_folders(server)
        os.killpg(int((folder / "run.pid").read_text()), signal.SIGKILL)

    with pytest.raises(RemoteError, match="was ended on board before it finished"):
        run_kit(kit, server, python, Listener(then=kill))
    assert work_folders(server) == []


def test_a_script_that_fails_says_what_it_said(
    kit: Path, server: Server, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = kit_run.KitRun.start

    def spoiled(self: kit_run.KitRun) -> None:
        (folder,) = work_folders(server)
        (folder / "vectors.bin").write_bytes(b"cut")
        start(self)

    monkeypatch.setattr(kit_run.KitRun, "start", spoiled)
    with pytest.raises(RemoteError, match=r"failed on board with 1: vectors\.bin is not the file that was exported"):
        run_kit(kit, server, python, Listener())
    assert work_folders(server) == []


@pytest.mark.parametrize("name", ["../model.engine", ".ssh", "/etc/passwd", "a/b.engine", "README.txt", "check.py", ""])
def test_only_what_scripts_save_is_brought_back_whatever_a_device_claims(name: str) -> None:
    scripts = {known.name: known.kit_script() for known in backends()}
    assert not any(script.saves_file(name) for script in scripts.values() if script is not None)
    assert scripts["onnx"].saves_file("layers.json") and scripts["tensorrt"].saves_file("model_fp16.engine")
    assert not scripts["onnx"].saves_file("model_fp16.engine")


def test_a_run_without_a_kit_is_refused_before_connecting(run: Path, tmp_path: Path) -> None:
    quantized = pipeline.quantize(Request(from_run=run, target="onnx", output=tmp_path / "quantized"))
    with pytest.raises(RunDirectoryError, match="no device kit"):
        pipeline.remote(quantized.path, "nowhere", python="python3", workdir=None, say=print, print_=print)
