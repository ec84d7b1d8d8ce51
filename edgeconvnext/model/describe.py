"""What `edgeconvnext inspect` prints: the network, what it costs, and which of its norms fold exactly into what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.build import NetworkConfig
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.convnext.presets import match_preset
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.model.resnet.network import ResNet
from edgeconvnext.model.resnet.roadmap import match_step

if TYPE_CHECKING:
    from rich.console import RenderableType

_STEM_REASON = "feeds the residual stream and a zero-padded depthwise conv: a shift would reach the borders differently"


@dataclass(frozen=True)
class NormRow:
    """One norm: what follows it, the layer its affine folds into exactly (None where it cannot), and why (not)."""

    name: str
    channels: int
    followed_by: str
    folds_into: str | None
    reason: str


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
        norms=tuple(_norm_rows(model)),
        layer_scale="folds into pwconv2 of every block" if config.layer_scale else "none (absent or already folded)",
        input_normalization=_input_normalization(config),
        notes=model.notes,
    )


def _architecture(config: NetworkConfig) -> tuple[str, float | None]:
    """Return what the architecture is called, and the GFLOPs its authors print."""
    if isinstance(config, ConvNeXtConfig):
        preset = match_preset(config)
        return (preset.name, preset.gflops) if preset else (f"custom ConvNeXt V{config.version}", None)
    step = match_step(config)
    return (step.name, step.published_gflops) if step else ("custom ResNet", None)


def _norm_rows(model: LoadedModel) -> list[NormRow]:
    """List the norms in the order data passes them."""
    config = model.config
    if not isinstance(config, ConvNeXtConfig):
        return _batch_norm_rows(model)
    stem_norm = f"downsample_layers.0.{len(model.module.downsample_layers[0]) - 1}"  # type: ignore[arg-type]
    rows = [NormRow(stem_norm, config.dims[0], "stages.0.0 (residual and dwconv)", None, _STEM_REASON)]
    for stage, depth in enumerate(config.depths):
        if stage:
            conv = f"downsample_layers.{stage}.1"
            reason = "the 2x2 conv has no padding"
            rows.append(_row(model, f"downsample_layers.{stage}.0", config.dims[stage - 1], conv, reason))
        for block in range(depth):
            path = f"stages.{stage}.{block}"
            rows.append(_row(model, f"{path}.norm", config.dims[stage], f"{path}.pwconv1", "a linear layer follows"))
    pooled_after = config.head_norm == "before_pool"
    if config.ends_with != "head":
        return rows
    if not config.num_classes:
        followed = "average pooling, output" if pooled_after else "output"
        rows.append(
            NormRow("norm", config.dims[-1], followed, None, "its result is the output; there is no classifier")
        )
    elif pooled_after:
        rows.append(
            _row(model, "norm", config.dims[-1], "head", "the mean over positions is linear", "average pooling, head")
        )
    else:
        rows.append(_row(model, "norm", config.dims[-1], "head", "a linear layer follows"))
    return rows


def _batch_norm_rows(model: LoadedModel) -> list[NormRow]:
    """List the BatchNorms of a ResNet; its LayerNorms, where it has some, keep their affine."""
    assert isinstance(model.module, ResNet)
    kinds = weighted_layers(model.module)
    rows = []
    for layer, norm in model.module.normalised_layers():
        channels = model.module.get_parameter(f"{norm}.weight").numel()
        followed = "addition" if kinds[layer] in ("projection", "pointwise2") else "activation or next layer"
        rows.append(NormRow(norm, channels, followed, layer, "only this layer's output reaches it"))
    return rows


def _row(
    model: LoadedModel, name: str, channels: int, into: str, reason: str, followed_by: str | None = None
) -> NormRow:
    norm = model.module.get_submodule(name)
    if isinstance(norm, nn.LayerNorm) and _is_identity(norm):
        return NormRow(name, channels, followed_by or into, None, "already folded: scale 1, shift 0")
    return NormRow(name, channels, followed_by or into, into, reason)


def _is_identity(norm: nn.LayerNorm) -> bool:
    plain_scale = norm.weight is None or bool(torch.all(norm.weight == 1))
    return plain_scale and (norm.bias is None or bool(torch.all(norm.bias == 0)))


def _input_normalization(config: NetworkConfig) -> str:
    if config.stem == "patch":
        return "folds into the stem conv (patches without padding)"
    if config.stem == "conv_pool":
        return "does not fold: the zeros that pad the stem stand for the mean colour"
    return "std folds into the first stem conv, the mean does not: the zeros that pad it stand for the mean colour"


def render(description: Description) -> RenderableType:
    """Lay a description out for a terminal of 80 columns: facts, the table of norms, and why some do not fold."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(description):
        facts.add_row(Text(key, style="bold"), Text(value))
    norms = Table(
        title="LayerNorms" if isinstance(description.config, ConvNeXtConfig) else "BatchNorms",
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
    version, ends = _version_and_ends(config)
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
        ("model", f"{description.name} ({description.architecture}{version})"),
        ("source", f"{description.source} (layout: {description.layout}, sha256 {description.sha256[:12]})"),
        (
            "stages",
            f"depths {list(config.depths)}, dims {list(config.dims)}, kernel {config.kernel_size}",
        ),
        ("stem, head", ends),
        ("parameters", f"{description.parameters / 1e6:.2f} M"),
        ("MACs", f"{description.macs / 1e9:.3f} G at {height}x{width}, batch 1{published}"),
        ("input", f"(N, {config.in_channels}, {height}, {width}), {preprocess.interpolation}, {fit}"),
        ("normalisation", f"mean {mean}; std {std}"),
        ("classes", f"{description.num_classes}, {labels}"),
        ("layer scale", description.layer_scale),
        ("input mean, std", description.input_normalization),
    ]


def _version_and_ends(config: NetworkConfig) -> tuple[str, str]:
    """Return the version of a ConvNeXt and what its stem and head are, for people."""
    if not isinstance(config, ConvNeXtConfig):
        stem = "4x4 patches" if config.stem == "patch" else "7x7 conv and pooling"
        return "", f"{stem}; {'norm after pooling' if config.separate_downsampling else 'no norm'}"
    patches = f"{config.patch_size}x{config.patch_size} patches"
    stem = patches if config.stem == "patch" else f"two 3x3 convs ({config.stem})"
    return f", V{config.version}", f"{stem}; norm {config.head_norm.replace('_', ' ')}ing"
