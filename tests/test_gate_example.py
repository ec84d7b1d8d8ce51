"""The workflow of docs/ci.md: its steps pass on a network within the gates, and fail on a missed gate and on a large file."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from in_process import run_command

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = (ROOT / "docs" / "examples" / "gate.yml").read_text(encoding="utf-8")


def steps() -> list[str]:
    """Return the shell steps, without the installation."""
    (job,) = yaml.safe_load(WORKFLOW)["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step and not step["run"].startswith("pip ")]


def exported(folder: Path, model: str, gates: str) -> int:
    """Return the exit code of the export, in a folder with a target file of these gates."""
    shipped = (ROOT / "targets" / "onnx.toml").read_text(encoding="utf-8")
    (folder / "gate.toml").write_text(shipped.partition("[gates]")[0].replace('"onnx"', '"gate"', 1) + gates)
    line = steps()[0].replace("model.pth", model).replace("photos/", "digits").replace("labelled/", "digits_test")
    return run_command(*shlex.split(line)[1:], "--num-images", "12", "--effort", "quick", cwd=folder).returncode


def checked(folder: Path, size: str) -> int:
    """Return the exit code of the step that compares the size of the file."""
    command = steps()[1].replace("python3", sys.executable).replace("4_000_000", size)
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True).returncode


def test_the_page_shows_the_workflow() -> None:
    assert f"```yaml\n{WORKFLOW}```" in (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert len(WORKFLOW.splitlines()) == 10


@pytest.mark.slow
def test_the_steps_pass_within_the_gates_and_fail_on_a_large_file(micro: str, tmp_path: Path) -> None:
    assert exported(tmp_path, micro, "[gates]\nscore_drop_pp = 100.0\nmin_fidelity_db = 10.0\n") == 0
    assert checked(tmp_path, "4_000_000") == 0
    assert checked(tmp_path, "1_000") == 1


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_missed_gate_fails_the_workflow(micro: str, tmp_path: Path) -> None:
    assert exported(tmp_path, micro, "[gates]\nscore_drop_pp = 100.0\nmin_fidelity_db = 500.0\n") == 3
