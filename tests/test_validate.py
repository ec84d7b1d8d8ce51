"""`validate` measures: latency each time, accuracy when asked, and it says what it reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from in_process import run_command

from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request
from edgeconvnext.run.manifest import load_run

ANSWERED = {"reference", "accuracy"}


def latency_of(outcome: Outcome) -> list[float]:
    assert outcome.report.latency.artifact is not None
    return outcome.report.latency.artifact.samples_ms


def test_validate_measures_latency_each_time_and_accuracy_when_asked(micro: str, tmp_path: Path) -> None:
    request = Request(
        model=micro,
        calib="digits",
        eval="digits_test",
        num_images=15,
        effort="quick",
        target="onnx",
        output=tmp_path / "run",
    )
    first = pipeline.export(request)
    accuracy = first.report.accuracy

    printed = run_command("validate", first.path)
    assert printed.returncode in (0, 3), printed.stderr
    assert "measured: latency\n" in printed.stdout
    assert "reused: fold, statistics, plan, quantized, artifact, reference, accuracy, device\n" in printed.stdout
    assert "--again" in printed.stdout

    again = pipeline.validate(first.path, Validate(again=True))
    assert set(again.measured) == ANSWERED | {"latency"}
    assert latency_of(again) != latency_of(first)
    assert again.report.accuracy == accuracy

    without = pipeline.validate(first.path, Validate(latency=False))
    assert latency_of(without) == latency_of(again)
    assert without.report.speedup == again.report.speedup
    assert "speedup" not in without.report.not_measured
    assert not without.measured
    assert {"latency"} | ANSWERED <= set(without.reused)
    assert "stages/latency.json" in load_run(first.path).files

    other = pipeline.export(replace(request, num_images=18, latency=False))
    assert other.report.latency.artifact is None, "what was timed was another artifact"
    assert other.report.not_measured["speedup"] == "switched off with --no-latency"
