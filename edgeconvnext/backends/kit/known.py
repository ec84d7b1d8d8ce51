"""The kit of a run as this machine knows it: what a device was asked, and what it has to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.backends.kit.description import KitDescription, read_description
from edgeconvnext.backends.kit.write import KIT_FILE, VECTORS_FILE, KitOutput
from edgeconvnext.choices import TaskName
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import tree_sha256
from edgeconvnext.received import reading, require_regular_file


@dataclass(frozen=True)
class Kit:
    """The kit of a run, as it was exported: (N, values) answers of FP32 and of the simulation to its check vectors.

    sha256: of kit.json, which names the sha256 of every file of the kit, artifact and vectors included.
    """

    sha256: str
    about: KitDescription
    fp32: np.ndarray
    simulated: np.ndarray

    @property
    def model(self) -> str:
        return self.about.model

    @property
    def target(self) -> str:
        return self.about.target

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) class numbers of the check vectors, (N, classes) of 0 and 1 of task multi-label, None where they are not known."""
        return None if self.about.labels is None else np.asarray(self.about.labels)

    @property
    def task(self) -> TaskName | None:
        """What the logits mean; None without classifier."""
        return self.about.task

    @property
    def outputs(self) -> tuple[KitOutput, ...]:
        """Of a network without classifier, whose answers are samples of these, one behind the other."""
        return self.about.kit_outputs

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """Read the `device/` folder of a run whose files were checked against its manifest.

        Raises RunDirectoryError where kit.json or the vectors do not hold.
        """
        about, path = read_description(folder), folder / VECTORS_FILE
        channels, height, width = about.image_shape
        numbers = about.count * (channels * height * width + 2 * about.values)
        size = require_regular_file(path, RunDirectoryError)
        if size != 4 * numbers:
            raise RunDirectoryError(
                f"{path} has {size} bytes; kit.json describes vectors of {4 * numbers}. Export the model again."
            )
        answers = 2 * about.count * about.values
        with reading(path, RunDirectoryError):
            values = np.fromfile(path, "<f4", offset=4 * (numbers - answers)).astype(np.float32)
        if not np.isfinite(values).all():
            raise RunDirectoryError(f"{path} holds answers that are not finite numbers. Export the model again.")
        fp32, simulated = values.reshape(2, about.count, about.values)
        return cls(tree_sha256(folder / KIT_FILE), about, fp32, simulated)
