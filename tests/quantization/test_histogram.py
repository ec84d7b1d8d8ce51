"""Streaming histograms: exact counts, bounded memory, and no dependence on how the data was cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconvnext.quantization.histogram import MAX_BINS, StreamingHistogram


def count(chunks: list[torch.Tensor]) -> StreamingHistogram:
    histogram = StreamingHistogram()
    for chunk in chunks:
        histogram.update(chunk, float(chunk.min()), float(chunk.max()))
    return histogram


def test_counts_every_value_once_and_keeps_the_extremes() -> None:
    values = torch.linspace(-3, 5, 10_001)
    result = count([values]).result()
    assert result.total == 10_001
    assert (result.low, result.high) == (-3, 5)
    assert len(result.counts) <= MAX_BINS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=200), st.integers(1, 199))
def test_result_does_not_depend_on_the_batches(values: list[float], cut: int) -> None:
    x = torch.tensor(values)
    cut = min(cut, len(values) - 1)
    whole, parts, reverse = count([x]).result(), count([x[:cut], x[cut:]]).result(), count([x[cut:], x[:cut]]).result()
    for other in (parts, reverse):
        assert other.total == whole.total == len(values)
        assert (other.low, other.high) == (whole.low, whole.high)
        # A batch that is one point wide may start on finer bins than the whole needs; the merged widths agree.
        assert other.width == whole.width


def test_bins_stay_bounded_when_the_range_grows_a_millionfold() -> None:
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randn(1000, generator=generator) * 10.0**power for power in range(-3, 4)]
    result = count(chunks).result()
    assert len(result.counts) <= MAX_BINS
    assert result.total == 7000


def test_every_value_is_counted_in_its_own_bin_on_borders_too() -> None:
    values = torch.cat(
        [torch.arange(-6000, 2000) * 2.0**-9, torch.randn(10_000, generator=torch.Generator().manual_seed(2))]
    )
    result = count([values.reshape(2, -1), values[:5]]).result()
    edges = (result.first + np.arange(len(result.counts) + 1, dtype=np.float64)) * result.width
    assert edges[0] <= result.low < edges[1]
    expected = np.histogram(torch.cat([values, values[:5]]).double().numpy(), np.append(edges[:-1], np.inf))[0]
    np.testing.assert_array_equal(result.counts, expected)


@pytest.mark.parametrize("value", [5.0, -5.0, 2.0**60])
def test_a_narrow_range_far_from_zero_is_counted(value: float) -> None:
    values = torch.tensor([value, value * (1 + 2.0**-20), value * (1 + 2.0**-21)])
    result = count([values, values[:1]]).result()
    assert result.total == 4
    assert result.counts[0] + result.counts[-1] == 3


def test_mean_square_matches_the_data() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    # Bin width is about 1e-3, so replacing a value by its bin's middle changes its square by about 1e-3 at most.
    assert count([values]).result().mean_square() == pytest.approx(float(values.square().mean()), rel=1e-3)


def test_constant_and_zero_tensors_are_counted() -> None:
    for value in (0.0, 2.5, -1e-7):
        result = count([torch.full((64,), value)]).result()
        assert result.total == 64
        assert result.low == pytest.approx(value)
        np.testing.assert_allclose(result.centers[result.counts > 0], value, atol=1e-9)


def test_share_outside_counts_the_clipped_values() -> None:
    result = count([torch.arange(1000).float()]).result()
    assert result.share_outside(0, 899.5) == pytest.approx(0.1, abs=0.001)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_value_that_float32_cannot_scale_is_counted_beside_zero(sign: float) -> None:
    """2^-149, the smallest float32 above zero, halves to zero; from below zero it then leaves the bin that ends there."""
    tiny = torch.tensor([sign * 2.0**-149])
    for other, bins in ((-8191.0, {0: 1, -4096: 1}), (8191.0, {0: 1, 4095: 1})):
        result = count([torch.cat([tiny, torch.tensor([other])])]).result()
        assert result.width == 2.0
        assert {result.first + i: number for i, number in enumerate(result.counts) if number} == bins
    # By itself it has bins fine enough to be below zero, which merge into the one that ends at zero.
    assert count([tiny, torch.tensor([8191.0])]).result().counts[[0, -1]].tolist() == [1, 1]


def test_a_float64_value_that_float32_rounds_up_is_counted() -> None:
    values = torch.tensor([0.0, 8191.9999999999], dtype=torch.float64)
    result = count([values]).result()
    assert (result.total, result.counts[4096], len(result.counts)) == (2, 1, 4097)
