"""Input sizes: read from text, and refused with the sizes that would fit."""

from __future__ import annotations

import pytest

from edgeconvnext.data.size import parse_size, size_text
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.input_size import check_input_size

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("224x320", (224, 320)), (" 64x32 ", (64, 32))])
def test_sizes_are_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize("text", ["", "x", "224x", "x320", "224 x 320", "224x320x3", "a", "2.5", "224,320"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ModelConfigError, match="as in 224x320"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((230, 230), "Use --resolution 224 or 256"),
        ((224, 330), "Use --resolution 224x320 or 224x352"),
        ((16, 64), "Use --resolution 32x64"),
        ((32, 8192), "larger than 4096"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_their_neighbours(size: tuple[int, int], words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        check_input_size(CONFIG, size)
    check_input_size(CONFIG, (32, 1280))
