"""The precision that a training multiplies in, on the device that it runs on."""

from __future__ import annotations

from typing import Literal

import torch

from edgeconvnext.errors import TrainingError
from edgeconvnext.train.recipe import Precision

_BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")


def precision_on(device: torch.device, asked: Precision | Literal["auto"]) -> Precision:
    """Return `asked`; for "auto", bf16 where the device multiplies in it, else fp32.

    Raises TrainingError for fp16 on a processor.
    """
    if asked == "fp16" and device.type == "cpu":
        raise TrainingError("Training in fp16 needs a GPU, and this machine has none. Use --precision bf16 or fp32.")
    if asked != "auto":
        return asked
    return "bf16" if _multiplies_in_bf16(device) else "fp32"


def _multiplies_in_bf16(device: torch.device) -> bool:
    """Say whether the hardware has instructions for it. Without them bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in _BF16_FEATURES)
