"""An artifact to ask: opened in its runtime, with the labels and the preprocessing that it carries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeconvnext.backends import backend_of, backends
from edgeconvnext.backends.metadata import NORMALIZATION, UNKNOWN, ArtifactMetadata
from edgeconvnext.errors import ExportError, UnusablePathError
from edgeconvnext.escape import for_html, for_terminal
from edgeconvnext.evaluation.runner import Outputs
from edgeconvnext.prediction.classes import Prediction
from edgeconvnext.prediction.networks import Answering, ask, outputs_of
from edgeconvnext.received import user_path


@dataclass(frozen=True)
class Artifact:
    """A file or folder that runs on a device. metadata: what it says of itself."""

    path: Path
    metadata: ArtifactMetadata

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Return the most probable classes of an image, or of each of several.

        images: a file, a picture (Pillow) or a tensor (C, H, W) gives one prediction; a folder, a pattern such as photos/*.jpg, a
        set's name, a list, or tensors (N, C, H, W) give a list. Tensors are prepared already. Raises ImageSetError for images that
        cannot be read, RuntimeMissingError where the runtime is not installed.
        """
        answers = ask([self.network], images)
        predictions = [answer.by_network[self.network.title] for answer in answers.images]
        return predictions[0] if is_one(images) else predictions

    def outputs(self, images: Any) -> Outputs:
        """Return all outputs for images, (N, ...) float32 each, in the order of `metadata.outputs`. images: as in `predict`."""
        return outputs_of(self.network, images)

    @cached_property
    def network(self) -> Answering:
        """The artifact in its runtime, opened where it is first asked. Raises RuntimeMissingError, ExportError."""
        backend = backend_of(self.path)
        assert backend is not None
        return Answering(
            "INT8",
            backend.runner(self.path),
            self.metadata.preprocess,
            self.metadata.labels,
            self.metadata.outputs,
            prepares=self.metadata.notes.get(NORMALIZATION) != UNKNOWN,
            independent=self.independent,
        )

    @property
    def independent(self) -> bool:
        """Whether each class is a decision of its own, as the run's task says."""
        return self.metadata.notes.get("task") == "multi-label"

    def __repr__(self) -> str:
        return f"<Artifact {for_terminal(self.path)}: {for_terminal(self.metadata.model_name, 80)}>"

    def _repr_html_(self) -> str:
        return f"<p>Artifact <code>{for_html(self.path)}</code>: {for_html(self.metadata.model_name)}</p>"


def is_one(images: Any) -> bool:
    """Say whether a user means one image: a file, a picture, or one tensor."""
    if isinstance(images, str | Path):
        return user_path(images, UnusablePathError).is_file()
    return not isinstance(images, list | tuple) and getattr(images, "ndim", 3) == 3


def load_artifact(path: str | Path) -> Artifact:
    """Open an artifact that `export` wrote, to ask it for images. Raises ExportError for any other file."""
    file = user_path(path, UnusablePathError)
    backend = backend_of(file)
    if backend is None:
        known = ", ".join(suffix for one in backends() for suffix in one.suffixes)
        raise ExportError(f"{for_terminal(file)} is no artifact that can be opened by its name; these end in {known}.")
    if not file.exists():
        raise ExportError(f"There is no artifact {for_terminal(file)}.")
    return Artifact(file, backend.metadata_of(file))
