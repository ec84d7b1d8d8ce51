"""A real OpenSSH server on the loopback interface, with keys, config and port of its own, and how its connections are cut."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists()), ""
)


@dataclass
class Server:
    """host: as the client of the test reaches it. home: the login's home folder. folder: keys and configs."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    home: Path
    host: str = "board"

    def connections(self) -> list[int]:
        """Processes of the server that serve connections, whatever they have split into; not what runs over them."""
        parents, servers = {}, {self.process.pid}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has just ended
                continue
            if name.startswith("sshd"):
                parents[int(status.parent.name)] = int(rest.split()[1])
        while more := {pid for pid, parent in parents.items() if parent in servers} - servers:
            servers |= more
        return sorted(servers - {self.process.pid})

    def drop_connections(self) -> int:
        """End every connection as a cable pulled would: at once, without a word. Returns how many processes that took."""
        pids = self.connections()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    missing = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    if not SSHD or missing:
        pytest.skip(f"no {'sshd' if not SSHD else missing[0]} here: apt-get install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # what the service does when it starts; sshd refuses to run without
    folder = tmp_path_factory.mktemp("ssh")
    home = folder / "home"
    home.mkdir()
    for name in ("host_key", "user_key", "stranger_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv HOME={home}\nMaxStartups 50\n"
    )
    log = (folder / "sshd.log").open("wb")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "config").write_text(
        f"Host board stranger unknown\n HostName 127.0.0.1\n Port {port}\n IdentitiesOnly yes\n"
        f"Host board unknown\n IdentityFile {folder}/user_key\n"
        f"Host stranger\n IdentityFile {folder}/stranger_key\n"
        f"Host board stranger\n UserKnownHostsFile {folder}/known_hosts\n"
        f"Host unknown\n UserKnownHostsFile {folder}/no_hosts\n"
        f"Host nowhere\n HostName 127.0.0.1\n Port 1\n"
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    else:
        process.terminate()
        pytest.fail(f"sshd did not start: {(folder / 'sshd.log').read_text()}")
    yield Server(folder, port, process, home)
    process.terminate()
    process.wait()
    log.close()


@pytest.fixture
def ssh_config(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a client in front of PATH that is this machine's ssh with the test's own config in place of the user's."""
    program = shutil.which("ssh")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {program} -F {server.folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return server.folder / "config"
