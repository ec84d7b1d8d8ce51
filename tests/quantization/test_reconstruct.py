"""The accuracy engine: what each technique gains on a network built for it, and that the exported graph is what was chosen."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from networks import small_network, sqnr_db
from reconstructions import logit_db, photographs, reconstructed, target_with

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.layers import weight_of, weighted_layers
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization import adaround, reconstruct
from edgeconvnext.quantization.fake import fake_quantized
from edgeconvnext.quantization.plan_storage import load_plan, save_plan
from edgeconvnext.quantization.precision import BitPlan, LayerEntry
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.rewrite.exact import fold_norm_affine

IMAGES, OTHERS = photographs(), photographs(24, seed=9)
NO_SMOOTHING = {"hidden": "none", "depthwise": False, "image": False}


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    return fold_norm_affine(small_network())


@pytest.mark.parametrize(
    ("version", "stem", "target"),
    [
        pytest.param(1, "patch", "jetson", marks=pytest.mark.exhaustive),
        (2, "overlap_tiered", "jetson"),
        (2, "patch", "onnx"),
    ],
)
def test_the_exported_graph_computes_what_was_chosen(version: int, stem: str, target: str, tmp_path: Path) -> None:
    module = fold_norm_affine(small_network(version, stem))
    before = copy.deepcopy(module.state_dict())
    result = reconstructed(module, target_with(target), IMAGES)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    for layer, grid in result.plan.weights.items():
        weight = weight_of(result.module, layer)
        assert torch.allclose(grid.fake_quantize(weight), weight, rtol=1e-6, atol=0)
    save_plan(result.plan, result.module, tmp_path / "plan.safetensors")
    plan, loaded = load_plan(tmp_path / "plan.safetensors", module)
    program = quantize_program(export_program(loaded, OTHERS[:2], max_batch=32), plan)
    with torch.inference_mode():
        with fake_quantized(result.module, result.plan):
            simulated = result.module(OTHERS)
        # The same grids and codes; a rare activation may fall on the other side of a rounding boundary.
        assert sqnr_db(simulated, program.module()(OTHERS)) > 45
        assert sqnr_db(module(OTHERS), simulated) > 30


@pytest.mark.parametrize("target", ["onnx", "android"])
def test_progress_ends_at_its_total(target: str, network: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target `android` quantises the outputs of most layers, each of which is a step."""
    steps: list[int] = []
    totals: list[int | None] = []

    @contextlib.contextmanager
    def counted(_text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield steps.append

    monkeypatch.setattr(reconstruct, "progress_bar", counted)
    reconstructed(network, target_with(target), IMAGES[:6], rounding="nearest", smoothing="none")
    assert totals == [sum(steps)]


def test_reconstruction_beats_nearest_codes_without_smoothing(network: ConvNeXt) -> None:
    for bits in (8, 4):
        plan = BitPlan(weights=bits)
        target = target_with("coreml", smoothing={"hidden": "channel", "depthwise": True})
        target = target.model_copy(update={"minimum_os": "iOS18"})
        plain = reconstructed(
            network, target, IMAGES, bits=plan, smoothing="none", rounding="nearest", bias_correction=False
        )
        best = reconstructed(network, target, IMAGES, bits=plan)
        assert logit_db(network, best, OTHERS) > logit_db(network, plain, OTHERS) + 2


def test_scale_migration_takes_outlier_channels_of_a_norm_back() -> None:
    """A tenth of the channels of a norm 30 times larger, the next layer's columns divided: without migration that costs 10 dB."""
    module = fold_norm_affine(small_network())
    injected = copy.deepcopy(module)
    for block in (injected.stages[0][0], injected.stages[1][0], injected.stages[1][1]):
        with torch.no_grad():
            block.norm.weight[:2] *= 30
            block.pwconv1.weight[:, :2] /= 30
    target = target_with("jetson", operators=["pointwise1"])
    healthy = logit_db(module, reconstructed(module, target, IMAGES), OTHERS)
    without = logit_db(injected, reconstructed(injected, target, IMAGES, smoothing="none"), OTHERS)
    migrated = logit_db(injected, reconstructed(injected, target, IMAGES), OTHERS)
    assert without < healthy - 10
    assert migrated > healthy - 1


def test_a_shift_returns_the_bit_that_a_one_sided_gelu_wastes(network: ConvNeXt) -> None:
    """Symmetric int8 has 127 codes for 0..max and 128 for the little below zero; shifted, all 255 are used."""
    plain = target_with("jetson", operators=["pointwise2"], smoothing={**NO_SMOOTHING})
    shifted = target_with("jetson", operators=["pointwise2"], smoothing={**NO_SMOOTHING, "hidden": "shift"})
    # Float weights would leave the activation's error alone; 8-bit ones by GPTQ add little.
    gained = logit_db(network, reconstructed(network, shifted, IMAGES), OTHERS)
    assert gained > logit_db(network, reconstructed(network, plain, IMAGES), OTHERS) + 2


def test_scales_in_front_of_depthwise_convs_help_where_channels_of_the_residual_differ() -> None:
    module = small_network()
    with torch.no_grad():
        module.downsample_layers[0][1].weight[0] = (
            40.0  # the residual stream's first channel reaches far beyond the others
        )
    target = target_with("jetson", operators=["depthwise"], smoothing=NO_SMOOTHING)
    scaled = target_with("jetson", operators=["depthwise"], smoothing={**NO_SMOOTHING, "depthwise": True})
    without = logit_db(module, reconstructed(module, target, IMAGES), OTHERS)
    assert logit_db(module, reconstructed(module, scaled, IMAGES), OTHERS) > without + 6


def test_pixels_reach_the_stem_without_any_error(network: ConvNeXt) -> None:
    target = target_with("jetson", operators=["stem"], smoothing={**NO_SMOOTHING, "image": True})
    result = reconstructed(network, target, IMAGES)
    activation = result.plan.activations["downsample_layers.0.0:input"]
    assert (activation.estimator, float(activation.qparams.scale)) == ("image", 1.0)
    seen = []
    stem = result.module.downsample_layers[0][0]
    handle = stem.channel_scaling.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.inference_mode():
        result.module(OTHERS)
    handle.remove()
    assert (seen[0] - seen[0].round()).abs().max() < 1e-3
    assert seen[0].min() > -128.5
    assert seen[0].max() < 127.5


def test_the_bias_takes_up_what_rounding_moved_on_average(network: ConvNeXt) -> None:
    """At 4 bits, nearest codes shift every output's mean; correcting it leaves the spread only."""
    target = target_with("onnx")
    settings = {"bits": BitPlan(weights=4), "rounding": "nearest", "smoothing": "force"}
    corrected = reconstructed(network, target, IMAGES, **settings)
    plain = reconstructed(network, target, IMAGES, bias_correction=False, **settings)
    assert logit_db(network, corrected, OTHERS) > logit_db(network, plain, OTHERS) + 0.5


def test_blocks_of_weights_have_scales_of_their_own(network: ConvNeXt) -> None:
    uneven = copy.deepcopy(network)
    with torch.no_grad():
        for block in (uneven.stages[1][0], uneven.stages[1][1]):
            block.pwconv2.weight[:, :16] *= 12
    whole = target_with("onnx", operators=["pointwise2"], weights={"bits": 4})
    blocked = target_with("onnx", operators=["pointwise2"], weights={"bits": 4, "block_size": 16})
    result = reconstructed(uneven, blocked, IMAGES)
    assert result.plan.weights["stages.1.0.pwconv2"].scale.shape == (32, 8)
    assert logit_db(uneven, result, OTHERS) > logit_db(uneven, reconstructed(uneven, whole, IMAGES), OTHERS) + 3
    program = quantize_program(export_program(result.module, OTHERS[:2], max_batch=32), result.plan)
    with torch.inference_mode(), fake_quantized(result.module, result.plan):
        assert sqnr_db(result.module(OTHERS), program.module()(OTHERS)) > 45


@pytest.mark.exhaustive
def test_adaround_lowers_the_error_of_four_bit_blocks(network: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed number of steps instead of a time, so that a busy machine gives the same result."""
    monkeypatch.setattr("edgeconvnext.quantization.adaround.MOST_STEPS", 300)
    settings = {"bits": BitPlan(weights=4)}
    units: list[str] = []
    refine = adaround.refine

    def watched(unit, *arguments, **options) -> None:
        units.append(unit.name)
        refine(unit, *arguments, **options)

    monkeypatch.setattr(adaround, "refine", watched)
    gptq = reconstructed(network, target_with("onnx"), IMAGES, **settings)
    ada = reconstructed(network, target_with("onnx"), IMAGES, effort="best", adaround_minutes=1000, **settings)
    assert set(units) == {"stages.0.0", "downsample_layers.1", "stages.1.0", "stages.1.1", "head"}
    # Nothing before the first block is quantised, so that both get the same input there.
    first = "stages.0.0.pwconv2"
    assert ada.plan.decisions[first].rounding.endswith("adaround")
    assert ada.plan.decisions[first].block_sqnr_db > gptq.plan.decisions[first].block_sqnr_db + 0.3


def test_adaround_is_not_kept_where_the_held_out_error_rises(
    network: ConvNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(_unit, _reference, working, grids, _inputs, *, seconds: float) -> None:
        for layer in grids:
            working.get_submodule(layer).weight.data.neg_()

    monkeypatch.setattr("edgeconvnext.quantization.adaround.refine", spoil)
    target = target_with("onnx", operators=["pointwise2"])
    settings = {"bits": BitPlan(weights=4)}
    plain = reconstructed(network, target, IMAGES, rounding="gptq", **settings)
    ada = reconstructed(network, target, IMAGES, rounding="auto", effort="best", **settings)
    assert not [layer for layer, decision in ada.plan.decisions.items() if "adaround" in decision.rounding]
    assert logit_db(network, ada, OTHERS) > logit_db(network, plain, OTHERS) - 1


def test_layers_of_a_plan_get_their_own_bits(network: ConvNeXt) -> None:
    plan = BitPlan(
        weights=8,
        layers={
            "stages.1.0.pwconv1": LayerEntry(weights=4),
            "stages.1.1.pwconv2": LayerEntry(float=True),
            "stages.0.0.pwconv2": LayerEntry(activations=16),
        },
    )
    result = reconstructed(network, target_with("onnx"), IMAGES, bits=plan)
    assert result.plan.weights["stages.1.0.pwconv1"].bits == 4
    assert "stages.1.1.pwconv2" not in result.plan.weights
    assert torch.equal(weight_of(result.module, "stages.1.1.pwconv2"), weight_of(network, "stages.1.1.pwconv2"))
    assert result.plan.activations["stages.0.0.pwconv2:input"].qparams.bits == 16


def test_sixteen_bit_activations_of_core_ml_stay_float(network: ConvNeXt) -> None:
    result = reconstructed(network, target_with("coreml"), IMAGES, bits=BitPlan(activations=16))
    assert result.plan.weights and not result.plan.activations
    assert logit_db(network, result, OTHERS) > 35


def test_outputs_that_a_target_names_get_grids(network: ConvNeXt) -> None:
    result = reconstructed(network, target_with("jetson", outputs=["depthwise"]), IMAGES)
    depthwise = [layer for layer, kind in weighted_layers(network).items() if kind == "depthwise"]
    assert {f"{layer}:output" for layer in depthwise} <= result.plan.activations.keys()
    assert logit_db(network, result, OTHERS) > 25


def test_nothing_to_quantise_is_an_empty_plan(network: ConvNeXt) -> None:
    plan = BitPlan(layers={layer: LayerEntry(float=True) for layer in weighted_layers(network)})
    result = reconstructed(network, target_with("onnx"), IMAGES, bits=plan)
    assert not result.plan.weights
    assert logit_db(network, result, OTHERS) > 100


def test_nan_activations_name_the_layer(network: ConvNeXt) -> None:
    with pytest.raises(QuantizationError, match=r"input of downsample_layers\.0\.0 contains NaN"):
        reconstructed(network, target_with("jetson"), IMAGES * float("nan"))


def test_too_few_images_is_an_error(network: ConvNeXt) -> None:
    with pytest.raises(QuantizationError, match="at least 3 images"):
        reconstructed(network, target_with("jetson"), IMAGES[:0])


def test_files_of_block_inputs_are_gone_afterwards(network: ConvNeXt, tmp_path: Path) -> None:
    from reconstructions import PREPROCESS

    from edgeconvnext.quantization.precision import resolve_precision
    from edgeconvnext.quantization.reconstruct import reconstruct

    target = target_with("onnx", operators=["head"])
    reconstruct(
        network, target, resolve_precision(network, target, BitPlan()), [IMAGES[:6]], [IMAGES[6:9]],
        preprocess=PREPROCESS, folder=tmp_path,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
