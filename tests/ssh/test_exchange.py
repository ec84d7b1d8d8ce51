"""One call of a program that may print, wait or take without end: bounded in bytes and time, and nothing is left running."""

from __future__ import annotations

import hashlib
import io
import sys
import threading

import pytest

from edgeconvnext.ssh.exchange import Bounds, Ended, TooMuch, exchange

BOUNDS = Bounds(output_bytes=1 << 16, seconds=60, silent_seconds=60)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def call(code: str, bounds: Bounds = BOUNDS, source: bytes | None = None) -> tuple[Ended, bytes, int]:
    pieces, sent = list[bytes](), list[int]()
    stream = None if source is None else io.BytesIO(source)
    ended = exchange(python(code), bounds, piece_bytes=4096, take=pieces.append, source=stream, advance=sent.append)
    return ended, b"".join(pieces), sum(sent)


def test_output_errors_and_exit_code_come_back_whole() -> None:
    ended, printed, _ = call("import sys; print('a' * 10000); sys.stderr.write('e' * 5000); sys.exit(7)")
    assert printed == b"a" * 10000 + b"\n"
    assert ended == Ended(7, b"e" * 5000)


def test_what_is_given_arrives_whole() -> None:
    content = bytes(range(256)) * 300
    ended, printed, sent = call(
        "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())", source=content
    )
    assert (ended.code, sent) == (0, len(content))
    assert printed.decode().strip() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("pipe", ["stdout", "stderr"])
def test_a_full_pipe_does_not_stop_the_others(pipe: str) -> None:
    """A pipe holds 64 KiB: whoever reads one of them only waits for good."""
    bounds = Bounds(output_bytes=1 << 22, seconds=60, silent_seconds=60)
    code = f"import sys; sys.{pipe}.write('e' * 1_000_000); sys.{pipe}.flush(); print(len(sys.stdin.buffer.read()))"
    ended, printed, _ = call(code, bounds, source=b"x" * 500_000)
    assert ended.code == 0 and printed.endswith(b"500000\n")


def test_a_program_that_does_not_read_ends_with_its_own_code() -> None:
    ended, _, sent = call("import sys; sys.exit(5)", source=b"x" * 10_000_000)
    assert ended.code == 5 and sent < 10_000_000


@pytest.mark.parametrize("pipe", ["stdout", "stderr"])
def test_a_program_that_prints_without_end_is_ended(pipe: str) -> None:
    with pytest.raises(TooMuch, match="it printed more than"):
        call(f"import sys\nwhile True: sys.{pipe}.write('y' * 4096)")


def test_a_program_that_says_nothing_is_ended() -> None:
    with pytest.raises(TooMuch, match=r"nothing came for 0\.2 s"):
        call("import time; time.sleep(1000)", Bounds(1 << 16, seconds=60, silent_seconds=0.2))


def test_a_program_that_takes_nothing_is_ended() -> None:
    with pytest.raises(TooMuch, match=r"nothing came for 0\.3 s"):
        call("import time; time.sleep(1000)", Bounds(1 << 16, seconds=60, silent_seconds=0.3), source=b"x" * 10_000_000)


def test_a_program_that_prints_a_little_for_good_is_ended() -> None:
    code = "import time\nwhile True: print('.', flush=True); time.sleep(0.05)"
    with pytest.raises(TooMuch, match=r"did not end within 0\.5 s"):
        call(code, Bounds(1 << 16, seconds=0.5, silent_seconds=60))


def test_a_program_that_ends_its_output_only_is_ended() -> None:
    command = ["sh", "-c", "exec >&- 2>&-; exec sleep 1000"]
    with pytest.raises(TooMuch, match="did not end within 1 s after its output"):
        exchange(command, Bounds(1 << 16, seconds=60, silent_seconds=1), piece_bytes=10, take=lambda piece: None)


def test_no_thread_stays_behind() -> None:
    before = threading.active_count()
    for code in ("print('a')", "import sys\nwhile True: sys.stdout.write('y' * 4096)"):
        try:
            call(code)
        except TooMuch:
            continue
    assert threading.active_count() == before


def test_what_the_caller_raises_ends_the_program() -> None:
    def refuse(piece: bytes) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        exchange(python("import time; print('a', flush=True); time.sleep(1000)"), BOUNDS, piece_bytes=10, take=refuse)
    assert threading.active_count() == before
