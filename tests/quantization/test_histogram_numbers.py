"""What a histogram says, against counts by hand and numpy in float64."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconvnext.quantization.histogram import MAX_BINS, Histogram, StreamingHistogram

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, of a division by zero


def counted(*batches: list[float] | torch.Tensor) -> Histogram:
    streaming = StreamingHistogram()
    for batch in batches:
        values = torch.as_tensor(batch, dtype=torch.float32)
        streaming.update(values, float(values.min()), float(values.max()))
    return streaming.result()


def by_bin(histogram: Histogram) -> dict[int, float]:
    """Occupied bins by their number: bin n covers [n * width, (n + 1) * width)."""
    return {histogram.first + i: count for i, count in enumerate(histogram.counts.tolist()) if count}


FOUR = Histogram(np.array([1.0, 2.0, 3.0, 4.0]), first=-2, width=0.5, low=-1.0, high=1.0)


def test_centers_are_half_a_bin_above_the_lower_edges() -> None:
    assert FOUR.centers.tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_the_outermost_centers_move_to_the_extremes_seen() -> None:
    histogram = Histogram(np.ones(3), first=4, width=2.0, low=9.5, high=12.25)
    assert histogram.centers.tolist() == [9.5, 11.0, 12.25]


def test_the_mean_square_is_that_of_the_centers() -> None:
    # Centers 3, 5, 7: (1 * 9 + 3 * 49) / 4.
    assert Histogram(np.array([1.0, 0.0, 3.0]), 1, 2.0, 2.0, 8.0).mean_square() == 39.0
    assert Histogram(np.array([1.0]), 0, 6.0, 0.0, 6.0).mean_square() == 9.0


def test_share_outside_leaves_out_values_on_the_border() -> None:
    assert FOUR.share_outside(-0.75, 0.75) == 0.0
    assert FOUR.share_outside(-0.74, 0.75) == 0.1
    assert FOUR.share_outside(-0.75, 0.74) == 0.4
    assert FOUR.share_outside(-0.2, 0.2) == 1.0
    assert FOUR.share_outside(-0.3, 0.3) == 0.5
    assert Histogram(np.array([1.0]), 0, 1.0, 0.0, 1.0).share_outside(2.0, 3.0) == 1.0


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 64])
def test_drawn_shares_are_those_of_numpys_histogram(bins: int) -> None:
    histogram = Histogram(np.arange(1.0, 41.0), first=-7, width=0.25, low=-1.7, high=8.2)
    expected = np.histogram(histogram.centers, bins, (-1.7, 8.2), weights=histogram.counts)[0] / 820
    np.testing.assert_allclose(histogram.rebinned(bins), expected, rtol=1e-12, atol=0)


def test_one_value_is_drawn_in_the_first_bin() -> None:
    assert counted([2.5, 2.5]).rebinned(3).tolist() == [1.0, 0.0, 0.0]
    # Two values, one a bin: the upper one belongs to the last.
    assert counted([2.0, 4.0]).rebinned(4).tolist() == [0.5, 0.0, 0.0, 0.5]
    assert Histogram(np.array([1.0]), 0, 4.0, 0.0, 4.0).rebinned(2).tolist() == [0.0, 1.0]


def test_nothing_counted_is_an_empty_histogram_at_zero() -> None:
    empty = StreamingHistogram().result()
    assert empty.counts.tolist() == [0.0]
    assert (empty.first, empty.width, empty.low, empty.high) == (0, 1.0, 0.0, 0.0)
    assert (empty.total, empty.mean_square(), empty.share_outside(1.0, 2.0)) == (0.0, 0.0, 0.0)
    assert Histogram(np.zeros(2), 0, 1.0, 0.0, 2.0).rebinned(2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("offset", [0.0, -4000.0, -8192.0])
@pytest.mark.parametrize("exponent", [-9, 0, 5])
def test_the_width_doubles_where_the_span_exceeds_all_bins_but_two(exponent: int, offset: float) -> None:
    assert MAX_BINS == 8192
    unit = 2.0**exponent
    fits = counted([offset * unit, (offset + 8190) * unit])
    assert (fits.width, len(fits.counts), fits.first) == (unit, 8191, offset)
    exceeds = counted([offset * unit, (offset + 8191) * unit])
    assert (exceeds.width, len(exceeds.counts), exceeds.first) == (2 * unit, 4096, offset / 2)


@pytest.mark.parametrize(("value", "width"), [(1.0, 2.0**-32), (-1.0, 2.0**-32), (64.0, 2.0**-26), (0.0, 2.0**-112)])
def test_bins_of_a_constant_cover_a_millionth_of_it(value: float, width: float) -> None:
    """2^-20 of the value in 8,190 bins, hence 2^-32 of it a bin; zero counts as a span of 2^-100."""
    constant = counted([value] * 5)
    assert (constant.width, constant.counts.tolist(), constant.first) == (width, [5.0], value / width)


def test_odd_bins_are_merged_with_the_neighbour_that_shares_the_wider_bin() -> None:
    # Width 1: bins 3, 4, 5, 6, ..., 8193; then width 2: 3 // 2 = 1 holds bin 3 only, 2 holds 4 and 5, 3 holds 6.
    narrow, wide = [3.0, 4.0, 5.0, 5.5, 6.0, 8193.0], [10_000.0]
    assert by_bin(counted(narrow)) == {3: 1, 4: 1, 5: 2, 6: 1, 8193: 1}
    assert by_bin(counted(narrow, wide)) == {1: 1, 2: 3, 3: 1, 4096: 1, 5000: 1}
    # From below: bins -3 and -4 share -2, -2 and -1 share -1.
    narrow = [-3.0, -4.0, -2.0, -0.5, 8000.0]
    assert by_bin(counted(narrow, [9000.0])) == {-2: 2, -1: 2, 4000: 1, 4500: 1}


FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(FLOATS, min_size=1, max_size=30), min_size=1, max_size=5))
def test_each_value_is_counted_in_the_bin_that_holds_it(batches: list[list[float]]) -> None:
    """floor(value / width): exact in float64, because the width is a power of two."""
    histogram = counted(*batches)
    values = np.concatenate(batches).astype(np.float64)
    assert by_bin(histogram) == Counter(np.floor(values / histogram.width).astype(int).tolist())
    assert len(histogram.counts) <= MAX_BINS
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    assert edges[0] <= values.min() and values.max() < edges[-1]


@pytest.mark.parametrize("value", [3.0, -3.0, 2.0**40, -(2.0**40), 5e-20])
def test_neighbouring_floats_far_from_zero_are_counted_apart(value: float) -> None:
    """24 bits of the value count, more than float32 could subtract the number of the first bin from."""
    low = np.float32(value)
    steps = [low]
    for _ in range(40):
        steps.append(np.nextafter(steps[-1], np.float32(np.inf)))
    batch = [float(step) for step in steps]
    histogram = counted(batch[5:], batch[:5])
    exact = Counter(np.floor(np.array(batch) / histogram.width).astype(int).tolist())
    assert by_bin(histogram) == exact
    assert len(exact) == 41


def test_extremes_may_lie_outside_the_values_that_are_binned() -> None:
    streaming = StreamingHistogram()
    streaming.update(torch.tensor([[1.0], [2.0]]), -8190.0, 2.0)
    streaming.update(torch.tensor([3.0]), -10.0, 5.0)
    result = streaming.result()
    assert (result.low, result.high, result.first, result.width) == (-8190.0, 5.0, -4095, 2.0)
    assert by_bin(result) == {0: 1, 1: 2}


def test_a_result_does_not_change_when_more_is_counted() -> None:
    streaming = StreamingHistogram()
    streaming.update(torch.tensor([1.0, 3.0]), 1.0, 3.0)
    before = streaming.result()
    streaming.update(torch.tensor([1.0, 2.0]), 1.0, 2.0)
    assert before.total == 2.0
    assert streaming.result().total == 4.0
