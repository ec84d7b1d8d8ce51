"""What travels inside every artifact: whose outputs these are, and how an image must be prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from edgeconvnext.choices import CropOffset, Interpolation
from edgeconvnext.data.preprocess import Preprocess, ValueRange
from edgeconvnext.errors import EdgeConvNextError, ExportError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import parse_json

NORMALIZATION, UNKNOWN = "normalization", "unknown"
"""A note on artifacts whose input is a tensor that was prepared in a way nobody said."""
UNKNOWN_NORMALIZATION = (
    "How the images in memory were normalised is not known, so the artifact takes tensors that are prepared in the same way. Give "
    "mean and std, and it takes photographs as well."
)
"""The note on a report of such an artifact."""
MOST_TEXT_BYTES = 16 * 2**20
_Side = Annotated[StrictInt, Field(ge=1, le=2**16)]
_Number = StrictFloat | StrictInt


class _StoredPreprocess(BaseModel):
    """`Preprocess` as it is stored: every field of its own type, none besides.

    Only crop_offset may be left out, as in older files.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    input_size: tuple[_Side, _Side]
    crop_pct: _Number
    crop_mode: Literal["center", "squash"]
    interpolation: Interpolation
    mean: Annotated[tuple[_Number, ...], Field(max_length=1024)]
    std: Annotated[tuple[_Number, ...], Field(max_length=1024)]
    crop_offset: CropOffset = "nearest"


Checked = TypeVar("Checked")
_PREPROCESS = TypeAdapter(_StoredPreprocess)
_LABELS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Annotated[tuple[StrictStr, ...], Field(max_length=2**20)])
_VALUE_RANGE: TypeAdapter[ValueRange] = TypeAdapter(ValueRange)


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
        """Rebuild the metadata from what `properties` gave.

        Raises ExportError, naming the key, where one is missing or its text does not hold.
        """
        known = {"model_name", "labels", "preprocess", "value_range", "edgeconvnext_version", "outputs"}
        for key in sorted(known - {"labels", "outputs"}):
            if key not in properties:
                raise ExportError(f"The artifact's metadata do not hold: {key} is missing. Export the model again.")
        stored = _checked(_PREPROCESS, _json(properties, "preprocess"), "preprocess")
        labels = _checked(_LABELS, _json(properties, "labels"), "labels") if "labels" in properties else None
        value_range = _checked(_VALUE_RANGE, properties["value_range"], "value_range")
        try:
            preprocess = Preprocess(**stored.model_dump())
        except EdgeConvNextError as error:
            raise ExportError(f"The artifact's metadata do not hold: preprocess: {error}") from error
        return cls(
            model_name=properties["model_name"],
            labels=labels,
            preprocess=preprocess,
            value_range=value_range,
            edgeconvnext_version=properties["edgeconvnext_version"],
            outputs=tuple(properties.get("outputs", "logits").split(",")),
            notes={key: text for key, text in properties.items() if key not in known},
        )


def _json(properties: Mapping[str, str], key: str) -> Any:
    text = properties[key]
    if len(text) > MOST_TEXT_BYTES:
        raise ExportError(
            f"The artifact's metadata do not hold: {key} has {len(text):,} characters. Export the model again."
        )
    return parse_json(text, f"{key}, in the artifact's metadata,", ExportError)


def _checked(kind: TypeAdapter[Checked], value: object, key: str) -> Checked:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in (key, *first["loc"]))
        raise ExportError(
            f"The artifact's metadata do not hold: {for_terminal(where)[:200]}: {for_terminal(first['msg'])[:200]}. Export the "
            "model again."
        ) from error
