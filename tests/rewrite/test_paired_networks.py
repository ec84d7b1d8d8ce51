"""Two streams of images through two computations: rows stay where they are, work is not done twice, no file stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeconvnext.rewrite.paired_networks import PairedActivations, StoredImages

IMAGES = torch.arange(7.0)[:, None, None, None].expand(7, 1, 2, 2)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[StoredImages]:
    with StoredImages(tmp_path, IMAGES[:4].split(3), IMAGES[4:].split(3)) as stored:
        yield stored


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def values(pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> list[list[float]]:
    return [torch.cat(side)[:, 0, 0, 0].tolist() for side in zip(*pairs, strict=True)]


def test_held_out_rows_stay_held_out(images: StoredImages, tmp_path: Path) -> None:
    with PairedActivations(images, tmp_path) as streams:
        streams.step(lambda x: x + 10, lambda x: x + 20)
        streams.step(lambda x: x + 100)
        assert values(streams.fit()) == [[110, 111, 112, 113], [120, 121, 122, 123]]
        assert values(streams.held_out()) == [[114, 115, 116], [124, 125, 126]]


def test_what_is_the_same_is_computed_once(images: StoredImages, tmp_path: Path) -> None:
    rows = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return x * 2

    with PairedActivations(images, tmp_path) as streams:
        streams.step(counted)
        assert streams.same and sum(rows) == 7
        assert files(tmp_path) == {"images.bin", "reference0.bin"}
        assert values(streams.held_out()) == [[8, 10, 12]] * 2
        streams.step(counted, counted)
        assert not streams.same and sum(rows) == 3 * 7


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_only_the_images_are_left(images: StoredImages, tmp_path: Path, steps: int) -> None:
    with PairedActivations(images, tmp_path) as streams:
        for _ in range(steps):
            streams.step(torch.neg, torch.abs)
    assert files(tmp_path) == {"images.bin"}
    assert torch.equal(torch.cat(list(images.fit())), IMAGES[:4])


def test_a_step_that_fails_leaves_no_file(images: StoredImages, tmp_path: Path) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError), PairedActivations(images, tmp_path) as streams:
        streams.step(torch.neg, torch.abs)
        streams.step(torch.neg, fails)
    assert files(tmp_path) == {"images.bin"}
