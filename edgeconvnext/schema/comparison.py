"""comparison.json: one network on several targets, measured beside each other. Keys are documented in docs/compare.md."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeconvnext.schema.report import Decibel, FileName, Interval, Record, ScoreRecord

Form = Literal["float", "int8"]
Goal = Literal["fastest", "smallest"]


class FormTiming(Record):
    """One form of a target, timed with so many threads and images at once, in a process of its own.

    form: the target's float baseline, or its artifact. speedup: over the best float form of any runtime with the same threads and
    batch, with its 95 % interval. throughput: images a second. load_ms: from opening the file to the first answer. memory_mib:
    resident memory that the open file added to its process. cores: that the process was pinned to; null where the system cannot.
    noisy: what makes the times doubtful. absent: why there are no times.
    """

    form: Form
    threads: int
    batch: int
    median_ms: float | None = None
    throughput: float | None = None
    cv: float | None = None
    runs: int | None = None
    speedup: Interval | None = None
    load_ms: float | None = None
    memory_mib: float | None = None
    cores: int | None = None
    noisy: str | None = None
    absent: str | None = None


class DeviceTiming(Record):
    """What the target's kit measured on a device: median times of the float baseline and the artifact, milliseconds."""

    machine: str
    runtime: str
    threads: int
    batch: int
    float_ms: float
    int8_ms: float
    speedup: Interval | None
    fidelity_db: Decibel | None


class TargetRow(Record):
    """One target. failed: why it has no artifact. run: folder of its run, beside the comparison.

    artifact, drop_pp, agreement, sqnr_db: of the artifact in its runtime, else of the simulation; measured_on says which.
    within: whether the drop is within the gate; null where neither drop nor agreement was measured. timings: on this machine.
    """

    target: str
    runtime: str
    run: FileName | None = None
    failed: str | None = None
    score: str | None = None
    fp32: ScoreRecord | None = None
    artifact: ScoreRecord | None = None
    drop_pp: Interval | None = None
    agreement: float | None = None
    measured_on: Literal["artifact", "simulation"] | None = None
    sqnr_db: Decibel | None = None
    fidelity_db: Decibel | None = None
    float_bytes: int | None = None
    int8_bytes: int | None = None
    within: bool | None = None
    timings: list[FormTiming] = Field(default=[])
    device: DeviceTiming | None = None
    not_measured: dict[str, str] = Field(default={})

    def timing(self, form: Form, threads: int, batch: int) -> FormTiming | None:
        """Return the times of a form, or None where there are none."""
        for timing in self.timings:
            if (timing.form, timing.threads, timing.batch) == (form, threads, batch) and timing.median_ms is not None:
                return timing
        return None

    @property
    def loss(self) -> float | None:
        """Points of the score that are lost; where no image is labelled, per cent of images with another answer."""
        if self.drop_pp is not None:
            return self.drop_pp.value
        return None if self.agreement is None else 100 - self.agreement


class Winner(Record):
    """The best target for a goal, among those within the gate. threads, batch: null for a goal that has none."""

    goal: Goal
    target: str
    threads: int | None = None
    batch: int | None = None


class Comparison(Record):
    """One network on several targets.

    gate: points of the score that an artifact may lose. images: that accuracy was measured on. front: targets that no other one
    beats in loss, time (first threads and batch) and size at once.
    """

    format: Literal[1] = 1
    model: str
    macs: int | None = None
    input_size: tuple[int, int] | None = None
    calibration_set: FileName | None = None
    calibration_images: int | None = None
    dataset: FileName | None = None
    images: int | None = None
    effort: str
    threads: list[int]
    batches: list[int]
    gate: float
    command: str
    finished: str
    environment: dict[str, str]
    rows: list[TargetRow]
    winners: list[Winner] = Field(default=[])
    front: list[str] = Field(default=[])


def winners(rows: list[TargetRow], threads: list[int], batches: list[int]) -> list[Winner]:
    """Return the fastest artifact for each number of threads and images at once, and the smallest.

    Eligible is what is within the gate, measured on the artifact.
    """
    eligible = [row for row in rows if row.within and row.measured_on == "artifact"]
    best = []
    for count in threads:
        for batch in batches:
            timed = {row.target: row.timing("int8", count, batch) for row in eligible}
            medians = {
                name: own.median_ms for name, own in timed.items() if own is not None and own.median_ms is not None
            }
            if medians:
                name = min(medians, key=medians.__getitem__)
                best.append(Winner(goal="fastest", target=name, threads=count, batch=batch))
    sizes = {row.target: row.int8_bytes for row in eligible if row.int8_bytes is not None}
    if sizes:
        best.append(Winner(goal="smallest", target=min(sizes, key=sizes.__getitem__)))
    return best


def pareto_front(rows: list[TargetRow], threads: int, batch: int) -> list[str]:
    """Return the targets that no other one beats: as good in loss, time and size, and better in one of them."""
    figures = {}
    for row in rows:
        timed = row.timing("int8", threads, batch)
        if timed is not None and timed.median_ms is not None and row.loss is not None and row.int8_bytes is not None:
            figures[row.target] = (row.loss, timed.median_ms, row.int8_bytes)

    def beaten(name: str) -> bool:
        own = figures[name]
        return any(
            other != own and all(theirs <= ours for theirs, ours in zip(other, own, strict=True))
            for other in figures.values()
        )

    return [name for name in figures if not beaten(name)]
