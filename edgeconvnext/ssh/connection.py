"""Commands and files over the OpenSSH client of this machine; its config, agent, keys and known hosts decide."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeconvnext.errors import RemoteError, RuntimeMissingError
from edgeconvnext.escape import lines_for_terminal
from edgeconvnext.ssh.exchange import MIB, Bounds, Ended, TooMuch, exchange

# Nobody is asked for anything: what keys, agent and known_hosts do not settle is an error that says so.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_SSH_FAILED = 255
_PIECE = 1 << 18
# Waits between attempts to get a dropped connection back, seconds: two minutes in all.
RECONNECT_WAITS = (1, 2, 4, 8, 15, 30, 60)
# What a short answer may take: the longest is the sha256 of every file of a kit, on a slow card.
MOST_ERROR = 2000  # characters
ANSWER = Bounds(output_bytes=4 * MIB, seconds=900, silent_seconds=900)
_SLOWEST_BYTES_PER_SECOND = 8192


def transfer_bounds(size_bytes: int, output_bytes: int) -> Bounds:
    """Return how long so many bytes may take: two minutes of silence, and as a whole what a very slow line needs."""
    return Bounds(output_bytes, seconds=300 + size_bytes / _SLOWEST_BYTES_PER_SECOND, silent_seconds=120)


class Unbounded(RemoteError):
    """A device that prints without end or does not answer any more."""


class ConnectionDropped(Exception):
    """The connection ended in the middle of something; what had arrived has arrived."""


@dataclass(frozen=True)
class Answer:
    """What a command on the device returned and printed; error: as lines for a terminal, without control characters."""

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

        Raises RemoteError where the device cannot be reached at all or answers without end, ConnectionDropped where it could be
        reached before.
        """
        pieces: list[bytes] = []
        ended = self._exchange(script, arguments, ANSWER, take=pieces.append)
        return self._answer(ended.code, b"".join(pieces), ended.error)

    def send(self, source: Path, offset: int, script: str, *arguments: str, advance: Callable[[int], None]) -> Answer:
        """Run a script that reads the bytes of `source` from `offset` on; `advance` is told how many went out."""
        pieces: list[bytes] = []
        with source.open("rb") as stream:
            stream.seek(offset)
            bounds = transfer_bounds(source.stat().st_size - offset, output_bytes=ANSWER.output_bytes)
            ended = self._exchange(script, arguments, bounds, take=pieces.append, source=stream, advance=advance)
        return self._answer(ended.code, b"".join(pieces), ended.error)

    def stream(self, script: str, *arguments: str, take: Callable[[bytes], None], bounds: Bounds = ANSWER) -> Answer:
        """Run a script and hand over what it prints as it comes; raises RemoteError where that goes beyond `bounds`."""
        ended = self._exchange(script, arguments, bounds, take=take)
        return self._answer(ended.code, b"", ended.error)

    def _exchange(
        self,
        script: str,
        arguments: Sequence[str],
        bounds: Bounds,
        *,
        take: Callable[[bytes], None],
        source: BinaryIO | None = None,
        advance: Callable[[int], None] = lambda sent: None,
    ) -> Ended:
        # The login shell of the device may be any: it only has to start sh with quoted words.
        command = [*self._command, shlex.join(["sh", "-c", script, "sh", *arguments])]
        try:
            return exchange(command, bounds, piece_bytes=_PIECE, take=take, source=source, advance=advance)
        except TooMuch as problem:
            raise Unbounded(
                f"{self.host} does not answer as a device does: {problem}. Look at it with ssh {self.host}, and run the same "
                "command again."
            ) from problem

    def _answer(self, code: int, output: bytes, error: bytes) -> Answer:
        text = lines_for_terminal(error.decode("utf-8", "replace").strip())[-MOST_ERROR:]
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
        return f"The host key of {host} is not known on this machine. Connect once with: ssh {host}, and check the key it shows."
    if "Permission denied" in text:
        return (
            f"{host} does not let this user in with a key ({last}). Keys come from ssh's agent and config; passwords are "
            f"not asked for. ssh-copy-id {host} sets a key up."
        )
    return f"{host} cannot be reached: {last}. Does ssh {host} work?"
