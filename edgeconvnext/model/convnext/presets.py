"""The published ConvNeXts by name: sizes, the figures their authors print, and where their default weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeconvnext.errors import ModelConfigError, nearest
from edgeconvnext.model.convnext.network import ConvNeXtConfig, Stem


@dataclass(frozen=True)
class Preset:
    """A published network.

    parameters: millions, as printed (the number of digits is part of the claim). gflops: 1e9 multiply-adds at 224x224,
        as printed. default_tag: timm's name for the weights it loads by default.
    Sources: arXiv 2201.03545 and 2301.00808 with the tables of their repositories; timm's model cards for V1 atto to
        nano, `_ols` and `_hnf`.
    """

    name: str
    config: ConvNeXtConfig
    parameters: str
    gflops: float
    default_tag: str

    @property
    def hub_name(self) -> str:
        return f"timm/{self.name}.{self.default_tag}"


def _preset(
    name: str,
    depths: tuple[int, ...],
    width: int,
    parameters: str,
    gflops: float,
    default_tag: str,
    version: Literal[1, 2] = 1,
    stem: Stem = "patch",
    head_norm: Literal["after_pool", "before_pool"] = "after_pool",
) -> Preset:
    """Widths double from stage to stage, starting at `width`."""
    dims = tuple(width * 2**stage for stage in range(len(depths)))
    config = ConvNeXtConfig(depths=depths, dims=dims, version=version, stem=stem, head_norm=head_norm)
    return Preset(name, config, parameters, gflops, default_tag)


_SMALL, _NANO, _TINY, _BASE = (2, 2, 6, 2), (2, 2, 8, 2), (3, 3, 9, 3), (3, 3, 27, 3)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("convnext_atto", _SMALL, 40, "3.7", 0.55, "d2_in1k"),
        _preset("convnext_femto", _SMALL, 48, "5.2", 0.79, "d1_in1k"),
        _preset("convnext_pico", _SMALL, 64, "9.0", 1.37, "d1_in1k"),
        _preset("convnext_nano", _NANO, 80, "15.6", 2.46, "in12k_ft_in1k"),
        _preset("convnext_tiny", _TINY, 96, "28.6", 4.5, "in12k_ft_in1k"),
        _preset("convnext_small", _BASE, 96, "50", 8.7, "in12k_ft_in1k"),
        _preset("convnext_base", _BASE, 128, "89", 15.4, "fb_in22k_ft_in1k"),
        _preset("convnext_large", _BASE, 192, "198", 34.4, "fb_in22k_ft_in1k"),
        _preset("convnext_xlarge", _BASE, 256, "350", 60.9, "fb_in22k_ft_in1k"),
        _preset("convnext_atto_ols", _SMALL, 40, "3.7", 0.58, "a2_in1k", stem="overlap_tiered"),
        _preset("convnext_femto_ols", _SMALL, 48, "5.23", 0.82, "d1_in1k", stem="overlap_tiered"),
        _preset("convnext_pico_ols", _SMALL, 64, "9.06", 1.43, "d1_in1k", stem="overlap_tiered"),
        _preset("convnext_nano_ols", _NANO, 80, "15.65", 2.65, "d1h_in1k", stem="overlap"),
        _preset("convnext_tiny_hnf", _TINY, 96, "28.59", 4.47, "a2h_in1k", head_norm="before_pool"),
        _preset("convnextv2_atto", _SMALL, 40, "3.7", 0.55, "fcmae_ft_in1k", version=2),
        _preset("convnextv2_femto", _SMALL, 48, "5.2", 0.78, "fcmae_ft_in1k", version=2),
        _preset("convnextv2_pico", _SMALL, 64, "9.1", 1.37, "fcmae_ft_in1k", version=2),
        _preset("convnextv2_nano", _NANO, 80, "15.6", 2.45, "fcmae_ft_in22k_in1k", version=2),
        _preset("convnextv2_tiny", _TINY, 96, "28.6", 4.47, "fcmae_ft_in22k_in1k", version=2),
        _preset("convnextv2_base", _BASE, 128, "89", 15.4, "fcmae_ft_in22k_in1k", version=2),
        _preset("convnextv2_large", _BASE, 192, "198", 34.4, "fcmae_ft_in22k_in1k", version=2),
        _preset("convnextv2_huge", _BASE, 352, "660", 115.0, "fcmae_ft_in22k_in1k_384", version=2),
    )
}


def find_preset(name: str) -> Preset | None:
    """Return the preset called "convnext_tiny", "convnext-tiny" or "tiny" (V1), or "convnextv2_tiny"; else None."""
    name = name.strip().lower().replace("-", "_")
    return PRESETS.get(name) or PRESETS.get(f"convnext_{name}")


def get_preset(name: str) -> Preset:
    """Return the preset called `name`; raise ModelConfigError with the nearest names for others."""
    preset = find_preset(name)
    if preset is None:
        raise ModelConfigError(
            f"There is no preset {name!r}.{nearest(name, PRESETS)} Known presets: {', '.join(PRESETS)}."
        )
    return preset


def preset_hub_name(name: str) -> str | None:
    """Return the hub name of a plain model name: its default weights, or its own tag ("convnext_tiny.fb_in1k")."""
    architecture, _, tag = name.partition(".")
    preset = find_preset(architecture)
    if preset is None:
        return None
    return f"timm/{preset.name}.{tag}" if tag else preset.hub_name


def match_preset(config: ConvNeXtConfig) -> Preset | None:
    """Return the preset with the architecture of `config`, whatever its classes, epsilons and folded layer scale."""
    return next((preset for preset in PRESETS.values() if _architecture(preset.config) == _architecture(config)), None)


def _architecture(config: ConvNeXtConfig) -> tuple[object, ...]:
    return (
        *(config.depths, config.dims, config.hidden_widths, config.version, config.stem),
        *(config.stem_stride, config.kernel_size, config.head_norm),
    )
