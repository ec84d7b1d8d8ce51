"""What a simulation already breaks is a missed gate: the run does not wait for the board to end with exit code 3."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from in_process import run_command
from micro import micro_model

from edgeconvnext.data.digits import digits_set
from edgeconvnext.model.checkpoint import save_checkpoint


def test_a_broken_simulation_misses_the_gate_that_waits_for_the_board(tmp_path: Path) -> None:
    model, digits = micro_model(), digits_set("train")
    with torch.no_grad():
        for stage in model.module.stages:  # a channel 3,000 times as large as the others leaves them no code but 0
            for block in stage:
                block.pwconv1.weight[0] *= 3000
                block.pwconv1.bias[0] *= 3000
                block.pwconv2.weight[:, 0] /= 3000
    save_checkpoint(model, tmp_path / "outlier.safetensors")
    (tmp_path / "unlabelled").mkdir()
    for index in range(0, 60):
        digits.read(index).save(tmp_path / "unlabelled" / f"{index:03}.png")
    result = run_command(
        *(
            "export",
            "--target",
            "jetson",
            "--model",
            tmp_path / "outlier.safetensors",
            "--calib",
            tmp_path / "unlabelled",
        ),
        *("--num-images", "12", "--effort", "quick", "--calibrator", "minmax", "--no-latency"),
        *("--output", tmp_path / "run"),
    )
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["accuracy"]["agreement"] < 50 and report["accuracy"]["fp32"] is None
    drop = report["gates"][0]
    assert (drop["passed"], drop["simulated_passed"]) == (False, False) and drop["measured"] == drop["simulated"] > 5
    assert "without labels" in drop["reason"]
    assert (result.returncode, report["verdict"]) == (3, "failed")
    assert "Gate missed" in result.stdout
