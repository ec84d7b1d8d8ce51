"""What travels inside every artifact: whose outputs these are, and how an image must be prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeconvnext.data.preprocess import Preprocess, ValueRange


@dataclass(frozen=True)
class ArtifactMetadata:
    """Model name, labels and preprocessing, written into the artifact so that it can be used without this package.

    labels: one readable name per class, in the order of the logits; None where the checkpoint had none.
    value_range: what the input tensor holds. "normalized" means `(x / 255 - mean) / std`; otherwise the network does
        that itself.
    outputs: names of the artifact's outputs, in their order.
    notes: further key and text pairs, such as the calibration set or the measured fidelity.
    """

    model_name: str
    labels: tuple[str, ...] | None
    preprocess: Preprocess
    value_range: ValueRange
    edgeconvnext_version: str
    outputs: tuple[str, ...] = ("logits",)
    notes: dict[str, str] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """Return the flat key and text pairs that artifact formats store; `from_properties` reads them back."""
        pairs = {
            "model_name": self.model_name,
            "preprocess": json.dumps(asdict(self.preprocess)),
            "value_range": self.value_range,
            "edgeconvnext_version": self.edgeconvnext_version,
            "outputs": ",".join(self.outputs),
        }
        if self.labels is not None:
            pairs["labels"] = json.dumps(list(self.labels), ensure_ascii=False)
        return self.notes | pairs

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ArtifactMetadata:
        """Rebuild the metadata from what `properties` gave; raises KeyError where one of its keys is missing."""
        known = {"model_name", "labels", "preprocess", "value_range", "edgeconvnext_version", "outputs"}
        stored: dict[str, Any] = json.loads(properties["preprocess"])
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        value_range = properties["value_range"]
        if value_range not in ("normalized", "0..1", "0..255"):
            raise ValueError(f"value_range must be normalized, 0..1 or 0..255; it is {value_range!r}")
        return cls(
            model_name=properties["model_name"],
            labels=tuple(json.loads(properties["labels"])) if "labels" in properties else None,
            preprocess=Preprocess(**values),
            value_range=value_range,  # type: ignore[arg-type]
            edgeconvnext_version=properties["edgeconvnext_version"],
            outputs=tuple(properties.get("outputs", "logits").split(",")),
            notes={key: text for key, text in properties.items() if key not in known},
        )
