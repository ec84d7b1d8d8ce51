"""Targets: one TOML file each, saying how a model is quantised and exported, for which runtime, and what it must reach."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeconvnext.errors import ConfigFileError, TargetError, nearest
from edgeconvnext.resources import resource_dir

Model = TypeVar("Model", bound=BaseModel)
Operator = Literal["stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head"]
Exporter = Literal["onnx", "tensorrt-onnx", "tensorrt-rtx", "tensorrt", "coreml"]


class Section(BaseModel):
    """Base of every table in a target file: unknown keys are errors, values are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InputSection(Section):
    """What the artifact takes.

    value_range: "normalized" leaves mean and std to the caller; "0..1" and "0..255" fold them into the network.
    batch: smallest, typical and largest batch of a dynamic batch axis; three equal numbers fix it.
    """

    value_range: Literal["normalized", "0..1", "0..255"] = "normalized"
    batch: list[int] = Field(default=[1, 8, 32], min_length=3, max_length=3)

    @model_validator(mode="after")
    def _batches_are_ordered(self) -> InputSection:
        low, typical, high = self.batch
        if not 1 <= low <= typical <= high:
            raise ValueError(f"batch {self.batch} must read smallest <= typical <= largest, from 1 on")
        return self

    @property
    def dynamic_batch(self) -> bool:
        return self.batch[0] != self.batch[2]


class ActivationSection(Section):
    """Per-tensor activation quantization. scheme "affine" has a zero point, "symmetric" has none (int8)."""

    bits: Literal[8] = 8
    scheme: Literal["affine", "symmetric"] = "symmetric"
    signed: bool = True


class WeightSection(Section):
    """Per-channel symmetric weights. range_bits 7 uses codes -64..64 only, for CPUs whose int8 products saturate."""

    bits: Literal[8] = 8
    range_bits: Literal[7, 8] = 8


class QuantizeSection(Section):
    """Q/DQ placement: the inputs and weights of these operators are quantised, the rest stays in the target's float type.

    outputs: operators whose output gets a Q/DQ pair as well.
    """

    operators: list[Operator] = Field(min_length=1)
    outputs: list[Operator] = []
    activations: ActivationSection = ActivationSection()
    weights: WeightSection = WeightSection()


class RuntimeSection(Section):
    """The runtime that executes the artifact, and the oldest version it is written for."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "coreml"]
    minimum: str


class GateSection(Section):
    """What the artifact must reach; a gate that is absent is not applied.

    top1_drop_pp: largest loss of top-1 against FP32, percentage points. min_speedup: against the best float form in the
    same runtime. min_fidelity_db: artifact in its runtime against the simulated graph.
    """

    top1_drop_pp: float | None = Field(default=None, ge=0)
    min_speedup: float | None = Field(default=None, gt=0)
    min_fidelity_db: float | None = None


class Target(Section):
    """A deployment target, as its TOML file says."""

    name: str
    description: str
    exporter: Exporter
    float_type: Literal["float32", "float16"]
    opset: int | None = Field(default=None, ge=17, le=25)
    minimum_os: str | None = None
    input: InputSection = InputSection()
    quantize: QuantizeSection
    runtime: RuntimeSection
    gates: GateSection = GateSection()

    @property
    def sha256(self) -> str:
        """Hash of the resolved target, so that defaults count and comments do not."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def target_files() -> dict[str, Path]:
    """Return the shipped targets by name."""
    return {path.stem: path for path in sorted(resource_dir("targets").glob("*.toml"))}


def load_target(name_or_path: str) -> Target:
    """Read a shipped target by name, or a user's own TOML file by path.

    Raises TargetError for an unknown name and ConfigFileError for a file that does not hold.
    """
    files = target_files()
    path = files.get(name_or_path)
    if path is None:
        path = Path(name_or_path)
        if path.suffix != ".toml":
            raise TargetError(
                f"There is no target {name_or_path!r}.{nearest(name_or_path, files)} "
                f"Known targets: {', '.join(files)}; a file of your own is named by its path, ending in .toml."
            )
        if not path.is_file():
            raise TargetError(f"There is no target file {path}. Known targets: {', '.join(files)}.")
    return parse_toml(path, Target)


def parse_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a pydantic model, turning every problem into one ConfigFileError that names its key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigFileError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigFileError(f"{path} does not hold: {'; '.join(_explain(error, model))}.") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Say each problem of a pydantic validation as 'key: what is wrong', with the nearest known key for a misspelt one."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "file"
        if problem["type"] == "extra_forbidden":
            section: type[BaseModel] = model
            for part in problem["loc"][:-1]:
                annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    section = annotation
            lines.append(f"unknown key {key}.{nearest(str(problem['loc'][-1]), section.model_fields)}".rstrip("."))
        else:
            lines.append(f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]} (found {problem['input']!r})")
    return lines
