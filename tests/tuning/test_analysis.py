"""Figures of an analysis against what is counted on the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analysed import analysed, folded_network, images

from edgeconvnext.quantization.histogram import StreamingHistogram
from edgeconvnext.quantization.plan import ActivationPlan, QParams
from edgeconvnext.quantization.precision import BitPlan, LayerEntry
from edgeconvnext.quantization.statistics import TensorStatistics, collect_statistics
from edgeconvnext.quantization.weights import weight_qparams
from edgeconvnext.schema.analysis import Analysis, TensorAnalysis
from edgeconvnext.tuning.analysis import analyse_tensor, analyse_weights, shortest_interval
from edgeconvnext.tuning.suspicions import with_suspicions


def tensor_of(fit: torch.Tensor, held_out: torch.Tensor, grid: QParams, estimator: str = "minmax") -> TensorAnalysis:
    """Analyse values (positions, channels) as the statistics of a layer's input hold them."""
    parts = []
    for values in (fit, held_out):
        histogram = StreamingHistogram()
        histogram.update(values, float(values.min()), float(values.max()))
        parts.append(histogram.result())
    every = torch.cat([fit, held_out])
    statistics = TensorStatistics(*parts, every.amin(0).numpy(), every.amax(0).numpy())
    mse = float((grid.fake_quantize(held_out) - held_out).square().mean())
    activation = ActivationPlan("layer:input", grid, estimator, mse, float(held_out.square().mean()))
    return analyse_tensor(activation, statistics)


def grid_of(scale: float, zero_point: int = 128, low: int = 0, high: int = 255) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    return torch.randn(40_000, 8, generator=torch.Generator().manual_seed(3))


def codes_of(x: torch.Tensor, grid: QParams) -> torch.Tensor:
    return ((x / grid.scale).round() + grid.zero_point).clamp(grid.quant_min, grid.quant_max)


def test_clipped_values_and_unused_codes_are_counted(values: torch.Tensor) -> None:
    """Bins are an eighth of a step or finer: a bin on the border may fall on either side."""
    for scale in (0.01, 0.03, 0.1):
        grid = grid_of(scale)
        found = tensor_of(values[:30_000], values[30_000:], grid)
        outside = (values[30_000:] < -128.5 * scale) | (values[30_000:] > 127.5 * scale)
        assert found.saturated == pytest.approx(float(outside.float().mean()), abs=2e-3)
        unused = 1 - len(codes_of(values, grid).unique()) / 256
        assert found.unused_codes == pytest.approx(unused, abs=0.02)
        assert found.range_used == pytest.approx(min(1.0, 1 - unused), abs=0.1)


def test_codes_hit_are_shares_in_order(values: torch.Tensor) -> None:
    grid = grid_of(0.03)
    found = tensor_of(values[:30_000], values[30_000:], grid)
    counted = np.bincount((codes_of(values[30_000:], grid).int() // 4).flatten().numpy(), minlength=64) / 80_000
    assert sum(found.codes) == pytest.approx(1)
    np.testing.assert_allclose(found.codes, counted, atol=0.01)
    assert sum(found.histogram) == pytest.approx(1)


def test_sixteen_bits_have_more_codes_than_the_histogram_has_bins(values: torch.Tensor) -> None:
    """Codes are counted in 256 groups, as on an 8-bit grid, so that a fitting grid is not called empty."""
    fitting = tensor_of(values, values, grid_of(10 / 65_536, 32_768, 0, 65_535))
    assert fitting.bits == 16
    assert fitting.unused_codes is not None and fitting.unused_codes < 0.25
    wide = tensor_of(values, values, grid_of(40 / 65_536, 32_768, 0, 65_535))
    assert wide.unused_codes is not None and wide.unused_codes > 0.7


def test_few_values_say_nothing_about_codes(values: torch.Tensor) -> None:
    assert tensor_of(values[:100], values[100:150], grid_of(0.03)).unused_codes is None


def test_the_rarest_values_share_of_the_range(values: torch.Tensor) -> None:
    """Bell-shaped values: 99.9 % lie within 6.58 standard deviations. With one value at 100, they get 7 % of the range."""
    grid = grid_of(10 / 255)
    usual = tensor_of(values, values, grid)
    span = float(values.max() - values.min())
    assert usual.rare_range == pytest.approx((span - 6.58) / 10, abs=0.03)
    spiked = values.clone()
    spiked[0, 0] = 100
    found = tensor_of(spiked, values, grid_of(105 / 255, 12))
    assert found.rare_range == pytest.approx(1 - (6.58 + 1) / 105, abs=0.03)
    clipped = tensor_of(spiked, values, grid)
    assert clipped.rare_range == pytest.approx((5 + abs(float(values.min())) - 6.58) / 10, abs=0.05)


def test_shortest_interval_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        values, counts = generator.normal(size=30), generator.integers(0, 4, size=30).astype(float)
        every = np.sort(np.repeat(values, counts.astype(int)))
        need = math.ceil(0.8 * len(every) - 1e-9)
        best = min(every[start + need - 1] - every[start] for start in range(len(every) - need + 1))
        seen = counts > 0
        assert shortest_interval(values[seen], counts[seen], 0.8) == pytest.approx(best)
    assert shortest_interval(np.array([0.0, 1, 2, 100]), np.ones(4), 0.75) == 2
    assert shortest_interval(np.zeros(0), np.zeros(0), 0.5) == 0


def test_outlier_and_constant_channels(values: torch.Tensor) -> None:
    changed = values.clone()
    changed[:, 2] *= 20
    changed[:, 5] = 0.25
    found = tensor_of(changed, changed, grid_of(1.0))
    assert found.outlier_channels == [2]
    assert 15 < found.outlier_reach < 25
    assert found.constant_channels == [5]
    nothing = tensor_of(torch.zeros(9, 4), torch.zeros(9, 4), grid_of(1.0))
    assert (nothing.outlier_channels, nothing.outlier_reach, nothing.rare_range) == ([], 0.0, 0.0)


def test_held_out_values_beyond_the_fitted_ones(values: torch.Tensor) -> None:
    assert tensor_of(values, values, grid_of(0.1)).beyond_fit == 0
    fit = values.clamp(-1, 1)
    assert tensor_of(fit, values.clamp(-2, 4), grid_of(0.1)).beyond_fit == pytest.approx(1.5, abs=0.01)


def test_rows_whose_weights_round_to_zero() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    weight[4] *= 1000  # another scale, no fault: rows have their own
    weight[2, 0] = 500
    weight[1] = 0
    grid = weight_qparams(weight, 127, float16_scale=False, search=False)
    found = analyse_weights(weight, grid, 40.0)
    assert (found.rows, found.coarse_rows) == (6, 1)
    assert found.spread == pytest.approx(500 / float(weight[2].abs().median()), rel=0.1)


def test_layers_come_in_forward_order_with_costs_and_shares() -> None:
    analysis = analysed()
    names = [layer.layer for layer in analysis.layers]
    assert names[0] == "stages.0.0.pwconv1"
    assert names[-1] == "head"
    assert analysis.kl == analysis.layers[-1].kl_cumulative
    assert 0 < sum(layer.macs_share for layer in analysis.layers) < 1
    weights = [layer.weights.sqnr_db for layer in analysis.layers if layer.weights]
    assert all(30 < db < 50 for db in weights)  # 7 bits; 200 would be weights compared with themselves
    assert Analysis.model_validate_json(analysis.model_dump_json()) == analysis


def test_a_float_layer_is_left_out_and_nothing_quantised_is_no_error() -> None:
    some = analysed(bits=BitPlan(layers={"head": LayerEntry(float=True)}))
    assert "head" not in [layer.layer for layer in some.layers]
    every = [layer.layer for layer in analysed().layers]
    none = analysed(bits=BitPlan(layers={layer: LayerEntry(float=True) for layer in every}))
    assert (none.layers, none.kl, none.agreement, none.suspicions) == ([], None, None, [])


def test_an_output_that_is_quantised_belongs_to_its_layer() -> None:
    module = folded_network()
    fit, held_out = images()
    tensors = collect_statistics(module, [fit], [held_out], ["pointwise1"]).tensors
    name = "stages.1.0.pwconv1:output"
    activation = ActivationPlan(name, grid_of(0.001), "mse", 1.0, 2.0)
    output = analyse_tensor(activation, tensors[name])
    analysis = analysed()
    layers = [
        layer.model_copy(update={"output": output}) if layer.layer == "stages.1.0.pwconv1" else layer
        for layer in analysis.layers
    ]
    (suspicion,) = with_suspicions(analysis.model_copy(update={"layers": layers})).suspicions
    assert suspicion.kind == "saturation"
    assert "stages.1.0.pwconv1 output" in suspicion.sentence
    assert "leaving pointwise1 out of `outputs`" in suspicion.sentence
