"""Activations beyond float16 (65504): they are named, and a residual stream is scaled where that changes no answer."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from micro import micro_model

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.loader import batches
from edgeconvnext.errors import EdgeConvNextError, ModelConfigError
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.heads import with_head
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.program_float16 import to_float16
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome, quantized_program
from edgeconvnext.pipeline.job import Request
from edgeconvnext.pipeline.stages.values import Float16Values
from edgeconvnext.quantization.float16_notes import float16_notes
from edgeconvnext.quantization.float16_range import fit_float16, peaks_of
from edgeconvnext.rewrite.residual_streams import scale_streams

FACTOR = 2.0**17


@cache
def plain() -> LoadedModel:
    return micro_model()


def grown(stage: int, factor: float = FACTOR) -> LoadedModel:
    """Return the micro network with the residual stream of one stage times `factor`, and its epsilons as they were.

    Written out by hand, as in case 17. The norms undo the factor but for epsilon, which is a millionth of the variance.
    """
    model = replace(plain(), module=copy.deepcopy(plain().module))
    names = {f"stages.{stage}.0.dwconv.bias", f"stages.{stage}.0.gamma"}
    start = f"downsample_layers.{stage}.1."
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name in names or name.startswith(start):
                parameter.mul_(factor)
    return model


@cache
def images() -> list[torch.Tensor]:
    return [batch.images for batch in batches(digits_set("train"), plain().preprocess, indices=list(range(24)))]


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("overflow") / "overflow.safetensors"
    save_checkpoint(grown(1), path)
    return str(path)


def request(model: str, output: Path, **changes: object) -> Request:
    asked = Request(
        model=model,
        calib="digits",
        eval="digits_test",
        num_images=30,
        effort="quick",
        latency=False,
        target="jetson",
        output=output,
    )
    return replace(asked, **changes)


def notes(outcome: Outcome) -> list[str]:
    return [note for note in outcome.report.notes if "float16" in note]


@pytest.mark.parametrize("exponents", [(3, 0), (0, 5), (7, 11)])
def test_scaled_streams_give_the_same_logits_to_the_last_bit(exponents: tuple[int, ...]) -> None:
    module = plain().module
    scaled = scale_streams(module, exponents)
    with torch.no_grad():
        for batch in images():
            assert torch.equal(scaled(batch), module(batch))
            for stage, (found, right) in enumerate(
                zip(scaled.forward_stages(batch), module.forward_stages(batch), strict=True)
            ):
                assert torch.equal(found * 2.0 ** exponents[stage], right)


def test_scaled_streams_are_exact_where_epsilon_counts() -> None:
    """A stream of 1e-4 has a variance of 1e-8, a hundredth of epsilon: the norms answer otherwise where that keeps its size."""
    module = grown(1, factor=1e-4).module
    scaled = scale_streams(module, (0, 6))
    forgotten = scale_streams(module, (0, 6))
    forgotten.norm.eps = module.norm.eps
    with torch.no_grad():
        batch = images()[0]
        assert torch.equal(scaled(batch), module(batch))
        assert not torch.allclose(forgotten(batch), module(batch), rtol=0.1)


def test_scaled_streams_are_scaled_once_and_can_be_saved(tmp_path: Path) -> None:
    model = plain()
    scaled = scale_streams(model.module, (2, 4))
    again = scale_streams(scaled, (2, 4))
    save_checkpoint(replace(model, module=scaled, config=scaled.config), tmp_path / "scaled.safetensors")
    loaded = load_model(tmp_path / "scaled.safetensors").module
    with torch.no_grad():
        right = model.module(images()[0])
        for other in (again, loaded, scale_streams(loaded, ())):
            assert torch.equal(other(images()[0]), right)
    assert loaded.config.stream_exponents == (2, 4)
    assert loaded.norm.eps == model.module.norm.eps * 4.0**-4


@pytest.mark.parametrize("exponents", [(1,), (-1, 0), (0, 25)])
def test_a_configuration_of_other_exponents_is_refused(exponents: tuple[int, ...]) -> None:
    with pytest.raises(ModelConfigError, match="stream_exponents"):
        plain().config.replace(stream_exponents=exponents)


def test_only_what_is_too_large_is_scaled_and_fits_then() -> None:
    small, large = plain().module, grown(1).module
    module, float16 = fit_float16(small, peaks_of(small, images()))
    assert module is small
    assert (float16.peaks, float16.stream_exponents, float16.remaining) == ({}, (), {})

    with torch.no_grad():
        largest = max(float(large.forward_stages(batch)[1].abs().max()) for batch in images())
    module, float16 = fit_float16(large, peaks_of(large, images()))
    assert float16.peaks["stages.1.0"] == largest > 65504
    assert float16.stream_exponents[0] == 0
    assert all(path.startswith(("stages.1.0", "downsample_layers.1")) for path in float16.peaks)
    assert not float16.remaining
    largest_of_stream = max(float16.peaks.values())
    assert float16.stream_exponents[1] == math.ceil(math.log2(largest_of_stream / (65504 / 2)))
    assert max(peaks_of(module, images()).values()) <= 65504 / 2


def test_a_network_beyond_float16_is_scaled_named_and_keeps_its_answers(
    overflowing: str, micro: str, tmp_path: Path
) -> None:
    outcome = pipeline.quantize(request(overflowing, tmp_path / "run"))
    right = pipeline.quantize(request(micro, tmp_path / "right"))
    (note,) = notes(outcome)
    assert all(words in note for words in ("overflow float16 (65504)", "stages.1.0", "stages.1 by 2^-"))
    assert not notes(right)
    assert outcome.report.accuracy.agreement == pytest.approx(right.report.accuracy.agreement, abs=0.5)
    # The same network times a power of two gets the same codes: its scales differ by that power only.
    assert outcome.report.accuracy.sqnr_db == pytest.approx(right.report.accuracy.sqnr_db, abs=0.5)
    # The graph rebuilt from the files of the run is finite in float16, too.
    state = to_float16(quantized_program(tmp_path / "run")).state_dict
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_layers_fitted_one_after_the_other_are_scaled_as_well(overflowing: str, tmp_path: Path) -> None:
    outcome = pipeline.quantize(request(overflowing, tmp_path / "run", effort="default", num_images=9))
    (note,) = notes(outcome)
    assert "stages.1 by 2^-" in note
    assert outcome.report.accuracy.agreement is not None and outcome.report.accuracy.agreement > 90


def test_a_stream_that_is_an_output_is_named_and_left_as_it_is() -> None:
    model = with_head(grown(1, factor=1.5 * 2.0**13), "features")
    module, float16 = fit_float16(model.module, peaks_of(model.module, images()))
    assert module is model.module
    assert 65504 / 2 < float16.remaining["stages.1.0"] < 65504
    (note,) = float16_notes(Float16Values.model_validate(asdict(float16)))
    assert "within a factor of two" in note
    assert "stages.1.0" in note
    assert "No exact rescaling" in note


def test_answers_that_overflow_are_an_error_that_names_the_layer(overflowing: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeConvNextError, match=r"NaN or Inf in stage2.*overflow float16 \(65504\).*stages\.1\.0"):
        pipeline.quantize(request(overflowing, tmp_path / "run", head="features"))
