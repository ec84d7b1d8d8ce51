"""Cases 17 and 24 of the shared folder `cases`: activations beyond float16, and a locale of ASCII."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import run_command

pytestmark = pytest.mark.data


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
