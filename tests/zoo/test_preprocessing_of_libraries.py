"""Photographs are prepared as each library does: its own transform on a picture of odd sides, against ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torchvision
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config

import edgeconvnext


@pytest.fixture(params=[(331, 437), (500, 283), (224, 301)], ids=str)
def picture(request: pytest.FixtureRequest) -> Image.Image:
    """A picture (height, width) with smooth areas, noise and hard edges, as photographs have."""
    height, width = request.param
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + np.stack([60 * np.sin(rows / 17) + 50 * np.cos(columns / period) for period in (9, 23, 41)], axis=2)
    waves[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 120)
    return Image.fromarray(np.clip(waves + generator.normal(0, 8, waves.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "name", ["convnext_atto", "convnext_tiny", "convnextv2_atto", "convnext_tiny.fb_in22k_ft_in1k_384"]
)
def test_timm(name: str, picture: Image.Image) -> None:
    module = timm.create_model(name)
    theirs = create_transform(**resolve_data_config({}, model=module))(picture).numpy()
    # The same operations on the same numbers, in the same order.
    assert np.array_equal(theirs, edgeconvnext.load_model(module).preprocess.apply(picture))


def test_torchvision(picture: Image.Image) -> None:
    theirs = torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1.transforms()(picture).numpy()
    loaded = edgeconvnext.load_model(torchvision.models.convnext_tiny())
    assert np.array_equal(theirs, loaded.preprocess.apply(picture))
    assert "as in torchvision" in " ".join(loaded.notes)


@pytest.mark.parametrize("size", [224, 288, 384])
def test_transformers(size: int, picture: Image.Image, tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for kind, levels in (("ConvNextImageProcessorPil", 0.01), ("ConvNextImageProcessor", 4.01)):
        processor = getattr(transformers, kind)(size={"shortest_edge": size}, image_mean=mean, image_std=std)
        processor.save_pretrained(tmp_path)
        theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        ours = edgeconvnext.load_model(tmp_path).preprocess.apply(picture)
        # Pillow's own resizing differs by rounding of float32 alone. torchvision's has other weights; four levels were measured.
        difference = np.abs(theirs - ours).max(axis=(1, 2)) * std * 255
        assert difference.max() < levels, kind
