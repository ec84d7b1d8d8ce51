"""coremltools and Core ML itself: imported where present, named where missing."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeconvnext.errors import RuntimeMissingError

# Said at import, and known: the newest torch that coremltools' authors tried, a scikit-learn converter that is not used
# here, and Core ML's own library, which exists on macOS only.
_KNOWN_MESSAGES = ("Torch version", "scikit-learn version", "Failed to load _ML")


def import_coremltools() -> ModuleType:
    """Import coremltools without its import-time messages. Raises RuntimeMissingError where it is not installed."""
    logger = logging.getLogger("coremltools")

    def unknown(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_KNOWN_MESSAGES)

    logger.addFilter(unknown)
    try:
        import coremltools
    except ImportError as error:
        raise RuntimeMissingError(
            "Core ML packages are written and read with coremltools, which is not installed here. "
            "Install it with: pip install 'edgeconvnext[coreml]'."
        ) from error
    finally:
        logger.removeFilter(unknown)
    return coremltools


def predict_coreml(path: Path, images: np.ndarray) -> np.ndarray:
    """Run an .mlpackage in Core ML, one image after the other, on the compute units Core ML chooses.

    images: pixel values 0..255, whatever the network takes, (N, C, H, W); rounded to whole numbers. Returns the logits,
    (N, num_classes) float32. Raises RuntimeMissingError anywhere but on macOS.
    """
    if platform.system() != "Darwin":
        raise RuntimeMissingError(
            f"{path} runs in Core ML, which exists on Apple devices only; this machine runs {platform.system()}. "
            f"Copy the run directory to a Mac with macOS 14 or later and validate it there."
        )
    model = import_coremltools().models.MLModel(str(path))
    (feature,) = model.get_spec().description.input
    rows = [model.predict({feature.name: _picture(image)})["logits"] for image in images]
    return np.concatenate([np.asarray(row, dtype=np.float32).reshape(1, -1) for row in rows])


def _picture(image: np.ndarray) -> Any:
    """Return a PIL image from pixel values, (C, H, W)."""
    from PIL import Image

    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
