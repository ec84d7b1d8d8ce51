"""Every command of the README runs: those of the toolkit here, in order, in one folder; make's in .ci/run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
ON_DIGITS = [line for line in COMMANDS if line.startswith("edgeconvnext") and ".pth" not in line]
ON_PHOTOGRAPHS = [line for line in COMMANDS if line.startswith("edgeconvnext") and ".pth" in line]


def run_in_order(lines: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    for line in lines:
        command = [sys.executable, "-m", "edgeconvnext.cli", *shlex.split(line)[1:]]
        result = subprocess.run(
            command, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=1200
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"


def test_the_readme_has_commands_of_each_kind() -> None:
    assert len(ON_DIGITS) >= 8
    assert len(ON_PHOTOGRAPHS) >= 5
    assert set(COMMANDS) - set(ON_DIGITS) - set(ON_PHOTOGRAPHS) == {"make export TARGET=jetson", "make test"}


@pytest.mark.slow
def test_the_commands_on_digits_run(tmp_path: Path) -> None:
    run_in_order(ON_DIGITS, tmp_path)
    assert (tmp_path / "pruned.safetensors").is_file()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout


@pytest.mark.data
@pytest.mark.slow
def test_the_commands_on_photographs_run(tmp_path: Path, photographs: Path, atto_weights: Path) -> None:
    pytest.importorskip("coremltools")
    pytest.importorskip("tensorrt_rtx")
    for path in (atto_weights, atto_weights.with_suffix(".json")):
        shutil.copy(path, tmp_path / path.name)
    run_in_order(ON_PHOTOGRAPHS, tmp_path, {"EDGECONVNEXT_DATA": str(photographs)})
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 5
