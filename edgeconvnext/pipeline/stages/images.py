"""The images that stages read, preprocessed as the model wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import BatchStream, SkippedImage, batches
from edgeconvnext.pipeline.job import Job


def proof_images(job: Job) -> torch.Tensor:
    """A few real calibration images, preprocessed, (N, C, H, W)."""
    from edgeconvnext.rewrite.exact import PROOF_IMAGES

    indices = list(range(0, len(job.calibration), max(1, len(job.calibration) // PROOF_IMAGES)))[:PROOF_IMAGES]
    return torch.cat(list(images_of(read_images(job, job.calibration, indices, "Reading images"))))


def read_images(job: Job, images: ImageSet, indices: list[int] | None, description: str) -> BatchStream:
    """Read images of a set in batches. indices: None reads all. description: of the progress bar."""
    return batches(images, job.model.preprocess, indices=indices, description=description)


def images_of(stream: BatchStream) -> Iterator[torch.Tensor]:
    """Yield the images of each batch, (N, C, H, W)."""
    return (batch.images for batch in stream)


def skipped_texts(skipped: Iterable[SkippedImage]) -> list[str]:
    """Name the images that could not be read, each with the reason."""
    return [f"{image.id}: {image.reason}" for image in skipped]
