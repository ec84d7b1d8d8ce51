"""The kit that checks and times the artifact on its device."""

from __future__ import annotations

from pathlib import Path

from edgeconvnext.backends import backend_for
from edgeconvnext.pipeline.stages.artifact import artifact_metadata
from edgeconvnext.pipeline.stages.evaluation import ClassifierStages, Measured
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import ArtifactValues, DeviceValues
from edgeconvnext.run.directory import RunDirectory, StageResult

KIT = "device"


def write_kit(
    run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues], measured: Measured
) -> StageResult[DeviceValues] | None:
    """Write script, networks and check vectors for the device; None where the backend has no kit. Files: all below KIT."""
    job = quantized.job
    backend = backend_for(job.target)
    if backend.kit_script() is None:
        return None

    def make(folder: Path) -> DeviceValues:
        from edgeconvnext.backends.kit.write import KitNetworks, write_device_kit
        from edgeconvnext.pipeline.check_vectors import check_vectors

        vectors = check_vectors(quantized, artifact, measured)
        floating, metadata = quantized.network.float_program, artifact_metadata(job)
        with backend.kit_baseline(job.target, artifact.folder, floating, metadata) as baseline:
            networks = KitNetworks(
                artifact=artifact.path(backend.artifact),
                baseline=baseline,
                artifact_form=quantized.stage.values.scheme.partition(",")[0],
                baseline_form="FP32" if job.target.float_type == "float32" else "FP16",
                sizes=job.profile_sizes,
            )
            write_device_kit(folder / KIT, vectors, networks, model_name=job.model.name, target=job.target)
        return DeviceValues(vectors=len(vectors.images))

    inputs = {
        "artifact": artifact.key,
        "measured": _answer_keys(measured),
        "target": job.target.model_dump(mode="json"),
        "name": job.model.name,
    }
    return run.stage("device", inputs, make, DeviceValues)


def _answer_keys(measured: Measured) -> list[str]:
    answers = measured.answers
    return [answers.accuracy.key, answers.reference.key] if isinstance(answers, ClassifierStages) else [answers.key]
