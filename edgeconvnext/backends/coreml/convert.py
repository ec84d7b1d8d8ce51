"""Write a Core ML package: an image in; class label, probabilities and logits, or features out; int8 and float16 inside."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from edgeconvnext.backends.coreml.graph import single_image_program
from edgeconvnext.backends.coreml.package import check_weights
from edgeconvnext.backends.coreml.runtime import import_coremltools
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import ExportError, nearest
from edgeconvnext.files import TEMPORARY_PREFIX, storage_errors

_IMAGE_SCALE = {"0..255": 1.0, "0..1": 1 / 255}
# Passes of coremltools that are not run. The first two would move the transposes around LayerNorms apart before they are folded
# into them. The third would change weights that were simulated. The fourth makes a multiply-add one batch_norm, with a variance of
# 1 + 1e-5 and one float16 rounding less, so that other int8 codes come out: 49.7 dB in place of 69.5 dB between artifact and
# simulation on the digits network. The last would give every output channel a palette of its own, larger than its weights.
_LEFT_OUT = {
    "common::reduce_transposes",
    "common::merge_consecutive_transposes",
    "common::fuse_conv_scale",
    "common::fuse_elementwise_to_batchnorm",
    "common::canonicalize_quantized_lut_pattern",
}
_OUTPUTS = {"logits": "One score per class, before softmax", "embedding": "The image as one vector"}
_LICENCE_NOTE = "The weights keep the licence of the checkpoint they were made from."


def export_coreml(
    program: ExportedProgram,
    path: Path,
    *,
    metadata: ArtifactMetadata,
    minimum_os: str,
    palette_bits: int | None = None,
) -> Path:
    """Write `program` as an .mlpackage for `minimum_os` ("iOS17", "macOS14" or later) and return its path.

    program: float32 with int8 Q/DQ, or without any for a float16 baseline; one input (N, 1 or 3, H, W) holding what
    `metadata.value_range` says, which must not be "normalized": Core ML's image input has one scale for all channels.
    palette_bits: int8 weights that use no more than 2^palette_bits codes are stored as indices (from iOS 18 on).
    The package takes one image and gives the outputs that `metadata` names; with labels also "classLabel" and "classLabel_probs"
    (softmax).
    What was written is read back and compared with `program` before it appears at `path`, in one rename.

    Raises ExportError for a model or target that Core ML cannot take, RuntimeMissingError without coremltools.
    """
    if path.suffix != ".mlpackage":
        raise ExportError(f"A Core ML package must be named *.mlpackage; {path.name} is not.")
    ct = import_coremltools()
    target = deployment_target(ct, minimum_os)
    image = _image_type(ct, program, metadata)
    labels = _class_labels(program, metadata)
    single = single_image_program(program, probabilities=labels is not None, outputs=metadata.outputs)
    model = _convert(ct, single, image, labels, target, palette_bits)
    _describe(model, metadata, numbers=_numbers(program))
    with _replacing(path) as partial:
        model.save(str(partial))
        # A debug file for ExecuTorch, which the package's manifest does not list.
        (partial / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
        check_weights(program, partial)
    return path


def deployment_target(ct: Any, minimum_os: str) -> Any:
    """Return coremltools' constant for "iOS17" and the like; raises ExportError for one without int8 activations."""
    known = {name: target for name, target in ct.target.__members__.items() if target >= ct.target.iOS17}
    if minimum_os not in known:
        raise ExportError(
            f"Core ML runs int8 activations from iOS17 and macOS14 on; minimum_os = {minimum_os!r} is not one of those."
            f"{nearest(minimum_os, known)} Known: {', '.join(known)}."
        )
    return known[minimum_os]


def _image_type(ct: Any, program: ExportedProgram, metadata: ArtifactMetadata) -> Any:
    channels, height, width = program.example_inputs[0][0].shape[1:]  # type: ignore[index]
    if metadata.value_range not in _IMAGE_SCALE:
        raise ExportError(
            "A Core ML image input cannot be normalised per channel. Fold the normalisation into the network: "
            'set input.value_range = "0..255" in the target file.'
        )
    if channels not in (1, 3):
        raise ExportError(f"A Core ML image has 1 or 3 channels; {metadata.model_name} takes {channels}.")
    layout = ct.colorlayout.RGB if channels == 3 else ct.colorlayout.GRAYSCALE
    return ct.ImageType(
        name="image",
        shape=(1, channels, height, width),
        scale=_IMAGE_SCALE[metadata.value_range],
        color_layout=layout,
    )


def _class_labels(program: ExportedProgram, metadata: ArtifactMetadata) -> list[str] | None:
    """Return one unique label per class; Core ML's dictionary of probabilities would merge classes of the same name."""
    if metadata.labels is None:
        return None
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    classes = int(output.args[0][0].meta["val"].shape[-1])
    if len(metadata.labels) != classes:
        raise ExportError(
            f"{metadata.model_name} has {classes} classes and {len(metadata.labels)} labels. "
            f"Correct label_names in the JSON file beside the weights, or remove them."
        )
    seen = Counter(metadata.labels)
    return [f"{label} (class {index})" if seen[label] > 1 else label for index, label in enumerate(metadata.labels)]


def _convert(
    ct: Any, single: ExportedProgram, image: Any, labels: list[str] | None, target: Any, palette_bits: int | None
) -> Any:
    """Convert in two steps: coremltools 9.0 fails in one step on a float16 classifier that has a second output."""
    from edgeconvnext.backends.coreml.layout import fold_norm_transposes

    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(_LEFT_OUT)
    classifier = None
    if labels is not None:
        classifier = ct.ClassifierConfig(labels, predicted_probabilities_output="probabilities")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # tqdm bars, one per pass pipeline
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        try:
            program = ct.convert(
                single,
                inputs=[image],
                convert_to="milinternal",
                minimum_deployment_target=target,
                compute_precision=ct.precision.FLOAT16,
                pass_pipeline=pipeline,
            )
        except NotImplementedError as error:
            raise ExportError(
                f"coremltools {ct.__version__} cannot convert this model: {str(error).rstrip('.')}."
            ) from error
        fold_norm_transposes(program)
        if target >= ct.target.iOS18:
            from edgeconvnext.backends.coreml.low_bits import pack_four_bits, pack_palettes

            if palette_bits is not None:
                pack_palettes(program, palette_bits)
            pack_four_bits(program)
        # The outputs have their types by now; the list would have to name those of the classifier as well.
        program.functions["main"].set_output_types(None)
        return ct.convert(
            program,
            classifier_config=classifier,
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )


def _numbers(program: ExportedProgram) -> str:
    """Say which numbers the program computes with."""
    operators = {str(node.target) for node in program.graph.nodes}
    if any("quantize_per_tensor" in operator for operator in operators):
        return "int8 weights and activations, float16 elsewhere"
    return "compressed weights, float16 elsewhere" if any("per_channel" in name for name in operators) else "float16"


def _describe(model: Any, metadata: ArtifactMetadata, *, numbers: str) -> None:
    """Write what Xcode and apps show. No author: that is the owner of the weights."""
    import torch

    height, width = metadata.preprocess.input_size
    kind = "image classifier" if metadata.outputs == ("logits",) else "backbone"
    model.short_description = f"{metadata.model_name}: ConvNeXt {kind}, {numbers}"
    model.version = metadata.edgeconvnext_version
    model.license = metadata.notes.get("license", _LICENCE_NOTE)
    properties = model.user_defined_metadata
    properties.update(metadata.properties())
    properties["com.github.apple.coremltools.source"] = f"torch=={torch.__version__.partition('+')[0]}"
    model.input_description["image"] = (
        f"Image of {width} x {height} pixels: resize and crop as the metadata's preprocess says"
    )
    for name in metadata.outputs:
        model.output_description[name] = _OUTPUTS.get(name, "Feature map of a stage, channels first")
    if metadata.labels is not None:
        properties["com.apple.coreml.model.preview.type"] = "imageClassifier"
        model.output_description["classLabel"] = "The most likely class"
        model.output_description["classLabel_probs"] = "Probability of each class"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a package path to write to; move it to `path` on success, and leave `path` alone on failure."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{path.stem}-", dir=path.parent))
        partial, former = folder / path.name, folder / "former"
        try:
            yield partial
            if path.exists():
                path.replace(former)  # a folder that is not empty cannot be renamed over
            partial.replace(path)
        finally:
            if former.exists() and not path.exists():
                former.replace(path)
            shutil.rmtree(folder, ignore_errors=True)
