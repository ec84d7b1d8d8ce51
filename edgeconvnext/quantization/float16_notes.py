"""What a report says of activations that float16 does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from edgeconvnext.errors import EdgeConvNextError
from edgeconvnext.quantization.ranges import LARGEST_FLOAT16

SHOWN_LAYERS = 3


class Float16Peaks(Protocol):
    """What is said of: a `float16_range.Float16Range`, or what a run stored of one."""

    @property
    def peaks(self) -> dict[str, float]: ...

    @property
    def stream_exponents(self) -> tuple[int, ...]: ...

    @property
    def remaining(self) -> dict[str, float]: ...


def float16_notes(values: Float16Peaks | None) -> list[str]:
    """Name the layers whose activations float16 does not hold, their largest magnitudes, what was done and what helps."""
    if values is None or not values.peaks:
        return []
    notes = []
    stages = [stage for stage, exponent in enumerate(values.stream_exponents) if exponent]
    if stages:
        factors = ", ".join(f"stages.{stage} by 2^-{values.stream_exponents[stage]}" for stage in stages)
        scaled = {path: peak for path, peak in values.peaks.items() if path not in values.remaining}
        notes.append(
            f"{_reach(scaled)}. The residual stream was scaled where it is too large: {factors}. The norms that read it take that "
            "back exactly, so that the network computes the same."
        )
    if values.remaining:
        notes.append(
            f"{_reach(values.remaining)}. No exact rescaling is known there, and the target computes in float16. What helps: a "
            "smaller scale for these channels in the checkpoint, folded into the layers around them, or these layers in float32, "
            'which a target with float_type "float32" such as onnx has.'
        )
    return notes


@contextmanager
def naming_overflows(values: Float16Peaks | None) -> Iterator[None]:
    """Add the layers that float16 does not hold to an error about answers that are NaN or infinite."""
    try:
        yield
    except EdgeConvNextError as error:
        notes = float16_notes(values)
        if not notes or "NaN or Inf" not in str(error):
            raise
        raise type(error)(" ".join([str(error), *notes])) from error


def _reach(peaks: Mapping[str, float]) -> str:
    """Say how far activations go beyond float16, and in which layers, the largest first."""
    ranked = sorted(peaks, key=lambda path: -peaks[path])
    largest = peaks[ranked[0]]
    times = largest / LARGEST_FLOAT16
    verb = (
        f"overflow float16 ({LARGEST_FLOAT16:.0f}), {times:.1f} times"
        if times > 1
        else (
            f"come within a factor of two of float16's largest number ({LARGEST_FLOAT16:.0f}), and other images may go beyond it"
        )
    )
    more = [f"{path} ({peaks[path]:.0f})" for path in ranked[1:SHOWN_LAYERS]]
    rest = f" and {len(ranked) - SHOWN_LAYERS} more layers" if len(ranked) > SHOWN_LAYERS else ""
    others = f"; also {', '.join(more)}{rest}" if more else ""
    return f"Activations {verb}: up to {largest:.0f} in {ranked[0]} on the calibration images{others}"
