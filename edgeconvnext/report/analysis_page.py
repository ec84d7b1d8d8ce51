"""analysis.html: one self-contained page without scripts, in the style of report.html."""

from __future__ import annotations

import re

from markupsafe import Markup

from edgeconvnext.axis import NARROW, WIDE
from edgeconvnext.escape import for_html
from edgeconvnext.report.analysis_charts import (
    CODES_HEIGHT,
    cost_chart,
    layer_error,
    tensor_chart,
)
from edgeconvnext.report.analysis_terminal import examples, ranked
from edgeconvnext.report.html import Tile, page_environment, page_style
from edgeconvnext.report.layer_charts import HISTOGRAM_HEIGHT, HISTOGRAM_WIDTH, MARKERS, layer_chart, marker
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.analysis import Analysis

SHOWN_TENSORS = 8


def render_analysis_html(analysis: Analysis) -> str:
    """Return the whole page; every text of the analysis is escaped."""
    analysis = visible(analysis)
    costliest = ranked(analysis.layers)
    first, rest = examples(analysis.suspicions)
    present = {layer.operator for layer in analysis.layers}
    template = page_environment().get_template("analysis.html.jinja")
    page = template.render(
        analysis=analysis,
        style=page_style(),
        prose=_prose,
        first=first,
        rest=rest,
        tiles=analysis_tiles(analysis),
        widths=[("wide", WIDE), ("narrow", NARROW)],
        cost_chart=cost_chart,
        layer_chart=layer_chart,
        errors=[layer_error(layer, tensor) for layer in analysis.layers for tensor in layer.tensors],
        marker=marker,
        operators=[name for name in MARKERS if name in present],
        costliest=costliest,
        charts=[tensor_chart(layer, tensor) for layer in costliest for tensor in layer.tensors],
        shown=SHOWN_TENSORS,
        histogram_size=(HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT),
        codes_size=(HISTOGRAM_WIDTH, CODES_HEIGHT),
    )
    return page.lstrip()


def analysis_tiles(analysis: Analysis) -> list[Tile]:
    """Return the figures on top; none where nothing is quantised."""
    if analysis.kl is None or analysis.agreement is None:
        return []
    setting = analysis.setting
    worst = ranked(analysis.layers)[0]
    tensors = [tensor for layer in analysis.layers for tensor in layer.tensors]
    tiles = [
        Tile(
            "All layers together",
            format.typographic(f"{format.significant(analysis.kl)} nats"),
            f"KL divergence from FP32, mean of {setting.sensitivity_images} held-out images",
        ),
        Tile("Agreement with FP32", format.typographic(format.percent(analysis.agreement)), "of the same images"),
        Tile(
            "Costliest layer alone",
            format.typographic(f"{format.significant(worst.kl_alone or 0.0)} nats"),
            worst.layer,
        ),
    ]
    if tensors:
        lowest = min(tensors, key=lambda tensor: tensor.sqnr_db)
        name = lowest.name.replace(":", " ")
        tiles.append(Tile("Lowest SQNR", format.typographic(format.decibel(lowest.sqnr_db)), name))
    layers = len({suspicion.layer for suspicion in analysis.suspicions})
    tiles.append(Tile("Suspicious layers", str(layers), f"of {len(analysis.layers)} quantised"))
    tiles.append(
        Tile(
            "Calibration images",
            format.count(setting.fit_images + setting.held_out_images),
            f"of {setting.calibration_set}; {setting.held_out_images} of them held out",
        )
    )
    return tiles


def _prose(sentence: str) -> Markup:
    """Escape a sentence and set as code what stands between backticks, and options, which then do not break."""
    parts = re.split(r"`([^`]*)`", format.typographic(sentence).replace("\N{NO-BREAK SPACE}", " "))
    return Markup("").join(
        Markup(f"<code>{for_html(part)}</code>")
        if index % 2
        else Markup(re.sub(r"(--[a-z-]+)", r'<code class="others">\1</code>', for_html(part)))
        for index, part in enumerate(parts)
    )
