"""Images of one grey, and the greys that a set of them gives back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from edgeconvnext.data.image_set import ImageSet


def png(grey: int, size: tuple[int, int] = (16, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(file, "png")
    return file.getvalue()


def greys(images: ImageSet) -> list[int]:
    return [int(np.asarray(images.read(index))[0, 0, 0]) for index in range(len(images))]
