"""Look into a written .mlpackage: operators, element types, labels, and whether its weights are the simulated ones.

Everything here works where Core ML itself does not run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from edgeconvnext.backends.coreml.graph import LayerWeight, graph_module, layer_weights
from edgeconvnext.backends.coreml.runtime import import_coremltools
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import ExportError

_COMPRESSED = {"constexpr_affine_dequantize": "quantized_data", "constexpr_blockwise_shift_scale": "data"}
_PALETTE = "constexpr_lut_to_dense"
_WEIGHTED = ("conv", "linear")
# Half a unit in the last place of float16, for a scale twice: its own rounding and that of the input's scale.
_HALF_ROUNDING = 2.0**-11
_SMALLEST_HALF = 2.0**-24


@dataclass(frozen=True)
class OpCount:
    """How often an operator occurs in the program."""

    operator: str
    count: int


@dataclass(frozen=True)
class Feature:
    """One input or output.

    kind: "image", "array", "dictionary" or "text". detail: as in "RGB 224x224" or "float16 1x1000", else empty.
    """

    name: str
    kind: str
    detail: str


@dataclass(frozen=True)
class PackageInfo:
    """What an .mlpackage holds.

    operators: by falling count, constants left out. weight_types: element types of the weights of convs and linears,
    with the number of layers. float32_operators: those that compute in float32; casts at the image and before the
    classifier, which Core ML fixes to float32, do not count.
    specification: Core ML's format version (8: iOS 17, macOS 14; 9: iOS 18).
    """

    operators: tuple[OpCount, ...]
    weight_types: dict[str, int]
    float32_operators: tuple[str, ...]
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    labels: tuple[str, ...] | None
    specification: int
    description: str
    version: str
    metadata: dict[str, str]

    def count(self, operator: str) -> int:
        """Return how often `operator` occurs."""
        return next((entry.count for entry in self.operators if entry.operator == operator), 0)


@dataclass(frozen=True)
class WeightCheck:
    """The artifact's weights against the simulation's: int8 codes are identical, floats differ by float16's rounding.

    layers: convs and linears compared. int8_layers: those with int8 weights.
    largest_scale_error: relative error of what an int8 product is worth, weight scale times input scale; 0 where the
    plan chose float16 scales, as it does for float16 targets.
    largest_float_error: of float weights and biases, relative to the largest value of their tensor.
    """

    layers: int
    int8_layers: int
    largest_scale_error: float
    largest_float_error: float


def package_metadata(path: Path) -> ArtifactMetadata:
    """Return what an .mlpackage says of its labels and preprocessing. Raises ExportError for one that says nothing."""
    properties = inspect_mlpackage(path).metadata
    if "preprocess" not in properties:
        raise ExportError(f"{path} does not say how images are prepared for it. Export the model again.")
    return ArtifactMetadata.from_properties(properties)


def inspect_mlpackage(path: Path) -> PackageInfo:
    """Read operators, element types, features, labels and metadata of an .mlpackage.

    Raises ExportError for a path that is not a readable package, RuntimeMissingError without coremltools.
    """
    model, operations = open_package(path)
    description = model.get_spec().description
    counts = Counter(op.op_type for op in operations if op.op_type != "const")
    return PackageInfo(
        operators=tuple(OpCount(name, count) for name, count in counts.most_common()),
        weight_types=dict(Counter(_weight_type(op) for op in operations if op.op_type in _WEIGHTED)),
        float32_operators=tuple(op.op_type for op in operations if _computes_in_float32(op)),
        inputs=tuple(_feature(feature) for feature in description.input),
        outputs=tuple(_feature(feature) for feature in description.output),
        labels=_labels(operations),
        specification=model.get_spec().specificationVersion,
        description=model.short_description,
        version=model.version,
        metadata=dict(model.user_defined_metadata),
    )


def check_weights(program: ExportedProgram, path: Path) -> WeightCheck:
    """Compare every weight and bias in the package with the program it was made from.

    Raises ExportError, naming the layer, where int8 codes differ or a float differs by more than float16's rounding.
    """
    _, operations = open_package(path)
    expected = layer_weights(graph_module(program))
    found = [op for op in operations if op.op_type in _WEIGHTED]
    if len(expected) != len(found):
        raise ExportError(f"{path} holds {len(found)} convs and linears; the quantised model has {len(expected)}.")
    scale_errors, float_errors = [0.0], [0.0]
    for layer, op in zip(expected, found, strict=True):
        float_errors.append(_float_error(path, layer, layer.bias.numpy(), op.bias.val))
        if layer.scale is None:
            float_errors.append(_float_error(path, layer, layer.weight.numpy(), op.weight.val))
        else:
            scale_errors.append(_scale_error(path, layer, op))
    return WeightCheck(
        layers=len(expected),
        int8_layers=len(scale_errors) - 1,
        largest_scale_error=max(scale_errors),
        largest_float_error=max(float_errors),
    )


def open_package(path: Path) -> tuple[Any, list[Any]]:
    """Open a package without running it; return coremltools' model and its operations in order."""
    ct = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    if not (path / "Manifest.json").is_file():
        raise ExportError(f"{path} is not a Core ML package: it has no Manifest.json. Export the model again.")
    try:
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
    except (
        Exception
    ) as error:  # coremltools raises bare Exception, RuntimeError and protobuf's own errors for a broken package
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ExportError(f"{path} cannot be read as a Core ML package: {reason}. Export the model again.") from error
    return model, list(program.functions["main"].operations)


def _weight_type(op: Any) -> str:
    from coremltools.converters.mil.mil import types

    source = op.weight.op
    if source.op_type in _COMPRESSED:
        data = source.inputs[_COMPRESSED[source.op_type]]
        palette = data.op is not None and data.op.op_type == _PALETTE
        # numpy has no int4; coremltools marks int8 arrays that stand for it.
        if palette:
            return f"palettised {types.builtin_to_string(data.op.indices.dtype)}"
        return types.builtin_to_string(data.dtype)
    return op.weight.val.dtype.name


def _computes_in_float32(op: Any) -> bool:
    if op.op_type in ("const", "cast"):
        return False
    from coremltools.converters.mil.mil import types

    return any(var.is_tensor_or_scalar_of(dtype="fp32") for var in op.outputs if not types.is_dict(var.sym_type))


def _labels(operations: list[Any]) -> tuple[str, ...] | None:
    for op in operations:
        if op.op_type == "classify":
            return tuple(str(label) for label in op.classes.val)
    return None


def _feature(feature: Any) -> Feature:
    from coremltools.proto import FeatureTypes_pb2 as proto

    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        colours = proto.ImageFeatureType.ColorSpace.Name(image.colorSpace)
        return Feature(feature.name, "image", f"{colours} {image.height}x{image.width}")
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        element = proto.ArrayFeatureType.ArrayDataType.Name(array.dataType).lower()
        return Feature(feature.name, "array", f"{element} {'x'.join(str(size) for size in array.shape)}")
    return Feature(feature.name, {"dictionaryType": "dictionary", "stringType": "text"}[kind], "")


def _float_error(path: Path, layer: LayerWeight, expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value; raise ExportError beyond float16's rounding."""
    found = _as_linear(found, expected.ndim)
    if expected.shape != found.shape:
        raise ExportError(f"{layer.name} has the shape {found.shape} in {path} and {expected.shape} in the model.")
    difference = np.abs(expected - found.astype(np.float32))
    if not np.all(difference <= _HALF_ROUNDING * np.abs(expected) + _SMALLEST_HALF):
        raise ExportError(
            f"A weight or bias of {layer.name} differs in {path} by {difference.max():.2e} from the model it was made "
            f"from, more than float16 rounds: the package does not belong to this model. Export the model again."
        )
    return float(difference.max() / max(float(np.abs(expected).max()), _SMALLEST_HALF))


def _scale_error(path: Path, layer: LayerWeight, op: Any) -> float:
    """Return the largest relative error of an int8 product's worth; raise ExportError where codes or scales differ."""
    source = op.weight.op
    if source.op_type not in _COMPRESSED or layer.scale is None:
        raise ExportError(f"{layer.name} has int8 weights in the model and none in {path}. Export the model again.")
    codes = _as_linear(_stored_codes(source), layer.weight.dim())
    if not np.array_equal(codes, layer.weight.numpy()):
        raise ExportError(f"The int8 weights of {layer.name} in {path} are not the model's. Export it again.")
    used = codes.reshape(len(codes), -1).any(axis=1)
    worth = source.inputs["scale"].val.astype(np.float64).reshape(-1) * _input_scale(op)
    expected = layer.scale.double().numpy()
    error = np.abs(worth - expected)[used] / expected[used]
    largest = float(error.max(initial=0.0))
    # A scale below float16's normal range keeps fewer digits: its rounding is absolute.
    floor = _SMALLEST_HALF * _input_scale(op) / expected[used]
    if not np.all(error <= 2.1 * _HALF_ROUNDING + floor):
        raise ExportError(
            f"The scales of {layer.name} in {path} are off by up to {largest:.1e}, more than float16 rounds."
        )
    return largest


def _stored_codes(source: Any) -> np.ndarray:
    """Return the codes of a compressed weight, looked up where it has a palette."""
    data = source.inputs[_COMPRESSED[source.op_type]]
    codes: np.ndarray = data.op.materialized_val_inference() if data.val is None else data.val
    return codes


def _as_linear(weight: np.ndarray, rank: int) -> np.ndarray:
    """Return the weight of a 1x1 conv that stands for a linear as the linear's, (out, in)."""
    return weight[:, :, 0, 0] if rank == 2 and weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def _input_scale(op: Any) -> float:
    source = op.x.op
    return float(source.scale.val) if source is not None and source.op_type == "dequantize" else 1.0
