"""Cases 17 and 24 of the shared folder `cases`: activations beyond float16, and a locale of ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import run_command

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("target", ["jetson", "coreml"])
def test_activations_beyond_float16_are_named_and_the_network_keeps_its_answers(
    cases: Path, target: str, tmp_path: Path
) -> None:
    result = run_command(
        *("export", "--target", target, "--model", cases / "17_fp16_residual_overflow" / "overflow.pth"),
        *("--calib", cases / "photos", "--effort", "quick", "--num-images", "30", "--no-latency"),
        *("--output", tmp_path / "run"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    words = " ".join(result.stdout.split())
    assert "overflow float16 (65504), 4.2 times: up to 276357 in stages.3.1" in words
    agreement = float(words.split("agreement ")[1].split(" %")[0])
    assert agreement > 90
