"""Graphs as a target's artifact takes them."""

from __future__ import annotations

from torch.export import ExportedProgram

from edgeconvnext.model.program import with_batch
from edgeconvnext.targets import Target


def for_batch_of(target: Target, program: ExportedProgram) -> ExportedProgram:
    """Return a graph with the batch axis of a target's artifact: free, or of exactly its one batch."""
    return program if target.input.dynamic_batch else with_batch(program, target.input.batch[0])
