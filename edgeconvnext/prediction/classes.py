"""The answer for one image: its most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeconvnext.escape import for_html, for_terminal

MOST_SHOWN = 5


@dataclass(frozen=True)
class ClassScore:
    """A class with its share of the softmax over all classes, or its own sigmoid. name: its number where classes have no names."""

    index: int
    name: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Prediction:
    """What a network answers for an image. classes: the most probable first, at most MOST_SHOWN."""

    image: str
    classes: tuple[ClassScore, ...]

    @property
    def top(self) -> ClassScore:
        """The most probable class."""
        return self.classes[0]

    def __repr__(self) -> str:
        shown = ", ".join(f"{for_terminal(one.name, 60)} {one.probability:.1%}" for one in self.classes[:3])
        return f"<Prediction of {for_terminal(self.image, 80)}: {shown}>"

    def __str__(self) -> str:
        rows = [f"{for_terminal(one.name, 60):<24} {one.probability:7.2%}" for one in self.classes]
        return "\n".join([for_terminal(self.image), *rows])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{for_html(one.name)}</td><td>{one.probability:.2%}</td></tr>" for one in self.classes)
        return f"<table><caption>{for_html(self.image)}</caption>{rows}</table>"

    def as_dict(self) -> list[dict[str, Any]]:
        """Return the classes as JSON has them."""
        return [vars(one) for one in self.classes]


def prediction(
    image: str, logits: np.ndarray, labels: Sequence[str] | None, *, independent: bool = False
) -> Prediction:
    """Return the answer that logits (num_classes,) give. labels: names of the classes, None where they have none.

    independent: each class is a decision of its own (multi-label), with the probability sigmoid(logit).

    One logit decides by its sign: its class has the probability sigmoid(logit), and is the last of two labels.
    """
    logits = logits.astype(np.float64)
    if logits.shape == (1,):
        names = labels if labels is not None and len(labels) == 2 else ("0", "1")
        yes = float(1 / (1 + np.exp(-logits[0])))
        both = (
            ClassScore(1, names[1], yes, float(logits[0])),
            ClassScore(0, names[0], 1 - yes, float(-logits[0])),
        )
        return Prediction(image, both if yes >= 0.5 else both[::-1])
    if independent:
        shares = 1 / (1 + np.exp(-logits))
    else:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
    order = np.argsort(-logits, kind="stable")[:MOST_SHOWN]
    return Prediction(
        image,
        tuple(
            ClassScore(
                int(index), str(index) if labels is None else labels[index], float(shares[index]), float(logits[index])
            )
            for index in order
        ),
    )
