"""`edgeconvnext bench RUN --runtime triton`: check the kernels on this GPU, then time them against float forms."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeconvnext.backends.triton.forms import INT8, float_forms, int8_form
from edgeconvnext.backends.triton.gpu import BATCHES, Peaks, describe_gpu, describe_versions, measure_peaks
from edgeconvnext.backends.triton.network import TritonNetwork
from edgeconvnext.backends.triton.planned import PlannedNetwork
from edgeconvnext.backends.triton.reference import CodeDifference, simulate, unit_differences
from edgeconvnext.backends.triton.roofline import network_work
from edgeconvnext.errors import QuantizationError
from edgeconvnext.evaluation.timing import (
    BLOCK_S,
    MIN_SECONDS,
    WARM_UP_S,
    Samples,
    ratio_of_medians,
    time_interleaved,
)
from edgeconvnext.files import atomic_write
from edgeconvnext.model.macs import layer_macs

CSV_NAME = "triton.csv"
BASELINE = "torch.compile FP16, layer scale folded"
"""The best float form of the network that torch has: what a speed-up is against."""


@dataclass(frozen=True)
class TimedForm:
    """Times of one form at one batch; a line of the CSV.

    throughput: images a second. speedup, low, high: median of BASELINE over this form's, with its 95 % interval. roofline_ms: time
    that bytes and operations of the int8 network need at the peaks measured on this GPU; roofline_share: of it, what was reached.
    None where it does not apply.
    """

    model: str
    resolution: str
    batch: int
    form: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    cv: float
    runs: int
    speedup: float
    speedup_low: float
    speedup_high: float
    roofline_ms: float | None
    roofline_share: float | None
    int8_share_of_macs: float | None
    device: str
    versions: str
    settings: str


@dataclass(frozen=True)
class TritonBench:
    """differences: of each layer's codes from the simulated graph's, on this GPU. forms: no times where these are not allowed."""

    differences: list[CodeDifference]
    forms: list[TimedForm]

    @property
    def is_right(self) -> bool:
        return all(difference.is_allowed for difference in self.differences)

    @property
    def worst(self) -> CodeDifference:
        return max(self.differences, key=lambda difference: (difference.largest, difference.share))


def bench_triton(
    planned: PlannedNetwork, device: torch.device, batches: Sequence[int] = BATCHES, seconds: float = MIN_SECONDS
) -> TritonBench:
    """Compare the kernels' codes with the simulation's, and time all forms where they agree. seconds: of each form and batch."""
    int8 = TritonNetwork(planned.network, planned.plan, planned.float_type, device)
    if not int8.int8_layers:
        raise QuantizationError(
            f"{planned.name} has no layer with 8-bit weights and activations: the kernels have nothing to run."
        )
    differences = check_on(device, planned, int8)
    bench = TritonBench(differences, [])
    if not bench.is_right:
        return bench
    for batch in batches:
        bench.forms.extend(time_batch(planned, int8, device, batch, seconds))
    return bench


def time_batch(
    planned: PlannedNetwork,
    int8: TritonNetwork,
    device: torch.device,
    batch: int,
    seconds: float,
    turn: AbstractContextManager[object] | None = None,
) -> list[TimedForm]:
    """Time all forms at one batch. turn: entered when the float forms are compiled, for what needs the GPU for itself."""
    images = random_images(planned, batch).to(device)
    forms = float_forms(planned.folded, images)
    with turn or nullcontext():
        forms.append(int8_form(int8, images))
        samples = time_interleaved({form.key: form.call for form in forms}, seconds=seconds)
        peaks = measure_peaks(device)
    return timed_forms(planned, int8.int8_layers, batch, samples, peaks, seconds)


def check_on(device: torch.device, planned: PlannedNetwork, int8: TritonNetwork) -> list[CodeDifference]:
    """Return how the kernels' codes differ from the simulated graph's, unit by unit, both computed on `device`."""
    simulation = simulate(planned.network, planned.plan, random_images(planned, 2).to(device), planned.float_type)
    return unit_differences(int8, simulation)


def random_images(planned: PlannedNetwork, batch: int) -> torch.Tensor:
    """Return normalised noise, (N, C, H, W): times and sums depend on sizes, not on what is in the picture."""
    size = (batch, planned.folded.config.in_channels, *planned.input_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def timed_forms(
    planned: PlannedNetwork,
    int8_layers: Sequence[str],
    batch: int,
    samples: Mapping[str, Samples],
    peaks: Peaks,
    seconds: float,
) -> list[TimedForm]:
    """Summarise the samples of one batch, by form."""
    macs = layer_macs(planned.folded, planned.input_size)
    share = sum(macs[layer] for layer in int8_layers) / sum(macs.values())
    work = network_work(planned.folded.config, planned.input_size, batch, planned.float_type.itemsize)
    roofline_ms = 1000 * sum(kernel.seconds(peaks) for kernel in work)
    shared: dict[str, Any] = {
        "model": planned.name,
        "resolution": "x".join(map(str, planned.input_size)),
        "batch": batch,
        "device": describe_gpu(),
        "versions": describe_versions(),
        "settings": _settings(seconds, peaks),
    }
    timed = []
    for form, taken in samples.items():
        times, is_int8 = taken.times_ms, form.startswith(INT8)
        median, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
        value, low, high = ratio_of_medians(samples[BASELINE], taken)
        timed.append(
            TimedForm(
                **shared,
                form=form,
                median_ms=median,
                p90_ms=p90,
                p99_ms=p99,
                throughput=1000 * batch / float(times.mean()),
                cv=float(times.std() / times.mean()),
                runs=len(times),
                speedup=value,
                speedup_low=low,
                speedup_high=high,
                roofline_ms=roofline_ms if is_int8 else None,
                roofline_share=roofline_ms / median if is_int8 else None,
                int8_share_of_macs=share if is_int8 else None,
            )
        )
    return timed


def write_csv(path: Path, forms: Sequence[TimedForm]) -> None:
    """Write one line for each form and batch; what does not apply is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(TimedForm)], lineterminator="\n")
    writer.writeheader()
    for form in forms:
        shown = asdict(form).items()
        writer.writerow({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in shown})
    atomic_write(path, text.getvalue())


def _settings(seconds: float, peaks: Peaks) -> str:
    return "; ".join(
        [
            f"warm-up {1000 * WARM_UP_S:.0f} ms and at least {seconds:g} s of each form",
            f"interleaved, turns of {1000 * BLOCK_S:.0f} ms",
            "one call from input on the GPU to its end, clock time.perf_counter",
            "TF32 in eager FP32 as torch has it by default: convs yes, linears no",
            "torch.compile mode reduce-overhead; INT8 as one CUDA graph",
            f"measured peaks: {peaks.bytes_per_s / 1e12:.2f} TB/s copied, {peaks.int8_ops / 1e12:.0f} TOP/s int8, "
            f"{peaks.float_ops / 1e12:.1f} TFLOP/s float32",
        ]
    )
