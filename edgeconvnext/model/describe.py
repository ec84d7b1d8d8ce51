"""What `edgeconvnext inspect` prints: the network, what it costs, and which of its norms fold exactly into what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.families import family_of, match_architecture
from edgeconvnext.model.family import NormRow
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.model.network import NetworkConfig

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Description:
    """A loaded model in words and numbers.

    architecture: preset name, or "custom ConvNeXt V1". macs: multiply-adds at the model's own input size, batch 1.
    published_gflops: what the authors print for the architecture at 224, for comparison only.
    layer_scale, input_normalization: whether and where they fold exactly.
    """

    name: str
    architecture: str
    source: str
    layout: str
    sha256: str
    config: NetworkConfig
    preprocess: Preprocess
    parameters: int
    macs: int
    published_gflops: float | None
    num_classes: int
    labels: int
    label_examples: tuple[str, ...]
    norms: tuple[NormRow, ...]
    layer_scale: str
    input_normalization: str
    notes: tuple[str, ...]


def describe(model: LoadedModel) -> Description:
    """Collect what is known about a loaded model without running it."""
    config = model.config
    architecture, published = _architecture(config)
    return Description(
        name=model.name,
        architecture=architecture,
        source=model.source,
        layout=model.layout,
        sha256=model.sha256,
        config=config,
        preprocess=model.preprocess,
        parameters=count_parameters(model.module),
        macs=count_macs(model.module, model.preprocess.input_size),
        published_gflops=published,
        num_classes=config.num_classes,
        labels=len(model.labels) if model.labels else 0,
        label_examples=model.labels.descriptions[:3] if model.labels else (),
        norms=tuple(family_of(config).norm_rows(model.module)),
        layer_scale="folds into pwconv2 of every block" if config.layer_scale else "none (absent or already folded)",
        input_normalization=_input_normalization(config),
        notes=model.notes,
    )


def _architecture(config: NetworkConfig) -> tuple[str, float | None]:
    """Return what the architecture is called, and the GFLOPs its authors print."""
    if known := match_architecture(config):
        return known.name, known.published_gflops
    family = family_of(config)
    return " ".join(("custom", family.title, family.variant(config))).rstrip(), None


def _input_normalization(config: NetworkConfig) -> str:
    return {
        "stem": "folds into the stem conv (patches without padding)",
        "shift": "std folds into the first stem conv, the mean does not: the zeros that pad it stand for the mean colour",
        "none": "does not fold: the zeros that pad the stem stand for the mean colour",
    }[config.input_fold]


def render(description: Description) -> RenderableType:
    """Lay a description out for a terminal of 80 columns: facts, the table of norms, and why some do not fold."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(description):
        facts.add_row(Text(key, style="bold"), Text(value))
    norms = Table(
        title=family_of(description.config).norm_kind,
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    norms.add_column("norm", no_wrap=True)
    norms.add_column("channels", justify="right")
    norms.add_column("followed by")
    norms.add_column("affine folds exactly")
    for row in description.norms:
        norms.add_row(row.name, str(row.channels), row.followed_by, "yes" if row.folds_into else "no")
    kept = (Text(f"{row.name}: {row.reason}") for row in description.norms if row.folds_into is None)
    notes = (Text(f"Note: {note}", style="yellow") for note in description.notes)
    return Group(facts, Text(), norms, Text(), *kept, *notes)


def _facts(description: Description) -> list[tuple[str, str]]:
    config, preprocess = description.config, description.preprocess
    height, width = preprocess.input_size
    family = family_of(config)
    variant = f", {family.variant(config)}" if family.variant(config) else ""
    published = f" (published: {description.published_gflops} G at 224)" if description.published_gflops else ""
    labels = (
        f"{description.labels} names ({', '.join(description.label_examples)}, ...)"
        if description.labels
        else "no names"
    )
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    fit = (
        f"crop {preprocess.crop_pct:g}" if preprocess.crop_mode == "center" else f"squash, crop {preprocess.crop_pct:g}"
    )
    return [
        ("model", f"{description.name} ({description.architecture}{variant})"),
        ("source", f"{description.source} (layout: {description.layout}, sha256 {description.sha256[:12]})"),
        (
            "stages",
            f"depths {list(config.depths)}, dims {list(config.dims)}, kernel {config.kernel_size}",
        ),
        ("stem, head", family.stem_and_head(config)),
        ("parameters", f"{description.parameters / 1e6:.2f} M"),
        ("MACs", f"{description.macs / 1e9:.3f} G at {height}x{width}, batch 1{published}"),
        ("input", f"(N, {config.in_channels}, {height}, {width}), {preprocess.interpolation}, {fit}"),
        ("normalisation", f"mean {mean}; std {std}"),
        ("classes", f"{description.num_classes}, {labels}"),
        ("layer scale", description.layer_scale),
        ("input mean, std", description.input_normalization),
    ]
