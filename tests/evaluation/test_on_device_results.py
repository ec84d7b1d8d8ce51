"""device.json and kit.json as files: bounded, regular, of a format that is read, and every value of its kind and range."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_files import Results, described, kit, told
from test_on_device_figures import changed, whole

from edgeconvnext.backends.device import kit as script
from edgeconvnext.backends.kit import results as device_results
from edgeconvnext.backends.kit.description import KIT_FORMAT
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import read_results
from edgeconvnext.backends.kit.write import KIT_FILE, VECTORS_FILE
from edgeconvnext.errors import DeviceResultsError, RunDirectoryError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.json"


def refusal(path: Path, content: Results | str | bytes | None = None) -> str:
    """Return what is said of a file; it is one sentence or two, on one line, that name the file."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else _text(content).encode("utf-8", "surrogatepass"))
    with pytest.raises(DeviceResultsError) as caught:
        read_results(path, kit())
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "\x1b" not in message and len(message) < 1000
    return message


def _text(content: Results | str) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def test_a_file_as_a_kit_writes_it_is_read(path: Path) -> None:
    path.write_text(json.dumps(whole()))
    results = read_results(path, kit())
    assert results.latency is not None and results.latency.artifact.blocks_ms == [[1.0, 1.0], [1.0, 1.0]]


def test_the_formats_are_those_that_the_kit_writes() -> None:
    assert device_results.RESULT_FORMAT == script.RESULT_FORMAT and KIT_FORMAT == script.KIT_FORMAT
    assert (
        device_results.MOST_RUNS > script_timing().MOST_RUNS
        and device_results.MOST_BLOCKS > script_timing().MOST_BLOCKS
    )


def script_timing() -> Any:
    from edgeconvnext.evaluation import turns as timing

    return timing


@pytest.mark.parametrize(
    ("format_", "words"),
    [
        (99, "made by a newer version of edgeconvnext. Update"),
        (5, "made by a newer version"),
        (2, "no longer read. Export the model again"),
        (-1, "no longer read"),
        ("4", "format: no number"),
        (True, "format: no number"),
        (None, "format: no number"),
        (4.0, "format: no number"),
    ],
)
def test_other_formats_are_refused_and_say_which_side_is_old(path: Path, format_: object, words: str) -> None:
    assert words in refusal(path, told(None) | {"format": format_})


def test_an_older_file_is_read_without_its_times(path: Path) -> None:
    old = whole() | {"format": 3, "latency": {"artifact": {"median_ms": 1}}, "power": {"source": "ina3221"}}
    path.write_text(json.dumps(old))
    results = read_results(path, kit())
    assert results.answers is not None
    assert (results.latency, results.speedup, results.power, results.check, results.gates) == (
        None,
        None,
        None,
        None,
        [],
    )


def test_results_of_another_run_are_refused_by_their_hash(path: Path) -> None:
    message = refusal(path, told(None, kit="b" * 64, model="ot\x1b[2Jher", target="onnx"))
    assert "kit of another run (ot\\x1b[2Jher for onnx, kit bbbbbbbbbbbb)" in message
    assert "small for jetson, kit aaaaaaaaaaaa" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        (json.dumps(told(None))[:100], "cannot be read"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested too deeply"),
        ('{"format": ' + "1" * 5000 + "}", "too many digits"),
        ('{"format": 4, "format": 4}', "the key 'format' is there twice"),
        ('{"format": 4, "machine": {"a": "1", "b": "2", "a": "3"}}', "the key 'a' is there twice"),
        ('{"format": NaN}', "NaN is no finite number"),
        ('{"format": 4, "latency": -Infinity}', "-Infinity is no finite number"),
        (b"\xff\xfe{", "cannot be read"),
        ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', "is there twice"),
    ],
)
def test_what_is_no_json_of_one_meaning_is_refused(path: Path, content: str | bytes, words: str) -> None:
    assert words in refusal(path, content)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("latency.artifact.median_ms", -1.0),
        ("latency.artifact.median_ms", 0),
        ("latency.artifact.median_ms", "1.0"),
        ("latency.artifact.median_ms", True),
        ("latency.artifact.mean_ms", 10**400),
        ("latency.artifact.cv", -0.1),
        ("latency.artifact.runs", 0),
        ("latency.artifact.runs", 2_000_000),
        ("latency.artifact.runs", 4.5),
        ("latency.artifact.blocks_ms", []),
        ("latency.artifact.blocks_ms", [[]]),
        ("latency.artifact.blocks_ms", [[1.0, 0.0]]),
        ("latency.artifact.blocks_ms", [[1.0, -1.0]]),
        ("latency.artifact.blocks_ms", [[1.0, None]]),
        ("latency.artifact.blocks_ms", 5),
        ("latency.batch", 0),
        ("latency.threads", 0),
        ("latency.settings", {"a": 1}),
        ("speedup.value", 0),
        ("power.rails", {}),
        ("power.rails.CPU.idle", 1e300),
        ("power.seconds_per_image.artifact", 0),
        ("answers", 5),
        ("kit", None),
        ("kit", "a" * 65),
        ("machine", {"name": "b" * 4001}),
        ("machine", {"n" * 301: "board"}),
        ("machine", {str(index): "" for index in range(101)}),
        ("machine", {"name": ["board"]}),
        ("messages", ["m"] * 1001),
        ("messages", ["m" * 4001]),
        ("layers.artifact", [{"name": "a", "kind": "b", "precision": "c"}] * 5001),
        ("layers.artifact.0.median_ms", -0.1),
        ("layers.artifact.0.name", None),
        ("layer_fidelity", [{"layer": "stages.0", "sqnr_db": 1e9}]),
        ("started", "2" * 41),
        ("runtime.version", 10.3),
        ("clocks_before", {"cpu": {"mhz": [1]}}),
        ("clocks_before", {"cpu": 5}),
        ("saved", [3]),
        ("gates.0.passed", 1),
        ("gates.0.name", "score_drop_pp"),
        ("passed", "yes"),
        ("check.images", 1.5),
        ("model", "\udcff"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_or_range_is_refused_by_its_field(path: Path, where: str, value: object) -> None:
    assert where.partition(".")[0] in refusal(path, changed(whole(), where, value))


def entries(count: int, value: object = "") -> dict[str, object]:
    return {str(index): value for index in range(count)}


RAIL = {"idle": 1.0, "artifact": 1.0, "baseline": 1.0}
GATE = {"name": "min_speedup", "limit": 1.0, "measured": 1.5, "passed": True}
OUTPUT = {"name": "logits", "fidelity_db": 1.0, "sqnr_db": 1.0}
LAYER = {"layer": "stages.0"}


@pytest.mark.parametrize(
    ("where", "last", "beyond"),
    [
        ("latency.artifact.median_ms", 1e9, 1e9 + 1),
        ("latency.artifact.cv", 1e12, 1e12 + 1),
        ("power.rails.CPU.idle", 1e9, 1e9 + 1),
        ("power.rails.CPU.idle", -1e9, -1e9 - 1),
        ("latency.artifact.blocks_ms", [[1.0]] * 12_000, [[1.0]] * 12_001),
        ("latency.artifact.blocks_ms", [[1.0]], []),
        ("latency.artifact.runs", 1_000_000, 1_000_001),
        ("latency.artifact.runs", 1, 0),
        ("latency.batch", 65_536, 65_537),
        ("latency.batch", 1, 0),
        ("latency.threads", 4096, 4097),
        ("latency.threads", 1, 0),
        ("latency.settings", entries(100), entries(101)),
        ("power.summed", ["CPU"], []),
        ("power.summed", ["CPU"] * 100, ["CPU"] * 101),
        ("power.rails", entries(1, RAIL), {}),
        ("power.rails", entries(100, RAIL), entries(101, RAIL)),
        ("layer_fidelity", [LAYER | {"sqnr_db": 1000}], [LAYER | {"sqnr_db": 1001}]),
        ("layer_fidelity", [LAYER | {"sqnr_db": -1000}], [LAYER | {"sqnr_db": -1001}]),
        ("check.outputs", [OUTPUT] * 100, [OUTPUT] * 101),
        ("machine", entries(100), entries(101)),
        ("machine", {"n" * 300: ""}, {"n" * 301: ""}),
        ("clocks_before", entries(1000, {}), entries(1001, {})),
        ("clocks_after", entries(1000, {}), entries(1001, {})),
        ("messages", [""] * 1000, [""] * 1001),
        ("saved", [""] * 100, [""] * 101),
        ("gates", [GATE] * 3, [GATE] * 4),
        ("kit", "a" * 64, "a" * 65),
        ("started", "2" * 40, "2" * 41),
    ],
)
def test_the_last_value_of_a_range_is_read_and_the_next_one_refused(where: str, last: object, beyond: object) -> None:
    device_results.results_of(changed(whole(), where, last), Path("device.json"))
    with pytest.raises(DeviceResultsError, match=where.partition(".")[0]):
        device_results.results_of(changed(whole(), where, beyond), Path("device.json"))


@pytest.mark.parametrize("key", ["kit", "model", "target", "started", "runtime", "forms"])
def test_what_every_file_has_is_asked_for(path: Path, key: str) -> None:
    assert f"{key}: Field required" in refusal(path, {name: value for name, value in whole().items() if name != key})


def test_names_of_fields_are_shown_without_their_control_characters(path: Path) -> None:
    assert "\\x1b[2J" in refusal(path, whole() | {"machine": {"\x1b[2J\n": 5}})


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    assert "no such file" in refusal(path)


def test_only_regular_files_of_a_bounded_size_are_read(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a named pipe" in refusal(tmp_path / "pipe")
    assert "a folder" in refusal(tmp_path)
    assert "a device" in refusal(Path("/dev/zero"))
    path.touch()
    os.truncate(path, 10 * 2**30)  # a sparse file
    assert "at most 67,108,864 are read" in refusal(path)


# ------------------------------------------------------------------------------------------------------------- kit.json


def write_kit(folder: Path, **changes: Any) -> Path:
    known = kit()
    about = described().model_dump() | {"labels": known.about.labels} | changes
    (folder / KIT_FILE).write_text(json.dumps(about))
    images = np.zeros((32, 3, 2, 2), "<f4")
    (folder / VECTORS_FILE).write_bytes(images.tobytes() + known.fp32.tobytes() + known.simulated.tobytes())
    return folder


def test_a_kit_is_read_as_it_was_written(tmp_path: Path) -> None:
    loaded, known = Kit.load(write_kit(tmp_path)), kit()
    np.testing.assert_array_equal(loaded.fp32, known.fp32)
    np.testing.assert_array_equal(loaded.simulated, known.simulated)
    assert loaded.labels is not None and known.labels is not None
    assert loaded.labels.tolist() == known.labels.tolist() and loaded.outputs == ()
    assert (loaded.model, loaded.target, len(loaded.sha256)) == ("small", "jetson", 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "made by a newer version"),
        ({"format": 2}, "format"),
        ({"format": None}, "format"),
        ({"count": 0}, "count"),
        ({"count": 33}, "count"),
        ({"count": 31, "labels": None}, "vectors of 3968"),  # 31 * (12 + 20) values
        ({"count": True}, "count"),
        ({"image_shape": [3, 2]}, "image_shape"),
        ({"image_shape": [3, 2**17, 2]}, "image_shape"),
        ({"image_shape": [3, 2, 3]}, "has 4096 bytes; kit.json describes vectors of 4864"),
        ({"classes": 9}, "9 classes do not fit the outputs"),
        ({"classes": -1}, "classes"),
        ({"outputs": []}, "outputs"),
        ({"outputs": [{"name": "logits", "size": 9, "samples": 10}]}, "more samples than values"),
        ({"classes": 0, "labels": None, "outputs": [{"name": "a", "size": 5000, "samples": 4094}]}, "more samples"),
        ({"labels": [0] * 31}, "31 labels for 32 images"),
        ({"labels": [10] * 32}, "none of 10 classes"),
        ({"labels": [-1] * 32}, "none of 10 classes"),
        ({"batch": [1, 8, 4]}, "not in order"),
        ({"batch": [8, 4, 8]}, "not in order"),
        ({"batch": [1, 4]}, "batch"),
        ({"gates": {"min_speedup": "1"}}, "gates"),
        ({"module": "evil"}, "that builds with 'evil'"),
        ({"script": "../evil.py"}, "script"),
        ({"artifact": "../model.onnx"}, "no name of a file inside the kit"),
        ({"baseline": "/etc/passwd"}, "no name of a file inside the kit"),
        ({"files": {"../x": "0" * 64, "b": "0" * 64, "c": "0" * 64}}, "no name of a file inside the kit"),
        ({"files": {"-rf": "0" * 64, "b": "0" * 64, "c": "0" * 64}}, "no name of a file inside the kit"),
        ({"files": {"a/../../b": "0" * 64, "b": "0" * 64, "c": "0" * 64}}, "no name of a file inside the kit"),
        ({"files": {"a b;rm": "0" * 64, "b": "0" * 64, "c": "0" * 64}}, "no name of a file inside the kit"),
        ({"files": {"a": "0" * 63, "b": "0" * 64, "c": "0" * 64}}, "files"),
        ({"files": []}, "files"),
        ({"model": ["small"]}, "model"),
    ],
)
def test_a_kit_that_does_not_hold_is_one_error(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        Kit.load(write_kit(tmp_path, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / KIT_FILE).write_text("[" * 100_000),
        lambda folder: (folder / KIT_FILE).write_text('{"format": ' + "9" * 5000 + "}"),
        lambda folder: (folder / KIT_FILE).write_text("[]"),
        lambda folder: (folder / KIT_FILE).unlink(),
        lambda folder: os.truncate(folder / KIT_FILE, 10 * 2**30),
        lambda folder: (folder / VECTORS_FILE).unlink(),
        lambda folder: os.truncate(folder / VECTORS_FILE, 10 * 2**30),
        lambda folder: os.truncate(folder / VECTORS_FILE, 5),
        lambda folder: (folder / VECTORS_FILE).write_bytes(np.full(32 * 32, np.nan, "<f4").tobytes()),
    ],
)
def test_a_kit_whose_files_do_not_hold_is_one_error(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    spoil(write_kit(tmp_path))
    with pytest.raises(RunDirectoryError) as caught:
        Kit.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_the_vectors_is_not_waited_for(tmp_path: Path) -> None:
    (write_kit(tmp_path) / VECTORS_FILE).unlink()
    os.mkfifo(tmp_path / VECTORS_FILE)
    with pytest.raises(RunDirectoryError, match="a named pipe"):
        Kit.load(tmp_path)


def test_a_backbones_outputs_are_named(tmp_path: Path) -> None:
    outputs = [{"name": "stage1", "size": 7, "samples": 7}, {"name": "stage2", "size": 300, "samples": 3}]
    loaded = Kit.load(write_kit(tmp_path, classes=0, labels=None, outputs=outputs))
    assert [(output.name, output.samples) for output in loaded.outputs] == [("stage1", 7), ("stage2", 3)]
    assert loaded.labels is None
