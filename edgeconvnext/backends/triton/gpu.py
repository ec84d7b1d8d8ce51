"""The GPU that kernels run on: whether there is one, what it is, and how fast it moves and multiplies."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeconvnext.errors import RuntimeMissingError

BATCHES = (1, 8, 32, 128)
_OLDEST = (8, 0)
_COPIED_BYTES = 2**30
_MATRIX = 8192


def require_gpu() -> torch.device:
    """Return the NVIDIA GPU; raise RuntimeMissingError where there is none that the kernels run on, or no Triton."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeMissingError(
            "--runtime triton needs Triton, which is not installed: pip install 'edgeconvnext[triton]' (Linux, 200 MB)."
        )
    if torch.version.cuda is None or not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "sees none on this machine"
        raise RuntimeMissingError(
            f"--runtime triton needs an NVIDIA GPU, and this torch ({torch.__version__}) {why}. The same plan runs in other "
            "runtimes: edgeconvnext targets lists them."
        )
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST:
        raise RuntimeMissingError(
            f"--runtime triton needs compute capability 8.0 or later (A100, RTX 30); {torch.cuda.get_device_name()} has "
            f"{capability[0]}.{capability[1]}."
        )
    return torch.device("cuda", torch.cuda.current_device())


def describe_gpu() -> str:
    """Return name and compute capability of the GPU in use, or what torch computes on instead."""
    if not torch.cuda.is_available():
        return "no GPU"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def describe_versions() -> str:
    """Return the versions that shape a time: torch, its CUDA, Triton."""
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {importlib.metadata.version('triton')}"


@dataclass(frozen=True)
class Peaks:
    """What a GPU reaches on large plain work: bytes a second copied (read and written), and operations a second.

    int8_ops: of an int8 matrix product, two for each multiply-add. float_ops: of a float32 one without tensor cores.
    """

    bytes_per_s: float
    int8_ops: float
    float_ops: float


def measure_peaks(device: torch.device) -> Peaks:
    """Measure the peaks of this GPU with torch's own copy and matrix products."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    codes = torch.randint(-128, 128, (_MATRIX, _MATRIX), dtype=torch.int8, device=device)
    floats = torch.randn(_MATRIX, _MATRIX, device=device)
    operations = 2.0 * _MATRIX**3
    return Peaks(
        2 * _COPIED_BYTES / _seconds(lambda: target.copy_(source)),
        operations / _seconds(lambda: torch._int_mm(codes, codes.T)),
        operations / _seconds(lambda: torch.mm(floats, floats)),
    )


def _seconds(call: Callable[[], object], runs: int = 10) -> float:
    """Return the seconds of one of several runs back to back, after as many to warm up."""
    for _ in range(runs):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs
