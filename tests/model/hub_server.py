"""A local HTTP server that speaks the part of the hub's protocol that downloads use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Repositories as {repository: {file: content}}; `requests` lists what was asked for, as (method, path)."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                outer.requests.append((self.command, self.path))
                organisation, name, _, revision, file = self.path.lstrip("/").split("/", 4)
                files = repositories.get(f"{organisation}/{name}")
                if files is None:
                    self._refuse(404, "RepoNotFound")
                    return
                if revision not in ("main", COMMIT):
                    self._refuse(404, "RevisionNotFound")
                    return
                if file not in files:
                    self._refuse(404, "EntryNotFound")
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(files[file]).hexdigest()}"')
                self.send_header("Content-Length", str(len(files[file])))
                self.end_headers()
                if with_body:
                    self.wfile.write(files[file])

            def _refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Keep the test output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        thread = Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
