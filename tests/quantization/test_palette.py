"""Palettised weights: 8-bit codes of which a layer uses 16 or 64."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_network
from reconstructions import logit_db, photographs, reconstructed, target_with

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.layer_errors import scheme
from edgeconvnext.quantization.plan import QParams, QuantPlan
from edgeconvnext.quantization.plan_storage import load_plan, save_plan
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.quantization.weights import _palette, palette_qparams, weight_qparams
from edgeconvnext.rewrite.exact import fold_norm_affine
from edgeconvnext.targets import Target

IMAGES = photographs(24)


def palettised(bits: int, activations: int = 16) -> Target:
    target = target_with("coreml-p6", weights={"palette_bits": bits}, activations={"bits": activations})
    assert target.minimum_os == "iOS18"
    return target


def weighted_error(grid: QParams, weight: torch.Tensor, power: torch.Tensor) -> float:
    return float(((grid.fake_quantize(weight) - weight).square() * power).sum())


def test_a_palette_is_the_best_of_all() -> None:
    """Against every choice of four levels among those from -6 to 6."""
    rng = np.random.default_rng(0)
    steps = torch.from_numpy(rng.integers(-6, 7, 40).astype(np.float64))
    cost = torch.from_numpy(rng.random(40))
    found = _palette(steps, cost, 2)

    def error(levels: torch.Tensor) -> float:
        return float(((steps[:, None] - levels).abs().amin(dim=1).square() * cost).sum())

    best = min(error(torch.tensor(levels)) for levels in itertools.combinations(np.arange(-6.0, 7), 4))
    assert found.shape == (4,)
    assert error(found.double()) == pytest.approx(best)


def test_fewer_values_than_places_are_all_kept() -> None:
    steps = torch.tensor([[-127.0, 0.0, 5.0, 127.0]])
    levels = _palette(steps, torch.ones_like(steps), 4)
    assert len(levels) == 16
    assert set(steps.flatten().tolist()) <= set(levels.tolist())


@pytest.mark.parametrize("bits", [4, 6])
def test_a_palette_beats_even_steps_of_as_many_codes(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 50, generator=generator) * torch.logspace(-2, 0, 24)[:, None]
    power = torch.rand(1, 50, generator=generator) + 0.1
    even = weight_qparams(weight, 2 ** (bits - 1) - 1, float16_scale=True, search=True, power=power)
    palette = palette_qparams(weight, bits, float16_scale=True, power=power)
    assert palette.bits == bits
    assert weighted_error(palette, weight, power) < 0.8 * weighted_error(even, weight, power)


@pytest.mark.parametrize(
    ("bits", "effort"), [(4, "default"), (6, "default"), pytest.param(4, "best", marks=pytest.mark.exhaustive)]
)
def test_every_weight_of_a_reconstructed_network_is_in_its_layers_palette(bits: int, effort: str) -> None:
    """With effort "best" as well: AdaRound, which knows whole numbers only, leaves palettes alone."""
    module = fold_norm_affine(small_network())
    result = reconstructed(module, palettised(bits), IMAGES, effort=effort)
    assert len(result.plan.weights) == 11
    for layer, grid in result.plan.weights.items():
        assert grid.levels is not None and len(grid.levels) == 2**bits
        weight = result.module.get_submodule(layer).weight.detach()
        codes = weight / grid.broadcast(grid.scale, weight)
        assert len(codes.round().unique()) <= 2**bits
        torch.testing.assert_close(grid.nearest_code(codes), codes, rtol=0, atol=1e-3)
    assert logit_db(module, result, IMAGES[-8:]) > (40 if bits == 6 else 25)


def test_a_plan_keeps_its_palettes_on_disk(tmp_path: Path) -> None:
    module = fold_norm_affine(small_network())
    result = reconstructed(module, palettised(4), IMAGES)
    save_plan(result.plan, result.module, tmp_path / "plan.safetensors")
    plan, loaded = load_plan(tmp_path / "plan.safetensors", module)
    for layer, grid in result.plan.weights.items():
        torch.testing.assert_close(plan.weights[layer].levels, grid.levels, rtol=0, atol=0)
        found, expected = (network.get_submodule(layer).weight for network in (loaded, result.module))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_the_quick_way_palettises_when_the_plan_is_stored(tmp_path: Path) -> None:
    module = fold_norm_affine(small_network())
    plan = build_plan(module, Statistics({}, 16, 8), palettised(6), effort="quick")
    program = export_program(module, IMAGES[:2], max_batch=None)
    with pytest.raises(QuantizationError, match=r"weights of .* are not on the 64 levels of its palette"):
        quantize_program(program, plan)
    save_plan(plan, module, tmp_path / "plan.safetensors")
    stored, rounded = load_plan(tmp_path / "plan.safetensors", module)
    quantize_program(export_program(rounded, IMAGES[:2], max_batch=None), stored)


def test_int8_activations_and_palettes_go_together_and_4_bit_layers_have_none() -> None:
    module = fold_norm_affine(small_network())
    bits = BitPlan.model_validate({"layers": {"head": {"weights": 4}}})
    result = reconstructed(module, palettised(6, activations=8), IMAGES, bits=bits)
    assert len(result.plan.activations) == 11
    assert result.plan.weights["head"].levels is None
    assert result.plan.weights["head"].has_eight_bit_form
    assert not result.plan.weights["stages.0.0.pwconv1"].has_eight_bit_form


def test_the_scheme_says_palettes() -> None:
    grid = palette_qparams(torch.randn(4, 8), 6, float16_scale=True)
    assert (
        scheme(QuantPlan({}, {"head": grid}), palettised(6), {"head": 1}) == "W6A16, palettised weights, rest float16"
    )
