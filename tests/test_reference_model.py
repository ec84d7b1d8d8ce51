"""The trained networks that ship in the package: what their cards say of accuracy is what the files reach."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import edgeconvnext
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.model.load import load_model
from edgeconvnext.train.training import count_right

WEIGHTS = Path(edgeconvnext.__file__).parent / "model" / "weights"
CARD = (WEIGHTS / "atto_imagenette.md").read_text(encoding="utf-8")


def test_the_file_is_small_and_complete() -> None:
    assert (WEIGHTS / "atto_imagenette.safetensors").stat().st_size <= 8_000_000
    model = load_model("atto_imagenette")
    assert model.name == "atto_imagenette"
    assert model.config.dims == (40, 80, 160, 320) and model.config.num_classes == 10
    assert model.labels is not None and len(model.labels.descriptions) == 10
    assert all(label in CARD for label in model.labels.descriptions)


@pytest.mark.data
@pytest.mark.slow
def test_it_reaches_what_its_card_says(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(photographs))
    found = re.search(r"\((\d+) of ([\d,]+) images", CARD)
    assert found is not None
    model, images = load_model("atto_imagenette"), resolve_image_set("imagenette_val")
    if len(images) != int(found[2].replace(",", "")):
        pytest.skip(f"the card is of {found[2]} images; {len(images)} are here")
    classes = match_labels(images, model.labels, model.config.num_classes)[np.array(images.labels)]
    right, _ = count_right(model, images, classes)
    # Another processor adds in another order, which may turn an undecided image.
    assert abs(right - int(found[1])) <= 2
