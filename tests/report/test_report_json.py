"""report.json keeps its keys, says them in docs/report.md, and is written whole or not at all."""

from __future__ import annotations

import json
import math
import re
import types
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from edgeconvnext.report.write import write_report
from edgeconvnext.schema.report import Report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def keys_of(kind: object, prefix: str) -> set[str]:
    """Dotted keys below a type: lists end in [], tables of names in .*, and a null record also counts itself."""
    origin = get_origin(kind)
    if origin is Annotated:
        return keys_of(get_args(kind)[0], prefix)
    if origin in (Union, types.UnionType):
        inner = next(part for part in get_args(kind) if part is not type(None))
        found = keys_of(inner, prefix)
        return found | {prefix} if type(None) in get_args(kind) else found
    if origin in (list, tuple):
        return keys_of(get_args(kind)[0], f"{prefix}[]")
    if origin is dict:
        return {f"{prefix}.*"}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        start = f"{prefix}." if prefix else ""
        fields = kind.model_fields.items()
        return set().union(*(keys_of(field.annotation, f"{start}{name}") for name, field in fields))
    return {prefix}


def documented() -> dict[str, str]:
    """Keys of docs/report.md, {a,b} spelt out, with what it says about null."""
    found: dict[str, str] = {}
    for row in re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        alternatives = re.search(r"\{(.*)\}", row[0])
        for name in alternatives.group(1).split(",") if alternatives else [""]:
            key = re.sub(r"\{.*\}", name, row[0])
            assert key not in found, f"{key} is documented twice"
            found[key] = row[1]
    return found


def optional_keys(kind: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        for part in (field.annotation, *get_args(field.annotation)):
            if part is type(None):
                found.add(key)
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= optional_keys(part, f"{key}[]." if get_origin(field.annotation) is list else f"{key}.")
    return found


def test_every_key_is_documented_and_nothing_else() -> None:
    assert set(documented()) == keys_of(Report, "")


def test_the_document_says_when_a_key_is_null() -> None:
    can_be_null = {key for key, when in documented().items() if not when.startswith("never")}
    assert can_be_null == optional_keys(Report)


def test_report_json_has_every_key_in_schema_order(report: Report, unmeasured: Report, tmp_path: Path) -> None:
    for each in (report, unmeasured):
        write_report(each, tmp_path)
        values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert list(values) == list(Report.model_fields)
        assert Report.model_validate(values) == each
    assert values["latency"]["artifact"] is None
    assert values["speedup"] is None


def test_write_report_writes_and_names_each_file(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path, labels=["tench", "a  b\nc"])
    assert [path.name for path in paths] == ["report.json", "report.html", "MODEL_CARD.md", "labels.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8") == "tench\na b c\n"
    assert "labels.txt" not in [path.name for path in write_report(report, tmp_path)]


def test_a_refused_write_leaves_nothing_half_written(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_infinite_ratios_are_written_as_the_limit_and_nan_is_refused(report: Report) -> None:
    values = report.model_dump()
    assert Report.model_validate(values | {"fidelity_db": math.inf}).fidelity_db == 200
    with pytest.raises(ValidationError, match="must be a number"):
        Report.model_validate(values | {"fidelity_db": math.nan})
    with pytest.raises(ValidationError, match="finite"):
        Report.model_validate(values | {"speedup": math.inf})


def test_file_names_that_are_not_unicode_can_be_written(report: Report, tmp_path: Path) -> None:
    values = report.model_dump()
    values["quantization"]["calibration_skipped"] = ["bad\udcff.jpg"]
    values["accuracy"]["flips"][0]["image"] = "bad\udcff.jpg"
    write_report(Report.model_validate(values), tmp_path)
    assert "bad\\udcff.jpg" in (tmp_path / "report.html").read_text(encoding="utf-8")
