"""How a command ends: its exit code, one paragraph for the user, a log for a fault of the toolkit.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | input, disk or memory: the message says what to do |
| 2 | wrong usage of the command line |
| 3 | a gate was missed |
| 4 | a runtime is not installed |
| 70 | a fault of edgeconvnext: the log named in the message says where |
| 128 + n | ended by signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP |

A reader that goes away (`| head -1`) changes nothing: the command does its work and ends with its own exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any, NoReturn

from edgeconvnext.cli.fault_log import write_fault_log
from edgeconvnext.errors import FAULT_EXIT_CODE, UnusablePathError, user_error
from edgeconvnext.escape import for_terminal

_GO_ON = "run the same command again to go on where it stopped"
# A terminal that is closed sends SIGHUP; Windows has none.
_ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndedBySignal(SystemExit):
    """SIGTERM or SIGHUP arrived: everything is left as at an error, so that temporary files go and locks are released."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def run_to_its_end(app: Callable[[], Any]) -> NoReturn:
    """Run the command line `app` and end the process with its exit code."""
    with (
        _forgiving(sys.stdout) as sys.stdout,
        _forgiving(sys.stderr) as sys.stderr,
        _signals_as_exceptions() as arrived,
    ):
        try:
            _check_locale(sys.argv[1:])
            code = _exit_code(app)
            sys.stdout.flush()
        except BaseException as error:
            code = _explain(_cause(error, arrived))
        sys.exit(code)


def _check_locale(arguments: list[str]) -> None:
    """Raise UnusablePathError for an argument that the locale cannot spell: runtimes do not open a file of such a name.

    Python reads those bytes as surrogates, which neither ONNX Runtime, safetensors nor a report can write.
    """
    for argument in arguments:
        if sys.getfilesystemencoding() != "utf-8" and any("\udc80" <= letter <= "\udcff" for letter in argument):
            named = next((name for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), None)
            locale = "no locale is set" if named is None else f"{named}={os.environ[named]}"
            raise UnusablePathError(
                f"{argument} has letters that the locale does not know ({locale}, encoding "
                f"{sys.getfilesystemencoding()}), so that no runtime could open it. Set a UTF-8 locale, as in LC_ALL=C.UTF-8, or "
                "PYTHONUTF8=1, or use a path of plain letters. Nothing was done."
            )


def _exit_code(app: Callable[[], Any]) -> int:
    try:
        app()
    except EndedBySignal:
        raise
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:  # typer turns Ctrl-C into this exit, without a word
            raise KeyboardInterrupt from end
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _explain(error: BaseException) -> int:
    """Say on standard error how the command ended, and return its exit code."""
    known = user_error(error)
    if isinstance(error, EndedBySignal):
        text, code = f"ended by {signal.Signals(error.number).name}; {_GO_ON}", 128 + error.number
    elif isinstance(error, KeyboardInterrupt):
        text, code = f"interrupted; {_GO_ON}", 128 + signal.SIGINT
    elif known is not None:
        text, code = f"error: {for_terminal(known)}", known.exit_code
    else:
        assert isinstance(error, Exception)
        text, code = _fault(error), FAULT_EXIT_CODE
    with suppress(OSError, ValueError):  # standard error may be closed, or on a full disk
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    return code


def _fault(error: Exception) -> str:
    log = write_fault_log(error)
    what = f"{type(error).__name__}: {for_terminal(error)[:300]}"
    where = (
        f"The log is {log}; it holds the traceback, the command and the versions" if log else "No log could be written"
    )
    return (
        f"fault: this is a fault of edgeconvnext, not of your input ({what}). {where}. Please report it and attach the log. "
        "Finished stages are reused when you run the command again."
    )


class _ForgivingStream:
    """A text stream whose reader may go away: what is written after that is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except BrokenPipeError:
            # Python flushes at its exit as well, and would complain there.
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _forgiving(stream: Any) -> Iterator[Any]:
    """Give a stream that survives a reader that leaves, and a terminal that cannot show every character."""
    name = "stdout" if stream is sys.stdout else "stderr"
    with suppress(AttributeError, ValueError):  # a test's stream, or one that is in use
        stream.reconfigure(errors="backslashreplace")
    try:
        yield _ForgivingStream(stream) if stream is not None else open(os.devnull, "w")  # noqa: SIM115, PTH123 - there is no stream where the process was started without
    finally:
        setattr(sys, name, stream)


@contextmanager
def _signals_as_exceptions() -> Iterator[list[int]]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into an exception in the main thread; one that is ignored (nohup) stays ignored.

    Gives the list of signals that have arrived.
    """
    arrived: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else EndedBySignal(number)

    before: dict[int, Any] = {}
    with suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, *_ENDING_SIGNALS):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(error: BaseException, arrived: list[int]) -> BaseException:
    """Return what ended the command: a signal that a library turned into an error of its own (safetensors does) is still one."""
    if not arrived or isinstance(error, EndedBySignal | KeyboardInterrupt):
        return error
    return KeyboardInterrupt() if arrived[0] == signal.SIGINT else EndedBySignal(arrived[0])
