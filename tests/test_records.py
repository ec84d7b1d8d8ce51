"""Stage records: what they may claim, when they hold, and who wrote them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from edgeconvnext.run import stage_record as records
from edgeconvnext.run.stage_record import (
    StageRecord,
    StageValues,
    file_sha256,
    is_inside,
    is_plain_file,
    is_stage_file,
    json_sha256,
    json_text,
    lies_in,
    plain_json,
    read_record,
)

KEY, OTHER_KEY = b"a" * 32, b"b" * 32


def record(**changes: Any) -> StageRecord:
    given = {
        "stage": "plan",
        "key": "k",
        "inputs": {},
        "files": {},
        "seconds": 1.5,
        "peak_mib": 2.0,
        "values": {"n": 1},
    }
    return StageRecord(**(given | changes))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored(folder: Path, content: Any, stage: str = "plan") -> Path:
    path = folder / "stages" / f"{stage}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\\..\\x", "a\0b", "C:/x"])
def test_a_path_that_leads_out_is_not_inside(name: str) -> None:
    assert not is_inside(name)
    assert not is_stage_file(name)
    with pytest.raises(ValidationError):
        record(files={name: "0"})


@pytest.mark.parametrize(
    "name", ["stages/plan.json", "stages", ".lock", "config.json", "manifest.json", ".tmp-x", ".tmp-x/a", "./.lock"]
)
def test_a_stage_does_not_write_what_the_run_writes_about_itself(name: str) -> None:
    assert is_inside(name)
    assert not is_stage_file(name)
    with pytest.raises(ValidationError, match="not a stage's to write"):
        record(files={name: "0"})


@pytest.mark.parametrize(
    "name", ["plan.toml", "device/kit.json", "device/config.json", "a.tmp-x", "..x/y", "x..", "stage"]
)
def test_other_relative_paths_are_a_stages_own(name: str) -> None:
    assert is_inside(name)
    assert is_stage_file(name)
    assert record(files={name: "0"}).files == {name: "0"}


def test_a_record_lists_a_bounded_number_of_files() -> None:
    assert records.MOST_FILES == 10_000
    with pytest.raises(ValidationError):
        record(files={f"f{number}": "" for number in range(10_001)})
    assert len(record(files={f"f{number}": "" for number in range(10_000)}).files) == 10_000


def test_only_the_key_a_record_was_signed_with_says_it_is_own() -> None:
    signed = record().signed(KEY)
    assert signed.is_own(KEY)
    assert not signed.is_own(OTHER_KEY)
    assert not signed.is_own(None)
    assert not record().is_own(KEY)
    assert record().signed(None).code is None
    assert signed.signed(None).code is None


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "fold"},
        {"key": "l"},
        {"inputs": {"x": 1}},
        {"files": {"a": "0"}},
        {"seconds": 1.6},
        {"peak_mib": 2.5},
        {"values": {"n": 2}},
        {"format": 2},
    ],
)
def test_a_change_of_any_field_takes_the_signature_away(change: dict[str, Any]) -> None:
    assert not record().signed(KEY).model_copy(update=change).is_own(KEY)


def test_a_signed_record_is_own_again_after_it_was_stored(tmp_path: Path) -> None:
    signed = record(inputs={"b": [1, 2.5, None], "a": "\u00e9"}, values={"infinite": float("inf")}).signed(KEY)
    stored(tmp_path, signed.model_dump(mode="python"))
    back = read_record(tmp_path, "plan")
    assert back is not None
    assert back.is_own(KEY)


@pytest.mark.parametrize(
    ("names", "data"),
    [
        ((), True),
        (("plan.safetensors", "logits.npz", "a/kit.json", "layers.csv", "plan.toml", "labels.txt", "model.onnx"), True),
        (("model.mlpackage/Data/model.mlmodel", "model.mlpackage/Data/weights/weight.bin"), True),
        (("device/build_and_check.py",), False),
        (("report.html",), False),
        (("model.engine",), False),
        (("quantized.pt2",), False),
        (("folded.safetensors", "run.sh"), False),
        (("README",), False),
        (("plan.safetensors.py",), False),
    ],
)
def test_data_is_what_parsers_read(names: tuple[str, ...], data: bool) -> None:
    assert record(files=dict.fromkeys(names, "0")).is_data is data


def test_values_that_a_stage_does_not_return_are_refused() -> None:
    class Values(StageValues):
        n: int

    assert record().values_as(Values) == Values(n=1)
    assert record().values_as(StageValues) is None
    for junk in ({}, {"n": None}, {"n": "x"}, {"n": [1]}, {"n": 1.5}, {"n": 1, "more": 2}):
        assert record(values=junk).values_as(Values) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_times_are_finite(number: float) -> None:
    with pytest.raises(ValidationError):
        record(seconds=number)


def test_the_order_of_keys_in_a_file_does_not_matter(tmp_path: Path) -> None:
    signed = record(inputs={"b": 1, "a": 2}).signed(KEY)
    turned = record(inputs={"a": 2, "b": 1}).model_copy(update={"code": signed.code})
    assert list(turned.inputs) != list(signed.inputs)
    assert turned.is_own(KEY)


def test_a_file_holds_while_its_content_is_the_recorded_one(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device/a.bin").write_bytes(b"a")
    (tmp_path / "b.bin").write_bytes(b"b")
    whole = record(files={"device/a.bin": sha256(b"a"), "b.bin": sha256(b"b")})
    assert whole.holds_in(tmp_path)
    assert file_sha256(tmp_path, "b.bin") == sha256(b"b")
    (tmp_path / "b.bin").write_bytes(b"c")
    assert not whole.holds_in(tmp_path)
    (tmp_path / "b.bin").unlink()
    assert file_sha256(tmp_path, "b.bin") is None
    assert not whole.holds_in(tmp_path)
    assert record().holds_in(tmp_path), "a stage that writes nothing holds"


def test_links_pipes_and_folders_are_no_files_of_a_run(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    (run / "file").symlink_to(outside / "secret")
    (run / "folder").symlink_to(outside)
    (run / "own").mkdir()
    (run / "own/deeper").symlink_to(outside)
    os.mkfifo(run / "pipe")
    for name in ("file", "folder/secret", "own/deeper/secret", "pipe", "own", "a\ud800b", "x" * 300):
        assert not is_plain_file(run, name)
        assert file_sha256(run, name) is None
        assert not record(files={name: sha256(b"s")}).holds_in(run)
    assert not lies_in(run, "folder/secret")
    assert not lies_in(run, "own/deeper/secret")
    assert lies_in(run, "own/secret")
    (tmp_path / "by_link").symlink_to(run)
    (run / "own/plain").write_bytes(b"p")
    assert is_plain_file(tmp_path / "by_link", "own/plain"), "the run itself may be named by a link"


def test_a_file_larger_than_any_of_a_run_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.MOST_FILE_BYTES == 17_179_869_184  # 16 GiB
    monkeypatch.setattr(records, "MOST_FILE_BYTES", 4)
    (tmp_path / "four").write_bytes(b"1234")
    (tmp_path / "five").write_bytes(b"12345")
    assert is_plain_file(tmp_path, "four")
    assert not is_plain_file(tmp_path, "five")


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(files={"a": "0"})
    stored(tmp_path, written.model_dump(mode="json"))
    assert read_record(tmp_path, "plan") == written
    assert read_record(tmp_path, "fold") is None


JUNK = (None, True, -1, 10**400, 1e308, "x", [], {}, [[]], {"a": None})


@pytest.mark.parametrize(
    "field", ["stage", "key", "inputs", "files", "seconds", "peak_mib", "values", "code", "format"]
)
@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: str(junk)[:8])
def test_a_record_with_junk_is_none_or_of_its_types(tmp_path: Path, field: str, junk: object) -> None:
    stored(tmp_path, record().model_dump(mode="json") | {field: junk})
    back = read_record(tmp_path, "plan")
    if back is not None:
        assert (back.format, back.stage) == (1, "plan")
        assert back.is_own(KEY) is False
        assert back.holds_in(tmp_path) is (back.files == {})


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '"x"', "[" * 100_000, '{"a":' * 5000, '{"format": ' + "9" * 5000 + "}", "\0"],
)
def test_a_record_that_is_no_json_object_is_none(tmp_path: Path, text: str) -> None:
    stored(tmp_path, text)
    assert read_record(tmp_path, "plan") is None


def test_records_of_another_format_or_stage_with_more_keys_or_too_large_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record().model_dump(mode="json")
    for changed in (whole | {"format": 2}, whole | {"format": 0}, whole | {"stage": "fold"}, whole | {"more": 1}):
        stored(tmp_path, changed)
        assert read_record(tmp_path, "plan") is None
    path = stored(tmp_path, whole)
    monkeypatch.setattr(records, "MOST_RECORD_BYTES", path.stat().st_size)
    assert read_record(tmp_path, "plan") is not None
    monkeypatch.setattr(records, "MOST_RECORD_BYTES", path.stat().st_size - 1)
    assert read_record(tmp_path, "plan") is None
    path.unlink()
    os.mkfifo(path)
    assert read_record(tmp_path, "plan") is None, "a pipe is not waited for"


def test_the_limits_are_those_of_the_docs() -> None:
    assert records.MOST_RECORD_BYTES == 67_108_864  # 64 MiB
    assert records.FORMAT == 1


def test_the_hash_of_a_json_value_is_that_of_its_sorted_text() -> None:
    assert json_sha256({"b": 1, "a": [2.5, None]}) == sha256(b'{"a": [2.5, null], "b": 1}')
    assert json_sha256({"a": [2.5, None], "b": 1}) == json_sha256({"b": 1, "a": [2.5, None]})


def test_json_is_written_with_one_space_and_a_last_line_break() -> None:
    assert json_text({"b": [1], "a": None}) == '{\n "b": [\n  1\n ],\n "a": null\n}\n'


def test_models_dataclasses_and_paths_are_plain_in_json() -> None:
    class Model(BaseModel):
        size: tuple[int, int]
        path: Path

    @dataclasses.dataclass
    class Data:
        items: tuple[int, ...]

    plain = plain_json({"m": Model(size=(1, 2), path=Path("a/b")), "d": Data((3,)), "p": Path("c"), "t": (4, 5)})
    assert plain == {"m": {"size": [1, 2], "path": "a/b"}, "d": {"items": [3]}, "p": "c", "t": [4, 5]}
    with pytest.raises(TypeError, match=r"\(complex\) cannot be written as JSON"):
        plain_json({"x": 1j})
    with pytest.raises(TypeError, match=r"\(type\) cannot be written as JSON"):
        plain_json({"x": Data})


@pytest.mark.parametrize("suffix", [".py", ".jinja", ".css", ".swift", ".txt"])
def test_the_code_version_covers_sources_of_every_kind_and_the_versions_of_torch(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deeper").mkdir()
    source = tmp_path / "deeper" / f"kernel{suffix}"
    source.write_text("a = 1\n")
    versions = {"torch": "2.13.0", "torchao": "0.18.0"}
    monkeypatch.setattr(records, "PACKAGE", tmp_path)
    monkeypatch.setattr(records.importlib.metadata, "version", lambda name: versions[name])
    before = records.code_version.__wrapped__()
    expected = {"sources": {f"deeper/kernel{suffix}": sha256(b"a = 1\n")}, "versions": versions}
    assert before == sha256(json.dumps(expected, sort_keys=True).encode())
    (tmp_path / "cache.pyc").write_text("no source")
    assert records.code_version.__wrapped__() == before
    source.write_text("a = 2\n")
    assert records.code_version.__wrapped__() != before
    source.write_text("a = 1\n")
    for name in versions:
        with monkeypatch.context() as patch:
            patch.setitem(versions, name, "9.9")
            assert records.code_version.__wrapped__() != before
