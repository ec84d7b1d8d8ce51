"""Logits of a run's networks on its evaluation images, as the stages of a run store them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.pipeline.stages.evaluation import LOGITS, REFERENCE, ClassifierStages
from edgeconvnext.received import reading, require_regular_file

if TYPE_CHECKING:
    from edgeconvnext.pipeline.job import Job

_POSITIONS = "positions"
# Beside the numbers, an entry of the archive has a header of 128 bytes and its place in the directory.
_MOST_OVERHEAD_BYTES = 65_536
_FIX = "Make the run again with the same command."


@dataclass(frozen=True)
class MeasuredLogits:
    """What a run's networks answered, (N, classes) each. artifact: None where it did not run.

    positions: of the images in the evaluation set, (N,).
    """

    fp32: np.ndarray
    simulated: np.ndarray
    artifact: np.ndarray | None
    positions: np.ndarray


def measured_logits(job: Job, stages: ClassifierStages) -> MeasuredLogits:
    """Return what the stages of a run measured.

    Raises RunDirectoryError where a file holds anything else, or the two are of different images.
    """
    images, classes = len(job.evaluation.images), job.model.config.num_classes
    reference, logits = stages.reference.path(REFERENCE), stages.accuracy.path(LOGITS)
    floating = read_logits(reference, ("fp32",), images=images, classes=classes)
    quantized = read_logits(logits, ("simulated", "artifact"), images=images, classes=classes)
    if (
        "fp32" not in floating
        or "simulated" not in quantized
        or not np.array_equal(floating[_POSITIONS], quantized[_POSITIONS])
    ):
        raise RunDirectoryError(f"{logits} and {reference.name} do not hold logits of the same images. {_FIX}")
    return MeasuredLogits(floating["fp32"], quantized["simulated"], quantized.get("artifact"), floating[_POSITIONS])


def read_logits(path: Path, names: tuple[str, ...], *, images: int, classes: int) -> dict[str, np.ndarray]:
    """Read the logits (N, classes) of the networks `names` that are there, and their "positions" (N,) among `images` images.

    Raises RunDirectoryError where the file holds anything else; nothing larger than these numbers can take is allocated.
    """
    most = (4 * classes * len(names) + 8) * images + _MOST_OVERHEAD_BYTES
    require_regular_file(path, RunDirectoryError, most=most)
    with reading(path, RunDirectoryError, _FIX):
        with zipfile.ZipFile(path) as archive:
            entries = [
                info for info in archive.infolist() if info.filename in {f"{n}.npy" for n in (*names, _POSITIONS)}
            ]
            for info in entries:
                with archive.open(info) as stream:
                    _check_header(info.filename, stream, most)
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, np.ndarray] = {
                info.filename.removesuffix(".npy"): file[info.filename] for info in entries
            }
        _check(arrays, images, classes)
    return arrays


def _check_header(name: str, stream: IO[bytes], most: int) -> None:
    """Raise ValueError where an array's header asks for more than the file may hold."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} is not of the form that this version writes")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    size = dtype.itemsize
    for side in shape:
        size *= side
    if dtype.hasobject or size > most:
        raise ValueError(f"{name} does not hold numbers of this run")


def _check(arrays: dict[str, np.ndarray], images: int, classes: int) -> None:
    """Raise ValueError where arrays are not the logits of images of this set."""
    positions = arrays.get(_POSITIONS)
    if positions is None or positions.dtype != np.int64 or positions.ndim != 1 or not len(positions):
        raise ValueError("it says not which images its logits are of")
    if positions[0] < 0 or positions[-1] >= images or (np.diff(positions) <= 0).any():
        raise ValueError("it is of other images than the evaluation set's")
    for name, values in arrays.items():
        if name != _POSITIONS and (values.dtype != np.float32 or values.shape != (len(positions), classes)):
            raise ValueError(f"{name} holds no logits of {len(positions)} images and {classes} classes")
