"""report.html is self-contained, readable and safe whatever the names in it are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from sample_reports import layer_names, sample_report

from edgeconvnext.report.html import SHOWN_FLIPS, candidates, changed_classes, flip_cards, render_html
from edgeconvnext.schema.report import Report

HOSTILE = "<script>alert('&\"')</script> | `x` *y* [red]z[/red] {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, text and mistakes of a page: tags that do not close, loads from elsewhere, event handlers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def hostile_report() -> Report:
    """A full report with every free text replaced by markup, quotes and template code."""
    report = sample_report()
    report.model.name = report.model.source = report.model.layout = report.target = report.artifact = HOSTILE
    report.target_description = report.quantization.scheme = report.quantization.calibration_set = HOSTILE
    report.accuracy.dataset = report.latency.device = report.latency.runtime = HOSTILE
    report.quantization.calibration_skipped = [HOSTILE]
    report.model.folds = {HOSTILE: 1e-7}
    report.environment = report.latency.settings = {HOSTILE: HOSTILE}
    report.notes = [HOSTILE]
    report.not_measured = {HOSTILE: HOSTILE}
    for flip in report.accuracy.flips:
        flip.image = flip.label = flip.fp32 = flip.artifact = HOSTILE
        flip.thumbnail = 'data:image/jpeg;base64,AAAA" onerror="alert(1)'
    for change in report.accuracy.classes:
        change.label = HOSTILE
    for gate in report.gates:
        gate.reason = HOSTILE
    for check in report.checks:
        check.name = check.result = HOSTILE
    for layer in report.quantization.layers:
        layer.layer = layer.operator = layer.estimator = HOSTILE
    return report


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (3, 3, 9, 3)])
def test_the_page_is_whole_and_loads_nothing(depths: tuple[int, ...]) -> None:
    html = render_html(sample_report(depths))
    page = Page(html)
    assert page.open == []
    assert html.startswith("<!DOCTYPE html>")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
    assert "url(" not in html and "@import" not in html
    assert len(html) < 1_500_000


def test_in_page_links_lead_somewhere(report: Report, unmeasured: Report) -> None:
    for each in (report, unmeasured):
        page = Page(render_html(each))
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert len(ids) == len(set(ids))
        assert {f"#{name}" for name in ids if name != "notes"} == set(links)


def test_the_page_is_the_same_every_time(report: Report) -> None:
    assert render_html(report) == render_html(report.model_copy(deep=True))


def test_the_figures_of_the_report_are_in_the_page(report: Report) -> None:
    words = Page(render_html(report)).words
    for figure in (
        "Passed",
        "All 3 gates are met.",
        "77.04 %",
        "76.94 %",
        "76.83 %",
        "+0.21 (\N{MINUS SIGN}0.16 to +0.57)",
        "99.48 %",
        "36.2 dB",
        "46.8 dB",
        "1.48\N{MULTIPLICATION SIGN}",
        "3.74 MB",
        "13.6 MB",
        "8.4e\N{MINUS SIGN}07",
        "92.3 % of MACs",
    ):
        assert figure in words, figure


def test_every_layer_flip_and_plot_is_there(report: Report) -> None:
    html = render_html(report)
    page = Page(html)
    layers = report.quantization.layers
    for layer in layers:
        assert f'<th scope="row"><code>{layer.layer}</code></th>' in html
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len([label for label in labels if "outside" in label]) == len(layers)
    assert sum(tag == "img" for tag, _ in page.tags) == len(report.accuracy.flips)
    for start in ("Top-1 with", "Latency:", "Size on disk:", "SQNR of each layer"):
        assert len([label for label in labels if label.startswith(start)]) == 2, "one wide and one narrow plot"


def test_hostile_names_are_text() -> None:
    html = render_html(hostile_report())
    page = Page(html)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "img"}, "no script, and no picture from unsafe data"
    assert not [attributes for _, attributes in page.tags if {"onerror", "onload"} & set(attributes)]
    assert page.words.count(HOSTILE) > 40


def test_what_was_not_measured_says_so_with_the_reason(unmeasured: Report) -> None:
    page = Page(render_html(unmeasured))
    words = page.words
    assert "Not measured None of the 3 gates could be measured on this machine." in words
    assert words.count("needs a Jetson board") >= 8
    assert "None" not in words.replace("None of the 3 gates", "")
    assert " nan" not in words
    assert len([attributes for _, attributes in page.tags if attributes.get("class") == "absent"]) == 6


def test_a_report_with_nothing_in_it_still_renders(unmeasured: Report) -> None:
    unmeasured.quantization.layers = []
    unmeasured.model.folds = {}
    unmeasured.model.preprocess = None
    unmeasured.artifact = None
    unmeasured.gates = []
    unmeasured.not_measured = {}
    page = Page(render_html(unmeasured))
    assert page.open == []
    assert "no reason was recorded" in page.words


def test_extreme_values_keep_the_plots_finite(report: Report) -> None:
    layer = report.quantization.layers[0]
    layer.observed_low = layer.observed_high = layer.low = layer.high = 0.0
    layer.sqnr_db = float("200")
    for times in (report.latency.fp32, report.latency.artifact):
        assert times is not None
        times.samples_ms = []
    report.accuracy.fp32 = report.accuracy.simulated = None
    report.quantization.layers = report.quantization.layers[:1]
    html = render_html(report)
    assert not re.search(r"\b(nan|inf)\b", html)


def test_flips_show_lost_answers_first_and_stop_at_a_limit(report: Report) -> None:
    kinds = [card.kind for card in flip_cards(report.accuracy)]
    assert kinds == sorted(kinds, key=["lost", "gained", "other"].index)
    report.accuracy.flips = report.accuracy.flips * 8
    page = Page(render_html(report))
    assert sum(tag == "img" for tag, _ in page.tags) == SHOWN_FLIPS
    assert "80 of 1,925 images: 32 lost" in page.words


def test_classes_that_did_not_change_are_left_out(report: Report) -> None:
    changes = report.accuracy.classes
    changes[0].artifact = changes[0].fp32
    shown = changed_classes(report.accuracy)
    assert changes[0] not in shown and len(shown) == len(changes) - 1
    assert abs(shown[0].artifact - shown[0].fp32) == max(abs(c.artifact - c.fp32) for c in changes)


def test_candidates_are_given_as_multiples_of_the_chosen_error(report: Report) -> None:
    layer = report.quantization.layers[0]
    layer.estimator, layer.candidates = "mse", {"min-max": 3e-4, "mse": 1e-4, "entropy": 1.05e-4}
    assert candidates(layer) == ["entropy 1.05x", "min-max 3.00x"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_wcag_asks_for(scheme: str) -> None:
    """Text 4.5:1, marks 3:1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    css = files("edgeconvnext.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[0 if scheme == "light" else 1]))
    texts = ["text", "quiet", "accent", "good", "bad", "open"]
    marks = ["fp32", "simulated", "artifact", "bars", *{operator for _, operator in layer_names((1, 1))}]
    for name in texts:
        for back in ("page", "card"):
            assert contrast(colours[name], colours[back]) >= 4.5, (name, back)
    for name in ("good", "bad", "open"):
        assert contrast(colours[name], colours[f"{name}-back"]) >= 4.5, name
        assert contrast(colours["text"], colours[f"{name}-back"]) >= 4.5, name
    for name in marks:
        assert contrast(colours[name], colours["card"]) >= 3, name
    assert contrast(colours["bars"], colours["range"]) >= 3


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two #rrggbb colours, 1..21 (WCAG 2.2, relative luminance)."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_says_where_the_artifact_was_computed(report: Report) -> None:
    assert "Artifact in its runtime" in render_html(report)
    report.accuracy.runtime = "reference evaluator on torch 2.13.0"
    page = render_html(report)
    assert "Artifact in the reference evaluator" in page
    assert "rtifact in its runtime" not in page
