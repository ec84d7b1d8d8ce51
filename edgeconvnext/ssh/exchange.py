"""One call of a program whose other end may be anybody: bounded in bytes and time, whatever it prints or leaves out."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, BinaryIO

MIB = 2**20
_MOST_ERROR_BYTES = 1 << 16
_LOOK_SECONDS = 0.5


class TooMuch(Exception):
    """The other end printed more, or took longer, than the call allows; the message says which."""


@dataclass(frozen=True)
class Bounds:
    """What a call may take. output_bytes: printed to stdout; silent_seconds: without a byte either way."""

    output_bytes: int
    seconds: float
    silent_seconds: float


@dataclass(frozen=True)
class Ended:
    """A call that ended by itself: its exit code, and the end of what it wrote to stderr."""

    code: int
    error: bytes


def exchange(
    command: Sequence[str],
    bounds: Bounds,
    *,
    piece_bytes: int,
    take: Callable[[bytes], None],
    source: BinaryIO | None = None,
    advance: Callable[[int], None] = lambda sent: None,
) -> Ended:
    """Run a program; hand over what it prints as it comes, and give it what `source` holds.

    take: gets each piece of stdout. advance: is told how many bytes of `source` went out. Raises TooMuch, and ends the program.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if source is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pumps = _Pumps(process, source, piece_bytes)
    try:
        _listen(pumps, bounds, take, advance)
        code = process.wait(timeout=bounds.silent_seconds)
        pumps.error_ends(_LOOK_SECONDS)
        return Ended(code, pumps.error())
    except subprocess.TimeoutExpired as expired:
        raise TooMuch(f"it did not end within {bounds.silent_seconds:g} s after its output had") from expired
    finally:
        pumps.stop()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        pumps.close()


def _listen(pumps: _Pumps, bounds: Bounds, take: Callable[[bytes], None], advance: Callable[[int], None]) -> None:
    """Pass on what arrives until stdout and `source` have ended, within bounds."""
    begun = heard = time.monotonic()
    printed = 0
    while not pumps.ended():
        arrived = pumps.next(_LOOK_SECONDS)
        now = time.monotonic()
        if arrived is None:
            if now - heard > bounds.silent_seconds:
                raise TooMuch(f"nothing came for {bounds.silent_seconds:g} s")
        else:
            heard = now
            kind, amount, piece = arrived
            if kind == "sent":
                advance(amount)
            elif kind == "printed":
                printed += amount
                if printed > bounds.output_bytes:
                    raise TooMuch(f"it printed more than {bounds.output_bytes:,} bytes")
                take(piece)
        if pumps.error_bytes > max(bounds.output_bytes, MIB):
            raise TooMuch(f"it printed more than {max(bounds.output_bytes, MIB):,} bytes to stderr")
        if now - begun > bounds.seconds:
            raise TooMuch(f"it did not end within {bounds.seconds:g} s")


class _Pumps:
    """A thread for each pipe, so that none of them is ever full while another is waited for; a short queue to the caller."""

    def __init__(self, process: subprocess.Popen[bytes], source: BinaryIO | None, piece_bytes: int) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.error_bytes = 0
        self._tail = bytearray()
        self._pipes: list[IO[bytes]] = [process.stdout, process.stderr]
        self._arrived: queue.Queue[tuple[str, int, bytes]] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        self._size = piece_bytes
        self._threads = [
            threading.Thread(target=self._read_output, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._read_error, args=(process.stderr,), daemon=True),
        ]
        self._open = 1
        if source is not None and process.stdin is not None:
            self._pipes.append(process.stdin)
            self._threads.append(threading.Thread(target=self._write, args=(process.stdin, source), daemon=True))
            self._open = 2
        for thread in self._threads:
            thread.start()

    def next(self, seconds: float) -> tuple[str, int, bytes] | None:
        """Return what arrived: "sent", "printed" or "ended", how many bytes, and which; None where nothing did for that long."""
        try:
            arrived = self._arrived.get(timeout=seconds)
        except queue.Empty:
            return None
        self._open -= arrived[0] == "ended"
        return arrived

    def ended(self) -> bool:
        """Say whether stdout and the source have ended, and all that came of them was returned."""
        return self._open == 0

    def error(self) -> bytes:
        return bytes(self._tail)

    def error_ends(self, seconds: float) -> None:
        """Wait for the end of stderr, which a process that ssh left behind may hold open for good."""
        self._threads[1].join(seconds)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        for thread, pipe in zip(self._threads, self._pipes, strict=True):
            thread.join(_LOOK_SECONDS)
            if not thread.is_alive():
                _close(pipe)

    def _put(self, kind: str, amount: int, piece: bytes = b"") -> bool:
        while not self._stopped.is_set():
            try:
                self._arrived.put((kind, amount, piece), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _read_output(self, pipe: IO[bytes]) -> None:
        while (piece := os.read(pipe.fileno(), self._size)) and self._put("printed", len(piece), piece):
            pass
        self._put("ended", 0)

    def _read_error(self, pipe: IO[bytes]) -> None:
        while piece := os.read(pipe.fileno(), self._size):
            self.error_bytes += len(piece)
            self._tail += piece
            del self._tail[:-_MOST_ERROR_BYTES]

    def _write(self, pipe: IO[bytes], source: BinaryIO) -> None:
        with suppress(BrokenPipeError):  # the exit code and what was printed say why
            while piece := source.read(self._size):
                pipe.write(piece)
                pipe.flush()
                if not self._put("sent", len(piece)):
                    break
        _close(pipe)
        self._put("ended", 0)


def _close(pipe: IO[bytes]) -> None:
    with suppress(OSError):
        pipe.close()
