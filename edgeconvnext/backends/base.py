"""The contract of a backend: one exporter, the runtime of what it writes, and all that the rest of the package asks of them.

ARCHITECTURE.md says how to add one.

A backend's module imports no runtime: only its methods do, and `require` says what is missing before any work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgeconvnext.errors import ExportError, RuntimeMissingError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from edgeconvnext.backends.block_outputs import LayerOutput
    from edgeconvnext.backends.limits import Limits
    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.data.size import Size
    from edgeconvnext.evaluation.runner import Outputs, Runner
    from edgeconvnext.rewrite.float_timer import FloatTimer
    from edgeconvnext.schema.report import ExportCheck, Interval, LatencyComparison
    from edgeconvnext.targets import Target

LAYER_LIST = "layers.csv"


@dataclass(frozen=True)
class Exported:
    """checks: proofs that ran. missing: proofs that did not, with the reason."""

    checks: list[ExportCheck]
    missing: dict[str, str]


@dataclass(frozen=True)
class Programs:
    """quantized, floating: float32 graphs with and without Q/DQ, both for the target's input.

    sizes: smallest, typical and largest height and width where these are free, else (). images: a few real images as that input,
    (N, C, H, W). simulated: the quantised graph's outputs for them, in the target's float
    type, (N, ...) each. sparse: linears of the folded network that are 2:4 sparse, by path.
    """

    quantized: ExportedProgram
    floating: ExportedProgram
    images: np.ndarray
    simulated: tuple[np.ndarray, ...]
    sizes: tuple[Size, ...] = ()
    sparse: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyResult:
    """Both networks' times and, where both ran, how many times faster the artifact is.

    noise: what makes the times doubtful; None where nothing does.
    """

    comparison: LatencyComparison
    speedup: Interval | None
    noise: str | None = None


@dataclass(frozen=True)
class LatencySettings:
    """How an artifact is timed.

    images: normalised (N, C, H, W) photographs, repeated to fill the batch; without them a grey ramp of input_size, (height,
    width), and in_channels is timed. seconds: measured time of each network, at least; None: timing.MIN_SECONDS.
    """

    batch: int = 1
    threads: int = 1
    seconds: float | None = None
    images: np.ndarray | None = None
    input_size: Size = (224, 224)
    in_channels: int = 3


@dataclass(frozen=True)
class InputShape:
    """What an artifact takes. batch: None where it is free. size: (height, width), the network's own where several are taken."""

    batch: int | None
    channels: int
    size: Size


@dataclass(frozen=True)
class NodeTime:
    """Median time of one node of the graph that a runtime made of a file.

    kind: the class of operators it belongs to. precision: int8 where it computes on codes, conversion where it only changes
    element types or layouts.
    """

    name: str
    operator: str
    kind: str
    median_ms: float
    precision: Literal["int8", "float", "conversion"] = "float"


@dataclass(frozen=True)
class Profile:
    """The nodes of one file in the order they run, and its quantised layers that the runtime computes in float.

    partitions: pieces that the runtime cuts the graph into.
    """

    nodes: tuple[NodeTime, ...]
    fell_back: tuple[str, ...]
    partitions: int = 1


@dataclass(frozen=True)
class RuntimePackage:
    """A Python package that a backend works with, for `doctor`. remedy: how to get it, or why it cannot be had here."""

    name: str
    purpose: str
    remedy: str


@dataclass(frozen=True)
class KitScript:
    """The script that checks and times an artifact on a device.

    name: in the kit. source: the backend's own part of it, Python 3.8 and its standard library. needs: what it runs on, and does:
    what it does, for the README. imports: the Python package of the runtime there. builds_engines: whether it builds what it runs,
    which needs room and lets another release of the package be named. saves: a pattern of the files that it leaves beside
    device.json. for_classifiers: further files of a classifier's kit.
    """

    name: str
    source: Path
    needs: str
    does: str
    imports: str
    builds_engines: bool = False
    saves: str = r"layers\.json"
    for_classifiers: tuple[Path, ...] = ()

    @property
    def module(self) -> str | None:
        """The package as kit.json names it: that of scripts that build engines with it, else None."""
        return self.imports if self.builds_engines else None

    def saves_file(self, name: str) -> bool:
        """Say whether the script leaves a file of that name beside device.json: a device may claim anything."""
        return re.fullmatch(self.saves, name) is not None


class TimedRunner(Protocol):
    """A runner whose preparation and run can be called apart, so that only the run is timed.

    batch: the batch size of the file, None where it takes any.
    """

    name: str
    runtime: str
    batch: int | None

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn normalised images, (N, C, H, W), into the values and element type that the file takes."""
        ...

    def run(self, inputs: np.ndarray) -> Outputs:
        """Run prepared `inputs`, a whole batch of the file's own size."""
        ...

    def outputs(self, images: np.ndarray) -> Outputs:
        """Prepare and run images, in batches of the file's own size."""
        ...


class Backend(Protocol):
    """An exporter and the runtime of what it writes.

    name: the exporter in target files. runtime: as [runtime] of a target names it. artifact, baseline: files or folders that
    `export` writes, below its folder. not_run, not_timed: why this machine does not run or time the artifact, for the report; None
    where it does. suffixes: of files that it opens where only a path is named. packages: what it works with.
    """

    name: str
    runtime: str
    artifact: str
    baseline: str
    limits: Limits
    not_run: str | None = None
    not_timed: str | None = None
    suffixes: tuple[str, ...] = ()

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        """The Python packages that it works with on this machine."""
        return ()

    def require(self, target: Target) -> None:
        """Raise RuntimeMissingError before any work where the exporter cannot run on this machine."""
        return

    def write(
        self,
        target: Target,
        program: ExportedProgram,
        path: Path,
        metadata: ArtifactMetadata,
    ) -> Path:
        """Write one graph, with Q/DQ or float, in the form that `target` asks for; the only way from a program to a file.

        program: float32, for the target's input. path: ends as the artifact does.
        """
        ...

    def export(
        self,
        target: Target,
        programs: Programs,
        folder: Path,
        metadata: ArtifactMetadata,
    ) -> Exported:
        """Write the artifact and its float baseline into `folder`, and prove what can be proved on this machine."""
        ...

    def checks_depend_on(self) -> dict[str, object]:
        """Return what of this machine the checks of `export` depend on, beside versions: part of the stage's key."""
        return {}

    def runner(self, path: Path) -> Runner:
        """Open an artifact in what runs it here. Raises RuntimeMissingError where `not_run` says why it does not.

        Raises ExportError for a file that is missing or broken.
        """
        raise RuntimeMissingError(f"{path} does not run on this machine: {self.not_run}.")

    def metadata_of(self, path: Path) -> ArtifactMetadata:
        """Return what an artifact says of its labels and preprocessing. Raises ExportError for one that says nothing."""
        raise ExportError(f"{path} does not say how images are prepared for it. Name the run directory it was made in.")

    def timed_runner(self, path: Path, threads: int) -> TimedRunner:
        """Open an artifact or a float form to be timed; errors as `runner`, with `not_timed`."""
        raise RuntimeMissingError(f"{path} cannot be timed on this machine: {self.not_timed}.")

    def input_of(self, path: Path) -> InputShape:
        """Return what an artifact takes, to be timed; errors as `timed_runner`."""
        raise RuntimeMissingError(f"{path} cannot be timed on this machine: {self.not_timed}.")

    def latency(self, baseline: Path | None, artifact: Path, settings: LatencySettings) -> LatencyResult:
        """Time an artifact, interleaved with its float baseline where that is given; errors as `timed_runner`."""
        raise RuntimeMissingError(f"{artifact} cannot be timed on this machine: {self.not_timed}.")

    def profile(self, path: Path, images: np.ndarray, threads: int) -> Profile | None:
        """Return what the operators of an artifact take on normalised images, (N, C, H, W); None: it does not say."""
        return None

    def installed(self) -> str:
        """Return name and version of the runtime on this machine."""
        return self.runtime

    def float_timer(self) -> FloatTimer | None:
        """Return what times float networks in this runtime on this machine; None where nothing does."""
        return None

    def kit_script(self) -> KitScript | None:
        """Return the script that checks and times the artifact on a device; None where there is no kit."""
        return None

    @contextmanager
    def kit_baseline(
        self,
        target: Target,
        folder: Path,
        floating: Callable[[], ExportedProgram],
        metadata: ArtifactMetadata,
    ) -> Iterator[Path]:
        """Give the float form that a device compares the artifact with: of the run in `folder`, or made for the block.

        floating: returns the float graph, for a backend whose `export` writes no baseline.
        """
        yield folder / self.baseline

    def layer_outputs(
        self,
        simulation: Callable[[], GraphModule],
        artifact: Path,
        images: np.ndarray,
    ) -> tuple[LayerOutput, ...]:
        """Return what the simulation's blocks give for images, (N, C, H, W), where the artifact can be asked for them on a device.

        simulation: builds the simulated graph.
        """
        return ()

    def added_outputs(self, layers: Iterable[LayerOutput], present: frozenset[str]) -> bytes:
        """Return what a device needs beside the artifact to ask it for these layers. present: outputs it has already."""
        return b""

    def how_to_run(self) -> str | None:
        """Return the part of a model card on running the artifact, a Jinja template; None where there is none."""
        return None
