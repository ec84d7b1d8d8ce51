"""What a finished run says it was asked for, checked: a run of others may claim anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from edgeconvnext.backends import refusal
from edgeconvnext.choices import ClassifierTask, Head, Interpolation
from edgeconvnext.data.size import Size
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.options.declaration import declared_options
from edgeconvnext.options.groups import Method
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.run.manifest import FinishedRun
from edgeconvnext.targets import Target
from edgeconvnext.tuning.compress import CompressOptions

_Model = TypeVar("_Model", bound=BaseModel)
_Name = Annotated[str, Field(max_length=4096)]
_Statistic = Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StoredModel(_Stored):
    """The network: where it came from and how its images are prepared. input_size: (height, width).

    interpolation: None, in runs of older versions, is the checkpoint's own. normalization: "unknown" where its images came as
    tensors that nobody said the mean and std of.
    """

    name: _Name
    head: Head = "classifier"
    source: _Name
    sha256: _Name
    weights_from: _Name | None = None
    input_size: Size
    crop_pct: float
    interpolation: Interpolation | None = None
    mean: _Statistic
    std: _Statistic
    sizes: tuple[Size, ...] = Field(default=(), max_length=64)
    normalization: Literal["unknown"] | None = None


class StoredTarget(_Stored):
    """The target with its whole definition."""

    name: _Name
    definition: Target

    @field_validator("definition")
    @classmethod
    def _its_backend_takes_it(cls, target: Target) -> Target:
        refused = refusal(target)
        if refused is not None:
            raise ValueError(refused)
        return target


class StoredImages(_Stored):
    """An image set by name or path. labels: the file that
    names its classes. images: how many of it; list_sha256: hash of their names."""

    set: _Name | None
    labels: _Name | None = None
    images: int = Field(ge=1, le=10**9)
    list_sha256: _Name


# Each option has to be there: a run that lacks one was made by another version, whose default may have been another.
_fields: Any = {name: (get_type_hints(Method)[name], ...) for name in declared_options(Method)}
_StoredMethod = create_model("_StoredMethod", __base__=_Stored, **_fields)


class StoredConfig(_Stored):
    """What `Job.config` wrote. method: the options of `options.groups.Method`, by name."""

    model: StoredModel
    target: StoredTarget
    calibration: StoredImages
    evaluation: StoredImages
    skip_broken: bool = False
    bits: BitPlan
    method: dict[str, Any]
    compress: CompressOptions | None = None
    task: ClassifierTask | None = None


def stored_config(run: FinishedRun) -> StoredConfig:
    """Return what a finished run was asked for; raises RunDirectoryError where its manifest says something else."""
    config = _checked(StoredConfig, run.config, run)
    method = _checked(_StoredMethod, config.method, run)
    return config.model_copy(update={"method": method.model_dump()})


def stored_target(run: FinishedRun) -> Target:
    """Return the target of a finished run, as it was when the run was made."""
    return _checked(StoredTarget, run.config.get("target"), run).definition


def _checked(kind: type[_Model], value: Any, run: FinishedRun) -> _Model:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunDirectoryError(
            f"The manifest of {for_terminal(run.path)} does not say what this version needs of a run: "
            f"{for_terminal(f'{where}: ' if where else '')}{for_terminal(first['msg'])}. Make the run again with the same command."
        ) from error
