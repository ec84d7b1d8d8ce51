"""A network with one logit decides by its sign: as two logits it has an answer, a probability and a divergence as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    Logits = TypeVar("Logits", np.ndarray, torch.Tensor)


def two_logits(logits: Logits) -> Logits:
    """Return one logit z of N images, (N, 1), as the logits (0, z) of "no" and "yes", (N, 2); others as they are.

    The argmax of (0, z) is the sign of z, 0 being "no", and its softmax is the sigmoid: z = 2 gives 0.119 and 0.881. The argmax
    of z alone is 0 and its softmax 1 whatever the network answers.
    """
    if logits.ndim != 2 or logits.shape[1] != 1:
        return logits
    if isinstance(logits, np.ndarray):
        return logits * np.array([0.0, 1.0], logits.dtype)
    return logits * logits.new_tensor([0.0, 1.0])
