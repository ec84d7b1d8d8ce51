"""What the OpenSSH client says becomes one sentence with a way out; a dropped connection is not an unreachable host."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from loopback import Server

from edgeconvnext.errors import RemoteError, RuntimeMissingError
from edgeconvnext.ssh import connection
from edgeconvnext.ssh.connection import Answer, Connection, ConnectionDropped, reconnecting

pytestmark = pytest.mark.usefixtures("ssh_config")


def test_a_command_gets_its_arguments_whole_and_returns_what_it_prints(server: Server) -> None:
    answer = Connection(server.host).run('printf "%s\\n" "$1" "$HOME"; echo no >&2; exit 3', "a 'b' $c *")
    assert answer == Answer(3, f"a 'b' $c *\n{server.home}\n".encode(), "no")


def test_bytes_are_sent_from_an_offset_on(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "source").write_bytes(content)
    told: list[int] = []
    answer = Connection(server.host).send(
        tmp_path / "source", 1000, 'cat >"$1"', str(tmp_path / "target"), advance=told.append
    )
    assert answer.code == 0
    assert (tmp_path / "target").read_bytes() == content[1000:]
    assert sum(told) == len(content) - 1000


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("unknown", "host key of unknown is not known on this machine"),
        ("stranger", "does not let this user in with a key"),
        ("nowhere", "nowhere cannot be reached: .*Connection refused"),
        ("no.such.host.invalid", "cannot be reached"),
    ],
)
def test_a_host_that_is_not_reached_says_why(host: str, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        Connection(host).run("true")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/owned", "", " "])
def test_a_host_that_is_an_option_is_refused(host: str) -> None:
    with pytest.raises(RemoteError, match="names no host"):
        Connection(host)


def test_without_an_ssh_client_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeMissingError, match="no ssh on this machine"):
        Connection("board")


def test_a_connection_that_is_cut_is_dropped_and_another_attempt_gets_through(server: Server) -> None:
    board, said = Connection(server.host), list[str]()
    board.run("true")
    begun: list[bytes] = []

    def take(piece: bytes) -> None:
        begun.append(piece)
        server.drop_connections()

    with pytest.raises(ConnectionDropped):
        board.stream("echo begun; sleep 60", take=take)
    assert begun == [b"begun\n"]
    attempts: list[int] = []

    def attempt() -> Answer:
        attempts.append(1)
        return board.stream("echo begun; sleep 60", take=take) if len(attempts) == 1 else board.run("echo again")

    assert reconnecting(board, attempt, said.append, waits=[0.01]).output == b"again\n"
    assert said == ["connection dropped; trying again in 0.01 s"]


def test_a_connection_that_does_not_come_back_ends_with_what_to_do() -> None:
    def attempt() -> Answer:
        raise ConnectionDropped("closed by remote host")

    board, start = Connection("board"), time.monotonic()
    with pytest.raises(RemoteError, match=r"does not come back \(closed by remote host\).*run the same command again"):
        reconnecting(board, attempt, lambda text: None, waits=[0.01, 0.01])
    assert time.monotonic() - start < 30
    assert sum(connection.RECONNECT_WAITS) >= 60, "a board that restarts its network gets a minute"
