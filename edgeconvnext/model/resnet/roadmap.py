"""The road from ResNet-50 to ConvNeXt-T (arXiv 2201.03545, section 2 and appendix): each step changes the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgeconvnext.errors import ModelConfigError, nearest
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.network import NetworkConfig
from edgeconvnext.model.resnet.network import ResNetConfig

RESNET50 = ResNetConfig()
RESNEXT50 = ResNetConfig(hidden=(128, 256, 512, 1024), groups=32)
RESNET_ATTO = ResNetConfig(stem_dim=24, hidden=(24, 48, 96, 192), dims=(96, 192, 384, 768))
"""ResNet-50 at 24/64 of its width: as many multiply-adds and parameters as ConvNeXt-Atto, to compare the two kinds of network."""


@dataclass(frozen=True)
class Step:
    """One network on the road.

    change: what was done to the step before. published_gflops: multiply-adds the paper prints, at 224. published_top1: ImageNet
    top-1 with the paper's recipe, per cent; None where it is not on the main road. gflops_count_norms: the printed figure counts
    norms, which this package does not.
    """

    name: str
    change: str
    config: ResNetConfig
    published_gflops: float
    published_top1: float | None
    gflops_count_norms: bool = False

    @property
    def network(self) -> NetworkConfig:
        """What the step is built from: the package's own ConvNeXt where the step is one."""
        return as_convnext(self.config) or self.config


def _road() -> Iterator[Step]:
    config = RESNET50
    yield Step("resnet50", "ResNet-50, with ConvNeXt's training recipe", config, 4.09, 78.82)
    config = replace(config, depths=(3, 3, 9, 3))
    yield Step("stage_ratio", "blocks 3, 3, 9, 3 in place of 3, 4, 6, 3", config, 4.53, 79.36)
    config = replace(config, stem="patch")
    yield Step("patch_stem", "4x4 patches in place of 7x7 conv and pooling", config, 4.42, 79.51)
    config = replace(config, groups=None)
    yield Step("depthwise", "3x3 convs depthwise", config, 2.35, 78.28)
    config = replace(config, stem_dim=96, hidden=(96, 192, 384, 768), dims=(384, 768, 1536, 3072))
    yield Step("width_96", "width 96 in place of 64", config, 5.27, 80.50)
    config = replace(config, hidden=(384, 768, 1536, 3072), dims=(96, 192, 384, 768))
    yield Step("inverted_bottleneck", "wide inside the block, narrow between blocks", config, 4.64, 80.64)
    config = replace(config, depthwise_first=True)
    yield Step("depthwise_first", "depthwise conv moved up", config, 4.07, 79.92)
    yield Step("kernel_5", "kernel 5", replace(config, kernel_size=5), 4.10, None)
    yield Step("kernel_7", "kernel 7, which the steps below keep", replace(config, kernel_size=7), 4.15, 80.57)
    yield Step("kernel_9", "kernel 9", replace(config, kernel_size=9), 4.21, None)
    yield Step("kernel_11", "kernel 11", replace(config, kernel_size=11), 4.29, None)
    config = replace(config, kernel_size=7, activation="gelu")
    yield Step("gelu", "GELU in place of ReLU", config, 4.15, 80.62)
    config = replace(config, few_activations=True)
    yield Step("fewer_activations", "one activation per block", config, 4.15, 81.27)
    config = replace(config, few_norms=True)
    yield Step("fewer_norms", "one norm per block", config, 4.15, 81.41)
    config = replace(config, norm="layer")
    yield Step("layer_norm", "LayerNorm in place of BatchNorm", config, 4.46, 81.47, gflops_count_norms=True)
    config = replace(config, separate_downsampling=True, layer_scale=True)
    yield Step("convnext_tiny", "downsampling between stages: ConvNeXt-T", config, 4.49, 81.97)


STEPS: dict[str, Step] = {step.name: step for step in _road()}


def select_steps(names: str | None) -> list[Step]:
    """Return the steps of a list like "resnet50,kernel_7", in the road's order; None means all.

    Raises ModelConfigError for a name that is no step.
    """
    if names is None:
        return list(STEPS.values())
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in STEPS:
            raise ModelConfigError(
                f"There is no step {name!r}.{nearest(name, STEPS)} The steps are {', '.join(STEPS)}."
            )
    if not asked:
        raise ModelConfigError(f"No step was named. The steps are {', '.join(STEPS)}.")
    return [step for name, step in STEPS.items() if name in asked]


def as_convnext(config: ResNetConfig) -> ConvNeXtConfig | None:
    """Return the ConvNeXt that `config` is, with the same tensors under the same names; None where it is none."""
    hidden = tuple(4 * dim for dim in config.dims)
    modern = config.separate_downsampling and config.few_activations and config.few_norms
    if not modern or (config.stem, config.activation, config.hidden) != ("patch", "gelu", hidden):
        return None
    return ConvNeXtConfig(
        depths=config.depths,
        dims=config.dims,
        num_classes=config.num_classes,
        in_channels=config.in_channels,
        kernel_size=config.kernel_size,
        layer_scale=config.layer_scale,
        ends_with=config.ends_with,
    )


def match_step(config: ResNetConfig) -> Step | None:
    """Return the step with the architecture of `config`, whatever its classes, channels and folding."""
    neutral = replace(config, num_classes=RESNET50.num_classes, in_channels=RESNET50.in_channels, folded=False)
    return next((step for step in STEPS.values() if step.config == neutral), None)
