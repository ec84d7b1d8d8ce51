"""Time one artifact in its runtime, interleaved with its float baseline; say what its operators take."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.backends import backend_for, backend_of, backends
from edgeconvnext.backends.base import Backend, LatencySettings, Profile
from edgeconvnext.errors import ExportError, RuntimeMissingError
from edgeconvnext.schema.report import Interval, Latency, LatencyComparison, Record


class OperatorShare(Record):
    """What a runtime's operators of one class take in a network: the sum of their nodes' median times."""

    kind: str
    operators: dict[str, int]
    ms: float


class NetworkProfile(Record):
    """Time by class of operators, longest first. fell_back: quantised layers that run in float, behind a DequantizeLinear."""

    shares: list[OperatorShare]
    fell_back: list[str]


class BenchResult(Record):
    """Times of an artifact and of its float baseline, and how many times faster the artifact is.

    profiles: by file name, where they were asked for.
    """

    artifact: str
    baseline: str | None
    latency: LatencyComparison
    speedup: Interval | None
    profiles: dict[str, NetworkProfile]


def bench_artifact(
    path: Path,
    against: Path | None = None,
    *,
    batch: int | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    profile: bool = False,
) -> BenchResult:
    """Time an artifact, or that of a run directory, in its runtime.

    against: a float form to interleave with; None takes the baseline that an export wrote beside the artifact, if any.
    batch: images at once; None takes the file's own where it is fixed, else 1. profile: also run both with the runtime's profiler.
    Raises RuntimeMissingError for artifacts whose runtime is not on this machine.
    """
    from edgeconvnext.evaluation.timing import grey_ramp
    from edgeconvnext.progress import progress_bar

    artifact, backend = _artifact_of(path)
    shape = backend.input_of(artifact)
    beside = artifact.parent / backend.baseline
    baseline = against or (beside if beside.exists() else None)
    settings = LatencySettings(
        batch=batch or shape.batch or 1,
        threads=threads,
        seconds=seconds,
        input_size=shape.size,
        in_channels=shape.channels,
    )
    profiles = {}
    with progress_bar("Timing", None):
        result = backend.latency(baseline, artifact, settings)
        images = grey_ramp(shape.size, shape.channels).repeat(settings.batch, axis=0)
        for file in (baseline, artifact) if profile else ():
            told = None if file is None else backend.profile(file, images, threads)
            if file is not None and told is not None:
                profiles[file.name] = _by_kind(told)
    return BenchResult(
        artifact=artifact.name,
        baseline=None if baseline is None else baseline.name,
        latency=result.comparison,
        speedup=result.speedup,
        profiles=profiles,
    )


def render_bench(result: BenchResult) -> RenderableType:
    """Lay the times out as a table of 80 columns."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for column in ("median", "mean", "min", "p90", "p99", "images/s", "cv", "runs"):
        table.add_column(column, justify="right")
    rows: list[tuple[str | None, Latency | None]] = [
        (result.baseline, result.latency.fp32),
        (result.artifact, result.latency.artifact),
    ]
    for name, times in rows:
        if name is not None and times is not None:
            figures = (times.median_ms, times.mean_ms, times.min_ms, times.p90_ms, times.p99_ms)
            table.add_row(
                name,
                *(f"{figure:.3f}" for figure in figures),
                f"{times.throughput:.1f}",
                f"{times.cv:.2f}",
                str(times.runs),
            )
    settings = result.latency
    where = f"{settings.runtime} on {settings.device}, batch {settings.batch}, threads {settings.threads}"
    parts: list[RenderableType] = [table, Text(where, "dim")]
    if result.speedup is not None:
        speedup = result.speedup
        parts.append(
            Text(f"speed-up of medians {speedup.value:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})", "bold")
        )
    if "noisy" in settings.settings:
        parts.append(Text(f"noisy, decides nothing: {settings.settings['noisy']}", "yellow"))
    if result.profiles:
        parts += [Text(""), _profile_table(result.profiles)]
    for name, profile in result.profiles.items():
        if profile.fell_back:
            parts.append(
                Text(
                    f"{name}: quantised, but run in float after a DequantizeLinear: {', '.join(profile.fell_back)}",
                    "yellow",
                )
            )
    return Group(*parts)


def _profile_table(profiles: dict[str, NetworkProfile]) -> Table:
    """Lay the profiles side by side, a row for each class of operators, and the nodes of the last."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms by operator")
    for name in profiles:
        table.add_column(name, justify="right")
    table.add_column("nodes")
    by_kind = {name: {share.kind: share for share in profile.shares} for name, profile in profiles.items()}
    kinds = dict.fromkeys(share.kind for profile in profiles.values() for share in profile.shares)
    *_, last = by_kind.values()
    for kind in kinds:
        times = [f"{shares[kind].ms:.3f}" if kind in shares else "-" for shares in by_kind.values()]
        counts = last[kind].operators if kind in last else {}
        table.add_row(kind, *times, ", ".join(f"{count} {operator}" for operator, count in counts.items()))
    table.add_row("sum", *(f"{sum(share.ms for share in profile.shares):.3f}" for profile in profiles.values()), "")
    return table


def _by_kind(profile: Profile) -> NetworkProfile:
    """Add nodes up by class of operators."""
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in profile.nodes:
        times[node.kind] += node.median_ms
        counts[node.kind][node.operator] += 1
    longest_first = sorted(times, key=lambda kind: -times[kind])
    shares = [OperatorShare(kind=kind, operators=dict(counts[kind]), ms=times[kind]) for kind in longest_first]
    return NetworkProfile(shares=shares, fell_back=list(profile.fell_back))


def _artifact_of(path: Path) -> tuple[Path, Backend]:
    """Return the artifact of a run directory, or the path itself, and the backend that opens it."""
    if path.is_dir() and backend_of(path) is None:
        return _artifact_of_run(path)
    if not path.exists():
        raise ExportError(f"There is no artifact {path}.")
    return path, backend_of(path) or backends()[0]


def _artifact_of_run(path: Path) -> tuple[Path, Backend]:
    from edgeconvnext.pipeline.stored_config import stored_target
    from edgeconvnext.run.manifest import load_run

    run = load_run(path)
    target = stored_target(run)
    backend = backend_for(target)
    artifact = path / backend.artifact
    if not any(file == artifact.name or file.startswith(f"{artifact.name}/") for file in run.files):
        raise ExportError(
            f"{path} holds no artifact; it is a run of edgeconvnext quantize. Export one with --from {path}."
        )
    reader, script = backend_of(artifact), backend.kit_script()
    if script is not None and reader is not None and reader is not backend and reader.not_timed is None:
        raise RuntimeMissingError(
            f"{path} is a run for {target.name}, whose engine is built and timed on the board with device/{script.name}. "
            f"To time the file itself in {reader.runtime}, name {artifact}."
        )
    return artifact, backend
