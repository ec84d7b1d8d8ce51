"""`edgeconvnext search`: the placement of Q/DQ pairs that is fastest on this machine, and accurate enough.

From the target's own placement, moves are tried one after the other, large regions first: forms of the file, classes of layers, a
class in one stage, in one block. Each is measured on the artifact (`placement_trials`). It is taken where it is faster by more
than the noise and accurate enough, or as fast and clearly more accurate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from edgeconvnext.backends import backend_for, backends, check_bits
from edgeconvnext.backends.base import Backend
from edgeconvnext.choices import Operator
from edgeconvnext.data.image_set import ImageSet, split_held_out
from edgeconvnext.data.loader import batches, check_broken
from edgeconvnext.errors import QuantizationError, RunDirectoryError, RuntimeMissingError
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantization.precision import BitPlan, asked_bits
from edgeconvnext.schema.placement import Measured, Placement, PlacementFound, Trial
from edgeconvnext.targets import Target
from edgeconvnext.tuning.placement import REGIONS, Move, moves
from edgeconvnext.tuning.placement_trials import Trials

FASTER = 1.01
"""A move that pays in time: so many times faster, which is what medians of a second's runs can tell on a quiet machine."""

AS_FAST = 0.995
CLEARLY_MORE_ACCURATE = 0.8
"""Of the divergence: a move that pays in accuracy, where it is as fast."""

LARGEST_LOSS = 2.0
"""Of the starting point's divergence from FP32 (3 dB): what a faster placement may have."""

NEGLIGIBLE_KL = 1e-4
"""Nats below which divergences are not compared: answers are the same."""

MOST_HELD_OUT = 64


class Measuring(Protocol):
    """What the search needs of `Trials`."""

    @property
    def taken_over(self) -> int: ...

    def measure(self, placement: Placement) -> Measured: ...


def search_placement(
    model: LoadedModel, target: Target, images: ImageSet, folder: Path, *, budget_minutes: float, threads: int = 1
) -> PlacementFound:
    """Search the placement of `target` for a model on this machine.

    images: for calibration; a third is held out, and accuracy is judged on these. folder: holds what was measured.
    Raises RuntimeMissingError for a target whose backend is not searchable, RunDirectoryError where `folder` is a file, and
    QuantizationError without enough images.
    """
    from edgeconvnext.machine import cpu_name
    from edgeconvnext.quantization.statistics import collect_statistics
    from edgeconvnext.rewrite.exact import fold_exact

    backend = backend_for(target)
    if not is_searchable(backend):
        others = [other for other in backends() if is_searchable(other)]
        raise RuntimeMissingError(
            f"Target {target.name} runs in {target.runtime.name}, and a search measures files in the runtime itself: it can do "
            f"so with {' and '.join(other.runtime for other in others)} only. Search for a target with exporter "
            f"{' or '.join(other.name for other in others)}, or change the target's file by hand and time it on the device with "
            "the kit of an export."
        )
    if not 0 <= budget_minutes < math.inf:
        raise QuantizationError(f"--budget-minutes is a time from 0 on; it is {budget_minutes:g}.")
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is a file. Name another folder for the search with --output.")
    if len(images) < 6:
        raise QuantizationError(
            f"{len(images)} images are too few to fit ranges on two thirds and judge on one; give at least 6."
        )
    fit, held_out = split_held_out(images)
    preprocess = model.preprocess.with_value_range(target.input.value_range)
    fitted = batches(images, preprocess, 16, fit, description="Reading images")
    judged = batches(images, preprocess, 16, held_out[:MOST_HELD_OUT], description="Reading images (held out)")
    held = [batch.images for batch in judged]
    proof = (batch.images for batch in batches(images.take(8), model.preprocess, 8))
    folded = fold_exact(model.module, proof, preprocess=model.preprocess, value_range=target.input.value_range)
    layers = weighted_layers(folded.module)
    start = Placement.of(target, layers)
    if not start.operators:
        raise QuantizationError(f"Target {target.name} quantises no layer of {model.name}; there is nothing to search.")
    check_bits(target, asked_bits(folded.module, start.on(target), BitPlan()))
    statistics = collect_statistics(
        folded.module, (batch.images for batch in fitted), held, sorted(set(layers.values()))
    )
    check_broken(images, [*fitted.skipped, *judged.skipped])
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        import torch

        trials = Trials(
            folded.module,
            target,
            statistics,
            torch.cat(held).numpy(),
            model.preprocess,
            threads=threads,
            folder=Path(scratch),
            memory=folder / "measured.jsonl",
            subject={"weights": model.sha256, "images": images.fingerprint},
        )
        best, done, untried = climb(trials, start, layers, backend.limits.outputs_too, seconds=60 * budget_minutes)
    measured = trials.measure(best)
    return PlacementFound(
        model=model.name,
        target=target.name,
        runtime=backend.installed(),
        device=cpu_name(),
        threads=threads,
        input_size=model.preprocess.input_size,
        start=done[0].against if done else measured,
        best=measured,
        trials=done,
        float_layers=why_float(best, layers, done),
        untried=untried,
        taken_over=trials.taken_over,
        placed=best.on(target),
    )


def is_searchable(backend: Backend) -> bool:
    """Whether files have forms to choose among, and are timed on this machine."""
    return backend.limits.layouts and backend.not_timed is None


def climb(
    trials: Measuring,
    start: Placement,
    layers: Mapping[str, Operator],
    outputs_too: frozenset[Operator],
    *,
    seconds: float,
) -> tuple[Placement, list[Trial], int]:
    """Take the moves that pay, in their order, until all were tried or the time is up.

    Returns the best placement, what was tried, and how many moves were not.
    """
    deadline = time.monotonic() + seconds
    limit = LARGEST_LOSS * max(trials.measure(start).kl, NEGLIGIBLE_KL)
    best, done, untried = start, list[Trial](), 0
    planned = [move for region in REGIONS for move in moves(region, layers, outputs_too)]
    with progress_bar("Trying placements", len(planned)) as advance:
        for move in planned:
            changed = move.apply(best)
            advance(1)
            if changed is None:
                continue
            if time.monotonic() > deadline:
                untried += 1
                continue
            incumbent, found = trials.measure(best), trials.measure(changed)
            taken = pays(found, incumbent, limit)
            done.append(
                Trial(
                    move=_described(move, best, layers),
                    layers=list(move.layers),
                    measured=found,
                    against=incumbent,
                    taken=taken,
                )
            )
            if taken:
                best = changed
    return best, done, untried


def pays(found: Measured, incumbent: Measured, limit: float) -> bool:
    """Whether a placement is better: faster within the limit of divergence, or as fast and clearly more accurate."""
    gain = found.speedup.value / incumbent.speedup.value
    if gain > FASTER:
        return found.kl <= max(limit, incumbent.kl)
    return gain > AS_FAST and max(found.kl, NEGLIGIBLE_KL) < CLEARLY_MORE_ACCURATE * incumbent.kl


def why_float(placement: Placement, layers: Mapping[str, Operator], done: list[Trial]) -> dict[str, str]:
    """Say for each layer that is float in `placement` what was measured with it in int8, or that nothing was."""
    reasons = {}
    for layer, kind in layers.items():
        if placement.quantises(layer, kind):
            continue
        tried = [trial for trial in done if layer in trial.layers]
        to_int8 = [trial for trial in tried if trial.move.endswith("in int8")]
        to_float = [trial for trial in tried if trial.move.endswith("in float") and trial.taken]
        if to_float:
            reasons[layer] = f"{to_float[-1].move}: {to_float[-1].verdict}"
        elif to_int8:
            reasons[layer] = f"{to_int8[0].move}: {to_int8[0].verdict}"
        else:
            reasons[layer] = "float in the target's own placement; int8 was not tried, the time was up"
    return reasons


def _described(move: Move, before: Placement, layers: Mapping[str, Operator]) -> str:
    """Say what a move does to the placement it is applied to."""
    if not move.layers:
        return move.what
    quantised = any(before.quantises(layer, layers[layer]) for layer in move.layers)
    return f"{move.what} in {'float' if quantised else 'int8'}"
