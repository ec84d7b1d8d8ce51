"""One placement measured: written as the artifact it would be, timed against the best float form, judged on held-out images.

What was measured is kept in a file, under a key of all that it depends on: the network, the images, the placement, this package,
the runtime and the processor. A search that is run again takes it from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import torch

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import TimedRunner
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.accuracy import agreement
from edgeconvnext.evaluation.runner import in_fixed_batches
from edgeconvnext.evaluation.timing import Samples, speedup, time_interleaved
from edgeconvnext.machine import describe_device
from edgeconvnext.model.network import Network
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.received import read_bytes
from edgeconvnext.rewrite.gelu import with_gelu
from edgeconvnext.schema.placement import Measured, Placement
from edgeconvnext.sqnr import logit_sqnr_db
from edgeconvnext.targets import GeluForm, LayoutSection, Target
from edgeconvnext.tuning.sensitivity import kl_divergence


class Trials:
    """Measures placements of one network for one target, and remembers them.

    module: exactly folded, for the target's input. statistics: with the outputs of all its operators. images: held out from
    calibration, as the module takes them, (N, C, H, W); the first is timed. folder: where files lie meanwhile. memory: the file of
    what was measured. subject: hashes of network and images.
    """

    def __init__(
        self,
        module: Network,
        target: Target,
        statistics: Statistics,
        images: np.ndarray,
        preprocess: Preprocess,
        *,
        threads: int,
        folder: Path,
        memory: Path,
        subject: Mapping[str, str],
    ) -> None:
        self.module = module
        self.target = target
        self.statistics = statistics
        self.images = images
        self.preprocess = preprocess
        self.threads = threads
        self.folder = folder
        self.memory = memory
        target_key = target.model_dump(mode="json", exclude={"name", "description", "gates"})
        self.backend = backend_for(target)
        self.suffix = Path(self.backend.artifact).suffix
        self._common = {
            "subject": dict(subject),
            "target": target_key,
            "threads": threads,
            "device": describe_device(),
            "edgeconvnext": metadata.version("edgeconvnext"),
        }
        self._known = _remembered(memory)
        self._from_earlier = frozenset(self._known)
        self._asked: set[str] = set()
        self._floats: dict[LayoutSection, Path] = {}
        self._baseline: Path | None = None
        with torch.inference_mode():
            self._expected = module(torch.from_numpy(images))

    def measure(self, placement: Placement) -> Measured:
        """Measure a placement, or take it over where the same one was measured before."""
        key = self._key(placement)
        self._asked.add(key)
        known = self._known.get(key)
        if known is None:
            known = self._measured(placement)
            self._known[key] = known
            with self.memory.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "measured": known.model_dump()}) + "\n")
        return known

    @property
    def taken_over(self) -> int:
        """How many of the placements asked for an earlier search had measured."""
        return len(self._asked & self._from_earlier)

    def _key(self, placement: Placement) -> str:
        own = {
            "operators": sorted(placement.operators),
            "outputs": sorted(placement.outputs),
            "float_layers": sorted(placement.float_layers),
            "layout": placement.layout.model_dump(),
        }
        return hashlib.sha256(json.dumps({**self._common, "placement": own}, sort_keys=True).encode()).hexdigest()

    def _measured(self, placement: Placement) -> Measured:
        path = self.folder / f"trial{self.suffix}"
        self._write(path, placement.layout, placement.on(self.target))
        try:
            runner, baseline = self._open(path), self._open(self._best_float())
            samples = _timed({"fp32": baseline, "int8": runner}, self.images[:1])
            (logits,) = in_fixed_batches(runner.run, self.images, runner.batch)
            size = path.stat().st_size
        finally:
            path.unlink(missing_ok=True)
        expected = self._expected.numpy()
        return Measured(
            speedup=speedup(samples["fp32"], samples["int8"]),
            ms=float(np.median(samples["int8"].times_ms)),
            fp32_ms=float(np.median(samples["fp32"].times_ms)),
            sqnr_db=logit_sqnr_db(expected, logits),
            kl=kl_divergence(self._expected, torch.from_numpy(logits)),
            agreement=agreement(expected, logits),
            size_bytes=size,
        )

    def _best_float(self) -> Path:
        """Return the fastest float file of this network: every form competes, so that INT8 is not compared with a slow one."""
        if self._baseline is None:
            paths = {}
            for linears in ("gemm", "matmul", "conv"):
                for gelu in cast(tuple[GeluForm, ...], ("erf", "tanh")):
                    layout = LayoutSection.model_validate({"linears": linears, "gelu": gelu})
                    paths[f"{linears}-{gelu}"] = self.folder / f"float-{linears}-{gelu}{self.suffix}"
                    self._write(paths[f"{linears}-{gelu}"], layout, None)
            runners = {name: self._open(path) for name, path in paths.items()}
            samples = _timed(runners, self.images[:1])
            best = min(samples, key=lambda name: float(np.median(samples[name].times_ms)))
            self._baseline = paths[best]
        return self._baseline

    def _write(self, path: Path, layout: LayoutSection, placed: Target | None) -> None:
        """Write the network in one form, quantised as `placed` says, or float."""
        module = with_gelu(self.module, layout.gelu)
        example = torch.from_numpy(self.images[:1])
        program = export_program(module, example, max_batch=max(self.target.input.batch[2], len(self.images)))
        if placed is not None:
            program = quantize_program(program, build_plan(module, self.statistics, placed, effort="quick"))
        metadata = ArtifactMetadata("trial", None, self.preprocess, self.target.input.value_range, "")
        self.backend.write(self.target.model_copy(update={"layout": layout}), program, path, metadata)

    def _open(self, path: Path) -> TimedRunner:
        return self.backend.timed_runner(path, self.threads)


def _timed(runners: Mapping[str, TimedRunner], image: np.ndarray) -> dict[str, Samples]:
    """Time networks in turns on one image, filled up to a fixed batch."""

    def call(runner: TimedRunner) -> Callable[[], None]:
        inputs = np.repeat(image, runner.batch or 1, axis=0)

        def run() -> None:
            runner.run(inputs)

        return run

    return time_interleaved({name: call(runner) for name, runner in runners.items()}, timing.SCREENING_SECONDS)


def _remembered(memory: Path) -> dict[str, Measured]:
    """Read what earlier searches measured; a line that was cut off when one was stopped does not count."""
    known: dict[str, Measured] = {}
    if not memory.exists():
        return known
    for line in read_bytes(memory, RunDirectoryError).splitlines():
        try:
            entry = json.loads(line)
            known[entry["key"]] = Measured.model_validate(entry["measured"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return known
