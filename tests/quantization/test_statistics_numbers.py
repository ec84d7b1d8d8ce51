"""Calibration statistics against numpy on every value that passed: extremes, histograms, which half an image belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.quantization import statistics
from edgeconvnext.quantization.histogram import Histogram
from edgeconvnext.quantization.statistics import Statistics, collect_statistics

IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FIT, HELD_OUT = IMAGES[:4], 3 * IMAGES[4:]


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt(ConvNeXtConfig((1,), (6,), num_classes=3)).eval()


def passed(network: ConvNeXt, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Inputs and outputs of every layer, by name, (N, ..., C)."""
    values: dict[str, np.ndarray] = {}

    def last(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
        return (x.permute(0, 2, 3, 1) if isinstance(layer, nn.Conv2d) else x).numpy()

    def hook(name: str) -> object:
        def note(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            values[f"{name}:input"], values[f"{name}:output"] = last(layer, args[0]), last(layer, output)

        return note

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in weighted_layers(network)]
    with torch.inference_mode():
        network(images)
    for handle in handles:
        handle.remove()
    return values


def assert_counts(histogram: Histogram, values: np.ndarray) -> None:
    """Each value once, in the bin [(first + i) * width, (first + i + 1) * width) that holds it."""
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    index = np.searchsorted(edges, values.astype(np.float64).ravel(), side="right") - 1
    assert np.array_equal(histogram.counts, np.bincount(index, minlength=len(histogram.counts)))


def test_every_input_is_counted_in_its_half_and_every_channel_has_its_extremes(network: ConvNeXt) -> None:
    result = collect_statistics(network, FIT.split(3), HELD_OUT.split(2))
    assert (result.fit_images, result.held_out_images) == (4, 3)
    fit, held_out = passed(network, FIT), passed(network, HELD_OUT)
    assert list(result.tensors) == [f"{layer}:input" for layer in weighted_layers(network)]
    for name, tensor in result.tensors.items():
        # Batches of another size may differ in the last bits of a float32; on these images they do not.
        assert_counts(tensor.fit, fit[name])
        assert_counts(tensor.held_out, held_out[name])
        both = np.concatenate([part[name].reshape(-1, part[name].shape[-1]) for part in (fit, held_out)])
        assert np.array_equal(tensor.channel_low, both.min(axis=0))
        assert np.array_equal(tensor.channel_high, both.max(axis=0))


def test_outputs_are_observed_for_the_operators_named(network: ConvNeXt) -> None:
    result = collect_statistics(network, [FIT], [HELD_OUT], ["depthwise", "head"])
    outputs = {name for name in result.tensors if name.endswith(":output")}
    assert outputs == {"stages.0.0.dwconv:output", "head:output"}
    held_out = passed(network, HELD_OUT)
    for name in outputs:
        assert_counts(result.tensors[name].held_out, held_out[name])
        assert result.tensors[name].channel_low.shape == (held_out[name].shape[-1],)


def test_of_large_tensors_every_second_or_third_position_is_binned_and_extremes_are_of_all(
    network: ConvNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stem's input has 768 values an image. 256 to be binned are every third of its 256 positions, 400 are all of them."""
    x = passed(network, FIT)["downsample_layers.0.0:input"]
    for binned, stride in ((256, 3), (384, 2), (385, 1), (1536, 1)):
        monkeypatch.setattr(statistics, "BINNED_PER_IMAGE", binned)
        tensor = collect_statistics(network, FIT.split(2), [HELD_OUT]).tensors["downsample_layers.0.0:input"]
        histogram = tensor.fit
        assert (histogram.low, histogram.high) == (x.min(), x.max())
        some = x.reshape(4, 256, 3)[:, ::stride]
        edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
        index = np.searchsorted(edges, some.astype(np.float64).ravel(), side="right") - 1
        assert np.array_equal(histogram.counts, np.bincount(index, minlength=len(histogram.counts)))


def test_a_file_gives_back_every_number(network: ConvNeXt, tmp_path: Path) -> None:
    before = collect_statistics(network, [FIT], [HELD_OUT])
    before.save(tmp_path / "statistics.safetensors")
    after = Statistics.load(tmp_path / "statistics.safetensors")
    assert (after.fit_images, after.held_out_images) == (4, 3)
    assert list(after.tensors) == list(before.tensors)
    for name, expected in before.tensors.items():
        actual = after.tensors[name]
        for a, b in ((actual.fit, expected.fit), (actual.held_out, expected.held_out)):
            assert (a.first, a.width, a.low, a.high) == (b.first, b.width, b.low, b.high)
            assert a.counts.dtype == np.float64
            assert np.array_equal(a.counts, b.counts)
        assert np.array_equal(actual.channel_low, expected.channel_low)
        assert np.array_equal(actual.channel_high, expected.channel_high)


def test_hooks_are_gone_afterwards_also_when_it_fails(network: ConvNeXt) -> None:
    collect_statistics(network, [FIT], [HELD_OUT], ["head"])
    with pytest.raises(QuantizationError, match=r"The tensor downsample_layers\.0\.0:input contains NaN or infinity"):
        collect_statistics(network, [FIT * float("nan")], [HELD_OUT])
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_one_value_that_is_not_finite_is_enough(network: ConvNeXt, value: float) -> None:
    images = FIT.clone()
    images[1, 2, 3, 4] = value
    with pytest.raises(QuantizationError, match="contains NaN or infinity"):
        collect_statistics(network, [FIT], [images])


@pytest.mark.parametrize(("fit", "held_out", "counts"), [([], [HELD_OUT], "0 and 3"), ([FIT], [], "4 and 0")])
def test_both_halves_need_images(
    network: ConvNeXt, fit: list[torch.Tensor], held_out: list[torch.Tensor], counts: str
) -> None:
    with pytest.raises(QuantizationError, match=f"there are {counts}"):
        collect_statistics(network, fit, held_out)
