"""Where the tests of cases find their inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, atto_weights: Path) -> Path:
    """Folder of the cases' inputs: the one EDGECONVNEXT_CASES names, or written anew, which takes 5 s and 230 MB."""
    if folder := os.environ.get("EDGECONVNEXT_CASES"):
        return Path(folder)
    script = atto_weights.parents[1] / "cases" / "make_cases.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, script, out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def right_answers(atto_weights: Path) -> Path:
    """Folder of the right answers, `expected` of the shared cases."""
    return atto_weights.parents[1] / "cases" / "expected"
