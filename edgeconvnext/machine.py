"""What this machine is: processor, instruction sets and versions, as recorded beside every latency."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

RECORDED_PACKAGES = (
    "edgeconvnext",
    "torch",
    "torchao",
    "numpy",
    "pillow",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
    "coremltools",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
"""Distributions that shape a result."""


@cache
def instruction_sets() -> frozenset[str]:
    """Return the processor's instruction sets, as cpuid names them: "avx2", "avx512_vnni", "avx_vnni", "neon_dot"..."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return frozenset(name for name, value in capabilities.items() if value is True)


def describe_device() -> dict[str, str]:
    """Return processor, cores, vector instruction sets, operating system and versions; no paths and no host name."""
    relevant = sorted(
        name for name in instruction_sets() if name.startswith(("avx", "amx", "neon", "sve", "arm_", "i8mm"))
    )
    device = {
        "cpu": cpu_name(),
        "cores": str(_usable_cores()),
        "architecture": platform.machine(),
        "instruction_sets": " ".join(relevant),
        "os": f"{platform.system()} {platform.release()}",
    }
    return device | package_versions()


def package_versions() -> dict[str, str]:
    """Return Python's version and those of RECORDED_PACKAGES, where they are installed."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """Return the processor's (or board's) own name."""
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    processors = Path("/proc/cpuinfo")
    if processors.is_file():
        for line in processors.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        named = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if named.stdout.strip():
            return named.stdout.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
