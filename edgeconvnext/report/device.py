"""What a device measured, in words: the same lines for the terminal, the page and the model card."""

from __future__ import annotations

from edgeconvnext.schema import format
from edgeconvnext.schema.report import DeviceLatency, DeviceRecord, Interval, Latency, machine_name


def device_facts(device: DeviceRecord) -> list[tuple[str, str | None]]:
    """Return name and value of each figure, None where it was not measured there."""
    facts: list[tuple[str, str | None]] = [
        ("device", f"{machine_name(device)}, {device.runtime}{_setting(device.latency)}"),
        ("  fidelity", _fidelity(device)),
        *(_outputs(device) if device.outputs else _answers(device)),
        (f"  latency {device.baseline_form}", None if device.latency is None else _times(device.latency.baseline)),
        (f"  latency {device.artifact_form}", None if device.latency is None else _times(device.latency.artifact)),
        ("  speed-up", None if device.speedup is None else _interval(device.speedup)),
        ("  power", _power(device)),
        ("  energy", _energy(device)),
        ("  layers ran in", ", ".join(f"{count} {name}" for name, count in device.precisions.items())),
    ]
    worst = worst_layers(device, 1)
    if worst:
        facts.append(("  least faithful layer", f"{worst[0][0]}, {worst[0][1]}"))
    return facts


def worst_layers(device: DeviceRecord, count: int) -> list[tuple[str, str]]:
    """Return the layers whose outputs are furthest from the simulation's, worst first, with their SQNR in words."""
    order = sorted(device.layer_fidelity, key=lambda one: -1e9 if one.sqnr_db is None else one.sqnr_db)
    return [(one.layer, "not finite" if one.sqnr_db is None else format.decibel(one.sqnr_db)) for one in order[:count]]


def _answers(device: DeviceRecord) -> list[tuple[str, str | None]]:
    return [
        ("  agreement", None if device.agreement is None else f"{format.percent(device.agreement)} of them"),
        (f"  {device.score or 'top-1'}", _score(device)),
    ]


def _outputs(device: DeviceRecord) -> list[tuple[str, str | None]]:
    """Return a line for each output of a network without classifier."""
    return [
        (f"  {output.name}", f"SQNR {format.decibel(output.sqnr_db)}, fidelity {format.decibel(output.fidelity_db)}")
        for output in device.outputs
    ]


def _setting(latency: DeviceLatency | None) -> str:
    if latency is None:
        return ""
    return f", batch {latency.batch}, {latency.threads} thread{'' if latency.threads == 1 else 's'}"


def _fidelity(device: DeviceRecord) -> str | None:
    if device.fidelity_db is None:
        return None
    return f"{format.decibel(device.fidelity_db)} on {device.images} check vectors"


def _power(device: DeviceRecord) -> str | None:
    power = device.power
    if power is None:
        return None
    return (
        f"{power.idle_w:.2f} W idle, {power.baseline_w:.2f} W {device.baseline_form}, {power.artifact_w:.2f} W "
        f"{device.artifact_form} ({power.source}: {power.total})"
    )


def _energy(device: DeviceRecord) -> str | None:
    power = device.power
    if power is None:
        return None
    return (
        f"{format.significant(power.baseline_mj_per_image)} mJ an image {device.baseline_form}, "
        f"{format.significant(power.artifact_mj_per_image)} mJ {device.artifact_form}"
    )


def _score(device: DeviceRecord) -> str | None:
    if device.artifact is None or device.fp32 is None:
        return None
    return f"{format.percent(device.artifact.value)} of {device.artifact.n} images, FP32 {format.percent(device.fp32.value)}"


def _times(latency: Latency) -> str:
    return f"median {format.milliseconds(latency.median_ms)}, p99 {format.milliseconds(latency.p99_ms)}"


def _interval(gain: Interval) -> str:
    return f"{format.ratio(gain.value)} ({gain.low:.2f} to {gain.high:.2f})"
