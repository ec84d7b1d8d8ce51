"""A ConvNeXt is quantised inside a larger module: one graph, one artifact, every output judged, the rest untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgeconvnext
from edgeconvnext.backends import load_target
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, OptionError, QuantizationError, RewriteError
from edgeconvnext.tuning.larger_module import QuantizedModule, quantize_module
from tests.model.foreign_modules import (
    Segmenter,
    TimmBackbone,
    TorchvisionBackbone,
    TransformersBackbone,
    drawn,
    smooth_images,
)

PREPROCESS = Preprocess(input_size=(16, 16))


def quantized(whole: nn.Module, target: str = "onnx", images: torch.Tensor | None = None) -> QuantizedModule:
    images = smooth_images(48) if images is None else images
    return quantize_module(whole, load_target(target), images.split(16), preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    return drawn(Segmenter(TransformersBackbone()))


@pytest.fixture(scope="module")
def result(whole: nn.Module) -> QuantizedModule:
    return quantized(whole)


def test_outputs_are_near_the_float_module(whole: nn.Module, result: QuantizedModule) -> None:
    images = smooth_images(24, seed=1)
    measured = result.measure(images.split(8))
    with torch.no_grad():
        reference, simulated = whole(images), result.module(images)
    assert set(simulated) == {"mask", "score"}
    assert [record.name for record in measured.outputs] == ["mask", "score"]
    for record in measured.outputs:
        wide = reference[record.name].double().numpy()
        noise = np.mean((wide - simulated[record.name].double().numpy()) ** 2)
        own = 10 * np.log10(np.mean(wide**2) / noise)
        # Sums in another order, of batches of 8 in place of 24: 1e-6 of the noise would be 4e-6 dB.
        assert record.sqnr_db == pytest.approx(own, abs=0.01)
        assert record.sqnr_db > 30
    assert measured.images == 24


def test_the_plan_names_layers_of_the_larger_module(result: QuantizedModule) -> None:
    layers = set(result.plan.weights)
    assert "encoder.encoder.stages.1.layers.1.pwconv2" in layers
    assert all(layer.startswith("encoder.") for layer in layers)
    assert all(name.partition(":")[0] in layers for name in result.plan.activations)
    int8 = [node for node in result.quantized.graph.nodes if "dequantize_per_channel" in str(node.target)]
    assert len(int8) == len(layers)


def test_the_larger_module_stays_as_it_is(whole: nn.Module, result: QuantizedModule) -> None:
    fresh = drawn(Segmenter(TransformersBackbone())).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in whole.state_dict().items())


def test_one_artifact_of_the_whole(result: QuantizedModule, tmp_path: Path) -> None:
    result.export(tmp_path)
    artifact = result.export(tmp_path)  # the second one takes the place of the first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["baseline", "model.onnx"]
    assert artifact.path == tmp_path / "model.onnx"
    assert all(check.passed for check in artifact.exported.checks)
    images = smooth_images(8, seed=2)
    measured = result.measure([images], artifact.runner())
    # Codes 1 apart at ties of float32 rounding are all that may differ.
    assert all(record.fidelity_db > 50 for record in measured.outputs)
    latency = artifact.latency(seconds=0.01)
    assert latency.speedup is not None


@pytest.mark.exhaustive
def test_a_target_with_float16(tmp_path: Path) -> None:
    artifact = quantized(drawn(Segmenter(TorchvisionBackbone())), "jetson").export(tmp_path)
    assert artifact.path.is_file()
    assert all(check.passed for check in artifact.exported.checks)


@pytest.mark.exhaustive
def test_what_float16_does_not_hold_is_named_anywhere_in_the_whole() -> None:
    whole = drawn(Segmenter(TorchvisionBackbone()))
    images = smooth_images(24)
    with torch.no_grad():
        for level in whole.lateral:
            level.weight.mul_(2.0**15)
        whole.classes.weight.mul_(2.0**-15)
        whole.encoder.features[1][0].layer_scale.mul_(2.0**-3)
        shallow, deep = (lateral(level) for lateral, level in zip(whole.lateral, whole.encoder(images), strict=True))
        total = shallow + nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
    result = quantized(whole, "jetson", images)
    assert result.float16 is not None
    # The same float32 operations; batches of 16 in place of 24 may add up in another order.
    own = {"lateral.0": shallow, "lateral.1": deep, "input of classes": total.relu()}
    expected = {path: pytest.approx(float(values.abs().max()), rel=1e-5) for path, values in own.items()}
    assert result.float16.peaks == result.float16.remaining == expected
    (note,) = result.notes
    assert "overflow float16 (65504)" in note and "input of classes" in note
    with pytest.raises(QuantizationError, match=r"NaN or Inf in mask.*overflow float16.*lateral\.1"):
        result.measure(images.split(16))


def test_what_float16_does_not_hold_in_the_backbone_is_named_by_its_place() -> None:
    whole = drawn(Segmenter(TorchvisionBackbone()))
    images = smooth_images(24)
    with torch.no_grad():
        whole.encoder.features[3][0].layer_scale.mul_(2.0**17)
        largest = float(whole.encoder.features[:4][-1][0](whole.encoder.features[:3](images)).abs().max())
    result = quantized(whole, "jetson", images)
    assert result.float16 is not None
    assert result.float16.peaks["encoder.features.3.0"] == pytest.approx(largest, rel=1e-4)
    assert "encoder.features.3.1" in result.notes[0]


@pytest.mark.exhaustive
def test_a_module_that_float16_holds_has_no_note() -> None:
    result = quantized(drawn(Segmenter(TorchvisionBackbone())), "jetson")
    assert result.float16 is not None
    assert (result.float16.peaks, result.notes) == ({}, ())


def test_another_forward_than_the_tensors_say_is_refused() -> None:
    whole = drawn(Segmenter(TimmBackbone(nn.GELU(approximate="tanh"))))
    with pytest.raises(
        RewriteError, match=r"computes another network .* first part that differs is encoder.stages.0.blocks.0"
    ):
        quantized(whole)


def test_the_function_takes_loaders(whole: nn.Module) -> None:
    loader = torch.utils.data.DataLoader(list(smooth_images(24)), batch_size=8)
    result = edgeconvnext.quantize_within(whole, calib=loader, backbone="encoder", num_images=24)
    assert result.names == ("mask", "score")
    assert result.preprocess.std == (1.0, 1.0, 1.0)


def test_photographs_need_their_preprocessing(whole: nn.Module) -> None:
    with pytest.raises(OptionError, match="Give preprocess"):
        edgeconvnext.quantize_within(whole, calib="digits")


def test_raw_pixels_are_refused(whole: nn.Module) -> None:
    with pytest.raises(OptionError, match="Target coreml takes raw pixels"):
        quantized(whole, "coreml")


def test_images_are_needed(whole: nn.Module) -> None:
    with pytest.raises(QuantizationError, match="there are none"):
        quantize_module(whole, load_target("onnx"), [], preprocess=PREPROCESS)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = TimmBackbone(), nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images)


def test_a_backbone_that_is_never_called() -> None:
    with pytest.raises(CheckpointError, match="Unused never calls encoder"):
        quantized(drawn(Unused()))


class Siamese(nn.Module):
    """Calls one backbone twice, and returns a tuple with something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TimmBackbone()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        left, right = (self.encoder(view)[1].mean(dim=(2, 3)) for view in (images, images.flip(3)))
        return left * right, None


@pytest.mark.parametrize("target", ["onnx", pytest.param("jetson", marks=pytest.mark.exhaustive)])
def test_a_backbone_that_is_called_twice(target: str) -> None:
    whole = drawn(Siamese())
    result = quantized(whole, target)
    images = smooth_images(4, seed=3)
    with torch.no_grad():
        expected, actual = whole(images), result.module(images)
    assert actual[1] is None
    assert float((actual[0] - expected[0]).square().mean()) < 1e-2 * float(expected[0].square().mean())


@pytest.mark.exhaustive
def test_a_backbone_that_is_called_twice_is_exported(tmp_path: Path) -> None:
    artifact = quantized(drawn(Siamese())).export(tmp_path)
    assert all(check.passed for check in artifact.exported.checks)
    names = [node.name for node in onnx.load(artifact.path).graph.node]
    assert len(names) == len(set(names))
    assert {"encoder.stages.0.blocks.0.pwconv1", "encoder.stages.0.blocks.0.pwconv1_2"} <= set(names)


class SharedHead(nn.Module):
    """A detector's head, one for all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TimmBackbone()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, 8, 1) for dim in (8, 16))
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.head(conv(level)) for conv, level in zip(self.lateral, self.encoder(images), strict=True)]


@pytest.mark.exhaustive
def test_a_head_that_all_levels_share(tmp_path: Path) -> None:
    result = quantized(drawn(SharedHead()))
    artifact = result.export(tmp_path)
    assert all(check.passed for check in artifact.exported.checks)
    measured = result.measure([smooth_images(8, seed=2)], artifact.runner())
    assert all(record.fidelity_db > 50 for record in measured.outputs)


class TwoSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = TimmBackbone()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)[1].mean(dim=(2, 3)) + self.encoder(images[:, :, ::2, ::2])[1].mean(dim=(2, 3))


def test_two_sizes_are_refused() -> None:
    with pytest.raises(QuantizationError, match="Calibrate at one size"):
        quantized(drawn(TwoSizes()))


def test_a_module_without_tensors_to_return() -> None:
    class Silent(Unused):
        def forward(self, images: torch.Tensor) -> str:
            self.encoder(images)
            return "done"

    with pytest.raises(OptionError, match="Silent returns no float tensor"):
        quantized(drawn(Silent()))
