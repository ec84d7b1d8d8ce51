"""Outputs of a backbone are compared over all images, and nothing broken passes as a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from edgeconvnext.data.loader import Batch
from edgeconvnext.errors import CheckpointError, ExportError, QuantizationError
from edgeconvnext.evaluation.outputs import compare_outputs, worst
from edgeconvnext.evaluation.runner import TorchRunner
from edgeconvnext.sqnr import logit_sqnr_db

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMES = ("stage1", "stage2")
Outputs = tuple[torch.Tensor, ...]


def stream() -> Iterator[Batch]:
    yield Batch(IMAGES[:3], [0, 1, 2])
    yield Batch(IMAGES[3:], [3, 4])


def exact(images: torch.Tensor) -> Outputs:
    return images[:, :, ::2, ::2], images.mean(dim=(2, 3))


def off(by: float) -> Callable[[torch.Tensor], Outputs]:
    return lambda images: (exact(images)[0] * (1 + by), exact(images)[1] + 0.01)


def test_every_output_has_its_ratios_over_all_images() -> None:
    records, images = compare_outputs(
        NAMES, TorchRunner(exact), TorchRunner(off(0.1)), TorchRunner(off(0.01)), stream()
    )
    assert images == 5
    first, second = records
    assert (first.name, first.shape, second.name, second.shape) == ("stage1", (3, 4, 4), "stage2", (3,))
    assert first.simulated_sqnr_db == pytest.approx(20.0, abs=1e-4)  # a tenth too much
    assert first.sqnr_db == pytest.approx(40.0, abs=1e-3)
    expected = [runner(IMAGES)[0].numpy() for runner in (off(0.1), off(0.01))]
    assert first.fidelity_db == pytest.approx(logit_sqnr_db(*expected), abs=1e-4)
    assert second.fidelity_db == 200.0, "both are off by the same"
    assert worst(records, "sqnr_db") == min(first.sqnr_db, second.sqnr_db)


def test_without_an_artifact_the_simulation_speaks_and_fidelity_is_open() -> None:
    records, _ = compare_outputs(NAMES, TorchRunner(exact), TorchRunner(off(0.1)), None, stream())
    assert records[0].sqnr_db == records[0].simulated_sqnr_db
    assert records[0].fidelity_db is None and worst(records, "fidelity_db") is None


def broken(images: torch.Tensor) -> Outputs:
    first, second = exact(images)
    return first, torch.where(torch.arange(3) == 1, float("nan"), second)


def test_outputs_that_are_not_finite_are_refused_by_who_made_them() -> None:
    good, bad = TorchRunner(exact), TorchRunner(broken)
    for networks, error in (
        ((bad, good, good), CheckpointError),
        ((good, bad, good), QuantizationError),
        ((good, good, bad), ExportError),
    ):
        with pytest.raises(error, match="NaN or Inf in stage2"):
            compare_outputs(NAMES, *networks, stream())


def test_other_shapes_are_another_network() -> None:
    one = TorchRunner(lambda images: exact(images)[:1])
    for other in (one, TorchRunner(lambda images: (images, exact(images)[1]))):
        with pytest.raises(ExportError, match="not the same network"):
            compare_outputs(NAMES, TorchRunner(exact), TorchRunner(exact), other, stream())
