"""What a device measured is shown in every form of the report, and is not listed as missing any more."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sample_reports import sample_device, unmeasured_report

from edgeconvnext.report.card import render_card
from edgeconvnext.report.html import render_html
from edgeconvnext.report.terminal import render_summary
from edgeconvnext.report.verdict import missing_results
from edgeconvnext.schema.report import DeviceRecord, Report


@pytest.fixture
def measured() -> Report:
    """An export for a board that is not here, measured on the board."""
    return unmeasured_report().model_copy(update={"device": sample_device()})


def terminal(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(render_summary(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


FIGURES = (
    "Jetson Orin Nano",
    "tensorrt 10.3.0",
    "45.2 dB",
    "96.88 %",
    "1.43",
    "8.20 W",
    "13.3 mJ",
    "41 int8",
    "44.0 dB",
)


def test_the_terminal_shows_every_figure_within_80_columns(measured: Report) -> None:
    shown = terminal(measured)
    assert all(figure in shown for figure in FIGURES)
    assert max(map(len, shown.splitlines())) <= 80


def test_the_page_shows_every_figure_and_escapes_what_the_device_says(measured: Report) -> None:
    page = render_html(measured).replace("\N{NO-BREAK SPACE}", " ")
    assert all(figure in page for figure in FIGURES)
    assert 'href="#device"' in page and 'id="device"' in page
    assert "&lt;Developer Kit&gt;" in page and "<Developer Kit>" not in page
    assert "pwconv1 &lt;fused&gt;" in page
    assert "306 MHz, then 625 MHz" in page and "a tactic was skipped" in page


def test_the_card_shows_every_figure(measured: Report) -> None:
    card = render_card(measured)
    assert "## On the device" in card
    assert "45.2 dB on 32 check vectors" in card and "&lt;Developer Kit\\>" in card


def test_what_the_device_measured_is_not_missing_any_more(measured: Report) -> None:
    before = {name for names in missing_results(unmeasured_report()).values() for name in names}
    after = {name for names in missing_results(measured).values() for name in names}
    assert before - after == {
        "top-1 of the artifact",
        "fidelity",
        "latency of FP32",
        "latency of the artifact",
        "speed-up",
    }


def test_without_a_device_no_form_speaks_of_one(report: Report) -> None:
    assert 'id="device"' not in render_html(report)
    assert "On the device" not in render_card(report)
    assert not any(line.startswith("device") for line in terminal(report).splitlines())


def test_a_device_that_only_built_an_engine_shows_that_nothing_was_measured(measured: Report) -> None:
    bare = DeviceRecord(
        runtime="tensorrt_rtx 1.7.1",
        machine={},
        started="2026-11-25T01:41:13Z",
        baseline_form="FP16",
        artifact_form="W8A8",
        images=0,
        not_measured={"power": "nothing was run there"},
    )
    shown = measured.model_copy(update={"device": bare})
    assert "an unnamed machine" in terminal(shown)
    page = render_html(shown)
    assert "nothing was run there" in page and "Latency on the device" not in page
    assert "fidelity" in {name for names in missing_results(shown).values() for name in names}
