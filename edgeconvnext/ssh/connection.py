"""Commands and files over the OpenSSH client of this machine; its config, agent, keys and known hosts decide."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeconvnext.errors import RemoteError, RuntimeMissingError

# Nobody is asked for anything: what keys, agent and known_hosts do not settle is an error that says so.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_SSH_FAILED = 255
_PIECE = 1 << 18
# Waits between attempts to get a dropped connection back, seconds: two minutes in all.
RECONNECT_WAITS = (1, 2, 4, 8, 15, 30, 60)


class ConnectionDropped(Exception):
    """The connection ended in the middle of something; what had arrived has arrived."""


@dataclass(frozen=True)
class Answer:
    """What a command on the device returned and printed."""

    code: int
    output: bytes
    error: str


class Connection:
    """A host that `ssh` reaches. Every call is a connection of its own, so that a dropped one costs one call.

    host: as ssh takes it: user@board, a name of ~/.ssh/config, ssh://user@board:port.
    """

    def __init__(self, host: str) -> None:
        if not host.strip() or host.startswith("-"):
            raise RemoteError(f"{host!r} names no host; --host takes what ssh does, as in user@board.")
        program = shutil.which("ssh")
        if program is None:
            raise RuntimeMissingError("There is no ssh on this machine; install the OpenSSH client.")
        self.host = host
        self._command = [program, "-T", *(part for option in _OPTIONS for part in ("-o", option)), "--", host]
        self._reached = False

    def run(self, script: str, *arguments: str) -> Answer:
        """Run a script of POSIX sh on the device with `arguments` as $1, $2...

        Raises RemoteError where the device cannot be reached at all, ConnectionDropped where it could before.
        """
        done = subprocess.run(
            self._remote(script, arguments), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return self._answer(done.returncode, done.stdout, done.stderr)

    def send(self, source: Path, offset: int, script: str, *arguments: str, advance: Callable[[int], None]) -> Answer:
        """Run a script that reads the bytes of `source` from `offset` on; `advance` is told how many went out."""
        with source.open("rb") as stream, self._started(script, arguments, stdin=subprocess.PIPE) as process:
            stream.seek(offset)
            assert process.stdin is not None
            try:
                while piece := stream.read(_PIECE):
                    process.stdin.write(piece)
                    advance(len(piece))
                process.stdin.close()
            except BrokenPipeError:
                pass  # the exit code and what was printed say why
            assert process.stderr is not None and process.stdout is not None
            error, output = process.stderr.read(), process.stdout.read()
            return self._answer(process.wait(), output, error)

    def stream(self, script: str, *arguments: str, take: Callable[[bytes], None]) -> Answer:
        """Run a script and hand over what it prints as it comes."""
        with self._started(script, arguments, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None and process.stderr is not None
            while piece := os.read(process.stdout.fileno(), _PIECE):
                take(piece)
            error = process.stderr.read()
            return self._answer(process.wait(), b"", error)

    def _remote(self, script: str, arguments: Sequence[str]) -> list[str]:
        # The login shell of the device may be any: it only has to start sh with quoted words.
        return [*self._command, shlex.join(["sh", "-c", script, "sh", *arguments])]

    @contextmanager
    def _started(self, script: str, arguments: Sequence[str], stdin: int) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            self._remote(script, arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            for pipe in (process.stdin, process.stdout, process.stderr):
                _close(pipe)
            process.wait()

    def _answer(self, code: int, output: bytes, error: bytes) -> Answer:
        text = error.decode("utf-8", "replace").strip()
        if code != _SSH_FAILED and code >= 0:
            self._reached = True
            return Answer(code, output, text)
        if self._reached and not any(sign in text for sign in _FOR_GOOD):
            raise ConnectionDropped(text or f"ssh ended with {code}")
        raise RemoteError(_why_not(self.host, text))


def reconnecting(
    connection: Connection,
    attempt: Callable[[], Answer],
    say: Callable[[str], None],
    waits: Sequence[float] | None = None,
) -> Answer:
    """Call `attempt` until it gets through; it has to go on where it stopped. Raises RemoteError where it never does."""
    left = list(RECONNECT_WAITS if waits is None else waits)
    while True:
        try:
            return attempt()
        except ConnectionDropped as dropped:
            if not left:
                raise RemoteError(
                    f"The connection to {connection.host} dropped and does not come back ({dropped}). What was copied stays "
                    "there and what was started goes on; run the same command again to go on from there."
                ) from dropped
            say(f"connection dropped; trying again in {left[0]:g} s")
            time.sleep(left.pop(0))


# What waiting does not mend.
_FOR_GOOD = ("Permission denied", "Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED")


def _why_not(host: str, text: str) -> str:
    last = text.splitlines()[-1] if text else "ssh said nothing"
    if "IDENTIFICATION HAS CHANGED" in text:
        return (
            f"{host} shows another host key than it did before, so nothing was sent. Where the device was set up anew, remove "
            "the old key as ssh says (ssh-keygen -R) and connect once by hand."
        )
    if "Host key verification failed" in text:
        return f"The host key of {host} is not known here. Connect once with: ssh {host}, and check the key it shows."
    if "Permission denied" in text:
        return (
            f"{host} does not let this user in with a key ({last}). Keys come from ssh's agent and config; passwords are "
            f"not asked for. ssh-copy-id {host} sets a key up."
        )
    return f"{host} cannot be reached: {last}. Does ssh {host} work?"


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(BrokenPipeError):
            pipe.close()
