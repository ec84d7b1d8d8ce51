"""`edgeconvnext roadmap`: every step from ResNet-50 to ConvNeXt-T through the toolkit, FP32 and INT8, on one target.

Each step has a run directory of its own below the roadmap's, and its record beside it: what is finished is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from edgeconvnext.backends import backend_for, load_target
from edgeconvnext.choices import Effort
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ModelConfigError, RunDirectoryError
from edgeconvnext.files import atomic_write, storage_errors, tree_sha256
from edgeconvnext.machine import describe_device
from edgeconvnext.model.build import build
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.families import match_architecture
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.model.network import Network, NetworkConfig
from edgeconvnext.model.resnet.roadmap import STEPS, Step
from edgeconvnext.options import commands as options
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.received import read_json
from edgeconvnext.report.roadmap_page import write_roadmap
from edgeconvnext.run.stage_record import code_version, json_sha256
from edgeconvnext.schema.report import Record, Report
from edgeconvnext.schema.roadmap import Roadmap, RoadmapStep
from edgeconvnext.targets import Target

SEED = 0
EMBEDDED_IMAGES = "digits"
# Without trained weights only fidelity is measured, for which a few images do.
EVALUATED = 64
RANDOM = "random"


@dataclass(frozen=True)
class RoadmapRequest:
    """What is asked for.

    steps: in the road's order. calibration: None takes the digits that travel with the package. evaluation: labelled images, for
    steps with trained weights. trained: weights files by step; the others get random weights. output: the roadmap's directory;
    None is runs/roadmap-<target>-<resolution>.
    """

    steps: tuple[Step, ...] = tuple(STEPS.values())
    target: str = options.Roadmap.target
    calibration: str | None = None
    evaluation: str | None = None
    num_images: int = options.Roadmap.num_images
    effort: Effort = options.Roadmap.effort
    resolution: int = options.Roadmap.resolution
    trained: Mapping[str, Path] = field(default_factory=dict)
    measure_latency: bool = options.Roadmap.latency
    threads: int = options.Roadmap.threads
    output: Path | None = None


class FinishedStep(Record):
    """A step's record on disk. key: hash of all it depends on; a record of another key is made anew."""

    key: str
    record: RoadmapStep


def roadmap(request: RoadmapRequest, said: Callable[[str], None] = lambda _line: None) -> tuple[Roadmap, Path]:
    """Take every step through export and validation, write roadmap.json, .csv, .md and .svg, and return what was measured.

    said: is told when a step is finished. Returns also the roadmap's directory.
    Raises ModelConfigError for trained weights of another architecture, and whatever an export raises.
    """
    target = load_target(request.target)
    backend = backend_for(target)
    backend.require(target)
    for step in request.steps:
        check_input_size(step.network, (request.resolution, request.resolution))
    for name, path in request.trained.items():
        _check_trained(name, path)
    folder = request.output or pipeline.RUNS / f"roadmap-{target.name}-{request.resolution}"
    with storage_errors(folder):
        (folder / "steps").mkdir(parents=True, exist_ok=True)
    steps = []
    for number, step in enumerate(request.steps, start=1):
        steps.append(_measured_step(step, request, target, folder))
        said(f"{number} of {len(request.steps)}: {step.name}")
    notes = _notes(request, target)
    timer = backend.float_timer()
    if timer is not None:
        from edgeconvnext.commands.swin import swin_row

        row, note = swin_row(request.resolution, request.threads, timer, measure_latency=request.measure_latency)
        steps += [] if row is None else [row]
        notes += [] if note is None else [note]
    result = Roadmap(
        target=target.name,
        runtime=target.runtime.name,
        resolution=request.resolution,
        effort=request.effort,
        threads=request.threads,
        calibration_set=request.calibration or EMBEDDED_IMAGES,
        calibration_images=min(request.num_images, len(_calibration(request))),
        environment=describe_device(),
        notes=notes,
        steps=steps,
    )
    write_roadmap(result, folder)
    return result, folder


def random_network(config: NetworkConfig, seed: int = SEED) -> Network:
    """Return a network with He-normal weights and layer scale 1, so that every layer matters, in eval mode; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(config)
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif name.endswith("gamma"):
                nn.init.ones_(parameter)
    return module.eval()


def _finished_step(path: Path) -> FinishedStep | None:
    """Read the record of a step; None where there is none, or one that does not hold: the step is then measured again."""
    if not path.exists():
        return None
    try:
        return FinishedStep.model_validate(read_json(path, RunDirectoryError))
    except (RunDirectoryError, ValidationError):
        return None


def _measured_step(step: Step, request: RoadmapRequest, target: Target, folder: Path) -> RoadmapStep:
    """Return the record of a step: the one that is there, where nothing it depends on has changed, or a new one."""
    weights = request.trained.get(step.name) or _random_weights(step, request.resolution, folder)
    key = json_sha256(
        {
            "step": step.name,
            "weights": tree_sha256(weights),
            "target": target.sha256,
            "calibration": _calibration(request).fingerprint,
            "evaluation": request.evaluation and resolve_image_set(request.evaluation).fingerprint,
            "asked": [request.num_images, request.effort, request.resolution, request.measure_latency, request.threads],
            "device": describe_device(),
            "code": code_version(),
        }
    )
    kept = folder / "steps" / f"{step.name}.json"
    finished = _finished_step(kept)
    if finished is not None and finished.key == key:
        return finished.record
    trained = request.trained.get(step.name)
    run = folder / (step.name if trained is None else f"{step.name}-{trained.stem}")
    outcome = pipeline.export(
        Request(
            model=str(weights),
            target=request.target,
            calib=request.calibration or EMBEDDED_IMAGES,
            eval=None if trained is None else request.evaluation,
            most_evaluated=EVALUATED,
            num_images=request.num_images,
            effort=request.effort,
            resolution=request.resolution,
            latency=request.measure_latency,
            threads=request.threads,
            output=run,
        )
    )
    record = _record(step, outcome.report, request.resolution, run.name, RANDOM if trained is None else trained.name)
    atomic_write(kept, FinishedStep(key=key, record=record).model_dump_json(indent=1) + "\n")
    return record


def _record(step: Step, report: Report, resolution: int, run: str, weights: str) -> RoadmapStep:
    accuracy, latency = report.accuracy, report.latency
    scores = {"fp32": accuracy.fp32, "int8": accuracy.artifact} if weights != RANDOM else {"fp32": None, "int8": None}
    reasons = {
        ours: report.not_measured[theirs]
        for ours, theirs in (
            ("latency_fp32_ms", "latency.fp32"),
            ("latency_int8_ms", "latency.artifact"),
            ("speedup", "speedup"),
            ("fidelity_db", "fidelity_db"),
            ("top1_fp32", "accuracy.fp32"),
            ("top1_int8", "accuracy.artifact"),
        )
        if theirs in report.not_measured
    }
    if weights == RANDOM:
        reasons |= dict.fromkeys(("top1_fp32", "top1_int8"), "no trained weights")
    return RoadmapStep(
        **described(step),
        resolution=resolution,
        macs_at_resolution=count_macs(step.network, (resolution, resolution)),
        weights=weights,
        latency_fp32_ms=None if latency.fp32 is None else latency.fp32.median_ms,
        latency_int8_ms=None if latency.artifact is None else latency.artifact.median_ms,
        speedup=report.speedup_interval,
        fidelity_db=report.fidelity_db,
        sqnr_db=accuracy.sqnr_db,
        agreement=accuracy.agreement,
        int8_macs=report.quantization.int8_macs,
        top1_fp32=None if scores["fp32"] is None else scores["fp32"].value,
        top1_int8=None if scores["int8"] is None else scores["int8"].value,
        images=accuracy.images,
        size_fp32_bytes=report.size_bytes.fp32,
        size_int8_bytes=report.size_bytes.artifact,
        run=run,
        not_measured=reasons,
    )


def described(step: Step) -> dict[str, Any]:
    """Return the fields of a step's record that need no measurement."""
    return {
        "name": step.name,
        "change": step.change,
        "macs": count_macs(step.network),
        "params": count_parameters(step.network),
        "published_gflops": step.published_gflops,
        "gflops_count_norms": step.gflops_count_norms,
        "published_top1": step.published_top1,
    }


def _random_weights(step: Step, resolution: int, folder: Path) -> Path:
    """Write a step's random weights where they are not yet; the same weights and the same file every time."""
    path = folder / "weights" / f"{step.name}.safetensors"
    if not path.is_file() or load_model(path).preprocess.input_size != (resolution, resolution):
        config = step.network
        preprocess = Preprocess(input_size=(resolution, resolution))
        model = LoadedModel(random_network(config), config, preprocess, None, step.name, "edgeconvnext", RANDOM, "")
        with storage_errors(path):
            path.parent.mkdir(exist_ok=True)
        save_checkpoint(model, path)
    return path


def _check_trained(name: str, path: Path) -> None:
    """Raise ModelConfigError where a weights file is not of the step's architecture."""
    if name not in STEPS:
        raise ModelConfigError(f"There is no step {name!r} to take {path} for. The steps are {', '.join(STEPS)}.")
    config = load_model(path).config
    found = match_architecture(config)
    if found is None or found.name != name:
        raise ModelConfigError(
            f"{path} holds {'another network' if found is None else found.name}, not the step {name}. Leave it out, or name the "
            "step it belongs to."
        )


def _calibration(request: RoadmapRequest) -> Any:
    return resolve_image_set(request.calibration or EMBEDDED_IMAGES)


def _notes(request: RoadmapRequest, target: Target) -> list[str]:
    notes = []
    untrained = [step.name for step in request.steps if step.name not in request.trained]
    if untrained:
        notes.append(
            f"{len(untrained)} of {len(request.steps)} steps have random weights (He normal, seed {SEED}): their latency is that "
            "of the architecture, their fidelity says that INT8 computes what was planned, and their accuracy is not measured."
        )
    if request.calibration is None:
        notes.append("No --calib was named: ranges were calibrated on the digits that travel with the package.")
    if backend_for(target).float_timer() is None:
        notes.append(f"Convs of ResNet blocks stay {target.float_type} unless target {target.name} quantises them.")
    return notes
