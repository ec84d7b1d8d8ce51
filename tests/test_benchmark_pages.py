"""The tables of benchmarks/README.md show what the CSVs hold, and say what was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import calibration, cost_plots, cost_tables, norms, pipeline, pruning_page
from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.pruning_table import CropsRow, PruningTable
from edgeconvnext.schema.report import NormVerdict


def stage(case: pipeline.Case, name: str, seconds: float, peak: float | None) -> pipeline.Row:
    return pipeline.Row(
        model=case.model, effort=case.effort, calibration_images=case.images, evaluation_images=64, stage=name,
        seconds=seconds, peak_mib=peak, cpu="a processor", cores=2, versions="torch 2.13.0",
    )  # fmt: skip


def test_stages_are_rows_and_exports_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path / "pipeline.csv")
    assert "not measured here" in list(cost_tables.pipeline_lines())
    quick, default = pipeline.CASES[0], pipeline.CASES[1]
    rows = [
        stage(quick, "statistics", 2.5, 514), stage(quick, "plan", 1.5, 520), stage(quick, pipeline.WHOLE, 53.3, 1083),
        stage(default, "plan", 61.2, 700), stage(default, pipeline.WHOLE, 99.9, 1100),
        stage(pipeline.START, pipeline.WHOLE, 0.213, None),
    ]  # fmt: skip
    write_rows(pipeline.RESULTS, rows)
    lines = list(cost_tables.pipeline_lines())
    assert "| stage | convnext_atto, quick, 256 | convnext_atto, default, 256 |" in lines
    assert "| statistics (calibration) | 2.5 s, 514 MiB |  |" in lines  # with the default effort there is no such stage
    assert "| **whole command** | 53.3 s, 1,083 MiB | 99.9 s, 1,100 MiB |" in lines
    assert any(line.startswith("`edgeconvnext --help` takes 0.21 s") for line in lines)


def test_a_tool_that_failed_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RESULTS", tmp_path / "calibration.csv")
    assert "not measured here" in list(cost_tables.calibration_lines())
    common = {"images": 512, "cores": 2, "cpu": "a processor"}
    write_rows(
        calibration.RESULTS,
        [
            calibration.Row(
                tool="edgeconvnext", method="quick", seconds=57.3, statistics_s=48.6, peak_mib=940, **common
            ),
            calibration.Row(tool="onnxruntime", method="Entropy", error="out of memory", **common),
        ],
    )
    lines = list(cost_tables.calibration_lines())
    assert "| edgeconvnext | quick | 512 | 57 s | 49 s | 940 MiB |" in lines
    assert any(line.startswith("| onnxruntime | Entropy | 512 | out of memory |") for line in lines)


def test_images_are_linked_below_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "b/3.jpeg", "b/notes.txt"):
        path = tmp_path / "data" / "some_set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path / "data"))
    folder = pipeline.link_last_images("some_set", 2, tmp_path / "few")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jp*g")) == ["b/2.jpg", "b/3.jpeg"]
    assert (folder / "b" / "2.jpg").read_bytes() == b"b/2.jpg"


def test_crops_of_networks_before_and_after_recovery_are_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "pruning.md"
    page.write_text(f"Above.\n{pruning_page.BEGIN}old\n{pruning_page.END}Below.\n", encoding="utf-8")
    monkeypatch.setattr(pruning_page, "CROPS_RESULTS", tmp_path / "crops.csv")
    rows = PruningTable().rows
    pruning_page.write_page(rows, page)
    assert "10 crops" not in page.read_text(encoding="utf-8")
    made = {
        f"{what}{end}": value
        for what, value in (("drop_before", 0.05), ("drop_after", -0.01), ("gain", 0.06))
        for end, value in (("", value), ("_low", value - 0.1), ("_high", value + 0.1))
    }
    made |= {"agreement_before": 99.4, "agreement_after": 99.9, "sqnr_db_before": 41.7, "sqnr_db_after": 50.3}
    write_rows(
        tmp_path / "crops.csv",
        [CropsRow(target_share=share, recovered="30 min", crops=10, images=1000, **made) for share in (0.5, 0.7)],
    )
    pruning_page.write_page(rows, page)
    text = page.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "| 10,000 |" in line]
    assert lines == [
        f"| {share} % | 10,000 | +0.05 (-0.05 to +0.15) | -0.01 (-0.11 to +0.09) | +0.06 (-0.04 to +0.16) | 60 | 10 "
        "| 41.7 dB | 50.3 dB |"
        for share in (70, 50)
    ]
    assert text.startswith("Above.\n") and text.endswith("Below.\n") and "old" not in text


def test_plots_name_every_norm_and_every_stage(tmp_path: Path) -> None:
    cost_plots.write_norms_plot(plot=tmp_path / "norms.svg")
    drawn = (tmp_path / "norms.svg").read_text()
    measured = [row.norm for row in read_rows(norms.VERDICTS, NormVerdict) if row.kl_alone is not None]
    assert measured and all(f">{norm}<" in drawn for norm in measured)
    cost_plots.write_stages_plot(plot=tmp_path / "pipeline.svg")
    drawn = (tmp_path / "pipeline.svg").read_text()
    stages = [title for stage, title in cost_tables.STAGES.items() if stage != pipeline.WHOLE]
    assert all(f">{title}<" in drawn for title in stages)
