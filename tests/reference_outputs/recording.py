"""Run a case in a process of its own, with one thread, and keep what it writes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .cases import Case, photographs

RECORD = "case.json"
"""Written last: a folder without it is an unfinished case, which is run anew."""

_FINISHED = (0, 3)  # 3: a gate was missed; the outputs are there


def record_case(case: Case, recording: Path, said: Callable[[str], None]) -> bool:
    """Run a case into recording/<name> unless it is recorded; return whether it is now. said: is told how it went."""
    folder = recording / case.name
    if (folder / RECORD).is_file():
        said(f"{case.name}: recorded before")
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    package = package_folder()
    command = [sys.executable, "-m", _module(package), *case.arguments(folder)]
    began = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.run(
            command, cwd=folder, env=_environment(package, recording), stdout=output, stderr=subprocess.STDOUT
        )
    seconds = round(time.monotonic() - began, 1)
    if process.returncode not in _FINISHED:
        said(f"{case.name}: exit code {process.returncode} after {seconds} s\n{_tail(folder / 'output.txt')}")
        return False
    facts = {
        "command": command,
        "exit_code": process.returncode,
        "seconds": seconds,
        "package": str(package),
        "commit": _commit(package),
    }
    (folder / RECORD).write_text(json.dumps(facts, indent=1) + "\n")
    said(f"{case.name}: {seconds} s, exit code {process.returncode}, {package}")
    return True


def package_folder() -> Path:
    """Return where Python finds the package: below the working directory, else as PYTHONPATH says."""
    spec = importlib.util.find_spec("edgeconvnext")
    if spec is None or spec.origin is None:
        raise SystemExit("There is no edgeconvnext: start in a checkout, or set PYTHONPATH to one.")
    return Path(spec.origin).resolve().parent


def _module(package: Path) -> str:
    return "edgeconvnext" if (package / "__main__.py").is_file() else "edgeconvnext.cli"


def _environment(package: Path, recording: Path) -> dict[str, str]:
    """Return the environment of a case: the same package, one thread, and no results of other runs."""
    paths = [str(package.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "EDGECONVNEXT_DATA": str(photographs()),
        "XDG_STATE_HOME": str(recording / "state"),
    }


def _commit(package: Path) -> str | None:
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.stdout.strip() or None


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
