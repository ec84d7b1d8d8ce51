"""Case 16 of the shared folder `cases`: a network with one logit, decided at 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from in_process import run_command

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def one_logit(tmp_path_factory: pytest.TempPathFactory, atto_weights: Path) -> Path:
    """Folder of the case's inputs: in the one EDGECONVNEXT_CASES names, or written anew."""
    if folder := os.environ.get("EDGECONVNEXT_CASES"):
        return Path(folder) / "16_one_logit"
    script = atto_weights.parents[1] / "cases" / "make_cases.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, script, out], check=True, capture_output=True)
    return out / "16_one_logit"


def test_one_logit_agrees_by_sign_and_its_changed_images_are_listed(one_logit: Path, tmp_path: Path) -> None:
    result = run_command(
        *("export", "--target", "onnx", "--model", one_logit / "one_logit.pth", "--calib", one_logit / "near"),
        *("--weights", "4", "--effort", "quick", "--num-images", "12", "--no-latency", "--output", tmp_path / "run"),
    )
    assert result.returncode in (0, 3), result.stderr
    fp32 = np.load(tmp_path / "run/reference.npz")["fp32"]
    artifact = np.load(tmp_path / "run/logits.npz")["artifact"]
    changed = int(((fp32 > 0) != (artifact > 0)).sum())
    accuracy = json.loads((tmp_path / "run/report.json").read_text())["accuracy"]
    assert (len(fp32), changed) == (52, 22)
    assert accuracy["agreement"] == pytest.approx(100 * 30 / 52)
    assert len(accuracy["flips"]) == changed and accuracy["task"] == "binary"
    assert "top-1" not in result.stdout and "57.69 % of images, by sign" in result.stdout
    assert f"{changed} images:" in result.stdout
