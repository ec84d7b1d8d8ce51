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
            "Core ML packages are written and read with coremltools, which is not installed. "
            "Install it with: pip install 'edgeconvnext[coreml]'."
        ) from error
    finally:
        logger.removeFilter(unknown)
    return coremltools


def runs_here() -> bool:
    """Return whether this machine has Core ML, which only Apple devices have."""
    return platform.system() == "Darwin"


class CoreMLModel:
    """An .mlpackage in Core ML, on the compute units Core ML chooses. outputs: names of the outputs that are wanted.

    runtime: name and version of what runs it. Raises RuntimeMissingError anywhere but on macOS, and without coremltools.
    """

    def __init__(self, path: Path, outputs: tuple[str, ...] = ("logits",)) -> None:
        if not runs_here():
            raise RuntimeMissingError(
                f"{path} runs in Core ML, which exists on Apple devices only; this machine runs {platform.system()}. "
                f"Copy the run directory to a Mac with macOS 14 or later and validate it there."
            )
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}"
        self._model = import_coremltools().models.MLModel(str(path))
        (feature,) = self._model.get_spec().description.input
        self._input: str = feature.name
        self._outputs = outputs

    def predict(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs, (N, ...) float32 each, for whole pixel values 0..255, (N, C, H, W); one image after the other."""
        rows = [self._model.predict({self._input: _picture(image)}) for image in pixels]
        return tuple(
            np.concatenate([np.asarray(row[name], dtype=np.float32) for row in rows]) for name in self._outputs
        )


def whole_pixels(images: np.ndarray) -> np.ndarray:
    """Round pixel values to what an image file holds: whole numbers 0..255, float32."""
    return np.clip(np.rint(images), 0, 255).astype(np.float32)


def _picture(image: np.ndarray) -> Any:
    """Return a PIL image from whole pixel values, (C, H, W)."""
    from PIL import Image

    pixels = image.astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
