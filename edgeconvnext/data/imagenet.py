"""The thousand classes of ImageNet-1k, in the order every ImageNet classifier uses: sorted by synset."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def imagenet_classes() -> dict[str, str]:
    """Return {synset: words}, {"n01440764": "tench, Tinca tinca", ...}; the position is the class index.

    Source: the ILSVRC 2012 list of synsets with their WordNet 3.0 words, as `synset_words.txt`.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)  # type: ignore[misc]
