"""`inspect` says what folds, where and why not."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig, LoadedModel
from edgeconvnext.model.convnext.presets import PRESETS
from edgeconvnext.model.describe import Description, describe, render
from edgeconvnext.rewrite.exact import fold_layer_scale, fold_norm_affine

CONFIG = ConvNeXtConfig(depths=(1, 2), dims=(8, 16), num_classes=3)


def description(config: ConvNeXtConfig, module: ConvNeXt | None = None) -> Description:
    module = module or randomised(config)
    return describe(LoadedModel(module, module.config, Preprocess((64, 64)), None, "m", "timm", "m.pth", "0" * 64))


def randomised(config: ConvNeXtConfig) -> ConvNeXt:
    """Norms as training leaves them: neither scale 1 nor shift 0."""
    module = ConvNeXt(config)
    for name, parameter in module.named_parameters():
        if "norm" in name or name.startswith("downsample_layers"):
            parameter.data += 0.1
    return module


def test_every_norm_in_order_with_the_layer_it_folds_into() -> None:
    rows = description(CONFIG).norms
    assert [(row.name, row.channels, row.folds_into) for row in rows] == [
        ("downsample_layers.0.1", 8, None),
        ("stages.0.0.norm", 8, "stages.0.0.pwconv1"),
        ("downsample_layers.1.0", 8, "downsample_layers.1.1"),
        ("stages.1.0.norm", 16, "stages.1.0.pwconv1"),
        ("stages.1.1.norm", 16, "stages.1.1.pwconv1"),
        ("norm", 16, "head"),
    ]
    assert "zero-padded depthwise" in rows[0].reason


def test_heads_and_stems() -> None:
    before_pool = description(dataclasses.replace(CONFIG, head_norm="before_pool"))
    assert (before_pool.norms[-1].folds_into, before_pool.norms[-1].followed_by) == ("head", "average pooling, head")
    assert description(dataclasses.replace(CONFIG, num_classes=0)).norms[-1].folds_into is None
    overlap = description(dataclasses.replace(CONFIG, stem="overlap"))
    assert overlap.norms[0].name == "downsample_layers.0.2"
    assert "mean does not" in overlap.input_normalization
    assert "stem conv" in description(CONFIG).input_normalization


def test_what_is_folded_already_is_said() -> None:
    module = randomised(CONFIG)
    before, after = description(CONFIG, module), description(CONFIG, fold_norm_affine(fold_layer_scale(module)))
    assert before.layer_scale.startswith("folds into pwconv2") and after.layer_scale.startswith("none")
    foldable = [row.name for row in before.norms if row.folds_into]
    assert [row.name for row in after.norms if row.reason.startswith("already folded")] == foldable


def test_presets_are_recognised_and_shown_in_80_columns() -> None:
    assert description(PRESETS["convnext_atto"].config).architecture == "convnext_atto"
    assert description(CONFIG).architecture == "custom ConvNeXt V1"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(description(PRESETS["convnextv2_atto"].config)))
    text = console.export_text()
    assert "convnextv2_atto, V2" in text and "3.71 M" in text
    assert "stages.2.5.norm" in text and max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_tiny_hnf", "convnext_nano_ols"])
def test_the_table_has_every_norm_of_the_network(name: str) -> None:
    config = dataclasses.replace(PRESETS[name].config, dims=(8, 16, 24, 32))
    module = ConvNeXt(config)
    norms = {path for path, layer in module.named_modules() if type(layer).__name__.startswith("LayerNorm")}
    assert {row.name for row in description(config, module).norms} == norms
