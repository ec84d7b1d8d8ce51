"""A board that prints, holds back or claims anything: one error, nothing it says reaches a terminal raw, nothing stays behind.

No server is needed: what `ssh` would run on the board runs here, in a home of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from kit_folders import write_kit

from edgeconvnext.backends import kit_script_of
from edgeconvnext.errors import (
    DeviceResultsError,
    EdgeConvNextError,
    RemoteError,
    RunDirectoryError,
    RuntimeMissingError,
)
from edgeconvnext.ssh import connection, kit_run
from edgeconvnext.ssh.connection import Connection
from edgeconvnext.ssh.exchange import Bounds

CONTROL = "\x1b[2J\x1b]0;owned\x07"
# A kit's script that measured the answers of the simulation.
HONEST = """
import base64, hashlib, json, struct
numbers = open("vectors.bin", "rb").read()
answers = base64.b64encode(numbers[-24:]).decode()
result = {"format": 4, "kit": hashlib.sha256(open("kit.json", "rb").read()).hexdigest(), "model": "small", "target": "onnx",
          "started": "now", "runtime": {"name": "onnxruntime", "version": "1.0"},
          "forms": {"artifact": "W8A8", "baseline": "FP32"}, "answers": answers, "saved": ["layers.json", "../evil", "kit.json"]}
open("device.json", "w").write(json.dumps(result))
open("layers.json", "w").write("{}")
print("measured")
"""


class Board:
    """home: of the login. script: what the kit's script does there. say, print_: what was said and printed here."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.kit = root / "home", write_kit(root / "kit")
        self.script = HONEST
        self.said: list[str] = []
        self.printed: list[str] = []
        self.python = sys.executable
        modules = root / "modules"
        for folder in (self.home, modules, root / "bin"):
            folder.mkdir()
        (modules / "onnxruntime.py").write_text('__version__ = "1.0"\n')
        self.ssh = root / "bin" / "ssh"
        self.respond(f'HOME={self.home} PYTHONPATH={modules} exec sh -c "$command"')
        monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(kit_run, "assemble_script", lambda part: self.script)
        monkeypatch.setattr(connection, "RECONNECT_WAITS", (0.01, 0.01))
        monkeypatch.setattr(kit_run, "KIT_RUNS", Bounds(output_bytes=100_000, seconds=60, silent_seconds=60))

    def respond(self, line: str, before: str = "") -> None:
        """Put an `ssh` into PATH that does `line` with the words that would run on the board, in $command."""
        self.ssh.write_text(f"#!/bin/sh\n{before}\nfor command do :; done\n{line}\n")
        self.ssh.chmod(0o755)

    def run(self) -> dict[str, Any]:
        results = kit_run.run_kit(
            self.kit,
            Connection("board"),
            python=self.python,
            workdir=None,
            say=self.said.append,
            print_=self.printed.append,
        )
        return json.loads(results.read_text())

    def refuses(self, error: type[EdgeConvNextError], words: str) -> str:
        """Run the kit; return the message, which is one line without control characters."""
        with pytest.raises(error, match=words) as caught:
            self.run()
        message = str(caught.value)
        assert message.isprintable() and len(message) < 5000
        assert all(text.isprintable() for text in (*self.said, *self.printed))
        return message

    def folders(self) -> list[Path]:
        return list((self.home / ".cache").glob("edgeconvnext/*"))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def test_an_honest_board_measures_and_nothing_of_it_stays(board: Board) -> None:
    assert board.run()["answers"]
    assert board.printed == ["measured"] and board.folders() == []
    assert (board.kit / "layers.json").read_text() == "{}"
    assert not (board.kit.parent / "evil").exists()


def test_the_script_that_runs_is_this_versions_own_whatever_lies_in_the_kit(board: Board) -> None:
    (board.kit / "check.py").write_text("open('owned', 'w')\nraise SystemExit(9)\n")
    assert board.run()["answers"] and board.printed == ["measured"]


def test_a_file_that_is_not_the_one_in_kit_json_is_not_sent(board: Board) -> None:
    (board.kit / "model.onnx").write_bytes(b"another")
    board.refuses(RemoteError, r"model\.onnx is not the file that kit\.json names")
    assert "model.onnx" not in {path.name for folder in board.folders() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "-rf"])
def test_a_kit_that_names_files_outside_of_its_folder_sends_nothing(board: Board, name: str) -> None:
    write_kit(board.kit, files={name: "0" * 64, "a": "0" * 64, "b": "0" * 64})
    board.refuses(RunDirectoryError, "no name of a file inside the kit")
    assert board.folders() == []


def test_a_link_to_a_folder_outside_is_not_sent(board: Board) -> None:
    (board.kit / "model.onnx").unlink()
    (board.kit / "model.onnx").symlink_to("/dev/zero")
    board.refuses(RemoteError, "a device, not a regular file")


# ------------------------------------------------------------------------------------------------------ The eight forms


def test_1_a_board_that_prints_without_end_is_stopped(board: Board) -> None:
    board.script = (
        "import os\nopen(os.environ['HOME'] + '/pid', 'w').write(str(os.getpid()))\nwhile True: print('y' * 1000)"
    )
    board.refuses(RemoteError, "printed more than 100,000 bytes")
    assert board.folders() == [] and ended(int((board.home / "pid").read_text()))


def ended(pid: int) -> bool:
    """Say whether a process has ended, or is about to."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


@pytest.mark.parametrize("line", [CONTROL, "a\rb", "a\x00b", "\udcff", "\u202e", "[/bold]", "y" * 9000])
def test_2_what_a_board_prints_is_shown_without_control_characters(board: Board, line: str) -> None:
    board.script = (
        HONEST + f"\nimport sys; sys.stdout.buffer.write({line.encode('utf-8', 'surrogateescape')!r} + b'\\n')"
    )
    board.run()
    assert len(board.printed) == 2 and all(text.isprintable() and len(text) <= 4000 for text in board.printed)
    assert board.printed[1][0] in "\\ay�["


def test_3_a_device_json_without_end_is_not_taken(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_run, "MOST_TEXT_BYTES", 1_000_000)
    board.script = HONEST + "\nimport os; os.truncate('device.json', 10 ** 10)"
    board.refuses(RemoteError, "it printed more than 1,000,000 bytes")
    assert board.folders() == [] and not (board.kit / "device.json").exists()
    assert not list(board.kit.glob(".*")), "nothing of it stays here either"


REFUSED = {
    "deep": "'[' * 100_000",
    "format": "json.dumps(result | {'format': 99})",
    "digits": "'{\"format\": ' + '9' * 5000 + '}'",
    "no object": "'[]'",
    "cut": "json.dumps(result)[:50]",
    "not finite": "json.dumps(result | {'latency': float('nan')})",
    "twice": '\'{"kit": 1, "kit": 2}\'',
    "claim": "json.dumps(result | {'speedup': {'value': 100.0, 'low': 100.0, 'high': 100.0}})",
    "control": "json.dumps({**result, 'machine': {'\\x1b[2J\\n': 5}})",
    "another kit": "json.dumps(result | {'kit': 'b' * 64})",
}


@pytest.mark.parametrize(
    "form",
    [
        form if form in ("cut", "claim", "another kit") else pytest.param(form, marks=pytest.mark.exhaustive)
        for form in REFUSED
    ],
)
def test_4_and_5_results_that_do_not_hold_are_put_aside_and_measured_again(board: Board, form: str) -> None:
    board.script = HONEST + f"\nopen('device.json', 'w').write({REFUSED[form]})"
    message = board.refuses(DeviceResultsError, "was removed there")
    refused = board.kit / "device.refused.json"
    assert str(refused) in message and refused.is_file() and not (board.kit / "device.json").exists()
    assert board.folders() == [], "the next run would fetch them again"
    board.script = HONEST
    assert board.run()["format"] == 4, "the same command measures again"


def test_6_a_board_that_never_ends_is_stopped(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_run, "KIT_RUNS", Bounds(output_bytes=100_000, seconds=60, silent_seconds=1))
    board.script = "import os, time\nopen(os.environ['HOME'] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    board.refuses(RemoteError, "nothing came for 1 s")
    assert board.folders() == [] and ended(int((board.home / "pid").read_text()))


@pytest.mark.parametrize("times", [1, 9])
def test_7_a_board_that_closes_in_the_middle_is_asked_again(board: Board, times: int) -> None:
    honest, count = board.ssh.read_text().splitlines()[-1], board.home / "count"
    cut = f'echo >>{count}; [ "$(wc -l <{count})" -gt {times} ] || {{ echo "{{"; exit 255; }}'
    board.respond(f"case $command in *device.json*) {cut};; esac\n{honest}")
    if times == 1:
        assert board.run()["format"] == 4
        assert board.said == [board.said[0], "connection dropped; trying again in 0.01 s"]
    else:
        board.refuses(RemoteError, "does not come back")
        assert not (board.kit / "device.json").exists()
    assert not list(board.kit.glob(".*")), "half a file is removed"


DEEP = "[" * 100_000
JUNK = {
    "nothing": "",
    "no json": "edgeconvnext state x",
    "a list": "edgeconvnext state [1]",
    "deep": f"edgeconvnext state {DEEP}",
    "digits": f'edgeconvnext state {{"model.onnx": [{"9" * 5000}, "a"]}}',
    "kinds": 'edgeconvnext state {"model.onnx": ["1", 5]}',
    "below zero": 'edgeconvnext state {"model.onnx": [-1, "a"]}',
    "control": f"edgeconvnext state {CONTROL}",
    "no list": 'edgeconvnext state {"model.onnx": 5}',
    "too short": 'edgeconvnext state {"model.onnx": [1]}',
    "bare": "edgeconvnext\nedgeconvnext ",
}


def wrapped(board: Board, condition: str, output: str) -> None:
    """Make the board's Python print `output` for every call that `condition` is in, and do its work for the others."""
    (board.home / "output").write_text(output)
    program = board.home / "python"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *{condition}*) cat {board.home}/output; exit 0;; esac\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    board.python = str(program)


@pytest.mark.parametrize("form", JUNK)
def test_8_a_board_that_lists_its_files_as_junk_is_refused(board: Board, form: str) -> None:
    wrapped(board, "hashlib", JUNK[form] + "\n")
    board.refuses(RemoteError, "does not list the files of the kit")


@pytest.mark.parametrize(
    "line",
    ["edgeconvnext state {}\nedgeconvnext state {}", 'edgeconvnext state {"model.onnx": [9223372036854775807, "a"]}'],
)
def test_8_a_board_whose_files_never_arrive_is_refused(board: Board, line: str) -> None:
    wrapped(board, "hashlib", line + "\n")
    board.refuses(RemoteError, "arrived on board with other content than was sent, twice")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("edgeconvnext python " + "9" * 5000 + ".1", "is Python 9999"),
        ("edgeconvnext python x", "is Python x; the kit needs 3.8"),
        ("edgeconvnext python 3", "is Python 3; the kit needs 3.8"),
        (f"edgeconvnext python {CONTROL}", r"is Python \\x1b\[2J"),
        ("edgeconvnext python", "is Python ; the kit needs"),
        ("edgeconvnext", "has no Python called"),
    ],
)
def test_a_board_whose_python_says_junk_is_refused(board: Board, line: str, words: str) -> None:
    wrapped(board, "version_info", line + "\n")
    board.refuses(RuntimeMissingError, words)


@pytest.mark.parametrize("folder", ["/", "/home/../etc", CONTROL, ""])
def test_a_board_that_names_another_folder_is_refused(board: Board, folder: str) -> None:
    board.respond(f"printf 'edgeconvnext folder %s\\n' '{folder}'")
    board.refuses(RemoteError, "cannot be used on board")


@pytest.mark.parametrize("free", ["x", "1 2 3 " + "9" * 5000, "1 ² ³ ¹ 5", ""])
def test_a_board_whose_room_is_no_number_is_full(board: Board, free: str) -> None:
    honest = board.ssh.read_text().splitlines()[-1]
    (board.home / "df").write_text(f"#!/bin/sh\necho '{free}'\n")
    (board.home / "df").chmod(0o755)
    board.respond(f"PATH={board.home}:$PATH\n{honest}")
    board.refuses(RemoteError, "board is full")


@pytest.mark.parametrize("text", [CONTROL, f"a\n{CONTROL}b", "Permission denied " + CONTROL, "y" * 100_000])
def test_what_ssh_says_is_shown_without_control_characters(board: Board, text: str) -> None:
    (board.home / "text").write_text(text)
    board.respond(f"cat {board.home}/text >&2; exit 255")
    board.refuses(RemoteError, "board")


def test_an_answer_without_end_is_cut_off(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER", Bounds(output_bytes=10_000, seconds=60, silent_seconds=60))
    board.respond("exec yes")
    board.refuses(RemoteError, "does not answer as a device does: it printed more than 10,000 bytes")


def test_a_board_that_leaves_a_code_of_its_own_is_refused(board: Board) -> None:
    board.script = f"print('Error: ' + {CONTROL!r})\nraise SystemExit(1)"
    assert "failed on board with 1: \\x1b[2J" in board.refuses(RemoteError, "failed on board")
    assert board.folders() == []


def test_the_module_of_a_kit_is_one_of_ours(board: Board) -> None:
    write_kit(board.kit, module="antigravity")
    board.refuses(RunDirectoryError, "module")


def test_every_kind_of_kit_has_its_script(board: Board) -> None:
    names = {
        (None, "model.onnx"): "onnxruntime",
        (None, "model.mlpackage"): "coreml",
        ("tensorrt", "model.onnx"): "tensorrt",
        ("tensorrt_rtx", "model.engine"): "tensorrt",
    }
    for (module, artifact), part in names.items():
        script = kit_script_of(module, artifact)
        assert script is not None and script.source.parent.name == part
    assert kit_script_of("antigravity", "model.onnx") is None and kit_script_of(None, "model.engine") is None
