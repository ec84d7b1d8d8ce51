"""Graphs as a target's artifact takes them."""

from __future__ import annotations

from torch.export import ExportedProgram

from edgeconvnext.backends.base import Programs, TimedRunner
from edgeconvnext.model.program import with_batch
from edgeconvnext.schema.report import ExportCheck
from edgeconvnext.targets import Target

LEAST_FIDELITY_DB = 30.0


def for_batch_of(target: Target, program: ExportedProgram) -> ExportedProgram:
    """Return a graph with the batch axis of a target's artifact: free, or of exactly its one batch."""
    return program if target.input.dynamic_batch else with_batch(program, target.input.batch[0])


def against_simulation(runner: TimedRunner, programs: Programs) -> ExportCheck:
    """Run an artifact on the real images of `programs` and compare its outputs, the worst one, with the simulation's."""
    from edgeconvnext.evaluation.runner import in_fixed_batches
    from edgeconvnext.sqnr import logit_sqnr_db

    outputs = in_fixed_batches(runner.run, programs.images, runner.batch)
    decibels = min(logit_sqnr_db(*pair) for pair in zip(programs.simulated, outputs, strict=True))
    return ExportCheck(
        name=f"{runner.runtime.partition(' ')[0]} against the simulation",
        passed=decibels >= LEAST_FIDELITY_DB,
        result=f"{decibels:.1f} dB over {len(programs.images)} images in {runner.runtime}",
    )
