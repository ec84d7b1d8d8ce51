"""Run a network in its runtime: images in, logits or features out, whatever the runtime wants in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from edgeconvnext.data.loader import Batch


Outputs = tuple[np.ndarray, ...]
"""What a network gives for N images, (N, ...) float32 each: the logits alone, or several, in the network's own order."""


class Runner(Protocol):
    """A network in its runtime.

    Takes float32 images (N, C, H, W), normalised as the checkpoint wants them. Called, it returns the first output, the logits
    (N, num_classes) of a classifier; `outputs` returns all.
    runtime: its name and version.
    """

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...

    def outputs(self, images: np.ndarray) -> Outputs: ...


class TorchRunner:
    """A torch module, or an exported program's `.module()`, in this process.

    batch: the batch size a program was exported for; None where it takes any.
    """

    def __init__(
        self,
        module: Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]],
        name: str = "torch",
        batch: int | None = None,
    ) -> None:
        self.name = name
        self.runtime = f"torch {torch.__version__}"
        self.batch = batch
        self._module = module

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return in_fixed_batches(self._run, images, self.batch)

    def _run(self, images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            result = self._module(tensor)
        return tuple(output.float().numpy() for output in (result if isinstance(result, tuple) else (result,)))


def in_fixed_batches(run: Callable[[np.ndarray], Outputs], images: np.ndarray, batch: int | None) -> Outputs:
    """Run `images` in pieces of exactly `batch`, filling the last one with copies of its last image."""
    if batch is None or len(images) == batch:
        return run(images)
    pieces = []
    for start in range(0, len(images), batch):
        piece = images[start : start + batch]
        missing = batch - len(piece)
        filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
        pieces.append([output[: len(piece)] for output in run(filled)])
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def collect(runners: Mapping[str, Runner], stream: Iterable[Batch]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run every runner over one pass of the images, so that each image is decoded once.

    Returns the logits of each runner, (N, num_classes) float32, and the positions in the set, (N,): an image that
    could not be read has no row.
    """
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    positions: list[np.ndarray] = []
    for batch in stream:
        images = np.ascontiguousarray(batch.images.numpy())
        positions.append(np.asarray(batch.indices, dtype=np.int64))
        for name, runner in runners.items():
            pieces[name].append(runner(images))
    if not positions:
        raise ValueError("the stream of images is empty")
    return {name: np.concatenate(parts) for name, parts in pieces.items()}, np.concatenate(positions)
