"""Swin-T beside the roadmap's steps, through timm where that is installed: FP32 only, the toolkit quantises no attention."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.schema.roadmap import RoadmapStep

TIMM_NAME = "swin_tiny_patch4_window7_224"
ABSENT = "Swin-T is not compared: timm is not installed (pip install timm)."


def swin_row(
    resolution: int, threads: int, timer: FloatTimer, *, measure_latency: bool
) -> tuple[RoadmapStep | None, str | None]:
    """Return Swin-T's record, or None and why there is none. Weights are random; published figures: arXiv 2103.14030."""
    if find_spec("timm") is None:
        return None, ABSENT
    timm = import_module("timm")
    import_module("timm.layers").set_fused_attn(
        False
    )  # so that attention is counted and exported as products of matrices
    try:
        model = timm.create_model(TIMM_NAME, pretrained=False, img_size=resolution).eval()
    except (AssertionError, ValueError, RuntimeError) as error:
        return None, f"Swin-T is not compared: timm builds none for {resolution} pixels ({error})."
    whole = model if resolution == 224 else timm.create_model(TIMM_NAME, pretrained=False).eval()
    reason = "attention is not quantised by this toolkit"
    reasons = dict.fromkeys(("latency_int8_ms", "speedup", "fidelity_db"), reason)
    reasons |= dict.fromkeys(("top1_fp32", "top1_int8"), "no trained weights")
    if not measure_latency:
        reasons["latency_fp32_ms"] = "switched off with --no-latency"
    row = RoadmapStep(
        name="swin_tiny",
        change="for comparison: Swin-T (timm), FP32 only",
        macs=_macs(whole, 224),
        params=sum(parameter.numel() for parameter in model.parameters()),
        published_gflops=4.5,
        published_top1=81.3,
        resolution=resolution,
        macs_at_resolution=_macs(model, resolution),
        weights="random",
        latency_fp32_ms=timer.foreign_latency_ms(model, (resolution, resolution), threads=threads)
        if measure_latency
        else None,
        not_measured=reasons,
    )
    return row, None


def _macs(model: Any, resolution: int) -> int:
    """Multiply-adds of convs, linears and products of matrices, attention's included, batch 1."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, resolution, resolution))
    return counter.get_total_flops() // 2
