"""A run directory from somebody else: nothing in it is executed, and junk in it is an error of that folder, never a traceback."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted_programs
import pytest
import torch
from planted_programs import PLACES, planted

from edgeconvnext.errors import EdgeConvNextError, ExportError, RunDirectoryError
from edgeconvnext.files import tree_sha256
from edgeconvnext.model.load import load_model
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline import job as jobs
from edgeconvnext.pipeline.job import Request, resolve
from edgeconvnext.pipeline.logits import read_logits
from edgeconvnext.pipeline.stages import values as stage_values
from edgeconvnext.pipeline.stored_config import stored_config, stored_target
from edgeconvnext.pipeline.stored_report import stored_report
from edgeconvnext.quantization.plan_storage import load_plan
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.run.directory import RunDirectory
from edgeconvnext.run.manifest import load_run

ASKED = Request(calib="digits", num_images=9, most_evaluated=9, effort="quick", latency=False)
JUNK = (None, [], {}, -1, 10**400, 1e300, "x\x1b[2J", [[[]]], [None], {"a": {"b": None}}, True)


@pytest.fixture(autouse=True, scope="module")
def _micro_is_the_default(micro: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECONVNEXT_MODEL", micro)
        yield


@pytest.fixture(scope="module")
def made(_micro_is_the_default: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished export of the micro network, made by a user whose key is not this one."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(root / "their-home"))
        pipeline.export(dataclasses.replace(ASKED, target="onnx", output=root / "run"))
    yield root / "run"


@pytest.fixture
def received(made: Path, tmp_path: Path) -> Path:
    """A copy of that run in a folder of its own."""
    return Path(shutil.copytree(made, tmp_path / "received" / "run"))


def validated(run: Path) -> pipeline.Outcome:
    """Do what `validate` does, on nine images."""
    return pipeline.export(dataclasses.replace(ASKED, target="onnx", from_run=run, output=run))


def rehash(run: Path, *, record: str | None = None) -> None:
    """Make all hashes fit again: of the files of a stage in its record, and of all files in the manifest."""
    if record is not None:
        path = run / "stages" / f"{record}.json"
        stage = json.loads(path.read_text())
        stage["files"] = {name: tree_sha256(run / name) for name in stage["files"]}
        path.write_text(json.dumps(stage))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = {name: tree_sha256(run / name) for name in manifest["files"]}
    (run / "manifest.json").write_text(json.dumps(manifest))


def paths_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Walk over every value of a JSON document; of a list, its first item stands for all."""
    if above:
        yield above
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_in(child, (*above, key))


def with_junk(document: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Give the document with each of its values replaced by each kind of junk, or left out."""
    for path in list(paths_in(document)):
        for junk in (*JUNK, ...):
            changed = copy.deepcopy(document)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if junk is ...:
                del parent[path[-1]]
            else:
                parent[path[-1]] = junk
            yield path, changed


# Code


@pytest.mark.parametrize("place", PLACES)
def test_an_archive_with_code_in_it_runs_it_where_it_is_loaded(place: str, tmp_path: Path) -> None:
    """The proof that what is planted below is alive."""
    archive = planted(place, tmp_path / "marker")
    assert not (tmp_path / "marker").exists()
    planted_programs.run(archive)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "place",
    [place if place == "pickled weight" else pytest.param(place, marks=pytest.mark.exhaustive) for place in PLACES],
)
def test_a_run_of_the_old_form_with_code_in_its_program_runs_none_of_it(
    place: str, received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command for each place: that a program is loaded at all is what the others would have in common."""
    marker = received.parent / "marker"
    (received / "quantized.pt2").write_bytes(planted(place, marker))
    record = json.loads((received / "stages/quantized.json").read_text())
    record["files"] = {"quantized.pt2": ""}
    (received / "stages/quantized.json").write_text(json.dumps(record))
    manifest = json.loads((received / "manifest.json").read_text())
    manifest["files"]["quantized.pt2"] = ""
    (received / "manifest.json").write_text(json.dumps(manifest))
    rehash(received, record="quantized")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("an archive was loaded"))
    beside = dataclasses.replace(ASKED, target="onnx", output=received.parent / "beside")
    command = {
        "pickled weight": lambda: pipeline.validate(received, Validate(latency=False)),
        "expression": lambda: pipeline.export(dataclasses.replace(beside, reuse=True)),
        "guard": lambda: pipeline.export(
            dataclasses.replace(ASKED, target="onnx", from_run=received, output=tmp_path / "from")
        ),
        "full unpickling": lambda: pipeline.analyze_run(received),
    }[place]
    command()
    pipeline.quantized_program(received)
    assert not marker.exists()
    if place == "pickled weight":
        assert not (received / "quantized.pt2").exists(), "the stage was made again, without the file"


class _Planted:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["reference.npz", "logits.npz"])
def test_logits_with_a_pickled_object_are_refused(name: str, received: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    objects = np.array([_Planted(marker)], dtype=object)
    np.savez(received / name, positions=objects, fp32=objects, simulated=objects)
    rehash(received, record={"reference.npz": "reference", "logits.npz": "accuracy"}[name])
    with pytest.raises(RunDirectoryError, match="does not hold numbers"):
        validated(received)
    assert not marker.exists()


def test_scripts_pages_and_graphs_of_others_are_made_again_or_only_parsed(received: Path) -> None:
    for name in ("device/check.py", "report.html"):
        (received / name).write_text("planted")
    rehash(received, record="device")
    rehash(received, record="report")
    validated(received)
    assert "planted" not in (received / "device/check.py").read_text()
    assert "planted" not in (received / "report.html").read_text()


def test_an_artifact_that_is_no_graph_is_an_error_of_the_run(received: Path) -> None:
    (received / "model.onnx").write_bytes(b"no graph")
    (received / "stages/accuracy.json").unlink()
    manifest = json.loads((received / "manifest.json").read_text())
    del manifest["files"]["stages/accuracy.json"]
    (received / "manifest.json").write_text(json.dumps(manifest))
    rehash(received, record="artifact")
    with pytest.raises(ExportError, match=r"model\.onnx cannot be opened"):
        validated(received)


# Documents


def test_a_manifest_with_junk_is_an_error_of_the_run(received: Path) -> None:
    manifest = json.loads((received / "manifest.json").read_text())
    manifest["files"] = {"config.json": manifest["files"]["config.json"]}  # the others need not be hashed each time
    refused = 0
    for _, changed in with_junk(manifest):
        (received / "manifest.json").write_text(json.dumps(changed))
        try:
            run = load_run(received)
            stored_config(run)
            stored_target(run)
        except RunDirectoryError as error:
            refused += 1
            assert "\x1b" not in str(error)
    assert refused > 500, "of about 1,500"


TEXTS = ["", "{", "null", "[]", '"x"', "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, '{"format": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_manifest_or_report_that_is_no_object_is_an_error_of_the_run(text: str, received: Path) -> None:
    (received / "report.json").write_text(text)
    rehash(received)
    with pytest.raises(RunDirectoryError, match=r"report\.json cannot be read"):
        stored_report(load_run(received))
    (received / "manifest.json").write_text(text)
    for read in (load_run, pipeline.validate, pipeline.analyze_run):
        with pytest.raises(RunDirectoryError, match="manifest"):
            read(received)


def test_a_report_of_an_earlier_version_says_so_and_what_to_do(received: Path) -> None:
    report = json.loads((received / "report.json").read_text()) | {"format": 1}
    (received / "report.json").write_text(json.dumps(report))
    rehash(received)
    with pytest.raises(RunDirectoryError, match=r"report of format 1, and this version reads format 2\. Make"):
        stored_report(load_run(received))


def test_a_report_with_junk_is_an_error_of_the_run(received: Path) -> None:
    report = json.loads((received / "report.json").read_text())
    report["quantization"]["layers"] = report["quantization"]["layers"][:1]
    finished, refused = load_run(received), 0
    for _, changed in with_junk(report):
        (received / "report.json").write_text(json.dumps(changed))
        try:
            stored_report(finished)
        except RunDirectoryError:
            refused += 1
    assert refused > 500


def test_a_run_without_report_or_with_pipes_in_it_is_refused(received: Path) -> None:
    import os

    manifest = json.loads((received / "manifest.json").read_text())
    del manifest["files"]["report.json"]
    (received / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match=r"has no report\.json"):
        stored_report(load_run(received))
    (received / "labels.txt").unlink()
    os.mkfifo(received / "labels.txt")
    with pytest.raises(RunDirectoryError, match=r"labels\.txt are gone"):
        load_run(received)


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_manifest_over_links_is_refused(where: str, received: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    if where == "file":
        shutil.move(received / "labels.txt", outside)
        (received / "labels.txt").symlink_to(outside)
    else:
        shutil.move(received / "device", outside)
        (received / "device").symlink_to(outside)
    with pytest.raises(RunDirectoryError, match=r"labels\.txt are gone|device/.* lie outside it"):
        load_run(received)


MODEL_FIELDS = ("name", "head", "source", "sha256", "input_size", "crop_pct", "mean", "std", "sizes")


@pytest.mark.parametrize("field", MODEL_FIELDS)
def test_a_configuration_with_junk_ends_in_a_users_error(field: str, received: Path, made: Path) -> None:
    manifest = json.loads((received / "manifest.json").read_text())
    manifest["files"] = {name: manifest["files"][name] for name in ("config.json", "folded.safetensors")}
    junk = [
        *JUNK,
        [0, 0],
        [-32, 32],
        [32.5, 32],
        [10**9, 10**9],
        [1e300] * 3,
        [0.0] * 3,
        [0.5] * 64,
        0,
        0.0,
        "/dev/zero",
    ]
    for value in junk:
        manifest["config"]["model"] = json.loads((made / "manifest.json").read_text())["config"]["model"] | {
            field: value
        }
        (received / "manifest.json").write_text(json.dumps(manifest))
        try:
            jobs._from_run(Request(from_run=received), received, [])
        except EdgeConvNextError as error:
            assert "\x1b" not in str(error)


VALUES = {
    "fold": stage_values.FoldValues,
    "statistics": stage_values.CalibrationCounts,
    "plan": stage_values.PlanValues,
    "quantized": stage_values.QuantizedValues,
    "reference": stage_values.ReferenceValues,
    "accuracy": stage_values.AccuracyValues,
    "artifact": stage_values.ArtifactValues,
    "device": stage_values.DeviceValues,
}


@pytest.mark.parametrize("stage", VALUES)
def test_a_record_with_junk_is_not_used_or_has_values_of_its_types(stage: str, received: Path) -> None:
    path = received / "stages" / f"{stage}.json"
    record = json.loads(path.read_text())
    assert VALUES[stage].model_validate(record["values"]), "what this version writes is what it takes"
    if stage == "quantized":
        record["values"]["layers"] = record["values"]["layers"][:1]
    record["files"] = {}  # they need not be hashed each time
    with RunDirectory.open(received, load_run(received).config) as run:
        for _, changed in with_junk(record):
            path.write_text(json.dumps(changed))
            stored = run.stored(stage, VALUES[stage])
            assert stored is None or isinstance(stored.values, VALUES[stage])


# Tensors


def edited_header(content: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a safetensors file with another header, its tensors as they were."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]


@pytest.fixture(scope="module")
def network(made: Path) -> Any:
    return load_model(made / "folded.safetensors").module


def test_a_plan_with_junk_in_its_description_is_an_error_of_its_file(made: Path, tmp_path: Path, network: Any) -> None:
    content, path = (made / "plan.safetensors").read_bytes(), tmp_path / "plan.safetensors"
    path.write_bytes(content)
    load_plan(path, network)
    start = 8 + int.from_bytes(content[:8], "little")
    plan = json.loads(json.loads(content[8:start])["__metadata__"]["plan"])
    plan = {
        part: dict(list(entries.items())[:1]) if isinstance(entries, dict) else entries
        for part, entries in plan.items()
    }
    refused = 0
    for _, changed in with_junk(plan):
        text = json.dumps(changed)
        path.write_bytes(edited_header(content, lambda header, text=text: header["__metadata__"].update(plan=text)))
        try:
            load_plan(path, network)
        except RunDirectoryError:
            refused += 1
    assert refused > 100


def replace_tensor(content: bytes, name: str, tensor: torch.Tensor) -> bytes:
    from safetensors.torch import load, save

    start = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:start])["__metadata__"]
    return save(load(content) | {name: tensor}, metadata=metadata)


LAYER = "stages.0.0.pwconv1"


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (f"{LAYER}|scale", torch.zeros(64), "scales"),
        (f"{LAYER}|scale", torch.full((64,), -1.0), "scales"),
        (f"{LAYER}|scale", torch.full((64,), torch.nan), "finite"),
        (f"{LAYER}|scale", torch.full((64,), torch.inf), "finite"),
        (f"{LAYER}|scale", torch.ones(64, dtype=torch.float64), "float32"),
        (f"{LAYER}|scale", torch.ones(63), "zero points"),
        (f"{LAYER}|scale", torch.tensor(1.0), "scales"),
        (f"{LAYER}:input|scale", torch.ones(1), "scales"),
        (f"{LAYER}:input|zero_point", torch.tensor(256, dtype=torch.int32), "zero points"),
        (f"{LAYER}:input|zero_point", torch.tensor(-1, dtype=torch.int32), "zero points"),
        (f"{LAYER}:input|zero_point", torch.tensor(1), "zero points"),
        (f"{LAYER}|codes", torch.zeros(64, 16), "codes"),
        (f"{LAYER}|codes", torch.zeros(1, 16, dtype=torch.int8), "codes"),
        (f"{LAYER}|bias", torch.zeros(1), "codes"),
        (f"{LAYER}|levels", torch.arange(16.0).flip(0), "palette"),
        (f"{LAYER}|levels", torch.arange(257.0), "palette"),
    ],
)
def test_a_plan_with_other_tensors_is_an_error_of_its_file(
    name: str, tensor: torch.Tensor, words: str, made: Path, tmp_path: Path, network: Any
) -> None:
    path = tmp_path / "plan.safetensors"
    path.write_bytes(replace_tensor((made / "plan.safetensors").read_bytes(), name, tensor))
    with pytest.raises(RunDirectoryError, match=words):
        load_plan(path, network)


def test_a_plan_of_another_network_is_an_error_of_its_file(made: Path, tmp_path: Path, network: Any) -> None:
    content, path = (made / "plan.safetensors").read_bytes(), tmp_path / "plan.safetensors"

    def rename(header: dict[str, Any]) -> None:
        header["__metadata__"]["plan"] = header["__metadata__"]["plan"].replace("stages.0.0", "stages.9.0")
        for name in [name for name in header if name.startswith("stages.0.0")]:
            header[name.replace("stages.0.0", "stages.9.0")] = header.pop(name)

    path.write_bytes(edited_header(content, rename))
    with pytest.raises(RunDirectoryError, match=r"its network has a layer stages\.9\.0"):
        load_plan(path, network)


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{}      "])
def test_what_is_no_tensor_file_is_an_error_of_its_file(content: bytes, tmp_path: Path, network: Any) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"x\.safetensors cannot be read"):
        load_plan(path, network)
    with pytest.raises(RunDirectoryError, match=r"x\.safetensors cannot be read"):
        Statistics.load(path)


def test_statistics_with_junk_in_their_description_are_an_error_of_their_file(made: Path, tmp_path: Path) -> None:
    content, path = (made / "plan_statistics.safetensors").read_bytes(), tmp_path / "statistics.safetensors"
    path.write_bytes(content)
    assert Statistics.load(path).fit_images == 6
    start = 8 + int.from_bytes(content[:8], "little")
    stored = json.loads(content[8:start])["__metadata__"]
    described = {key: json.loads(text) for key, text in stored.items()}
    described["scalars"] = dict(list(described["scalars"].items())[:2])
    refused = 0
    for _, changed in with_junk(described):
        metadata = {key: json.dumps(value) for key, value in changed.items()}
        edit = lambda header, metadata=metadata: header.update(__metadata__=metadata)  # noqa: E731
        path.write_bytes(edited_header(content, edit))
        try:
            Statistics.load(path)
        except RunDirectoryError:
            refused += 1
    assert refused > 50


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


ROWS = {"positions": np.array([0, 2, 3]), "fp32": np.ones((3, 10), np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": np.array([0, 3, 2])},
        {"positions": np.array([0, 2, 2])},
        {"positions": np.array([-1, 2, 3])},
        {"positions": np.array([0, 2, 4])},
        {"positions": np.array([[0, 2, 3]])},
        {"positions": np.array([0.0, 2.0, 3.0])},
        {"positions": np.array([], np.int64)},
        {"positions": np.array([0, 2])},
        {"fp32": np.ones((3, 9), np.float32)},
        {"fp32": np.ones((4, 10), np.float32)},
        {"fp32": np.ones((3, 10), np.float64)},
        {"fp32": np.ones((3, 10), np.complex64)},
        {"fp32": np.array("text")},
    ],
)
def test_logits_of_other_images_or_classes_are_an_error_of_their_file(
    changes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = npz(tmp_path / "logits.npz", **ROWS)
    assert read_logits(path, ("fp32",), images=4, classes=10)["fp32"].shape == (3, 10)
    with pytest.raises(RunDirectoryError, match=r"logits\.npz cannot be read"):
        read_logits(npz(path, **(ROWS | changes)), ("fp32",), images=4, classes=10)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("shape", ["(10**12,)", "(1000000000000,)", "(100000000, 100000000)", "(-1,)", "None", "()"])
def test_an_array_that_asks_for_more_than_its_file_may_hold_is_refused(shape: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "logits.npz", positions=ROWS["positions"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("fp32.npy", npy_header(shape))
    with pytest.raises(RunDirectoryError, match=r"logits\.npz cannot be read"):
        read_logits(path, ("fp32",), images=4, classes=10)


def test_what_is_no_archive_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logits.npz"
    for content in (b"", b"PK\3\4", b"\x93NUMPY\x01\x00", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(RunDirectoryError):
            read_logits(path, ("fp32",), images=4, classes=10)
    # 4 images of 10 float32 logits and an int64 position: 192 bytes, and 64 KiB of overhead.
    path.write_bytes(bytes(192 + 65_536 + 1))
    with pytest.raises(RunDirectoryError, match="at most 65,728 are read"):
        read_logits(path, ("fp32",), images=4, classes=10)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fp32.npy", npy_header("(100000000,)") + bytes(10**7))
    path.write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 65_536
    with pytest.raises(RunDirectoryError, match="does not hold numbers of this run"):
        read_logits(path, ("fp32",), images=4, classes=10)


# The same run twice


def test_two_runs_of_one_request_differ_in_times_and_signatures_only(made: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = [tmp_path / name / "run" for name in ("a", "b")]
        for path in runs:
            pipeline.quantize(dataclasses.replace(ASKED, output=path))
    finally:
        torch.set_num_threads(threads)
    names = sorted(file.relative_to(runs[0]).as_posix() for file in runs[0].rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(runs[1]).as_posix() for file in runs[1].rglob("*") if file.is_file())
    assert "report.json" in names
    for name in names:
        first, second = ((run / name).read_bytes() for run in runs)
        if name.startswith("stages/") or name in ("report.json", "manifest.json"):
            first, second = (json.dumps(without_times(json.loads(text))).encode() for text in (first, second))
        if name not in ("report.html", ".lock"):  # the page shows times
            assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest(), name


def without_times(document: Any) -> Any:
    """Leave out what two equal runs differ in: times, memory, and what is made of them."""
    if isinstance(document, list):
        return [without_times(item) for item in document]
    if not isinstance(document, dict):
        return document
    differing = {"seconds", "peak_mib", "finished", "code"}
    if document.get("stage") == "report":
        differing |= {"key", "inputs", "files"}
    hashes = {"report.json", "report.html", *(name for name in document if name.startswith("stages/"))}
    return {key: without_times(value) for key, value in document.items() if key not in differing | hashes}


def test_the_plan_says_with_how_many_threads_it_was_made(made: Path) -> None:
    record = json.loads((made / "stages/plan.json").read_text())
    threads = torch.get_num_threads()
    assert record["values"]["threads"] == threads
    assert json.loads((made / "report.json").read_text())["quantization"]["threads"] == threads
    assert f"plan made with {threads} thread" in (made / "report.html").read_text()


def test_a_job_resolved_from_a_received_run_keeps_its_images(received: Path) -> None:
    job = resolve(Request(from_run=received))
    assert (len(job.calibration), job.request.effort, job.request.model_from_copy) == (9, "quick", False)
