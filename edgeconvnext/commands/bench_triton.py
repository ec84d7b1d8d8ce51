"""A finished run's quantised network, to be timed as Triton kernels."""

from __future__ import annotations

from pathlib import Path

from edgeconvnext.backends.triton.planned import PlannedNetwork, planned_network


def load_planned_run(path: Path) -> PlannedNetwork:
    """Read the network and plan of a finished run.

    Raises RunDirectoryError for a folder that is no finished run, and QuantizationError as `planned_network`.
    """
    from edgeconvnext.model.load import load_model
    from edgeconvnext.pipeline.stages.network import FOLDED
    from edgeconvnext.pipeline.stages.quantization import PLAN
    from edgeconvnext.pipeline.stored_config import stored_config
    from edgeconvnext.run.manifest import load_run

    run = load_run(path)
    config = stored_config(run)
    name, target = f"{config.model.name} for {config.target.name}", config.target.definition
    return planned_network(path, name, target, load_model(path / FOLDED), path / PLAN)
