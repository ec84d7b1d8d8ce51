"""The notebook docs/examples/quickstart.ipynb: its cells run in order, and are as short and quick as it is meant to be."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgeconvnext.data.digits import digits_set
from edgeconvnext.prediction.classes import Prediction
from edgeconvnext.schema.report import Report

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "examples" / "quickstart.ipynb"
CELLS = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def run(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, which a notebook shows."""
    *lines, last = ast.parse(cell).body
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None


def test_it_goes_from_a_module_to_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    began = time.process_time()
    _, report, prediction = [run(cell, names) for cell in CELLS]
    assert time.process_time() - began < 120
    assert isinstance(report, Report) and report.accuracy.agreement is not None and report.accuracy.agreement > 95
    assert isinstance(prediction, Prediction)
    digits = digits_set("calibration").take(120)
    assert prediction.top.name == digits.class_of(0)
    assert prediction._repr_html_().startswith("<table>")


def test_it_has_fewer_than_fifteen_lines_and_no_stored_output() -> None:
    lines = [line for cell in CELLS for line in cell.splitlines() if line.strip()]
    assert len(lines) < 15
    assert all(not cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"])
