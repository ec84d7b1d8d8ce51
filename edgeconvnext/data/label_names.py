"""Names of the classes of a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """What the classes are called, one entry per class, in the order of the logits.

    names: synset ids ("n01440764") or class names. descriptions: text for people ("tench").
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)
