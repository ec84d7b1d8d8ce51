"""device.json, as the script of a kit writes it: its formats, and what it may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from edgeconvnext.backends.kit.description import MOST_LAYERS, Described, Text, checked, strict_json
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MOST_TEXT_BYTES, read_bytes

RESULT_FORMAT = 4
OLD_FORMAT = 3
"""Without the times of single runs: answers count, times and power do not, because nothing shows how they came about."""
OLD_FORMAT_REASON = (
    "device.json is of format 3, which does not hold the times of single runs; export again and run that kit, or use "
    "edgeconvnext remote"
)
MOST_RUNS = 1_000_000
MOST_BLOCKS = 12_000
_DERIVED = ("latency", "speedup", "power", "check", "gates", "passed")
_AGAIN = "Run the kit's script again and bring back what it writes."

Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Measured = Annotated[float, Field(ge=-1e9, le=1e9)]
Name = Annotated[str, Field(max_length=300)]


class ResultRuntime(Described):
    name: Name
    version: Name


class ResultForms(Described):
    artifact: Text
    baseline: Text


class ResultTimes(Described):
    """One network's runs, ms, in the blocks they were timed in, and the figures that the device made of them."""

    blocks_ms: list[Annotated[list[Positive], Field(min_length=1)]] = Field(min_length=1, max_length=MOST_BLOCKS)
    median_ms: Positive
    mean_ms: Positive
    min_ms: Positive
    max_ms: Positive
    p90_ms: Positive
    p95_ms: Positive
    p99_ms: Positive
    throughput: Annotated[float, Field(gt=0, le=1e15)]
    cv: NotNegative
    runs: int = Field(ge=1, le=MOST_RUNS)


class ResultLatency(Described):
    batch: int = Field(ge=1, le=2**16)
    threads: int = Field(ge=1, le=4096)
    settings: dict[Name, Text] = Field(default={}, max_length=100)
    artifact: ResultTimes
    baseline: ResultTimes


class ResultSpeedup(Described):
    value: Positive
    low: Positive
    high: Positive


class ResultPerImage(Described):
    artifact: Positive
    baseline: Positive


class ResultRail(Described):
    """Watts of one rail."""

    idle: Measured
    artifact: Measured
    baseline: Measured


class ResultPower(Described):
    """Watts by rail and the time of an image, and what the device made of them. summed: rails that carry all of its input."""

    source: Text
    total: Text
    summed: list[Name] = Field(min_length=1, max_length=100)
    rails: dict[Name, ResultRail] = Field(min_length=1, max_length=100)
    seconds_per_image: ResultPerImage
    idle_w: Measured
    baseline_w: Measured
    artifact_w: Measured
    baseline_mj_per_image: Measured
    artifact_mj_per_image: Measured


class ResultLayer(Described):
    name: Text
    kind: Text
    precision: Text
    median_ms: NotNegative | None = None


class ResultLayerFidelity(Described):
    layer: Text
    sqnr_db: float | None = Field(default=None, ge=-1000, le=1000)


class ResultLayers(Described):
    artifact: list[ResultLayer] = Field(default=[], max_length=MOST_LAYERS)


class ResultOutput(Described):
    """What the device made of one output's answers."""

    name: Text
    fidelity_db: float | None
    sqnr_db: float | None


class ResultCheck(Described):
    """What the device made of its answers. score: the task's, as accuracy.score of the report; older kits call it top1."""

    images: int
    outputs: list[ResultOutput] = Field(max_length=100)
    fidelity_db: float | None
    sqnr_db: float | None
    agreement: float | None = None
    score: float | None = Field(default=None, validation_alias=AliasChoices("score", "top1"))
    score_fp32: float | None = Field(default=None, validation_alias=AliasChoices("score_fp32", "top1_fp32"))


class ResultGate(Described):
    name: Literal["min_feature_sqnr_db", "min_fidelity_db", "min_speedup"]
    limit: float
    measured: float | None
    passed: bool


class DeviceResults(Described):
    """device.json. kit: sha256 of the kit.json it was measured with; answers: base64 of float32.

    Raw are the answers, the times of single runs and the watts of each rail. check, gates, speedup, passed and the figures beside
    the raw ones are the device's own sums; they are computed again from the raw ones and must agree.
    """

    format: int
    kit: Annotated[str, Field(max_length=64)]
    model: Text
    target: Text
    started: Annotated[str, Field(max_length=40)]
    runtime: ResultRuntime
    forms: ResultForms
    machine: dict[Name, Text] = Field(default={}, max_length=100)
    answers: Annotated[str, Field(max_length=MOST_TEXT_BYTES)] | None = None
    check: ResultCheck | None = None
    latency: ResultLatency | None = None
    speedup: ResultSpeedup | None = None
    power: ResultPower | None = None
    power_absent: Text | None = None
    clocks_before: dict[Name, dict[Name, float | Name | None]] = Field(default={}, max_length=1000)
    clocks_after: dict[Name, dict[Name, float | Name | None]] = Field(default={}, max_length=1000)
    layers: ResultLayers = ResultLayers()
    layer_fidelity: list[ResultLayerFidelity] = Field(default=[], max_length=MOST_LAYERS)
    layer_fidelity_absent: Text | None = None
    messages: list[Text] = Field(default=[], max_length=1000)
    saved: list[Name] = Field(default=[], max_length=100)
    gates: list[ResultGate] = Field(default=[], max_length=3)
    passed: bool | None = None


def read_results(path: Path, kit: Kit) -> DeviceResults:
    """Read device.json. Raises DeviceResultsError where it does not hold, or was measured with another run's kit."""
    content = read_bytes(path, DeviceResultsError)
    results = results_of(strict_json(content, path, DeviceResultsError), path)
    if results.kit != kit.sha256:
        raise DeviceResultsError(
            f"{path} was measured with the kit of another run ({for_terminal(results.model)} for "
            f"{for_terminal(results.target)}, kit {for_terminal(results.kit[:12])}); this run's is {for_terminal(kit.model)} for "
            f"{for_terminal(kit.target)}, kit {kit.sha256[:12]}. Name the run it belongs to, or copy this run's device folder "
            "to the device and run its script there."
        )
    return results


def results_of(value: object, path: Path) -> DeviceResults:
    """Return the content of a device.json as a record; raises DeviceResultsError where it does not hold."""
    if not isinstance(value, dict):
        raise DeviceResultsError(f"{path} does not hold: it is no JSON object. {_AGAIN}")
    number = value.get("format")
    if not isinstance(number, int) or isinstance(number, bool):
        raise DeviceResultsError(f"{path} does not hold: format: no number is given. {_AGAIN}")
    if number > RESULT_FORMAT:
        raise DeviceResultsError(
            f"{path} is of format {number}: it was made by a newer version of edgeconvnext. Update edgeconvnext on this machine."
        )
    if number < OLD_FORMAT:
        raise DeviceResultsError(
            f"{path} is of format {number}, which is no longer read. Export the model again, and run the kit of that export."
        )
    if number == OLD_FORMAT:
        value = {key: entry for key, entry in value.items() if key not in _DERIVED}
    return checked(DeviceResults, value, path, DeviceResultsError, _AGAIN)
