"""Every fault that is planted in a small network is found, named with its layer, and the healthy network has none."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from analysed import analysed, folded_network, found, images, with_input_scale, with_weight_scale

from edgeconvnext.quantization.precision import BitPlan, LayerEntry
from edgeconvnext.schema.analysis import Analysis
from edgeconvnext.tuning.suspicions import with_suspicions

LAYER = "stages.1.0.pwconv1"
HIDDEN = "stages.1.0.pwconv2"
STEM = "downsample_layers.0.0"


@cache
def healthy() -> Analysis:
    return analysed()


def sentence(analysis: Analysis, kind: str, layer: str) -> str:
    (text,) = [each.sentence for each in analysis.suspicions if (each.kind, each.layer) == (kind, layer)]
    assert text.startswith(layer), text
    assert "; try " in text and text.endswith("."), text
    return text


def test_the_healthy_network_has_no_suspicious_layer() -> None:
    assert found(healthy()) == {}


def test_a_few_values_that_use_most_of_the_range() -> None:
    fit, held_out = images()
    for batch in (fit, held_out):
        batch.flatten()[::2500] *= 40
    analysis = analysed(given=(fit, held_out), target="jetson", calibrator="minmax")
    assert found(analysis)["rare-values"] == {STEM}
    text = sentence(analysis, "rare-values", STEM)
    share = re.search(r"0\.1 % of values use (\d+\.\d) % of the range", text)
    assert share is not None and float(share[1]) > 75
    assert "--calibrator percentile" in text
    assert "rare-values" not in found(analysed(target="jetson", calibrator="minmax"))


def test_clipped_values() -> None:
    analysis = analysed(tamper=with_input_scale(LAYER, 0.3))
    assert found(analysis)["saturation"] == {LAYER}
    text = sentence(analysis, "saturation", LAYER)
    assert re.search(r"\d+\.\d % of held-out values lie outside of the grid", text)
    assert "activations = 16" in text


def test_the_half_of_a_symmetric_grid_that_gelu_leaves_empty() -> None:
    analysis = analysed(target="jetson")
    hidden = {layer.layer for layer in analysis.layers if layer.operator == "pointwise2"}
    assert found(analysis)["unused-codes"] == hidden
    text = sentence(analysis, "unused-codes", HIDDEN)
    assert re.search(r"\d\d\.\d % of the codes are used by no value, because the values", text)
    assert "--effort default" in text


def test_a_grid_wider_than_its_values() -> None:
    analysis = analysed(tamper=with_input_scale(LAYER, 4))
    assert found(analysis)["unused-codes"] == {LAYER}
    assert "the grid spans" in sentence(analysis, "unused-codes", LAYER)


def test_an_outlier_channel() -> None:
    """The layer behind takes the factor back, so that the network answers as before."""
    module = folded_network()
    norm, layer = module.stages[1][0].norm, module.stages[1][0].pwconv1
    with torch.no_grad():
        norm.weight[5] *= 40
        norm.bias[5] *= 40
        layer.weight[:, 5] /= 40
    analysis = analysed(module)
    assert found(analysis)["outlier-channels"] == {LAYER}
    text = sentence(analysis, "outlier-channels", LAYER)
    assert "channel 5 reaches" in text
    assert "--effort default" in text


def test_weights_of_one_row_that_differ_by_orders_of_magnitude() -> None:
    module = folded_network()
    with torch.no_grad():
        module.stages[1][0].pwconv1.weight[3, 7] *= 2000
    analysis = analysed(module)
    assert found(analysis)["coarse-weights"] == {LAYER}
    assert "in 1 of 128 rows more than half of the weights round to 0" in sentence(analysis, "coarse-weights", LAYER)


def test_weights_with_far_less_sqnr_than_the_others() -> None:
    analysis = analysed(tamper=with_weight_scale(LAYER, 10))
    assert found(analysis)["coarse-weights"] == {LAYER}
    assert re.search(
        r"\d+\.\d dB SQNR, where the median layer has \d+\.\d dB", sentence(analysis, "coarse-weights", LAYER)
    )


def test_four_bit_weights_are_compared_with_their_like() -> None:
    """Four layers of 4 bits among 8-bit ones are no fault; their advice would be 8 bits."""
    bits = BitPlan(layers={LAYER: LayerEntry(weights=4), HIDDEN: LayerEntry(weights=4)})
    assert "coarse-weights" not in found(analysed(bits=bits))


def test_one_layer_that_causes_most_of_the_error() -> None:
    analysis = analysed(tamper=with_input_scale(LAYER, 40))
    assert found(analysis)["costly-layer"] == {LAYER}
    text = sentence(analysis, "costly-layer", LAYER)
    assert f'`[layers."{LAYER}"] float = true` in a plan file (--plan)' in text
    assert "--max-drop" in text


def test_a_jump_of_the_cumulative_error() -> None:
    """Planted in the records: a layer that costs little alone and much behind the others."""
    layers = list(healthy().layers)
    place = next(index for index, layer in enumerate(layers) if layer.layer == LAYER)
    layers = [
        layer.model_copy(update={"kl_alone": 0.002, "kl_cumulative": 0.004 if index < place else 0.06})
        for index, layer in enumerate(layers)
    ]
    analysis = with_suspicions(healthy().model_copy(update={"layers": layers}))
    assert found(analysis) == {"error-adds-up": {LAYER}}
    assert "jumps from 0.00400 to 0.0600 nats" in sentence(analysis, "error-adds-up", LAYER)


def test_held_out_values_far_beyond_the_fitted_ones() -> None:
    fit, held_out = images()
    analysis = analysed(given=(fit, 6 * held_out), target="jetson")
    assert found(analysis)["few-images"] == {STEM}
    assert analysis.suspicions[0].kind == "few-images"
    text = sentence(analysis, "few-images", STEM)
    assert "24 images" in text
    assert "--num-images 144" in text


def test_channels_that_never_change() -> None:
    module = folded_network()
    with torch.no_grad():
        module.stages[1][0].pwconv1.weight[3] = 0
        module.stages[1][0].pwconv1.bias[3] = 0
    analysis = analysed(module)
    assert found(analysis) == {"constant-channels": {HIDDEN}}
    assert "1 of 128 channels never change (3)" in sentence(analysis, "constant-channels", HIDDEN)


def test_the_costliest_layer_comes_first() -> None:
    worst, other = "stages.1.1.pwconv1", LAYER
    first, second = with_input_scale(worst, 40), with_input_scale(other, 8)
    analysis = analysed(tamper=lambda plan: first(second(plan)))
    cost = {layer.layer: layer.kl_alone or 0.0 for layer in analysis.layers}
    order = [cost[suspicion.layer] for suspicion in analysis.suspicions]
    assert order == sorted(order, reverse=True)
    assert analysis.suspicions[0].layer == worst


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"effort": "quick"}, "--effort default"),
        ({"effort": "default", "smoothing": "none"}, "leaving out --smoothing none"),
        ({"effort": "default", "prepares_hidden": "none"}, '`hidden = "shift"`'),
        ({"effort": "default", "exporter": "onnx", "affine_activations": False}, '`scheme = "affine"`'),
        ({"effort": "default"}, "float = true"),
    ],
)
def test_the_advice_is_what_was_not_done_yet(changes: dict[str, object], words: str) -> None:
    analysis = analysed(target="jetson")
    changed = with_suspicions(analysis.model_copy(update={"setting": analysis.setting.model_copy(update=changes)}))
    assert words in sentence(changed, "unused-codes", HIDDEN)
