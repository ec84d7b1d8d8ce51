"""From named tensors to the ConvNeXt they belong to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from edgeconvnext.errors import CheckpointError, ModelConfigError
from edgeconvnext.model.convnext.layouts import LAYOUTS
from edgeconvnext.model.convnext.network import ConvNeXtConfig, Stem, tiered_stem_width
from edgeconvnext.model.renamed import Renamed, listed
from edgeconvnext.received import reason

Shape = tuple[int, ...]
_LAYOUTS = {layout.name: layout for layout in LAYOUTS}
# Norm and depthwise conv of a block, in the layouts of timm, transformers, mmpretrain and the authors.
_NORM_BIAS = re.compile(r"\.(norm|layernorm|layer_norm)\.bias$")
_DEPTHWISE = re.compile(r"\.(conv_dw|dwconv|depthwise_conv)\.weight$")
_DEPTHWISE_BIAS = re.compile(r"\.(conv_dw|dwconv|depthwise_conv)\.bias$")
_SEVERAL = 2
"""One bias that lacks is damage; several of one kind, whose weights are there, are a variant."""


def infer_config(renamed: Renamed, source: str) -> ConvNeXtConfig:
    """Read sizes, version, stem and classes off the shapes.

    Where tensors contradict each other the majority decides, so that `check_tensors` can name the odd one. Raises
    CheckpointError where whole stages or blocks are absent or the sizes make no ConvNeXt.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}
    depths = _depths(shapes, source)
    dims = tuple(_width(shapes, stage, depth, source) for stage, depth in enumerate(depths))
    hidden = tuple(
        tuple(_hidden(shapes, f"stages.{stage}.{block}.", dim) for block in range(depth))
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True))
    )
    plain = all(width == 4 * dim for widths, dim in zip(hidden, dims, strict=True) for width in widths)
    layout, timm = _LAYOUTS[renamed.layout], renamed.layout.startswith("timm")
    stem, patch_size = _stem(shapes, dims[0], timm, source)
    version_2 = any(".grn." in name for name in shapes)
    eps = _norm_eps(timm, depths, dims)
    try:
        return ConvNeXtConfig(
            depths=depths,
            dims=dims,
            num_classes=_vote(_axis(shapes, [("head.weight", 0), ("head.bias", 0)]), default=0),
            in_channels=_vote(_axis(shapes, [("downsample_layers.0.0.weight", 1)]), default=3),
            version=2 if version_2 else 1,
            stem=stem,
            patch_size=patch_size,
            kernel_size=_vote((s[-1] for name, s in shapes.items() if name.endswith("dwconv.weight") and s), default=7),
            head_norm=layout.head_norm,
            layer_scale=any(re.fullmatch(r"stages\.\d+\.\d+\.gamma", name) for name in shapes),
            hidden=None if plain else hidden,
            norm_eps=eps,
            head_norm_eps=eps if eps != 1e-6 else layout.head_norm_eps,
        )
    except ModelConfigError as error:
        raise CheckpointError(
            f"{source} has the tensor names of a ConvNeXt, but sizes that make none: {reason(error)}"
        ) from error


def _depths(shapes: Mapping[str, Shape], source: str) -> tuple[int, ...]:
    """Blocks per stage, from the largest index that occurs; gaps are errors."""
    present: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"stages\.(\d+)\.(\d+)\.", name):
            present.setdefault(int(match[1]), set()).add(int(match[2]))
    stages = max(present) + 1
    gaps = [f"stage {s}" for s in range(stages) if s not in present]
    gaps += [
        f"block {b} of stage {s}"
        for s, blocks in sorted(present.items())
        for b in range(max(blocks))
        if b not in blocks
    ]
    if gaps:
        raise CheckpointError(
            f"{source} is an incomplete ConvNeXt: it has no tensors for {listed(gaps)}. "
            "Save the whole state dict again, or load the original file."
        )
    return tuple(max(present[stage]) + 1 for stage in range(stages))


def _width(shapes: Mapping[str, Shape], stage: int, depth: int, source: str) -> int:
    axes = [
        (f"stages.{stage}.{block}.{part}", axis)
        for block in range(depth)
        for part, axis in (
            ("dwconv.weight", 0),
            ("norm.weight", 0),
            ("norm.bias", 0),
            ("dwconv.bias", 0),
            ("pwconv2.bias", 0),
        )
    ]
    width = _vote(_axis(shapes, axes), default=0)
    if not width:
        raise CheckpointError(
            f"{source} is an incomplete ConvNeXt: stage {stage} has neither depthwise convs nor norms. "
            "Save the whole state dict again, or load the original file."
        )
    return width


def _hidden(shapes: Mapping[str, Shape], block: str, dim: int) -> int:
    axes = [(f"{block}pwconv1.weight", 0), (f"{block}pwconv1.bias", 0), (f"{block}pwconv2.weight", 1)]
    return _vote(_axis(shapes, axes), default=4 * dim)


def _stem(shapes: Mapping[str, Shape], dim: int, timm: bool, source: str) -> tuple[Stem, int]:
    """Kind of stem and its patch size. Two convs mean timm's overlapping stem; where its two kinds agree, "overlap"."""
    first = shapes.get("downsample_layers.0.0.weight", ())
    if len(shapes.get("downsample_layers.0.1.weight", ())) != 4:
        patch_size = first[2] if len(first) == 4 else 4
        if timm and patch_size >= 8:
            raise CheckpointError(
                f"{source} is a timm model with {patch_size}x{patch_size} patches: timm then dilates the convs of the "
                "last stage instead of downsampling. This variant is not supported."
            )
        return "patch", patch_size
    middle = first[0] if first else dim
    if middle == dim:
        return "overlap", 4
    if middle == tiered_stem_width(dim):
        return "overlap_tiered", 4
    raise CheckpointError(
        f"{source} has a stem of two convs with {middle} channels between them; a ConvNeXt with {dim} channels in its "
        f"first stage has {dim} (overlap) or {tiered_stem_width(dim)} (overlap_tiered) there. "
        "This variant is not supported."
    )


def _norm_eps(timm: bool, depths: tuple[int, ...], dims: tuple[int, ...]) -> float:
    """1e-6, but 1e-5 for timm's xxlarge, which no tensor shows; it is known by its sizes."""
    xxlarge = (depths, dims) == ((3, 4, 30, 3), (384, 768, 1536, 3072))
    return 1e-5 if xxlarge and timm else 1e-6


def _axis(shapes: Mapping[str, Shape], axes: Iterable[tuple[str, int]]) -> Iterable[int]:
    """Lengths of the given axes, of those tensors that are there and have them."""
    return (shapes[name][axis] for name, axis in axes if len(shapes.get(name, ())) > axis)


def _vote(values: Iterable[int], default: int) -> int:
    counted = Counter(values)
    return counted.most_common(1)[0][0] if counted else default


def hint(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Say which known variant explains that tensors are missing, unexpected or of another shape, if one does."""
    alone = [name for name in missing if name.removesuffix("bias") + "weight" not in missing]
    norms, convs = (sum(bool(kind.search(name)) for name in alone) for kind in (_NORM_BIAS, _DEPTHWISE_BIAS))
    variants = [
        text
        for text, explains in (
            ("RMS norms, which have no bias (timm's `_rms` models)", norms >= _SEVERAL),
            ("convs without a bias (timm's conv_bias=False)", convs >= _SEVERAL),
            (
                "depthwise convs of several sizes (timm's kernel_sizes)",
                sum(bool(_DEPTHWISE.search(name)) for name in misshapen) >= _SEVERAL,
            ),
            (
                "a stem with an activation between its convs (timm's overlap_act)",
                any(name.startswith("stem.3.") for name in unexpected),
            ),
            (
                "a first stage that downsamples as well (timm's patch_size=2)",
                any(name.startswith("stages.0.downsample.") for name in unexpected),
            ),
            (
                "a classifier with a hidden layer (timm's convnext_large_mlp)",
                any("pre_logits" in name for name in unexpected),
            ),
        )
        if explains
    ]
    return f" The network has {', and '.join(variants)}: this variant is not supported." if variants else ""
