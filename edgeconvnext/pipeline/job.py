"""What a run is asked to do, with every name resolved: model, target, images, labels."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeconvnext.backends import backend_for, check_target, load_target
from edgeconvnext.backends.metadata import NORMALIZATION, UNKNOWN, UNKNOWN_NORMALIZATION
from edgeconvnext.data.class_targets import targets_of_images
from edgeconvnext.data.image_classes import classes_of_images
from edgeconvnext.data.image_set import FolderReader, ImageSet, split_held_out
from edgeconvnext.data.in_memory import IN_MEMORY, classes_are_outputs, prepared, resolve_images
from edgeconvnext.data.labels import matching_note
from edgeconvnext.data.sets import set_files
from edgeconvnext.data.several_classes import has_several_classes
from edgeconvnext.data.shards import shard_files
from edgeconvnext.data.size import Size
from edgeconvnext.errors import (
    CheckpointError,
    HubUnreachableError,
    LabelMismatchError,
    QuantizationError,
    RunDirectoryError,
    TargetError,
)
from edgeconvnext.escape import for_terminal
from edgeconvnext.evaluation.tasks import TASKS, Task, infer_task
from edgeconvnext.model.input_size import SizeRange, check_input_size
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.options.declaration import Options, declared_options
from edgeconvnext.options.groups import (
    ArtifactEnds,
    Compression,
    Input,
    Measuring,
    Method,
    Output,
    Quantization,
    SourceRun,
)
from edgeconvnext.pipeline.inputs import (
    Inputs,
    fitted,
    in_memory,
    normalization_unknown,
    read_inputs,
    read_set,
)
from edgeconvnext.pipeline.stored_config import StoredConfig, stored_config
from edgeconvnext.progress import announce
from edgeconvnext.quantization.candidates import ReconstructionOptions
from edgeconvnext.quantization.precision import BitPlan, read_plan
from edgeconvnext.run.manifest import FinishedRun, load_run
from edgeconvnext.targets import Target, with_ends
from edgeconvnext.tuning.compress import CompressOptions

DEFAULT_MODEL = "convnext_tiny"
SHIPPED_MODEL = "atto_imagenette"
"""Takes the place of DEFAULT_MODEL where the hub does not answer."""
SHIPPED_EVAL = {"atto_imagenette": "imagenette_val", "digits": "digits_test"}
"""Evaluation images of the classes that a shipped model knows."""
MODEL_VARIABLE = "EDGECONVNEXT_MODEL"
METHOD = tuple(declared_options(Method))
"""Options that decide how a plan is made: a run stores them, and --from uses them again."""
# Without an evaluation set, so many of the calibration set's other images are evaluated on.
EVALUATED_OF_CALIBRATION_SET = 1000


@dataclass(frozen=True, kw_only=True)
class Request(ArtifactEnds, Output, Measuring, Compression, Quantization, SourceRun, Input):
    """What the user asked for, before any name is looked up: all options, and what only the pipeline itself sets.

    model: None takes EDGECONVNEXT_MODEL, else the hub's convnext_tiny, without a hub SHIPPED_MODEL. head: all but "classifier"
    make a backbone of the network, which is judged by its outputs and needs no labels. most_evaluated: images that are evaluated
    where no evaluation set is named.
    stored_target, stored_bits, stored_compression: those of the run that `from_run` names. model_from_copy: its folded copy is the
    model. measured_again: stages that are made again, whatever is stored.
    """

    most_evaluated: int = EVALUATED_OF_CALIBRATION_SET
    stored_target: Target | None = None
    stored_bits: BitPlan | None = None
    stored_compression: CompressOptions | None = None
    model_from_copy: bool = False
    measured_again: frozenset[str] = frozenset()

    @classmethod
    def from_options(cls, options: Options) -> Request:
        """Return the request that the options of a command make."""
        names = declared_options(cls).keys() & declared_options(type(options)).keys()
        request = cls(**{name: getattr(options, name) for name in names})
        object.__setattr__(request, "given", options.given & names)
        return request

    def changed(self, **changes: Any) -> Request:
        """Return the request with other values of some options, which count as given where they did before."""
        request = replace(self, **changes)
        object.__setattr__(request, "given", self.given)
        return request

    @property
    def compression(self) -> CompressOptions | None:
        """What is changed before quantization, or None; a run's own changes where the request names none."""
        if not self.changes:
            return self.stored_compression
        return compress_options(self, threads=self.threads, measure_latency=self.latency)

    @property
    def reconstruction_options(self) -> ReconstructionOptions:
        """How the layers are reconstructed: the options of these names."""
        return ReconstructionOptions(
            **{field.name: getattr(self, field.name) for field in fields(ReconstructionOptions)}
        )


def compress_options(options: Compression, **more: Any) -> CompressOptions:
    """Return how the network is changed. more: what the group `Compression` does not say."""
    return CompressOptions(
        macs=options.prune_macs,
        replace_norms=options.replace_norm,
        norms=options.norms,
        max_drop=options.norm_drop,
        recover=options.recover,
        epochs=options.epochs,
        minutes=options.budget_minutes,
        **more,
    )


@dataclass(frozen=True)
class Evaluation:
    """The images accuracy is measured on. labels: the model's class of each image, or None with the reason.

    Of task multi-label, labels are (N, classes) of 0 and 1. command: what measures the task's score, where these images cannot.
    several_classes: whether a label file names several classes an image. notes: what the labels were taken for.
    """

    images: ImageSet
    labels: np.ndarray | None
    unlabelled_reason: str | None
    description: str
    command: str | None = None
    several_classes: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A resolved request. fit, held_out: positions in `calibration` that ranges are fitted and judged on.

    bits: what the command line and the plan file ask for. calibration_labels: the model's class of each calibration image, where
    a budget is to be judged by them and they are known. whole_set: the set that `calibration` was taken from.
    """

    request: Request
    model: LoadedModel
    target: Target
    calibration: ImageSet
    fit: list[int]
    held_out: list[int]
    evaluation: Evaluation
    bits: BitPlan = field(default_factory=BitPlan)
    calibration_labels: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())
    whole_set: ImageSet | None = None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Further input sizes of the artifact, the smallest first; () where it is fixed to the network's own."""
        own = self.model.preprocess.input_size
        return tuple(sorted({*self.request.sizes} - {own}, key=lambda size: (size[0] * size[1], size)))

    @property
    def size_range(self) -> SizeRange | None:
        """What the graph's free height and width span; None where they are fixed."""
        return SizeRange.of([self.model.preprocess.input_size, *self.sizes], self.model.config.total_stride)

    @property
    def profile_sizes(self) -> tuple[Size, ...]:
        """Smallest, typical and largest input of an artifact that takes several sizes, else ()."""
        span = self.size_range
        return () if span is None else (span.smallest, self.model.preprocess.input_size, span.largest)

    @property
    def config(self) -> dict[str, Any]:
        """What was asked, as resolved: goes into the manifest, and a later run can be asked for with it."""
        request = self.request
        return {
            "model": {
                "name": self.model.name,
                "head": request.head,
                "source": _from_anywhere(self.model.source),
                "sha256": self.model.sha256,
                "weights_from": self.model.weights_from,
                "input_size": list(self.model.preprocess.input_size),
                "crop_pct": self.model.preprocess.crop_pct,
                "interpolation": self.model.preprocess.interpolation,
                "mean": list(self.model.preprocess.mean),
                "std": list(self.model.preprocess.std),
                "sizes": [list(size) for size in self.sizes],
                **({NORMALIZATION: UNKNOWN} if normalization_unknown(self.model) else {}),
            },
            "target": {
                "name": self.target.name,
                "sha256": self.target.sha256,
                "definition": self.target.model_dump(mode="json"),
            },
            "calibration": {
                "set": _from_anywhere(request.calib),
                "images": len(self.calibration),
                "list_sha256": self.calibration.list_sha256,
            },
            "evaluation": {
                "set": _from_anywhere(request.eval),
                "labels": _from_anywhere(request.labels),
                "images": len(self.evaluation.images),
                "list_sha256": self.evaluation.images.list_sha256,
            },
            "skip_broken": request.skip_broken,
            "task": request.task,
            "bits": self.bits.model_dump(),
            "method": {name: getattr(request, name) for name in METHOD},
            "compress": None if request.compression is None else asdict(request.compression),
        }

    @property
    def task(self) -> tuple[Task, str]:
        """What the network's answers mean, and why it is that."""
        if self.evaluation.several_classes and "task" not in self.request.given:
            return TASKS["multi-label"], "the labels name several classes an image"
        if self.request.task is not None:
            return TASKS[self.request.task], "as asked with --task"
        return infer_task(self.model.config.num_classes, self.model.module.output_names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called in reports."""
        return None if self.model.labels is None else self.model.labels.descriptions


def resolve(request: Request) -> Job:
    """Look up everything a request names; raises the error of the first thing that is not there."""
    if request.num_images < 3:
        raise QuantizationError(
            f"--num-images is {request.num_images}; calibration needs at least 3 images (a third is held out), better 100 or more."
        )
    target = named_target(request)
    notes: list[str] = []
    request, model = _read(request, notes)
    if request.calib is None:
        raise QuantizationError(
            "No calibration images were named. Give a set's name or a folder with --calib, for example --calib imagenet_1k_subset."
        )
    bits = _bits(request)
    _check_method(request, target)
    if not model.config.num_classes:
        _check_backbone(request, model, target)
    _check_task(request, model)
    for size in request.sizes:
        check_input_size(model.config, size)
    limits = backend_for(target).limits
    if request.sizes and not limits.free_sizes:
        raise TargetError(limits.refused_sizes(target))
    if request.compression is not None:
        request.compression.check()
        if request.eval is None:
            raise QuantizationError(
                "Pruning, replacing LayerNorms and recovery use the calibration set beyond --num-images, so none of it is left to "
                "evaluate on. Name evaluation images with --eval."
            )
    whole = resolve_images(request.calib, skip_broken=request.skip_broken)
    _check_prepared(request, model, whole, target)
    calibration = whole.take(request.num_images)
    fit, held_out = split_held_out(calibration)
    evaluation = _evaluation(request, model, whole, calibration, fit)
    if evaluation.several_classes and request.task is None:
        request = request.changed(task="multi-label")
        _check_task(request, model)
    notes = [*notes, *model.notes, *calibration.notes, *(evaluation.images.notes if request.eval else ())]
    notes += evaluation.notes
    labels = (
        None
        if request.max_drop is None
        else _calibration_labels(calibration, model, len(held_out), request.max_drop, notes)
    )
    return Job(
        request, model, target, calibration, fit, held_out, evaluation, bits, labels, tuple(dict.fromkeys(notes)), whole
    )


def _bits(request: Request) -> BitPlan:
    """Return the bits of the plan file with those of the command line over them."""
    plan = BitPlan() if request.plan is None else read_plan(Path(request.plan))
    own = {"weights": request.weights, "activations": request.activations}
    merged = plan.model_copy(update={key: bits for key, bits in own.items() if bits is not None})
    return merged if request.stored_bits is None or request.plan is not None else merged.over(request.stored_bits)


def _check_method(request: Request, target: Target) -> None:
    """Refuse settings that contradict each other, before any image is read."""
    if request.rounding == "adaround" and target.quantize.weights.palette_bits is not None:
        raise QuantizationError(
            f"--rounding adaround moves weights to the next code, which the palettes of target {target.name} do not hold; leave "
            "it out, or take --rounding gptq."
        )
    if request.max_drop is not None and not 0 < request.max_drop <= 100:
        raise QuantizationError(
            f"--max-drop is {request.max_drop:g}; it takes points of the task's score that may be lost, above 0 and at most 100, "
            "as in 0.5."
        )
    if not 0 < request.adaround_minutes <= 24 * 60:
        raise QuantizationError(
            f"--adaround-minutes is {request.adaround_minutes:g}; give a time above 0 and below a day."
        )
    if request.effort == "quick":
        asked = [
            name
            for name, value in (("--rounding", request.rounding), ("--smoothing", request.smoothing))
            if value not in ("auto", "nearest", "none")
        ]
        if request.max_drop is not None:
            asked.append("--max-drop")
        if asked:
            raise QuantizationError(
                f"--effort quick looks at each tensor by itself and has no {' and no '.join(asked)}; leave out --effort quick."
            )


def _check_task(request: Request, model: LoadedModel) -> None:
    """Refuse a task that the network's head does not have: its score could not change, or would mean something else."""
    classes, task = model.config.num_classes, request.task
    if task is not None and (not classes or (task == "binary") != (classes == 1)):
        logits = f"{classes} logit{'' if classes == 1 else 's'}" if classes else "no logits"
        fits = "binary" if classes == 1 else "single-label or multi-label" if classes else "no --task"
        raise QuantizationError(
            f"--task {task} does not fit this network, which ends with {logits}. Leave --task out, or take {fits}."
        )
    if task == "multi-label" and (request.max_drop is not None or request.compression is not None):
        raise QuantizationError(
            "--max-drop, pruning, replacing LayerNorms and recovery are judged by one class an image, and --task multi-label has "
            "several. Leave them out, or give layers more bits with --plan."
        )


def _check_backbone(request: Request, model: LoadedModel, target: Target) -> None:
    """Refuse what is judged by answers, which a network without classifier does not give."""
    ends = ", ".join(model.module.output_names)
    if target.output.probabilities:
        raise QuantizationError(f"--probabilities are made of logits, and this network ends with {ends}. Leave it out.")
    if request.max_drop is not None:
        raise QuantizationError(
            f"--max-drop counts points of a classifier's score, and this network ends with {ends}. Find the layers that need more "
            "bits with the classifier, and give its run's plan.toml with --plan."
        )
    if request.compression is not None:
        raise QuantizationError(
            f"Pruning, replacing LayerNorms and recovery are judged by a classifier's logits, and this network ends with {ends}. "
            "Change the classifier first (edgeconvnext prune, or fold --replace-norm), and give the file it writes with --model."
        )


def _calibration_labels(
    calibration: ImageSet, model: LoadedModel, held_out: int, max_drop: float, notes: list[str]
) -> np.ndarray | None:
    """Return the classes of the calibration images for a budget, or None, with a note on what is judged instead."""
    labels: np.ndarray | None = None
    try:
        labels = _labels_of(calibration, model)
    except LabelMismatchError:
        notes.append(
            f"The budget of {max_drop:g} points is judged by agreement with FP32 on {held_out} held-out calibration images: "
            f"the labels of {calibration.name} are not the model's."
        )
    if 100 / held_out > max_drop:
        notes.append(
            f"{held_out} held-out calibration images resolve {100 / held_out:.2f} points, and the budget is {max_drop:g}; with "
            f"--num-images {int(np.ceil(300 / max_drop))} one image would not decide it alone."
        )
    return labels


def _read(request: Request, notes: list[str]) -> tuple[Request, LoadedModel]:
    """Load the model; read what a program holds, and put it into the request, which may be resolved again.

    Where all are names and paths, the request stays as it is. notes: gets what a run says of its model.
    """
    most = None if request.changes else request.num_images
    skip = request.skip_broken
    calibration = read_set(request.calib, most, skip_broken=skip) if in_memory(request.calib) else None
    evaluation = read_set(request.eval, skip_broken=skip) if in_memory(request.eval) else None
    sets = {"calib": calibration, "eval": evaluation}
    held = {name: images for name, images in sets.items() if images is not None}
    if request.from_run is not None:
        request, model = _from_run(request.changed(**held), Path(request.from_run), notes)
        return request.changed(**{name: fitted(images, model) for name, images in held.items()}), model
    if not held and not in_memory(request.model):
        return request, _read_inputs(request, None, None, notes).model
    inputs = _read_inputs(request, calibration or read_set(request.calib), evaluation or read_set(request.eval), notes)
    model = replace(inputs.model, notes=tuple(dict.fromkeys((*inputs.model.notes, *inputs.notes))))
    read = {"calib": inputs.calibration, "eval": inputs.evaluation}
    return request.changed(model=model, **{name: read[name] for name in held}), model


def _check_prepared(request: Request, model: LoadedModel, images: ImageSet, target: Target) -> None:
    """Refuse what prepared images cannot do: other sizes, and targets that take pixels where their mean and std are not known."""
    if request.sizes and prepared(images) is not None:
        raise QuantizationError(
            "Further input sizes need photographs, and the images in memory are prepared for one size."
        )
    if not normalization_unknown(model):
        return
    evaluated = images if request.eval is None else resolve_images(request.eval)
    if prepared(images) is None or prepared(evaluated) is None:
        raise QuantizationError(
            "Photographs cannot be prepared for this model: how the images in memory were normalised is not known. Give mean and "
            "std."
        )
    if target.input.value_range != "normalized":
        raise QuantizationError(
            f"Target {target.name} takes pixels: mean and std are folded into the file, and those of the images in memory are not "
            "known. Give mean and std."
        )


def named_target(request: Request) -> Target:
    """Look up the target of a request; a run that is measured again brings its own."""
    target = request.stored_target or load_target(request.target)
    if not request.is_given("input") and not request.probabilities:
        return target
    input_type = request.input if request.is_given("input") else target.input.type
    target = with_ends(target, input_type, probabilities=request.probabilities)
    check_target(target)
    return target


def _read_inputs(
    request: Request, calibration: ImageSet | None, evaluation: ImageSet | None, notes: list[str]
) -> Inputs:
    """Load the model that the request, the environment or nobody names, and fit prepared images to it."""
    named = request.model if in_memory(request.model) else request.model or os.environ.get(MODEL_VARIABLE) or None

    def read(model: Any) -> Inputs:
        return read_inputs(
            model,
            calibration,
            evaluation,
            head=request.head,
            weights_from=request.weights_from,
            resolution=request.resolution,
            crop_pct=request.crop_pct,
            interpolation=request.interpolation,
            mean=request.mean,
            std=request.std,
        )

    if named is not None:
        return read(named)
    try:
        return read(DEFAULT_MODEL)
    except HubUnreachableError:
        note = (
            f"No model was named and the hub does not answer, so the shipped {SHIPPED_MODEL} is used. It knows ten classes of "
            f"photographs. Name another model with --model or {MODEL_VARIABLE}."
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"No model was named, so {DEFAULT_MODEL} was looked for on the hub. {error} Name a model with --model or "
            f"{MODEL_VARIABLE}."
        ) from error
    announce(note)
    notes.append(note)
    return read(SHIPPED_MODEL)


def _evaluation(
    request: Request, model: LoadedModel, whole: ImageSet, calibration: ImageSet, fit: list[int]
) -> Evaluation:
    """Take the evaluation set; without one, the calibration set's images that no range was fitted on.

    Labels that do not match the model are an error where the user asked for this evaluation, else a reason. A network without
    classifier needs none.
    """
    if request.eval is not None:
        images = resolve_images(request.eval, labels=request.labels, skip_broken=request.skip_broken)
        return _labelled(request, model, Evaluation(images, None, None, images.name))
    fitted = {calibration.ids[index] for index in fit}
    rest = [index for index, image_id in enumerate(whole.ids) if image_id not in fitted]
    images = whole.select(rest).take(request.most_evaluated) if rest else calibration
    evaluation = Evaluation(images, None, None, f"{whole.name} (images that ranges were not fitted on)")
    try:
        return _labelled(request, model, evaluation)
    except LabelMismatchError as error:
        return replace(evaluation, unlabelled_reason=str(error), command=_eval_command(request, model))


def _labelled(request: Request, model: LoadedModel, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with the labels that the task takes. Raises LabelMismatchError where they are not the model's."""
    images, classes = evaluation.images, model.config.num_classes
    if not classes:
        return replace(evaluation, unlabelled_reason="the network has no classifier; see outputs")
    several = classes > 1 and has_several_classes(images, model.labels)
    if request.task == "multi-label" or (several and request.task is None):
        if images.labels is None or images.classes_from != "file":
            reason = (
                "these images name one class each, and task multi-label needs a target for each class: a label file"
            )
            return replace(evaluation, unlabelled_reason=reason)
        targets = targets_of_images(images, model.labels, classes)
        return replace(evaluation, labels=targets.values, several_classes=several, notes=targets.notes)
    labels = _labels_of(images, model)
    note = None if classes_are_outputs(images) else matching_note(images, model.labels, classes)
    return replace(evaluation, labels=labels, notes=() if note is None else (note,))


def _eval_command(request: Request, model: LoadedModel) -> str | None:
    """Return the command that measures the task's score on other images than the request's; None for a program's own objects."""
    if in_memory(request.model) or in_memory(request.calib) or request.from_run is not None:
        return None
    named = "" if request.model is None else f" --model {shlex.quote(str(request.model))}"
    images = SHIPPED_EVAL.get(model.name, "SET_OR_FOLDER")
    return f"edgeconvnext quantize{named} --calib {shlex.quote(str(request.calib))} --eval {images}"


def _labels_of(images: ImageSet, model: LoadedModel) -> np.ndarray:
    return classes_of_images(images, model.labels, model.config.num_classes, in_sorted_order=True)


def _from_run(request: Request, path: Path, notes: list[str]) -> tuple[Request, LoadedModel]:
    """Take model and images from a finished run; what the request names itself comes first."""
    finished = load_run(path)
    config = stored_config(finished)
    head = config.model.head
    if request.is_given("head") and request.head != head:
        raise QuantizationError(
            f"{path} was made with --head {head}, and --from takes the head over with the model. Leave out --head "
            f"{request.head}, or name the model with --model."
        )
    _check_images_named(request, config, path)
    stored = stored_model(finished)
    notes += stored.notes
    stored_options = {"num_images": config.calibration.images, **config.method}
    merged = request.changed(
        head=head,
        sizes=request.sizes or config.model.sizes,
        task=request.task if request.is_given("task") else config.task,
        calib=request.calib or config.calibration.set,
        eval=request.eval or config.evaluation.set,
        labels=request.labels if request.eval else config.evaluation.labels,
        skip_broken=request.skip_broken or config.skip_broken,
        stored_bits=config.bits,
        stored_compression=config.compress,
        model_from_copy=stored.is_copy,
        **{name: value for name, value in stored_options.items() if not request.is_given(name)},
    )
    return merged, stored.model


def _check_images_named(request: Request, config: StoredConfig, path: Path) -> None:
    """Raise RunDirectoryError where a run's images were held by a program, and the request names no others."""
    sets = ((request.calib, config.calibration.set, "calib"), (request.eval, config.evaluation.set, "data"))
    for mine, stored, option in sets:
        if mine is None and stored is not None and stored.endswith(IN_MEMORY):
            raise RunDirectoryError(
                f"{path} was made with images that a program held ({for_terminal(stored, 80)}), and a run does not store them. "
                f"Give images with {option}, or go on from the result in Python."
            )


@dataclass(frozen=True)
class StoredNetwork:
    """The FP32 network of a finished run. is_copy: whether it is the folded copy in the run; notes say why then."""

    model: LoadedModel
    is_copy: bool = False
    notes: tuple[str, ...] = ()


def stored_model(finished: FinishedRun) -> StoredNetwork:
    """Load the network a finished run was made from, else its exactly folded copy. Raises CheckpointError where neither loads."""
    path, stored = finished.path, stored_config(finished).model
    preprocessing: dict[str, Any] = stored.model_dump(include={"crop_pct", "interpolation", "mean", "std"})
    size, source = stored.input_size, stored.source
    unknown = (UNKNOWN_NORMALIZATION,) if stored.normalization == UNKNOWN else ()
    try:
        # A hub source ends in @commit; a path may hold an @ of its own.
        name = source if Path(source).exists() else source.partition("@")[0]
        model = load_model(name, head=stored.head, weights_from=stored.weights_from, resolution=size, **preprocessing)
        if model.sha256 != stored.sha256:
            raise CheckpointError(f"{source} has changed since {path} was made")
        return StoredNetwork(replace(model, notes=(*model.notes, *unknown)))
    except CheckpointError as error:
        if "folded.safetensors" not in finished.files:
            raise
        copy = load_model(path / "folded.safetensors", resolution=size, **preprocessing)
        why = "it was a module in memory" if source.endswith(IN_MEMORY) else str(error)
        return StoredNetwork(
            replace(
                copy,
                name=stored.name,
                source=source,
                sha256=stored.sha256,
                weights_from=stored.weights_from,
                notes=unknown,
            ),
            is_copy=True,
            notes=(
                f"The checkpoint that {path.name} was made from is not available ({why}); FP32 figures are those of its exactly "
                "folded copy in the run.",
            ),
        )


def network_job(finished: FinishedRun, target: Target, model: LoadedModel) -> Job:
    """Return the job of a finished run for what reads none of its images: they are not looked up."""
    config = stored_config(finished)
    request = Request(
        stored_target=target, head=config.model.head, task=config.task, sizes=config.model.sizes, output=finished.path
    )
    nothing = ImageSet("images that were not looked up", ("none",), FolderReader(finished.path))
    return Job(request, model, target, nothing, [], [], Evaluation(nothing, None, None, nothing.name))


def _from_anywhere(name: str | Path | ImageSet | None) -> str | None:
    """Return a path as an absolute one, so that the run can be taken up from another folder; names stay as they are."""
    if isinstance(name, ImageSet):
        return name.name
    if name is None or name in set_files():
        return None if name is None else str(name)
    path = Path(name).expanduser()
    if not path.exists() and not (path.parent.is_dir() and shard_files(path)):
        return str(name)
    return str(path.absolute())
