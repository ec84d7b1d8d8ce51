"""The terminal's view of an analysis: the costliest layers, then what looks wrong, at 80 columns and in plain ASCII."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.analysis import Analysis, LayerAnalysis, Suspicion, SuspicionKind

SHOWN_LAYERS = 12
SHOWN_OF_A_KIND = 3
"""A target that leaves half of every GELU's codes unused says so for each block; three examples are enough to see it."""


def render_analysis(analysis: Analysis) -> RenderableType:
    """Return the whole network's cost, the layers ranked by what each costs alone, and the suspicions as sentences."""
    analysis = visible(analysis)
    setting = analysis.setting
    parts: list[RenderableType] = [
        Text.assemble((setting.model, "bold"), " for ", (setting.target, "bold")),
        Text(
            f"{setting.fit_images} images fitted, {setting.held_out_images} held out, of {setting.calibration_set}",
            "dim",
        ),
        Text(),
    ]
    if analysis.kl is None or analysis.agreement is None:
        return Group(*parts, Text("Nothing is quantised, so there is nothing to analyse."))
    parts += [
        Text(
            f"All layers together: KL divergence from FP32 {format.significant(analysis.kl)} nats, same answer on "
            f"{format.percent(analysis.agreement)} of {setting.sensitivity_images} held-out images."
        ),
        Text(),
        _layers(analysis),
        Text(),
        _suspicions(analysis),
    ]
    return Group(*parts)


def ranked(layers: list[LayerAnalysis]) -> list[LayerAnalysis]:
    """Return the layers, the one that costs most alone first."""
    return sorted(layers, key=lambda layer: -(layer.kl_alone or 0.0))


def examples(suspicions: Sequence[Suspicion]) -> tuple[list[Suspicion], list[Suspicion]]:
    """Return the first few suspicions of each kind, and the others."""
    seen: Counter[SuspicionKind] = Counter()
    first: list[Suspicion] = []
    rest: list[Suspicion] = []
    for suspicion in suspicions:
        seen[suspicion.kind] += 1
        (first if seen[suspicion.kind] <= SHOWN_OF_A_KIND else rest).append(suspicion)
    return first, rest


def _layers(analysis: Analysis) -> RenderableType:
    layers = ranked(analysis.layers)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("KL\nalone", "KL\nso far", "dB\ninput", "dB of\nweights", "values\nclipped", "codes\nunused", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers[:SHOWN_LAYERS]:
        tensor, weights = layer.input or layer.output, layer.weights
        table.add_row(
            Text(layer.layer),
            _nats(layer.kl_alone),
            _nats(layer.kl_cumulative),
            "float" if tensor is None else f"{tensor.sqnr_db:.1f}",
            "float" if weights is None else f"{weights.sqnr_db:.1f}",
            "-" if tensor is None else format.share(tensor.saturated),
            "-" if tensor is None or tensor.unused_codes is None else f"{100 * tensor.unused_codes:.0f} %",
            format.share(layer.macs_share),
        )
    hidden = len(layers) - SHOWN_LAYERS
    return Group(table, Text(f"and {hidden} layers that cost less", "dim")) if hidden > 0 else table


def _suspicions(analysis: Analysis) -> RenderableType:
    found = analysis.suspicions
    if not found:
        return Text("No layer looks suspicious.", "bold green")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    layers = len({suspicion.layer for suspicion in found})
    table.add_row(Text(f"Suspicious: {layers} layer{'' if layers == 1 else 's'}", "bold yellow"))
    first, rest = examples(found)
    for suspicion in first:
        table.add_row(Text(f"- {suspicion.sentence}"))
    for kind, count in Counter(suspicion.kind for suspicion in rest).items():
        table.add_row(Text(f"- {count} more of {kind.replace('-', ' ')}: see analysis.html", "dim"))
    return table


def _nats(value: float | None) -> str:
    return "-" if value is None else format.significant(value, 2)
