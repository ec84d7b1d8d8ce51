"""What holds at an input size other than the one a network is calibrated at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.choices import TaskName
from edgeconvnext.data.size import Size
from edgeconvnext.evaluation.accuracy import compare, fidelity_db
from edgeconvnext.evaluation.outputs import compare_outputs, worst
from edgeconvnext.evaluation.runner import Runner, collect
from edgeconvnext.schema.report import SizeRecord

if TYPE_CHECKING:
    from edgeconvnext.data.loader import Batch


def at_size(
    size: Size,
    names: Sequence[str],
    networks: tuple[Runner, Runner, Runner | None],
    stream: Iterable[Batch],
    labels: np.ndarray | None,
    task: TaskName | None = None,
) -> SizeRecord:
    """Compare FP32, the simulated graph, and the artifact where it runs here, on images of one size.

    names: of the outputs; ("logits",) for a classifier. labels: of the whole set, by position, or None.
    """
    if tuple(names) != ("logits",):
        records, images = compare_outputs(names, *networks, stream)
        lowest = {figure: worst(records, figure) for figure in ("sqnr_db", "simulated_sqnr_db", "fidelity_db")}
        return SizeRecord.model_validate({"size": size, "images": images, "outputs": records, **lowest})
    runners = dict(zip(("fp32", "simulated", "artifact"), networks, strict=True))
    found, positions = collect({name: runner for name, runner in runners.items() if runner is not None}, stream)
    artifact = found.get("artifact")
    ids = [str(position) for position in positions]
    own = None if labels is None else labels[positions]
    accuracy = compare(found["fp32"], found["simulated"], artifact, own, None, ids, task=task)
    best = accuracy.artifact or accuracy.simulated
    assert accuracy.sqnr_db is not None and accuracy.simulated_sqnr_db is not None
    return SizeRecord(
        size=size,
        images=len(ids),
        fp32_score=None if accuracy.fp32 is None else accuracy.fp32.value,
        score=None if best is None else best.value,
        drop_pp=accuracy.drop_pp,
        agreement=accuracy.agreement,
        sqnr_db=accuracy.sqnr_db,
        simulated_sqnr_db=accuracy.simulated_sqnr_db,
        fidelity_db=None if artifact is None else fidelity_db(artifact, found["simulated"]),
    )
