"""What `edgeconvnext predict` does: the classes of images by a run's FP32 and INT8 networks, a model, or an artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeconvnext.backends import backend_for, backend_of
from edgeconvnext.errors import RuntimeMissingError, UnusablePathError
from edgeconvnext.escape import for_terminal
from edgeconvnext.evaluation.runner import Runner, TorchRunner
from edgeconvnext.model.agreement import checked
from edgeconvnext.model.in_memory import model_of
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.pipeline.inputs import normalization_unknown
from edgeconvnext.pipeline.job import stored_model
from edgeconvnext.pipeline.simulated import simulated_network
from edgeconvnext.pipeline.stored_config import stored_config, stored_target
from edgeconvnext.prediction.artifact import Artifact, load_artifact
from edgeconvnext.prediction.networks import Answering, Answers, ask
from edgeconvnext.received import user_path
from edgeconvnext.run.lock import is_run
from edgeconvnext.run.manifest import load_run

_NAME_WIDTH = 26


@dataclass(frozen=True)
class Predicted:
    """Answers with the networks that gave them. runtimes: what each ran in, by its title. notes: what the user should know."""

    answers: Answers
    runtimes: dict[str, str]
    notes: tuple[str, ...] = ()


def predict(subject: Any, images: Any) -> Predicted:
    """Return the most probable classes of images. subject: a run, an artifact, or a model as `load_model` or a program has it.

    A run answers with its FP32 network, and with its artifact where the runtime is installed, else with the simulation.
    """
    networks, notes = _networks(subject)
    return Predicted(ask(networks, images), {network.title: network.runner.runtime for network in networks}, notes)


def _networks(subject: Any) -> tuple[list[Answering], tuple[str, ...]]:
    if isinstance(subject, Artifact):
        return [subject.network], ()
    if not isinstance(subject, str | Path):
        return [_float_network(checked(subject, model_of(subject)))], ()
    path = user_path(subject, UnusablePathError)
    if is_run(path):
        return _run_networks(path)
    if path.exists() and backend_of(path) is not None:
        return [load_artifact(path).network], ()
    model = model_of(subject)
    return [_float_network(model)], model.notes


def _run_networks(path: Path) -> tuple[list[Answering], tuple[str, ...]]:
    finished = load_run(path)
    stored = stored_model(finished)
    floating = replace(_float_network(stored.model), independent=stored_config(finished).task == "multi-label")
    quantized, notes = _quantized_runner(path, "stages/artifact.json" in finished.files)
    network = replace(floating, title="INT8", runner=quantized)
    return [floating, network], (*stored.notes, *notes)


def _quantized_runner(path: Path, has_artifact: bool) -> tuple[Runner, tuple[str, ...]]:
    """Return what runs the quantised network: the artifact, else the simulation with a note on why."""
    backend = backend_for(stored_target(load_run(path)))
    if has_artifact:
        try:
            return backend.runner(path / backend.artifact), ()
        except RuntimeMissingError as error:
            note = f"INT8 is the simulation: {error}"
    else:
        note = "INT8 is the simulation: the run has no artifact. edgeconvnext export writes one."
    runner = TorchRunner(simulated_network(path), "simulation")
    runner.runtime = f"simulation in {runner.runtime}"
    return runner, (note,)


def _float_network(model: LoadedModel) -> Answering:
    return Answering(
        "FP32",
        TorchRunner(model.module, model.name),
        model.preprocess,
        None if model.labels is None else model.labels.descriptions,
        model.module.output_names,
        prepares=not normalization_unknown(model),
    )


def render_predictions(predicted: Predicted) -> str:
    """Return the answers as text: a block for each image, the networks side by side."""
    blocks = []
    titles = [f"{title} ({runtime})" for title, runtime in predicted.runtimes.items()]
    for answer in predicted.answers.images:
        columns = [
            [
                f"{for_terminal(one.name, _NAME_WIDTH - 4):<{_NAME_WIDTH}}{one.probability:7.2%}"
                for one in prediction.classes
            ]
            for prediction in answer.by_network.values()
        ]
        width = _NAME_WIDTH + 9
        rows = ["".join(f"{title:<{width}}  " for title in titles).rstrip()]
        rows += ["".join(f"{cell:<{width}}  " for cell in row).rstrip() for row in zip(*columns, strict=True)]
        blocks.append("\n".join([for_terminal(answer.image), *(f"  {row}" for row in rows)]))
    skipped = [
        f"{for_terminal(name)}: not read, {for_terminal(reason)}" for name, reason in predicted.answers.skipped.items()
    ]
    notes = [f"note: {for_terminal(note)}" for note in predicted.notes]
    return "\n\n".join([*blocks, *("\n".join(lines) for lines in (skipped, notes) if lines)])


def predictions_json(predicted: Predicted) -> str:
    """Return the answers as JSON."""
    images = [
        {
            "image": answer.image,
            "predictions": {title: prediction.as_dict() for title, prediction in answer.by_network.items()},
        }
        for answer in predicted.answers.images
    ]
    document = {
        "networks": predicted.runtimes,
        "images": images,
        "skipped": [{"image": name, "reason": reason} for name, reason in predicted.answers.skipped.items()],
        "notes": list(predicted.notes),
    }
    return json.dumps(document, indent=2) + "\n"


def several(images: Sequence[str]) -> str | list[str]:
    """Return the images of a command line: one alone as it is."""
    return images[0] if len(images) == 1 else list(images)
