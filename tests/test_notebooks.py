"""The notebooks beside the quickstart: their cells run in order and end with what they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_quickstart import run

from edgeconvnext.prediction.classes import Prediction
from edgeconvnext.schema.report import Report

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


def cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads((EXAMPLES / name).read_text())["cells"] if cell["cell_type"] == "code"]


def shown(name: str) -> list[Any]:
    """Run the cells of a notebook and return what each shows."""
    names: dict[str, Any] = {}
    return [run("".join(cell["source"]), names) for cell in cells(name)]


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda notebook: notebook.stem)
def test_no_output_is_stored(notebook: Path) -> None:
    assert not any(cell["outputs"] for cell in cells(notebook.name))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_fine_tuned_network_keeps_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *_, report, prediction = shown("finetuned.ipynb")
    assert isinstance(report, Report) and report.accuracy.agreement is not None and report.accuracy.agreement > 95
    assert isinstance(prediction, Prediction)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_runtimes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    *_, rows, winners = shown("compare_runtimes.ipynb")
    assert [row[0] for row in rows] == ["onnx", "openvino"]
    assert all(abs(row[1]) < 1 and row[2] < 1_000_000 for row in rows)
    assert {"fastest", "smallest"} <= set(winners)
