"""What `edgeconvnext roadmap` measured: one record for each step from ResNet-50 to ConvNeXt-T."""

from __future__ import annotations

from pydantic import Field

from edgeconvnext.schema.report import Decibel, Interval, Record


class RoadmapStep(Record):
    """One network on the road, or one beside it for comparison.

    macs: multiply-adds at 224, batch 1, as counted here; published_gflops: as printed in the paper, which counts norms where
    gflops_count_norms is set. published_top1: ImageNet top-1 of the paper, per cent. macs_at_resolution: at `resolution`, the
    side of the input in pixels that everything below was measured at. weights: "random" or the name of the weights file.
    latency_*_ms: medians in the target's runtime, batch 1. speedup: FP32 / INT8 with a 95 % interval. fidelity_db: the artifact
    against the simulated graph; sqnr_db: its logits against FP32's. agreement: images with FP32's answer, per cent.
    int8_macs: share of the multiply-adds in INT8. top1_*: on labelled images, per cent. size_*: bytes of the artifacts. run: the
    step's run directory, relative to the roadmap's. not_measured: reasons, by field, for what is null.
    """

    name: str
    change: str
    macs: int
    params: int
    published_gflops: float
    gflops_count_norms: bool = False
    published_top1: float | None
    resolution: int
    macs_at_resolution: int
    weights: str
    latency_fp32_ms: float | None = None
    latency_int8_ms: float | None = None
    speedup: Interval | None = None
    fidelity_db: Decibel | None = None
    sqnr_db: Decibel | None = None
    agreement: float | None = None
    int8_macs: float | None = None
    top1_fp32: float | None = None
    top1_int8: float | None = None
    images: int = 0
    size_fp32_bytes: int | None = None
    size_int8_bytes: int | None = None
    run: str | None = None
    not_measured: dict[str, str] = Field(default={})


class Roadmap(Record):
    """All steps, and how they were measured. environment: device and versions; notes: what was assumed or is absent."""

    target: str
    runtime: str
    resolution: int
    effort: str
    threads: int
    calibration_set: str
    calibration_images: int
    environment: dict[str, str]
    notes: list[str]
    steps: list[RoadmapStep]
