"""The terminal summary, the model card, the verdict and the way numbers are written."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sample_reports import sample_report

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.report.card import exporter, markdown_code, render_card
from edgeconvnext.report.html import render_html
from edgeconvnext.report.terminal import render_summary
from edgeconvnext.report.verdict import answer_facts, gate_text, missing_results, reason, verdict
from edgeconvnext.schema import format
from edgeconvnext.schema.report import Gate, Interval, PreprocessRecord, Report


def printed(report: Report, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render_summary(report))
    return file.getvalue()


def test_summary_holds_every_figure_at_80_columns(report: Report) -> None:
    text = printed(report)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for row in (
        r"FP32 +77\.04 % +75\.10 to 78\.90 +97\.30 % +1,925",
        r"simulated +76\.94 % +75\.00 to 78\.80 +97\.20 % +1,925",
        r"artifact +76\.83 % +74\.90 to 78\.70 +97\.25 % +1,925",
        r"top-1 drop +\+0\.21 \(-0\.16 to \+0\.57\) points",
        r"agreement +99\.48 % of images",
        r"logit SQNR +36\.2 dB",
        r"fidelity +46\.8 dB",
        r"latency FP32 +median 19\.8 ms",
        r"speed-up +1\.48x \(1\.45 to 1\.50\)",
        r"size +3\.74 MB \(FP32 13\.6 MB, 3\.64x smaller\)",
        r"at least 30\.0 dB fidelity to the simulation +46\.8 dB +met",
        r"Passed: All 3 gates are met\.",
    ):
        assert re.search(row, text), row


def test_a_larger_artifact_is_not_called_smaller(report: Report) -> None:
    assert report.size_bytes.fp32 is not None
    report.size_bytes.artifact = 4 * report.size_bytes.fp32
    assert "4.00x larger)" in printed(report)
    report.size_bytes.artifact = report.size_bytes.fp32
    assert "the same size)" in printed(report)


def test_summary_is_plain_ascii_where_it_is_not_a_terminal(report: Report, unmeasured: Report) -> None:
    for each in (report, unmeasured):
        text = printed(each)
        assert text.isascii()
        assert "\x1b" not in text


def test_summary_prints_names_with_brackets_as_they_are(report: Report) -> None:
    report.model.name = "net[bold red]x[/]"
    report.gates[0].name = "[blink]gate"
    assert "net[bold red]x[/]" in printed(report)
    assert "[blink]gate" in printed(report)


def test_summary_says_what_was_not_measured_and_why(unmeasured: Report) -> None:
    text = printed(unmeasured)
    assert "Top-1 not measured: the folder has no labels" in text
    assert re.search(r"speed-up +not measured", text)
    assert re.search(r"at least 1\.00x the speed of FP32 +- +not measured", text)
    assert "Not measured: None of the 3 gates could be measured" in text
    assert "None\n" not in text


def test_verdict_follows_the_gates(report: Report, unmeasured: Report) -> None:
    assert verdict(report).outcome == "passed"
    assert (verdict(unmeasured).outcome, verdict(unmeasured).title) == ("open", "Not measured")
    report.gates[1].passed = None
    assert (verdict(report).outcome, verdict(report).detail) == ("open", "2 of 3 gates measured and met.")
    report.gates[0].passed, report.gates[0].measured, report.verdict = False, 1.31, "failed"
    missed = verdict(report)
    assert missed.outcome == "missed"
    assert missed.detail == "Promised: at most 1.00 points of top-1 lost, measured +1.31 (-0.16 to +0.57)."
    report.gates, report.verdict = [], "not_measured"
    assert verdict(report).title == "No gates"


def test_the_simulations_verdict_is_shown_where_only_the_device_decides(unmeasured: Report) -> None:
    drop = unmeasured.gates[0]
    drop.simulated, drop.simulated_passed = 0.21, True
    shown = "simulation +0.21, within"
    assert re.search(r"points of top-1 lost +simulation \+0\.21, within +not measured", printed(unmeasured))
    assert verdict(unmeasured).detail.endswith(f"Promised: at most 1.00 points of top-1 lost; {shown}.")
    assert re.search(r"\| simulation .{1,2}0\\?\.21, within \| open:", render_card(unmeasured))
    assert "simulation\xa0+0.21,\xa0within" in render_html(unmeasured)
    drop.passed, drop.measured, drop.simulated_passed = False, 1.31, False
    assert gate_text(drop).simulated is None, "what was missed has its figure already"


def test_a_failed_check_is_the_verdict(report: Report) -> None:
    report.checks[0].passed, report.checks[0].result, report.verdict = False, "node 7 has no type", "failed"
    assert verdict(report).outcome == "missed"
    assert verdict(report).title == "Check failed"
    assert verdict(report).detail == "onnx.checker: node 7 has no type."
    assert re.search(r"onnx\.checker +FAILED +node 7 has no type", printed(report))
    assert "| onnx.checker | node 7 has no type | failed |" in render_card(report)


def test_gate_of_an_unknown_name_keeps_its_name() -> None:
    text = gate_text(Gate(name="max_size_mb", limit=5.0, measured=3.74, passed=True))
    assert (text.promise, text.measured) == ("max_size_mb 5.00", "3.74")


def test_a_gate_missed_by_less_than_a_shown_digit_says_so() -> None:
    text = gate_text(Gate(name="score_drop_pp", limit=1.0, measured=100 * 6 / 599, low=0.08, high=1.92, passed=False))
    assert text.measured == "just above +1.00 (+0.08 to +1.92)"
    slow = gate_text(Gate(name="min_speedup", limit=1.0, measured=0.998, low=0.997, high=0.999, passed=False))
    assert slow.measured == "just below 1.00x (1.00x to 1.00x)"
    met = gate_text(Gate(name="score_drop_pp", limit=1.0, measured=1.0, passed=True))
    assert met.measured == "+1.00"


def test_reason_comes_from_the_key_its_parents_or_its_cause(report: Report) -> None:
    report.not_measured = {"latency": "no runtime", "accuracy.artifact": "no board"}
    assert reason(report, "latency.fp32.median_ms") == "no runtime"
    assert reason(report, "speedup") is None or reason(report, "speedup") == "no runtime"
    assert reason(report, "fidelity_db") == "no board"
    assert reason(report, "size_bytes.fp32") is None


def test_missing_results_are_grouped_by_reason(report: Report) -> None:
    assert missing_results(report) == {}
    report.accuracy.artifact = report.fidelity_db = None
    report.accuracy.simulated = None
    report.not_measured = {
        "accuracy.artifact": "no board",
        "accuracy.artifact.top5": "no board",
        "latency.power": "no meter",
    }
    assert missing_results(report) == {
        "no reason was recorded": ["top-1 of the simulation"],
        "no board": ["top-1 of the artifact", "fidelity"],
        "no meter": ["latency.power"],
    }


def test_card_holds_accuracy_latency_and_limits(report: Report, unmeasured: Report) -> None:
    card = render_card(report)
    assert card.startswith("# convnext\\_atto\\_imagenette for onnx\n")
    assert "| artifact in its runtime | 76.83 % | 74.90 % to 78.70 % | 97.25 % | 1,925 |" in card
    assert "\n- Top-1 drop: +0.21 (-0.16 to +0.57) points\n- Agreement: 99.48 % of images\n- " in card
    assert "Speed-up: 1.48x (95 % interval 1.45x to 1.50x)" in card
    assert "\n\n\n" not in card
    missing = render_card(unmeasured)
    assert "| artifact in its runtime | not measured |" in missing
    assert "needs a Jetson board" in missing
    assert "device/build_and_check.py" in missing
    assert "None" not in missing.split("```")[0].replace("None of the", "")


@pytest.mark.parametrize("table", ["report", "unmeasured"])
def test_card_tables_have_the_same_cells_in_every_row(table: str, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(table)
    report.gates[0].reason = "a | b\n# c `d|e`"
    report.accuracy.dataset = "set|`x`"
    for block in re.findall(r"(?:^\|.*\n)+", render_card(report), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block


def test_card_escapes_markdown_and_html() -> None:
    assert markdown_code("a`b") == "``a`b``"
    assert markdown_code("`") == "`` ` ``"


@pytest.mark.parametrize("kind", ["onnx", "tensorrt-onnx", "tensorrt", "tensorrt-rtx", "coreml"])
@pytest.mark.parametrize("value_range", ["normalized", "0..255"])
def test_card_sample_is_python_for_every_exporter(report: Report, kind: str, value_range: str) -> None:
    report = Report.model_validate(report.model_dump() | {"exporter": kind})
    assert report.model.preprocess is not None
    report.model.preprocess.value_range = value_range  # type: ignore[assignment]
    compile(sample_code(report), "sample", "exec")


@pytest.mark.parametrize("artifact", ["model.onnx", "model.engine", "model.mlpackage", None])
def test_exporter_is_told_by_the_suffix_where_it_was_not_recorded(report: Report, artifact: str | None) -> None:
    report.exporter, report.artifact = None, artifact
    kinds = {"model.onnx": "onnx", "model.engine": "tensorrt", "model.mlpackage": "coreml", None: None}
    assert exporter(report) == kinds[artifact]


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("input_size", [(64, 64), (64, 96)])
@pytest.mark.parametrize("value_range", ["normalized", "0..1", "0..255"])
@pytest.mark.parametrize("channels", [3, 1])
def test_card_sample_prepares_an_image_as_the_toolkit_does(
    report: Report, mode: str, input_size: tuple[int, int], value_range: str, channels: int
) -> None:
    record = PreprocessRecord(
        crop_pct=0.875,
        crop_mode=mode,  # type: ignore[arg-type]
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels],
        value_range=value_range,  # type: ignore[arg-type]
    )
    report.model.preprocess, report.model.input_size = record, input_size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (123, 171, 3), dtype=np.uint8))

    class Opener:
        Resampling = Image.Resampling

        @staticmethod
        def open(name: str) -> Image.Image:
            return image

    code = sample_code(report)
    prepare = code[code.index("image = ") : code.index("x = x.astype")]
    names: dict[str, object] = {"Image": Opener, "np": np}
    exec(prepare, names)
    preprocess = Preprocess(input_size, **record.model_dump(exclude={"value_range", "input_type"}))
    expected = preprocess.with_value_range(record.value_range).apply(image)[None]
    # The same pixels; float32 against float64 arithmetic differs in the last bits only.
    scale = 255 if value_range == "0..255" else 1
    np.testing.assert_allclose(names["x"], expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("task", ["binary", "multi-label"])
def test_card_sample_shows_decisions_where_no_class_excludes_another(report: Report, task: str) -> None:
    assert "shares" in sample_code(report)
    report.accuracy.task = task  # type: ignore[assignment]
    assert " > 0" in sample_code(report) and "shares" not in sample_code(report)


def sample_code(report: Report) -> str:
    *_, without_this_package = re.findall(r"```python\n(.*?)```", render_card(report), re.DOTALL)
    return str(without_this_package)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format.significant, 0.4123, "0.412"),
        (format.significant, 9.996, "10.0"),
        (format.significant, 999.6, "1,000"),
        (format.significant, -0.17, "-0.170"),
        (format.significant, 138.7, "139"),
        (format.significant, 1105.0, "1,105"),
        (format.significant, 0.0000213, "2.13e-05"),
        (format.significant, 0.0, "0"),
        (format.share, 0.9234, "92.3 %"),
        (format.share, 0.00012, "0.012 %"),
        (format.share, 0.0, "0.0 %"),
        (format.points, -0.001, "0.00"),
        (format.points, 0.21, "+0.21"),
        (format.size, 999, "999 bytes"),
        (format.size, 3_741_822, "3.74 MB"),
        (format.macs, 546_800_000, "547 MMACs"),
        (format.macs, 4_456_000_000, "4.46 GMACs"),
        (format.duration, 59.97, "1 min 00 s"),
        (format.duration, 245.0, "4 min 05 s"),
        (format.typographic, "-0.05 points", "\N{MINUS SIGN}0.05\N{NO-BREAK SPACE}points"),
        (format.typographic, "1.47x", "1.47\N{MULTIPLICATION SIGN}"),
        (format.typographic, "2.1e-07", "2.1e\N{MINUS SIGN}07"),
    ],
)
def test_numbers_read_well(function: object, value: object, text: str) -> None:
    assert callable(function)
    assert function(value) == text


def test_simulation_figures_are_marked_as_such(report: Report) -> None:
    report.accuracy.artifact, report.accuracy.measured_on = None, "simulation"
    report.accuracy.drop_pp = Interval(value=0.1, low=-0.2, high=0.4)
    assert "+0.10 (-0.20 to +0.40) points (simulation)" in printed(report)
    assert "Top-1 drop: +0.10 (-0.20 to +0.40) points (simulation)" in render_card(report)


def test_terminal_page_and_card_give_answers_in_the_same_words(report: Report, unmeasured: Report) -> None:
    facts = answer_facts(report)
    assert {"top-1 drop", "agreement", "logit SQNR"} <= {fact.name for fact in facts}
    page, card, text = render_html(report), render_card(report), printed(report)
    for fact in facts:
        assert fact.value is not None and fact.value in text
        assert f"{fact.name[0].upper()}{fact.name[1:]}: {fact.value}\n" in card
        assert f"<dt>{fact.name[0].upper()}{fact.name[1:]}</dt><dd>{format.typographic(fact.value)}" in page
    for fact in answer_facts(unmeasured):
        assert fact.value is None
        assert f"{fact.name[0].upper()}{fact.name[1:]}: not measured: the folder has no labels" in render_card(
            unmeasured
        )


def test_tiny_at_80_columns() -> None:
    assert max(map(len, printed(sample_report((3, 3, 9, 3))).splitlines())) <= 80


def test_a_budget_is_summed_up_with_what_it_cost(report: Report) -> None:
    shown = printed(report)
    for part in (
        "0.5 points of top-1 on 85 held-out images",
        "1.18 lost",
        "then 0.00",
        "1 layer with more bits",
        "1.41 ms without",
    ):
        assert part in " ".join(shown.split())
    assert "1 layer was given more bits" in render_card(report)


def test_figures_of_the_reference_evaluator_are_marked_as_such(report: Report) -> None:
    report.accuracy.runtime = "reference evaluator on torch 2.13.0"
    text, card = printed(report), render_card(report)
    assert text.count("(reference evaluator)") == 4  # drop, agreement, SQNR, fidelity
    assert "artifact in the reference evaluator" in card
    assert "in its runtime" not in card
