"""Targets: the shipped ones load, a user's own file works by path, and every mistake in one is named with its key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from edgeconvnext.backends import load_target
from edgeconvnext.errors import ConfigFileError, TargetError
from edgeconvnext.targets import target_files

MINIMAL = """
name = "board"
description = "A board of ours"
exporter = "onnx"
float_type = "float32"
opset = 21

[quantize]
operators = ["pointwise1", "head"]

[runtime]
name = "onnxruntime"
minimum = "1.18"
"""


def write(folder: Path, *changes: tuple[str, str], more: str = "") -> str:
    """Write the minimal target with pieces of its text replaced, and return its path."""
    text = MINIMAL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "board.toml"
    path.write_text(text + more)
    return str(path)


def refusal(path: str) -> str:
    with pytest.raises(ConfigFileError) as caught:
        load_target(path)
    message = str(caught.value)
    assert message.startswith(path), "an error names the file"
    assert "\n" not in message
    return message


PRESETS = ["iphone", "jetson", "jetson-orin-nano", "jetson-thor", "mac", "raspberry-pi"]
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "devices.md"


def test_the_shipped_targets_are_those_of_the_documentation() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(target_files())
    assert {"coreml", "coreml-w8", "coreml-p6", "gpu", "onnx", "rtx", *PRESETS} <= set(rows)


def test_targets_of_one_exporter_quantise_the_same_operators() -> None:
    """A device's preset quantises ResNets where the target that it stands for does."""
    found: dict[str, set[frozenset[str]]] = {}
    for name in target_files():
        target = load_target(name)
        family = "tensorrt" if target.exporter.startswith("tensorrt") else target.exporter
        found.setdefault(family, set()).add(frozenset(target.quantize.operators))
    assert {"onnx", "tensorrt", "coreml"} <= set(found)
    assert [family for family, sets in found.items() if len(sets) > 1] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_a_source_for_every_fact_and_says_what_is_not_confirmed(name: str) -> None:
    facts = load_target(name).facts
    assert {fact.about for fact in facts} == {"runtime", "opset", "alignment", "placement", "power", "memory"}
    for fact in facts:
        assert fact.source
        if fact.confirmed:
            assert re.search(r"https://|measured|inspected", fact.source), fact.text
            assert "from memory" not in fact.source, fact.text


def test_what_is_known_of_a_device_changes_no_hash(tmp_path: Path) -> None:
    more = '\n[[facts]]\nabout = "power"\ntext = "5 W"\nsource = "a scale"\nconfirmed = true\n'
    plain = load_target(write(tmp_path))
    with_facts = load_target(write(tmp_path, more=more))
    assert with_facts.facts[0].text == "5 W"
    assert with_facts.sha256 == plain.sha256 and with_facts.model_dump() == plain.model_dump()


def test_a_fact_without_a_source_is_refused(tmp_path: Path) -> None:
    more = '\n[[facts]]\nabout = "power"\ntext = "5 W"\nconfirmed = true\n'
    assert "facts.0.source is missing" in refusal(write(tmp_path, more=more))


def test_presets_of_one_family_differ_where_their_devices_do() -> None:
    assert load_target("jetson-orin-nano").input.batch == [1, 4, 8]
    assert load_target("jetson-thor").runtime.minimum == "10.13"
    assert load_target("mac").minimum_os == "macOS14" and load_target("iphone").minimum_os == "iOS17"
    assert load_target("raspberry-pi").quantize == load_target("onnx").quantize


@pytest.mark.parametrize("name", list(target_files()))
def test_a_shipped_target_loads_under_its_file_name_with_its_gates(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.gates.score_drop_pp == 1.0
    assert target.gates.min_speedup == 1.0


def test_the_placement_of_the_cpu_target_keeps_depthwise_and_stem_in_float_and_weights_in_seven_bits() -> None:
    target = load_target("onnx")
    assert not {"depthwise", "stem"} & set(target.quantize.operators)
    assert target.quantize.weights.range_bits == 7
    assert target.float_type == "float32"


def test_the_jetson_target_is_symmetric_int8_beside_float16_at_the_first_opset_with_float16_scales() -> None:
    target = load_target("jetson")
    assert (target.float_type, target.opset, target.quantize.activations.scheme) == ("float16", 19, "symmetric")
    assert target.input.dynamic_batch


def test_a_file_of_the_users_own_works_by_path_and_keeps_the_defaults(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, more="\n[gates]\nscore_drop_pp = 2\n"))
    assert (target.name, target.quantize.operators, target.gates.score_drop_pp) == (
        "board",
        ["pointwise1", "head"],
        2.0,
    )
    assert target.gates.min_speedup is None
    assert target.input.batch == [1, 8, 32]


def test_the_hash_sees_values_and_not_comments(tmp_path: Path) -> None:
    plain = load_target(write(tmp_path)).sha256
    assert load_target(write(tmp_path, more="# a remark\n")).sha256 == plain
    assert load_target(write(tmp_path, more="[input]\nbatch = [1, 8, 32]\n")).sha256 == plain, "a default, written out"
    assert load_target(write(tmp_path, more="[input]\nbatch = [1, 1, 1]\n")).sha256 != plain


def test_an_unknown_target_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(
        TargetError, match=rf"no target 'jetsn'\. Did you mean jetson\?.*{re.escape(', '.join(target_files()))};"
    ):
        load_target("jetsn")


def test_a_target_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no target file .*mine\.toml"):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("opset =", "opsett =", "unknown key opsett. Did you mean opset?"),
        ("operators =", "operator =", "unknown key quantize.operator. Did you mean operators?"),
        ("operators =", "operator =", "quantize.operators is missing."),
        ("[quantize]", "[quantise]", "unknown key quantise. Did you mean quantize"),
        ('"head"', '"haed"', "(found 'haed'). Did you mean head?"),
        ('"onnx"', '"onx"', "(found 'onx'). Did you mean onnx?"),
        ("opset = 21", 'opset = "21"', "opset: input should be a valid integer (found '21')."),
        (
            "opset = 21",
            f"opset = 0x{'f' * 5000}",
            "opset: input should be less than or equal to 25 (found a number of too many",
        ),
        ("opset = 21", "opset = 12", "opset: input should be greater than or equal to 19 (found 12)."),
        ('["pointwise1", "head"]', "[]", "quantize.operators: "),
        ('"float32"', '"float16"', 'exporter "onnx" writes float32'),
        ("opset = 21\n", "", 'exporter "onnx" needs opset'),
        ('name = "onnxruntime"', 'name = "tensorrt"', 'set runtime.name = "onnxruntime"'),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_nearest_right_one(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert expected in refusal(write(tmp_path, (old, new)))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("[gates]\nmin_spedup = 1.0\n", "unknown key gates.min_spedup. Did you mean min_speedup?"),
        (
            "[quantize.activations]\nschema = 'affine'\n",
            "unknown key quantize.activations.schema. Did you mean scheme?",
        ),
        ("[quantize.activations]\nsigned = false\n", "needs signed = true"),
        ("[gates]\nscore_drop_pp = -1.0\n", "gates.score_drop_pp: input should be greater than or equal to 0"),
        ("[input]\nbatch = [8, 1, 32]\n", "batch [8, 1, 32] must read smallest <= typical <= largest"),
        ("[input\n", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_full_key(tmp_path: Path, more: str, expected: str) -> None:
    assert expected in refusal(write(tmp_path, more=more))


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("jetson", 'scheme = "symmetric"', 'scheme = "affine"', 'set quantize.activations.scheme = "symmetric"'),
        ("jetson", "opset = 19", "opset = 21", "TensorRT 10.3 does not know; set opset = 19"),
        ("rtx", '"float16"', '"float32"', 'exporter "tensorrt-rtx" writes float16'),
        ("coreml", 'minimum_os = "iOS17"\n', "", 'exporter "coreml" needs minimum_os'),
        ("coreml", '"0..255"', '"normalized"', 'set input.value_range = "0..255"'),
        ("coreml", "batch = [1, 1, 1]", "batch = [1, 4, 8]", "set input.batch = [1, 1, 1]"),
        ("coreml", '"float16"', '"float32"', 'exporter "coreml" writes float16'),
        ("coreml-p6", '"iOS18"', '"iOS17"', 'from iOS18 and macOS15 on; set minimum_os = "iOS18"'),
        ("coreml-p6", "palette_bits = 6", "palette_bits = 5", "palette_bits: input should be 4 or 6 (found 5)"),
        ("coreml-p6", "palette_bits = 6", "palette_bits = 6\nbits = 4", "leave bits and range_bits at 8"),
        ("onnx", "range_bits = 7", "palette_bits = 6", 'palette_bits is written to Core ML only; exporter "onnx"'),
    ],
)
def test_what_an_exporter_cannot_write_is_refused_when_the_file_is_read(
    tmp_path: Path, name: str, old: str, new: str, expected: str
) -> None:
    text = target_files()[name].read_text()
    assert old in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new, 1))
    assert expected in refusal(str(path))


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ("opset =", "opsett ="), ("minimum =", "minimun =")))
    assert "opsett" in message
    assert "runtime.minimun" in message


def test_a_message_stays_short_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(MINIMAL + "".join(f"{'k' * 5000}{number} = 1\n" for number in range(30)))
    assert len(refusal(str(path))) < 6000
    assert refusal(str(path)).endswith(" ...")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "is not UTF-8 text" in refusal(str(path))


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_target(str(path)).name == tomllib.loads(MINIMAL)["name"]


def test_the_old_name_of_the_smoothing_table_ends_in_an_error_that_names_the_new_one(tmp_path: Path) -> None:
    path = write(tmp_path, more='\n[quantize.prepare]\nhidden = "channel"\n')
    assert "[quantize.smoothing]" in refusal(path)
    path = write(tmp_path, more='\n[quantize.smoothing]\nhidden = "channel"\n')
    assert load_target(path).quantize.smoothing.hidden == "channel"
