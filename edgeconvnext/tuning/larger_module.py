"""A ConvNeXt inside a larger module (a detector, a segmenter, two towers), quantised in place; the rest stays float.

The accuracy engine fits the backbone on what the larger module feeds it. Its parts then replace the module's own
(`model.enclosed`), and the whole becomes one graph, one artifact. Each output of the whole is judged.
"""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeconvnext.backends import backend_for, check_bits
from edgeconvnext.backends.base import Exported, LatencyResult, LatencySettings, Programs
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.loader import MOST_AT_ONCE, Batch
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, OptionError, QuantizationError, RewriteError
from edgeconvnext.evaluation.outputs import compare_outputs
from edgeconvnext.evaluation.runner import TorchRunner
from edgeconvnext.model.enclosed import WHOLE, EnclosedBackbone, find_backbone, first_difference
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.float16_notes import float16_notes, naming_overflows
from edgeconvnext.quantization.float16_range import Float16Range, beyond_float16, watched_peaks
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.precision import BitPlan, asked_bits, resolve_precision
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.reconstruct import reconstruct
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.rewrite.exact import EXACT_LIMIT, PROOF_IMAGES, fold_exact
from edgeconvnext.rewrite.gelu import with_gelu
from edgeconvnext.rewrite.tensor_file import TensorFile
from edgeconvnext.schema.report import OutputRecord
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from edgeconvnext.evaluation.runner import Runner
    from edgeconvnext.quantization.candidates import ReconstructionOptions

HELD_OUT = 3
"""Every third image that reaches the backbone is held out from fitting, as in sets (`data.image_set.split_held_out`)."""


class TensorOutputs(nn.Module):
    """The larger module with its output as a tuple of tensors, whatever structure it returns.

    names: of the tensors, by their place in that structure: "output" for a lone tensor, "0" and "1" in a tuple, "boxes" in a dict.
    """

    def __init__(self, whole: nn.Module, example: torch.Tensor) -> None:
        """example: images (N, C, H, W), run once to see the structure. Raises OptionError where it holds no float tensor."""
        super().__init__()
        self.whole_module = whole
        with torch.inference_mode():
            leaves, self.structure = pytree.tree_flatten_with_path(whole(example))
        self.positions = [index for index, (_, value) in enumerate(leaves) if _is_output(value, len(example))]
        self.others = [None if index in self.positions else value for index, (_, value) in enumerate(leaves)]
        names = [_output_name(leaves[index][0]) for index in self.positions]
        self.names = tuple(name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names))
        if not self.names:
            raise OptionError(
                lambda _: (
                    f"{type(whole).__name__} returns no float tensor with one row an image; found "
                    f"{', '.join(type(value).__name__ for _, value in leaves) or 'nothing'}. Wrap it so that it does."
                )
            )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = pytree.tree_leaves(self.whole_module(images), is_leaf=lambda value: value is None)
        return tuple(leaves[index] for index in self.positions)

    def restored(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        """Return these tensors in the structure that the larger module returns."""
        leaves = list(self.others)
        for index, value in zip(self.positions, outputs, strict=True):
            leaves[index] = value
        return pytree.tree_unflatten(leaves, self.structure)


class SimulatedModule(nn.Module):
    """The larger module with its backbone's quantization simulated; takes and returns what the module itself does."""

    def __init__(self, graph: GraphModule, outputs: TensorOutputs) -> None:
        super().__init__()
        self.graph = graph
        self._restored = outputs.restored

    def forward(self, images: torch.Tensor) -> Any:
        """images: (N, C, H, W), of the size it was quantised at."""
        return self._restored(self.graph(images))


@dataclass(frozen=True)
class Measured:
    """Outputs against the float module's, each with its SQNR, and how many images that was measured on."""

    outputs: list[OutputRecord]
    images: int


@dataclass(frozen=True)
class QuantizedModule:
    """A larger module with a quantised backbone.

    backbone: what was quantised, and where. plan: by paths of the larger module. error: the largest relative error of its outputs
    by putting the exactly folded backbone in its place, before anything was quantised.
    quantized, floating: the graphs, float32, from images to `names`. examples: a few calibration images, (N, C, H, W).
    float16: activations anywhere in the whole that float16 does not hold, by path; None where the target computes in float32.
    """

    target: Target
    backbone: EnclosedBackbone
    plan: QuantPlan
    error: float
    original: TensorOutputs
    quantized: ExportedProgram
    floating: ExportedProgram
    examples: torch.Tensor
    preprocess: Preprocess
    float16: Float16Range | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: activations that the target's float16 does not hold."""
        return tuple(float16_notes(self.float16))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.original.names

    @property
    def module(self) -> SimulatedModule:
        """The whole with its quantization simulated, an nn.Module in place of the original."""
        return SimulatedModule(simulator(self.quantized, self.target.float_type), self.original)

    def measure(self, images: Iterable[torch.Tensor], artifact: Runner | None = None) -> Measured:
        """Compare every output with the float module's, of the simulation and of an artifact where one is given.

        images: batches (N, C, H, W), read once; no output is kept.
        """
        simulated = TorchRunner(simulator(self.quantized, self.target.float_type))
        stream = (Batch(batch, list(range(len(batch)))) for batch in images)
        with naming_overflows(self.float16):
            outputs, count = compare_outputs(self.names, TorchRunner(self.original), simulated, artifact, stream)
        return Measured(outputs, count)

    def export(self, folder: Path, name: str = "model") -> ExportedModule:
        """Write the artifact of the whole, and its float form, and prove that it computes what was simulated.

        folder: made where it is missing; an earlier artifact in it is replaced. Raises what the target's backend raises.
        """
        backend = backend_for(self.target)
        backend.require(self.target)
        simulation = simulator(self.quantized, self.target.float_type)
        images = self.examples.numpy()
        with torch.inference_mode():
            simulated = TorchRunner(simulation).outputs(images)
        programs = Programs(self.quantized, self.floating, images, simulated)
        description = ArtifactMetadata(
            model_name=name,
            labels=None,
            preprocess=self.preprocess,
            value_range="normalized",
            edgeconvnext_version=metadata.version("edgeconvnext"),
            outputs=self.names,
            notes={"backbone": self.backbone.path} | ({"float16": " ".join(self.notes)} if self.notes else {}),
        )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            exported = backend.export(self.target, programs, Path(scratch), description)
            for written in Path(scratch).iterdir():
                _replace(written, folder / written.name)
        return ExportedModule(self, folder, exported)


@dataclass(frozen=True)
class ExportedModule:
    """An artifact of a larger module. exported: what was proven of it."""

    source: QuantizedModule
    folder: Path
    exported: Exported

    @property
    def path(self) -> Path:
        """The artifact."""
        return self.folder / backend_for(self.source.target).artifact

    def runner(self) -> Runner:
        """Open the artifact in its runtime. Raises RuntimeMissingError where this machine has none."""
        return backend_for(self.source.target).runner(self.path)

    def latency(self, *, threads: int = 1, seconds: float | None = None) -> LatencyResult:
        """Time the artifact in its runtime, interleaved with the float form of the whole."""
        backend, examples = backend_for(self.source.target), self.source.examples
        settings = LatencySettings(
            threads=threads,
            seconds=seconds,
            images=examples.numpy(),
            input_size=(examples.shape[2], examples.shape[3]),
            in_channels=examples.shape[1],
        )
        return backend.latency(self.folder / backend.baseline, self.path, settings)


def quantize_module(
    whole: nn.Module,
    target: Target,
    images: Iterable[torch.Tensor],
    *,
    preprocess: Preprocess,
    backbone: str | None = None,
    bits: BitPlan | None = None,
    options: ReconstructionOptions | None = None,
) -> QuantizedModule:
    """Fold and quantise the ConvNeXt inside a module in place, calibrated on what reaches it; `whole` is left as it is.

    images: batches (N, C, H, W) as the whole takes them, read once; 100 or more in all. preprocess: how they were made, for the
    artifact's metadata. backbone: path of the ConvNeXt, "model.encoder"; None searches for it.
    Raises CheckpointError where it is not there, RewriteError where ours does not compute what it does, OptionError for a target
    that takes raw pixels, QuantizationError for too few images.
    """
    if target.input.value_range != "normalized":
        raise OptionError(
            lambda _: (
                f"Target {target.name} takes raw pixels, which go into a classifier's stem. A larger module needs a target with "
                'input.value_range "normalized", such as onnx or jetson.'
            )
        )
    enclosed = find_backbone(whole, backbone)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        seen = _SeenImages(Path(name), whole, enclosed, images, watched=target.float_type == "float16")
        folded = fold_exact(enclosed.module, seen.proof()).module
        floating = enclosed.within(whole, folded)
        original = TensorOutputs(_in_eval_mode(whole), seen.examples[:1])
        error = _proven(original, floating, enclosed, seen.examples)
        network = with_gelu(folded, target.layout.gelu)
        precisions = resolve_precision(network, target, bits or BitPlan())
        check_bits(target, asked_bits(network, target, bits or BitPlan()))
        result = reconstruct(
            network,
            target,
            precisions,
            seen.fit.batches(0, len(seen.fit)),
            seen.held_out.batches(0, len(seen.held_out)),
            preprocess=preprocess,
            folder=Path(name),
            options=options,
        )
    plan = _at_places(result.plan, enclosed)
    graphs = [
        export_program(
            TensorOutputs(module, seen.examples[:1]),
            seen.examples[:1],
            max_batch=max(target.input.batch[2], MOST_AT_ONCE),
        )
        for module in (enclosed.within(whole, result.module), enclosed.within(whole, network))
    ]
    return QuantizedModule(
        target,
        enclosed,
        plan,
        error,
        original,
        quantize_program(graphs[0], _below(plan, f"{WHOLE}.")),
        graphs[1],
        seen.examples,
        preprocess,
        _float16_range(enclosed, seen.peaks, result.float16),
    )


class _SeenImages:
    """What reaches the backbone for the calibration images, on disk: two of three rows to fit on, the third held out.

    examples: the first images as the larger module takes them, (N, C, H, W). peaks: largest magnitudes of what every submodule
    takes and gives, where `watched`.
    """

    def __init__(
        self,
        folder: Path,
        whole: nn.Module,
        backbone: EnclosedBackbone,
        images: Iterable[torch.Tensor],
        *,
        watched: bool,
    ) -> None:
        self.fit, self.held_out = TensorFile(folder / "fit.bin"), TensorFile(folder / "held_out.bin")
        self._rows = 0
        self._shape: tuple[int, ...] | None = None
        first: list[torch.Tensor] = []
        module = _in_eval_mode(whole)
        hook = module.get_submodule(backbone.path).register_forward_pre_hook(self._store, with_kwargs=True)
        watching: AbstractContextManager[dict[str, float]] = nullcontext({})
        if watched:
            watching = watched_peaks(module, inputs=True)
        try:
            with watching as self.peaks:
                for batch in images:
                    module(batch)
                    missing = PROOF_IMAGES - sum(len(part) for part in first)
                    if missing > 0:
                        first.append(batch[:missing].clone())
        finally:
            hook.remove()
        if not first:
            raise QuantizationError("Calibration needs images, and there are none. Give 100 or more.")
        if not self._rows:
            raise CheckpointError(
                f"{type(whole).__name__} never calls {backbone.path or 'its backbone'} on these images. Name the backbone that it "
                "uses."
            )
        self.examples = torch.cat(first)

    def proof(self) -> torch.Tensor:
        """Return the first rows, which exact rewrites are proven on."""
        return self.fit.read(0, PROOF_IMAGES)

    def _store(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [
            value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor) and value.dim() == 4
        ]
        if len(tensors) != 1:
            raise QuantizationError(
                f"A backbone takes one tensor (N, C, H, W); this one was called with {len(tensors)} of these."
            )
        rows = tensors[0]
        if self._shape not in (None, tuple(rows.shape[1:])):
            raise QuantizationError(
                f"The backbone was called with images of {tuple(rows.shape[1:])} and of {self._shape}. Calibrate at one "
                "size."
            )
        self._shape = tuple(rows.shape[1:])
        positions = torch.arange(self._rows, self._rows + len(rows))
        held_out = positions % HELD_OUT == 1
        self.fit.append(rows[~held_out])
        if bool(held_out.any()):
            self.held_out.append(rows[held_out])
        self._rows += len(rows)


@torch.no_grad()
def _proven(original: TensorOutputs, changed: nn.Module, backbone: EnclosedBackbone, images: torch.Tensor) -> float:
    """Return the largest relative error of the outputs with our backbone in place; RewriteError where it exceeds EXACT_LIMIT."""
    error = 0.0
    for name, expected, actual in zip(
        original.names, original(images), TensorOutputs(changed, images[:1])(images), strict=True
    ):
        largest = float(expected.abs().max()) or 1.0
        worst = (
            float((expected.double() - actual).abs().max()) / largest
            if expected.shape == actual.shape
            else float("inf")
        )
        if not worst <= EXACT_LIMIT:
            place = first_difference(original.whole_module, changed, backbone, images, EXACT_LIMIT)
            where = (
                f"The first part that differs is {place}."
                if place
                else "Each part agrees; what is between them differs."
            )
            raise RewriteError(
                f"{type(original.whole_module).__name__} computes another network than its tensors say. With the ConvNeXt at "
                f"{backbone.path or 'its root'} ({backbone.layout}'s names) computed by this package, {name} moves by {worst:.1e} "
                f"of its largest value; float32 rounding explains {EXACT_LIMIT:.0e}. {where}"
            )
        error = max(error, worst)
    return error


def _float16_range(
    backbone: EnclosedBackbone, peaks: Mapping[str, float], inside: Float16Range | None
) -> Float16Range | None:
    """Return what float16 does not hold of the whole. peaks: of the original; inside: of the folded backbone, by our paths.

    Values that a container or the next layer passes on are named once.
    """
    if inside is None:
        return None
    largest = {backbone.place_of(path): peak for path, peak in inside.peaks.items()}
    for path, peak in beyond_float16(peaks).items():
        if not backbone.holds(path.removeprefix("input of ")) and peak not in largest.values():
            largest[path] = peak
    return Float16Range(largest, (), largest)


def _in_eval_mode(whole: nn.Module) -> nn.Module:
    """Return the module in eval mode; a copy where it is not, because the caller's stays as it is."""
    if not any(module.training for module in whole.modules()):
        return whole
    return copy.deepcopy(whole).eval()


def _at_places(plan: QuantPlan, backbone: EnclosedBackbone) -> QuantPlan:
    """Return the plan of a backbone by the paths of its layers in the larger module."""
    return _renamed(plan, {layer: backbone.place_of(layer) for layer in plan.weights})


def _below(plan: QuantPlan, prefix: str) -> QuantPlan:
    return _renamed(plan, {layer: f"{prefix}{layer}" for layer in plan.weights})


def _renamed(plan: QuantPlan, names: dict[str, str]) -> QuantPlan:
    activations = {}
    for name, activation in plan.activations.items():
        layer, _, side = name.partition(":")
        activations[f"{names[layer]}:{side}"] = replace(activation, name=f"{names[layer]}:{side}")
    weights = {names[layer]: qparams for layer, qparams in plan.weights.items()}
    decisions = {names[layer]: decision for layer, decision in plan.decisions.items()}
    return QuantPlan(activations, weights, decisions)


def _replace(source: Path, place: Path) -> None:
    """Move a file or folder to where there may be one already."""
    if place.is_dir():
        shutil.rmtree(place)
    source.replace(place)


def _is_output(value: object, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0 and len(value) == images


def _output_name(path: tuple[Any, ...]) -> str:
    """Return a name for a tensor by its place: letters, digits and underscores, as artifacts take them."""
    return re.sub(r"\W+", "_", pytree.keystr(path)).strip("_") or "output"
