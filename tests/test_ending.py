"""How commands end: the exit code, one paragraph, never a traceback; a fault of the toolkit leaves a log that can be sent."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgeconvnext
from edgeconvnext.cli import main
from edgeconvnext.cli.ending import run_to_its_end
from edgeconvnext.errors import CheckpointError, ImageSetError, RuntimeMissingError, UnusablePathError, user_error

COMMAND = [sys.executable, "-c", "from edgeconvnext.cli import main; main()"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "edgeconvnext"


def raising(error: BaseException) -> Callable[[], Any]:
    def app() -> None:
        raise error

    return app


def ended(app: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_to_its_end(app)
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ImageSetError("The set x is empty."), 1, "error: The set x is empty."),
        (RuntimeMissingError("TensorRT is missing."), 4, "error: TensorRT is missing."),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
        (SystemExit(130), 130, "interrupted; run the same command again"),
        (SystemExit(3), 3, ""),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            1,
            "error: /x cannot be used: No space left on device.",
        ),
        (MemoryError(), 1, "error: The memory ran out"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "error: The memory ran out",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "error: The memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "error: The memory ran out"),
        (RuntimeError("can't start new thread"), 1, "error: The memory ran out"),
    ],
)
def test_each_end_has_its_code_and_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    found, printed = ended(raising(error), capsys)
    assert found == code
    assert printed.startswith(words)
    assert printed.count("\n") == bool(words)
    assert not state.exists(), "a log is written for faults only"


def test_names_in_a_message_cannot_forge_a_line_or_repaint_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = ended(raising(ImageSetError("a\x1b[2J\nready: all done")), capsys)
    assert printed == "error: a\\x1b[2J\\nready: all done\n"


@pytest.mark.parametrize(
    "error", [ValueError("odd"), AssertionError(), OSError(errno.ESPIPE, "Illegal seek"), RecursionError("deep")]
)
def test_anything_else_is_a_fault_of_the_toolkit_with_a_log(
    error: Exception, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    code, printed = ended(raising(error), capsys)
    assert code == 70
    assert "this is a fault of edgeconvnext, not of your input" in printed and "Traceback" not in printed
    (log,) = state.iterdir()
    assert str(log) in printed
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    assert "Traceback" in text and type(error).__name__ in text and "torch " in text and "command: " in text


def test_a_log_goes_elsewhere_where_the_home_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    code, printed = ended(raising(ValueError("odd")), capsys)
    assert code == 70
    (log,) = tmp_path.glob("fault-*.log")
    assert str(log) in printed


def test_a_bug_is_no_users_error() -> None:
    assert user_error(ValueError("out of range")) is None
    assert user_error(KeyError("out of memory")) is None
    assert user_error(OSError(errno.EINVAL, "Invalid argument")) is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ending_signals_clean_up_and_say_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []
    number = getattr(signal, name)
    # Under nohup SIGHUP is ignored, and so it stays.
    before = signal.signal(number, signal.SIG_DFL)

    def app() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    try:
        code, printed = ended(app, capsys)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert (code, cleaned) == (128 + number, [True])
    assert printed == f"ended by {name}; run the same command again to go on where it stopped\n"


@pytest.mark.parametrize(("name", "said"), [("SIGINT", "interrupted"), ("SIGTERM", "ended by SIGTERM")])
def test_a_signal_that_a_library_turns_into_its_own_error_is_still_one(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """safetensors reports Ctrl-C in the middle of a file as a file that cannot be read."""
    number = getattr(signal, name)

    def app() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            raise CheckpointError("folded.safetensors cannot be read. Download or save it again.") from None

    code, printed = ended(app, capsys)
    assert (code, printed) == (128 + number, f"{said}; run the same command again to go on where it stopped\n")


def test_a_signal_that_nohup_ignores_stays_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code, printed = ended(lambda: os.kill(os.getpid(), signal.SIGHUP), capsys)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (code, printed) == (0, "")


def test_a_reader_that_leaves_does_not_change_the_exit_code() -> None:
    """The write happens after the reader has gone, whatever the sizes of the buffers between them."""
    script = (
        "import sys, time\nfrom edgeconvnext.cli.ending import run_to_its_end\n"
        "def app():\n    time.sleep(0.3)\n    print('x' * 200_000)\n    sys.stdout.flush()\n    print('y')\n"
        "    raise SystemExit(3)\n"
        "run_to_its_end(app)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 3
    assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run([*COMMAND, "targets"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: The output cannot be used: No space left on device.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_memory_limit_that_is_too_small_to_import_torch_is_said() -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (300 << 20,) * 2); " + COMMAND[2]
    result = subprocess.run([sys.executable, "-c", limited, "inspect", "digits"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "error: The memory ran out" in result.stderr and "Traceback" not in result.stderr


def test_a_path_that_the_locale_cannot_spell_is_refused_before_any_work(tmp_path: Path) -> None:
    """Case 24: bytes of UTF-8 in an ASCII locale, which ONNX Runtime, safetensors and coremltools do not open."""
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    path = "sortie_é/run"
    result = subprocess.run(
        [*COMMAND, "quantize", "--model", "digits", "--calib", "digits", "--output", path],
        env=plain,
        capture_output=True,
        cwd=tmp_path,
    )
    message = result.stderr.decode("ascii")
    assert result.returncode == 1 and "Traceback" not in message, message
    assert "LC_ALL=C, encoding ascii" in message and "LC_ALL=C.UTF-8" in message
    assert not any(tmp_path.iterdir())


def test_a_locale_without_letters_prints_escapes() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run([*COMMAND, "inspect", "größe"], env=environment, capture_output=True)
    assert result.returncode == 1
    assert b"gr\\xf6\\xdfe" in result.stderr and b"Traceback" not in result.stderr


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["edgeconvnext", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("fold", "digits", "--calib", "digits", "--output", "x", "--replace-norm", "--recover", "--budget-minutes"),
        ("search", "digits", "--calib", "digits", "--budget-minutes"),
        ("quantize", "--max-drop"),
        ("quantize", "--crop-pct"),
        ("prune", "digits", "--calib", "digits", "--output", "x", "--macs"),
        ("train", "convnext_atto", "--data", "x", "--output", "x", "--learning-rate"),
        ("train", "convnext_atto", "--data", "x", "--output", "x", "--budget-minutes"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
def test_numbers_that_are_none_are_usage_errors(
    arguments: tuple[str, ...], value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(monkeypatch, capsys, *arguments, value)
    assert code == 2
    assert arguments[-1] in printed and "number" in printed


def test_a_path_option_expands_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    code, printed = run(monkeypatch, capsys, "fold", "digits", "--calib", "digits", "--output=~/folded.safetensors")
    assert code == 0, printed
    assert (tmp_path / "home" / "folded.safetensors").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(monkeypatch, capsys, "fold", "digits", "--calib", "digits", "--output", "/proc/x.safetensors")
    assert code == 1
    assert "cannot be written: its folder is not there, or takes no files" in printed


def test_functions_expand_the_home_folder_as_commands_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    edgeconvnext.fold("digits", calib="digits", output="~/folded.safetensors")
    assert (tmp_path / "folded.safetensors").is_file()
    with pytest.raises(UnusablePathError, match="does not know"):
        edgeconvnext.quantize("digits", calib="digits", output="~nosuchuser/x")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fold", "digits", "--calib", "digits", "--output=~nosuchuser/x"),
        ("validate", "~nosuchuser/x"),
        ("export", "--target", "~nosuchuser/t.toml", "--model", "digits"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_home_of_an_unknown_user_is_refused(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "begins with the home folder of a user that this machine does not know" in printed
