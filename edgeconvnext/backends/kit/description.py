"""kit.json on this machine: what it may say, checked before anything in the kit is read, sent or compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from edgeconvnext.backends import kit_script_of
from edgeconvnext.backends.kit.write import COMPARED_VALUES, KIT_FILE, MOST_VECTORS, KitOutput
from edgeconvnext.choices import TaskName
from edgeconvnext.errors import EdgeConvNextError, RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import parse_json, read_bytes, reading

KIT_FORMAT = 3
MOST_LAYERS = 5000
# A name goes into shell scripts on the device and into paths there and here: relative, inside the folder, never an option.
_FILE_NAME = re.compile(r"[\w+][\w.+-]*(/[\w+][\w.+-]*)*", re.ASCII)

Text = Annotated[str, StringConstraints(max_length=4000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Model = TypeVar("Model", bound=BaseModel)
Side = Annotated[int, Field(ge=1, le=2**16)]


class Described(BaseModel):
    """Base of what a kit holds or a device writes: exact types, finite numbers; keys that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class DescribedOutput(Described):
    """One output, as `KitOutput`."""

    name: Text
    size: int = Field(ge=1, le=2**31)
    samples: int = Field(ge=1, le=2**20)


class DescribedLayer(Described):
    """One block whose output the device compares."""

    name: Text


class KitDescription(Described):
    """kit.json: which export the kit is of, what its vectors hold, and the sha256 of every file."""

    format: Literal[3]
    model: Text
    target: Text
    script: Text
    module: Text | None
    artifact: Text
    artifact_form: Text
    baseline: Text
    baseline_form: Text
    count: int = Field(ge=1, le=MOST_VECTORS)
    image_shape: list[Side] = Field(min_length=3, max_length=3)
    classes: int = Field(ge=0, le=2**20)
    task: TaskName | None = None
    outputs: list[DescribedOutput] = Field(min_length=1, max_length=100)
    labels: list[int] | list[list[int]] | None
    batch: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(min_length=3, max_length=3)
    gates: dict[Text, float | None] = Field(max_length=10)
    layers: list[DescribedLayer] = Field(max_length=MOST_LAYERS)
    files: dict[Text, Sha256] = Field(min_length=3, max_length=MOST_LAYERS)

    @property
    def values(self) -> int:
        """Compared values of an image, all outputs one after the other."""
        return sum(output.samples for output in self.outputs)

    @property
    def kit_outputs(self) -> tuple[KitOutput, ...]:
        """The outputs of a network without classifier; () for a classifier, whose only output are its logits."""
        if self.classes:
            return ()
        return tuple(KitOutput(output.name, output.size, output.samples) for output in self.outputs)

    def _is_label(self, label: int | list[int]) -> bool:
        """Say whether a label is a class, or of task multi-label 0 or 1 for each class."""
        if isinstance(label, int):
            return self.task != "multi-label" and 0 <= label < max(2, self.classes)
        return self.task == "multi-label" and len(label) == self.classes and set(label) <= {0, 1}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        script = kit_script_of(self.module, self.artifact)
        if script is None or script.name != self.script:
            raise ValueError(
                f"no runtime has a script {self.script!r} for {self.artifact!r} that builds with {self.module!r}"
            )
        for name in (*self.files, self.artifact, self.baseline):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a file inside the kit")
        for output in self.outputs:
            if output.samples > output.size or (not self.classes and output.samples > COMPARED_VALUES):
                raise ValueError(f"output {output.name!r} has more samples than values")
        if self.classes and [output.samples for output in self.outputs] != [self.classes]:
            raise ValueError(f"{self.classes} classes do not fit the outputs")
        if self.labels is not None:
            if len(self.labels) != self.count:
                raise ValueError(f"there are {len(self.labels)} labels for {self.count} images")
            if not all(map(self._is_label, self.labels)):
                raise ValueError(f"a label is none of {self.classes} classes, or no 0 or 1 for each of them")
        if not self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ValueError("the batches are not in order")
        return self


def read_description(folder: Path) -> KitDescription:
    """Read the kit.json of a run's `device/` folder; raises RunDirectoryError where it does not hold."""
    path = folder / KIT_FILE
    again = "Export the model again."
    value = strict_json(read_bytes(path, RunDirectoryError), path, RunDirectoryError)
    format_ = value.get("format") if isinstance(value, dict) else None
    if isinstance(format_, int) and format_ > KIT_FORMAT:
        raise RunDirectoryError(f"{path} was made by a newer version of edgeconvnext. Update the one on this machine.")
    return checked(KitDescription, value, path, RunDirectoryError, again)


def strict_json(content: bytes, source: Path, error: type[EdgeConvNextError]) -> object:
    """Parse JSON as `received.parse_json`, and refuse what readers of it understand differently: NaN, a key given twice."""
    parse_json(content, source, error)
    with reading(source, error):
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)


def checked(model: type[Model], value: object, source: Path, error: type[EdgeConvNextError], fix: str) -> Model:
    """Return `value` as a record of type `model`; raises `error`, naming the first field that does not hold."""
    try:
        return model.model_validate(value)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_input=False)[0]
        where = for_terminal(".".join(str(part) for part in first["loc"]))[:200]
        why = for_terminal(first["msg"])[:300].removeprefix("Value error, ")
        raise error(f"{source} does not hold: {where + ': ' if where else ''}{why}. {fix}") from failure


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no finite number")
