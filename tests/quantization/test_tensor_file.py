"""Rows on disk are read in order, in batches that large rows make smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeconvnext.rewrite.tensor_file import MOST_ELEMENTS, MOST_ROWS, TensorFile, pairs_of, rows_at_once


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((40, 8, 8), MOST_ROWS),
        ((96, 56, 56), MOST_ROWS),
        ((128, 56, 56), 12),
        ((96, 320, 320), 1),
        ((MOST_ELEMENTS, 2), 1),
    ],
)
def test_the_larger_a_row_the_fewer_at_once(shape: tuple[int, ...], rows: int) -> None:
    assert rows_at_once(shape) == rows


def test_batches_are_the_rows_in_order_and_pairs_keep_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.rewrite.tensor_file.MOST_ELEMENTS", 1000)
    small, large = torch.randn(37, 3, 4), torch.randn(37, 200)
    with TensorFile(tmp_path / "small.bin") as one, TensorFile(tmp_path / "large.bin") as other:
        for rows in (small[:20], small[20:]):
            one.append(rows)
        other.append(large)
        assert [len(batch) for batch in one.batches(2, 37)] == [16, 16, 3]
        assert torch.equal(torch.cat(list(one.batches(2, 37))), small[2:])
        pairs = list(pairs_of(one, other, 0, 37))
        assert [len(x) for x, _ in pairs] == [5] * 7 + [2]
        assert torch.equal(torch.cat([x for x, _ in pairs]), small)
        assert torch.equal(torch.cat([y for _, y in pairs]), large)
    assert not list(tmp_path.iterdir())
