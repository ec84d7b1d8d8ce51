"""A kit that was moved away and run comes back into its run's report, by files and by commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import run_command

from edgeconvnext.backends.kit import results as device_results
from edgeconvnext.errors import DeviceResultsError, RunDirectoryError
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.run.manifest import load_run


@pytest.fixture(scope="module")
def run(micro: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    target = Path(__file__).parents[2] / "targets" / "onnx.toml"
    # How fast a small network is on a busy machine is not what these tests are about.
    (folder / "board.toml").write_text(
        target.read_text().replace("min_speedup = 1.0", "").replace('name = "onnx"', 'name = "board"')
    )
    request = Request(
        model=micro,
        calib="digits",
        eval="digits_test",
        num_images=48,
        effort="quick",
        latency=False,
        target=str(folder / "board.toml"),
        output=folder / "board",
    )
    return pipeline.export(request).path


@pytest.mark.slow
def test_a_kit_moved_away_and_run_comes_back_into_the_report(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run / "device", tmp_path / "moved"))
    command = [sys.executable, str(moved / "check.py"), "--seconds", "0.05"]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=tmp_path)
    before = load_run(run)
    done = run_command("validate", run, "--device", moved / "device.json")
    assert done.returncode == 0, done.stderr
    assert "layers ran in" in done.stdout
    after = load_run(run)
    assert set(after.files) - set(before.files) == {"device_results.json", "stages/results.json"}
    report = json.loads((run / "report.json").read_text())
    assert report["device"]["fidelity_db"] > 60, "the same runtime on the same machine"

    again = pipeline.validate(run, Validate(latency=False))
    assert again.report.device is not None, "measuring here again keeps what the device measured"
    assert again.report.device.fidelity_db == report["device"]["fidelity_db"]

    changed = json.loads((moved / "device.json").read_text()) | {"kit": "0" * 64}
    (moved / "device.json").write_text(json.dumps(changed))
    with pytest.raises(DeviceResultsError, match="another run"):
        pipeline.merge_device(run, moved / "device.json")
    load_run(run)

    refuse = pytest.MonkeyPatch()
    refuse.setattr(device_results, "RESULT_FORMAT", device_results.RESULT_FORMAT - 1)
    try:
        older = pipeline.validate(run, Validate(latency=False))
    finally:
        refuse.undo()
    assert older.report.device is None
    assert any("measured earlier is left out" in note for note in older.report.notes)


@pytest.mark.slow
def test_a_run_without_a_kit_takes_no_results(run: Path, tmp_path: Path) -> None:
    quantized = pipeline.quantize(Request(from_run=run, target="onnx", output=tmp_path / "quantized"))
    with pytest.raises(RunDirectoryError, match="no device kit"):
        pipeline.merge_device(quantized.path, tmp_path / "device.json")
