"""analysis.json, analysis.html and the terminal: whole, escaped, readable at 80 columns; every key is in docs/analyze.md."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from test_report_json import keys_of

from edgeconvnext.report.analysis_charts import SMALLEST_KL, cost_chart, tensor_chart
from edgeconvnext.report.analysis_page import render_analysis_html
from edgeconvnext.report.analysis_terminal import SHOWN_LAYERS, SHOWN_OF_A_KIND, render_analysis
from edgeconvnext.schema.analysis import Analysis, LayerAnalysis, Setting, Suspicion, TensorAnalysis, WeightAnalysis

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "analyze.md"


def layer_of(name: str, kl: float, cumulative: float) -> LayerAnalysis:
    tensor = TensorAnalysis(
        name=f"{name}:input",
        bits=8,
        estimator="mse",
        low=-2.0,
        high=6.0,
        scale=8 / 255,
        zero_point=64,
        sqnr_db=38.2,
        observed_low=-2.5,
        observed_high=9.0,
        fit_low=-2.0,
        fit_high=6.5,
        range_used=1.0,
        rare_range=0.3,
        saturated=0.0004,
        unused_codes=None if name == "head" else 0.1,
        beyond_fit=0.3,
        channels=96,
        outlier_channels=[3],
        outlier_reach=9.0,
        constant_channels=[],
        histogram=[1 / 64] * 64,
        codes=[0.0] * 4 + [1 / 60] * 60,
    )
    return LayerAnalysis(
        layer=name,
        operator="head" if name == "head" else "pointwise1",
        macs_share=0.05,
        kl_alone=kl,
        kl_cumulative=cumulative,
        agreement_alone=99.0,
        agreement_cumulative=98.0,
        smoothing="scale^0.5, shift",
        rounding="gptq",
        block_sqnr_db=31.0,
        plain_sqnr_db=25.5,
        weights=WeightAnalysis(bits=8, sqnr_db=37.0, rows=384, coarse_rows=0, spread=12.0),
        input=tensor,
        output=None,
    )


@pytest.fixture
def analysis() -> Analysis:
    names = [f"stages.{stage}.{block}.pwconv1" for stage in range(4) for block in range(4)] + ["head"]
    layers = [layer_of(name, 1e-5 * (index + 1), 3e-5 * (index + 1)) for index, name in enumerate(names)]
    setting = Setting(
        model="net<b>x",
        target="onnx",
        exporter="onnx",
        wide_activations=True,
        affine_activations=True,
        prepares_hidden="none",
        prepares_depthwise=False,
        effort="default",
        calibrator="auto",
        smoothing="auto",
        calibration_set="photo[red]s",
        fit_images=80,
        held_out_images=40,
        sensitivity_images=40,
    )
    suspicions = [
        Suspicion(
            kind="rare-values",
            layer=name,
            sentence=f"{name} input: 0.1 % of values use 60.0 % of the range; "
            f'try `[layers."{name}"] float = true`, or --max-drop.',
        )
        for name in names[:5]
    ]
    return Analysis(setting=setting, kl=5.1e-4, agreement=98.0, layers=layers, suspicions=suspicions)


@pytest.fixture
def nothing(analysis: Analysis) -> Analysis:
    return analysis.model_copy(update={"kl": None, "agreement": None, "layers": [], "suspicions": []})


def printed(analysis: Analysis) -> str:
    output = StringIO()
    Console(file=output, width=80, highlight=False).print(render_analysis(analysis))
    return output.getvalue()


def test_every_key_is_documented() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|.*\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    found: set[str] = set()
    for row in rows:
        alternatives = re.search(r"\{(.*)\}", row)
        for name in alternatives.group(1).split(",") if alternatives else [""]:
            key = re.sub(r"\{.*\}", name, row)
            assert key not in found, f"{key} is documented twice"
            found.add(key)
    assert found == keys_of(Analysis, "")


def test_every_kind_of_suspicion_is_explained() -> None:
    from typing import get_args

    from edgeconvnext.schema.analysis import SuspicionKind

    text = DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall(r"^### `([a-z-]+)`", text, re.MULTILINE)) == set(get_args(SuspicionKind))


def test_terminal_is_ascii_within_80_columns(analysis: Analysis, nothing: Analysis) -> None:
    for each in (analysis, nothing):
        text = printed(each)
        assert text.isascii()
        assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
        assert "photo[red]s" in text
    assert "nothing to analyse" in printed(nothing)


def test_terminal_ranks_layers_and_shows_examples_of_a_kind(analysis: Analysis) -> None:
    text = printed(analysis)
    rows = re.findall(r"^((?:stages|head)\S*) +\d", text, re.MULTILINE)
    assert rows[0] == "head"
    assert len(rows) == SHOWN_LAYERS
    assert "and 5 layers that cost less" in text
    assert text.count("0.1 % of values") == SHOWN_OF_A_KIND
    assert "2 more of rare values" in text
    assert "No layer looks suspicious" in printed(analysis.model_copy(update={"suspicions": []}))


class Tags(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "wbr", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("which", ["analysis", "nothing"])
def test_page_is_whole_self_contained_and_escaped(which: str, request: pytest.FixtureRequest) -> None:
    each: Analysis = request.getfixturevalue(which)
    page = render_analysis_html(each)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith("#") and f'id="{link[1:]}"' in page for link in tags.links)
    assert "<script" not in page and "http:" not in page and "https:" not in page
    assert "net&lt;b&gt;x" in page and "<b>x" not in page


def test_page_holds_every_suspicion_layer_and_tensor(analysis: Analysis) -> None:
    page = render_analysis_html(analysis)
    for layer in analysis.layers:
        assert page.count(f"<code>{layer.layer}</code>") >= 2
        assert f"<code>{layer.layer}:input</code>" in page
    assert page.count("of values use 60.0 % of the range") == 5
    assert '<code class="others">--max-drop</code>.' in page
    assert "<code>[layers.&quot;stages.0.0.pwconv1&quot;] float = true</code>" in page


def test_costs_of_nothing_stay_on_the_axis(analysis: Analysis) -> None:
    """Float sums make a KL divergence a little negative, and identical logits make it 0."""
    layers = [
        layer.model_copy(update={"kl_alone": kl, "kl_cumulative": kl})
        for layer, kl in zip(analysis.layers, (0.0, -1e-17, 1e-3), strict=False)
    ]
    chart = cost_chart(layers, 960)
    assert chart is not None
    heights = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", chart.line)]
    assert heights[0] == heights[1] > heights[2] >= 0
    assert heights[0] <= chart.bottom
    assert chart.y_ticks[0].label == "10⁻⁹" and SMALLEST_KL == 1e-9
    assert cost_chart([], 960) is None


def test_codes_are_drawn_within_the_grid(analysis: Analysis) -> None:
    layer = analysis.layers[0]
    assert layer.input is not None
    chart = tensor_chart(layer, layer.input)
    xs = [float(x) for x in re.findall(r"[MH]([\d.]+)", chart.codes)]
    assert xs[0] == pytest.approx(chart.before.low, abs=0.1)
    assert xs[-1] == pytest.approx(chart.before.high, abs=0.1)
