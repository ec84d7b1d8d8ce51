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


@cache
def devkit_synsets() -> tuple[str, ...]:
    """Return the synsets in the order of ILSVRC2012_ID, the numbers 1 to 1000 of the devkit's ground truth.

    Source: `map_clsloc.txt` of ILSVRC's devkits; `meta.mat` of the devkit of 2012 has the same order.
    """
    return tuple(Path(__file__).with_name("imagenet_devkit_order.txt").read_text(encoding="utf-8").split())
