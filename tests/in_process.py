"""Run a command in this process, without the seconds that a new one needs to import torch: its output, errors and exit code."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from edgeconvnext.cli import main


def run_command(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Return what `edgeconvnext ARGUMENTS` prints on standard output and error, and its exit code.

    cwd: the folder it runs in. env: variables beside this process's own. Signals, and variables that a library reads when it is
    imported, need a process of their own (`short_turns.EDGECONVNEXT`).
    """
    command = ["edgeconvnext", *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    code: object = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", "80")
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main()
            except SystemExit as end:
                code = end.code
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def fails(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a command ended with this exit code, and said these words without a traceback."""
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
