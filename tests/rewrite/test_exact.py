"""Exact rewrites: the folded network answers as the original does, and a rewrite that does not is refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images
from torch import nn

from edgeconvnext.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, to_value_range
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import Block, ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.rewrite.exact import (
    EXACT_LIMIT,
    apply_rewrites,
    fold_exact,
    fold_grn_shift,
    fold_input_normalization,
    fold_layer_scale,
    fold_norm_affine,
)

# Rounding of float32 through a dozen layers; the products themselves are formed in float64.
TOLERANCE = 2e-5
PREPROCESS = Preprocess(input_size=(64, 64))
SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 5}
CONFIGS = {
    "v1": ConvNeXtConfig(**SMALL),
    "v2": ConvNeXtConfig(**SMALL, version=2),
    "overlap": ConvNeXtConfig(**SMALL, stem="overlap"),
    "overlap_tiered": ConvNeXtConfig(**{**SMALL, "dims": (24, 32)}, stem="overlap_tiered"),
    "head norm first": ConvNeXtConfig(**SMALL, head_norm="before_pool"),
    "v2, overlapping, head norm first": ConvNeXtConfig(**SMALL, version=2, stem="overlap", head_norm="before_pool"),
    "features only": ConvNeXtConfig(**{**SMALL, "num_classes": 0}),
}


def trained_looking(config: ConvNeXtConfig, seed: int = 0) -> ConvNeXt:
    """Build a network none of whose parameters is at its initial value, so that a forgotten fold shows."""
    generator = torch.Generator().manual_seed(seed)
    module = ConvNeXt(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith("gamma") or (name.endswith("weight") and parameter.dim() == 1)
            spread = 0.3 if parameter.dim() == 1 else 0.15
            parameter.copy_(is_scale + spread * noise)
    return module


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Eight 64x64 pictures of scikit-learn's two photographs, ImageNet-normalised, (8, 3, 64, 64)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pictures = []
    for photograph in load_sample_images().images:
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1).float() / 255
        pictures += [
            (pixels[:, y : y + 64, x : x + 64] - mean) / std for y, x in ((0, 0), (100, 200), (200, 400), (300, 90))
        ]
    return torch.stack(pictures)


@torch.no_grad()
def relative_error(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float((reference - other).abs().max() / reference.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_folded_network_answers_as_the_original(name: str, crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS[name])
    result = fold_exact(module, crops)
    with torch.no_grad():
        assert relative_error(module(crops), result.module(crops)) < TOLERANCE
    expected = (["layer_scale"] if module.config.version == 1 else []) + ["norm_affine"]
    assert list(result.errors) == expected + (["grn_shift"] if module.config.version == 2 else [])
    assert all(error < TOLERANCE for error in result.errors.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_leaves_nothing_to_fold_but_stem_and_bare_head_norms(name: str, crops: torch.Tensor) -> None:
    folded = fold_exact(trained_looking(CONFIGS[name]), crops).module
    assert folded.config.layer_scale is False
    trivial = {
        path: bool((norm.weight == 1).all() and (norm.bias == 0).all())
        for path, norm in folded.named_modules()
        if isinstance(norm, nn.LayerNorm)
    }
    stem_norm = f"downsample_layers.0.{len(folded.downsample_layers[0]) - 1}"
    kept = {stem_norm} | ({"norm"} if folded.config.num_classes == 0 else set())
    assert {path for path, is_trivial in trivial.items() if not is_trivial} == kept
    for block in (m for m in folded.modules() if isinstance(m, Block)):
        assert block.gamma is None
        assert block.grn is None or bool((block.grn.beta == 0).all())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value_range", ["0..1", "0..255"])
def test_network_takes_pixel_values(name: str, value_range: str, crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS[name])
    result = fold_exact(module, crops, preprocess=PREPROCESS, value_range=value_range)
    pixels = torch.from_numpy(to_value_range(crops.numpy(), PREPROCESS, value_range))
    assert pixels.min() > -1e-3
    assert pixels.max() > (200 if value_range == "0..255" else 0.8)
    with torch.no_grad():
        assert relative_error(module(crops), result.module(pixels)) < TOLERANCE
    assert result.errors["input_normalization"] < TOLERANCE
    assert weighted_layers(result.module) == weighted_layers(module)


@pytest.mark.parametrize("stem", ["patch", "overlap"])
def test_network_with_folded_input_exports(stem: str, crops: torch.Tensor) -> None:
    module = trained_looking(dataclasses.replace(CONFIGS["v1"], stem=stem))
    folded = fold_input_normalization(module, PREPROCESS, "0..255")
    pixels = torch.from_numpy(to_value_range(crops[:2].numpy(), PREPROCESS, "0..255"))
    program = torch.export.export(folded, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        exported = program.module()(torch.from_numpy(to_value_range(crops.numpy(), PREPROCESS, "0..255")))
        assert relative_error(module(crops), exported) < TOLERANCE
    additions = [node for node in program.graph.nodes if "input_shift" in str(node.args)]
    assert len(additions) == (1 if stem == "overlap" else 0)


def test_folding_a_padded_stem_into_its_bias_would_not_be_exact(crops: torch.Tensor) -> None:
    """Why overlapping stems keep an addition: the same arithmetic as for patch stems fails at the border."""
    module = trained_looking(CONFIGS["overlap"])
    shifted = fold_input_normalization(module, PREPROCESS, "0..1")
    naive = ConvNeXt(module.config).eval()
    naive.load_state_dict({k: v for k, v in shifted.state_dict().items() if k != "input_shift"})
    with torch.no_grad():
        conv = naive.downsample_layers[0][0]
        conv.bias += torch.einsum("oihw,i->o", conv.weight, shifted.input_shift.flatten())
        pixels = torch.from_numpy(to_value_range(crops.numpy(), PREPROCESS, "0..1"))
        assert relative_error(module(crops), naive(pixels)) > 10 * EXACT_LIMIT


@pytest.mark.parametrize("name", CONFIGS)
def test_input_model_is_left_untouched(name: str, crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS[name])
    before, config = copy.deepcopy(module.state_dict()), module.config
    result = fold_exact(module, crops, preprocess=PREPROCESS, value_range="0..255")
    assert module.config is config
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    shared = {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in result.module.parameters()}
    assert not shared


def test_inexact_rewrite_is_refused(crops: torch.Tensor) -> None:
    def forget_the_shift(module: ConvNeXt) -> ConvNeXt:
        folded = fold_norm_affine(module)
        folded.stages[0][0].pwconv1.bias.data.copy_(module.stages[0][0].pwconv1.bias)
        return folded

    module = trained_looking(CONFIGS["v1"])
    with pytest.raises(RewriteError, match="forget_the_shift is not exact on this model"):
        apply_rewrites(module, {"layer_scale": fold_layer_scale, "forget_the_shift": forget_the_shift}, crops)


def test_folding_the_stem_norm_would_not_be_exact(crops: torch.Tensor) -> None:
    """Why the stem norm keeps its affine: the conv behind it pads with zeros, the residual needs the shift."""

    def fold_stem_norm(module: ConvNeXt) -> ConvNeXt:
        folded = copy.deepcopy(module)
        norm, conv = folded.downsample_layers[0][1], folded.stages[0][0].dwconv
        with torch.no_grad():
            conv.bias += conv.weight.sum(dim=(1, 2, 3)) * norm.bias
            conv.weight *= norm.weight[:, None, None, None]
            norm.weight.fill_(1)
            norm.bias.zero_()
        return folded

    with pytest.raises(RewriteError, match="fold_stem_norm"):
        apply_rewrites(trained_looking(CONFIGS["v1"]), {"fold_stem_norm": fold_stem_norm}, crops)


def test_batches_are_read_once(crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS["v2"])
    stream = iter(crops.split(3))
    result = fold_exact(module, stream, preprocess=PREPROCESS, value_range="0..1")
    assert list(stream) == []
    assert set(result.errors) == {"norm_affine", "grn_shift", "input_normalization"}


def test_nothing_to_apply_still_returns_a_copy(crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS["v1"])
    result = apply_rewrites(module, {}, crops)
    assert result.module is not module
    assert result.errors == {}


def test_no_images_is_an_error() -> None:
    with pytest.raises(RewriteError, match="there are none"):
        fold_exact(trained_looking(CONFIGS["v1"]), [])


def test_nan_logits_are_an_error(crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS["v1"])
    module.head.bias.data[0] = float("nan")
    with pytest.raises(RewriteError, match="NaN or Inf"):
        fold_exact(module, crops)


def test_pixel_input_needs_the_preprocessing(crops: torch.Tensor) -> None:
    module = trained_looking(CONFIGS["v1"])
    with pytest.raises(RewriteError, match="mean and std"):
        fold_exact(module, crops, value_range="0..255")
    with pytest.raises(RewriteError, match="2 means"):
        fold_input_normalization(module, dataclasses.replace(PREPROCESS, mean=(0.5, 0.5), std=(0.2, 0.2)), "0..255")
    shifted = fold_input_normalization(trained_looking(CONFIGS["overlap"]), PREPROCESS, "0..255")
    with pytest.raises(RewriteError, match="already"):
        fold_input_normalization(shifted, PREPROCESS, "0..255")


@settings(max_examples=25, deadline=None)
@given(
    version=st.sampled_from([1, 2]),
    stem=st.sampled_from(["patch", "overlap", "overlap_tiered"]),
    head_norm=st.sampled_from(["after_pool", "before_pool"]),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    width=st.sampled_from([4, 12, 20]),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_every_architecture_folds(
    version: int, stem: str, head_norm: str, depths: list[int], width: int, channels: int, seed: int
) -> None:
    config = ConvNeXtConfig(
        depths=tuple(depths),
        dims=tuple(width * 2**stage for stage in range(len(depths))),
        num_classes=3,
        in_channels=channels,
        version=version,
        stem=stem,
        head_norm=head_norm,
    )
    module = trained_looking(config, seed)
    images = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(seed))
    preprocess = Preprocess(mean=tuple(0.1 * (c + 3) for c in range(channels)), std=(0.25,) * channels)
    result = fold_exact(module, images, preprocess=preprocess, value_range="0..255")
    assert all(error < TOLERANCE for error in result.errors.values())


def test_grn_fold_moves_only_the_shift() -> None:
    module = trained_looking(CONFIGS["v2"])
    folded = fold_grn_shift(module)
    changed = {key for key, value in folded.state_dict().items() if not torch.equal(value, module.state_dict()[key])}
    assert {key.split(".", 3)[3] for key in changed} == {"grn.beta", "pwconv2.bias"}
