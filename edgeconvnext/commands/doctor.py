"""What this machine has for quantising, exporting and running, and how to get what it lacks."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeconvnext.errors import EdgeConvNextError
from edgeconvnext.escape import for_markup, for_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    found: version, name or count of what is here; None where it is absent. purpose: what it is for on this machine.
    remedy: how to get it, or why it cannot be had here; empty where it is present.
    """

    kind: Literal["package", "hardware", "data"]
    name: str
    found: str | None
    purpose: str
    remedy: str = ""

    @property
    def present(self) -> bool:
        return self.found is not None


def render(checks: list[Check]) -> RenderableType:
    """Lay the checks out for a terminal: what is here with its version, then what is not with the way to get it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    present = Table(box=None, pad_edge=False, title="on this machine", title_justify="left")
    for column in ("", "", "for"):
        present.add_column(column)
    for check in checks:
        if check.found is not None:
            present.add_row(*map(for_markup, (check.name, check.found, check.purpose)))
    absent = [check for check in checks if not check.present]
    lines = [
        Text.assemble((for_terminal(check.name), "bold"), for_terminal(f" ({check.purpose}): {check.remedy}"))
        for check in absent
    ]
    return Group(present, *([Text("\nnot on this machine"), *lines] if lines else []))


def diagnose() -> list[Check]:
    """Look at packages, hardware and image sets; nothing is imported that its metadata can answer for."""
    return [*_packages(), _nvidia_gpu(), _int8_instructions(), *_image_sets()]


def _packages() -> list[Check]:
    from edgeconvnext.backends import runtime_packages

    return [
        _package("torch", "the network, calibration and simulation", "pip install edgeconvnext"),
        _package("torchao", "INT8 quantization (PT2E)", "pip install edgeconvnext"),
        *(_package(package.name, package.purpose, package.remedy) for package in runtime_packages()),
    ]


def _package(name: str, purpose: str, remedy: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check("package", name, None, purpose, remedy)
    # A half-removed package leaves a folder without the file that states the version.
    return Check("package", name, version or "unknown version", purpose)


def _nvidia_gpu() -> Check:
    purpose = "runs the engines of targets gpu and rtx"
    if ctypes.util.find_library("cuda") is None and shutil.which("nvidia-smi") is None:
        remedy = "needs an NVIDIA GPU and its driver; targets onnx, jetson, rtx and coreml are made without"
        return Check("hardware", "NVIDIA GPU", None, purpose, remedy)
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        answer = ""
    if not answer:
        return Check("hardware", "NVIDIA GPU", None, purpose, "the driver is installed, but nvidia-smi shows no GPU")
    # From the right: a name may hold commas. What else nvidia-smi says is an error in words.
    fields = [part.strip() for part in answer.splitlines()[0].rsplit(",", 2)]
    if len(fields) != 3:
        return Check("hardware", "NVIDIA GPU", None, purpose, f"nvidia-smi says: {answer.splitlines()[0][:200]}")
    name, capability, driver = fields
    return Check("hardware", "NVIDIA GPU", f"{name}, compute capability {capability}, driver {driver}", purpose)


def _int8_instructions() -> Check:
    from edgeconvnext.machine import instruction_sets

    name, purpose = "INT8 dot products", "runs INT8 ONNX fast, and without saturation at full 8-bit weights"
    known = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "dot")
    here = [instruction for instruction in known if instruction in instruction_sets()]
    if here:
        return Check("hardware", name, ", ".join(here), purpose)
    remedy = (
        "this CPU has none (x86: VNNI); target onnx therefore keeps weights to 7 bits, which costs a little accuracy"
    )
    return Check("hardware", name, None, purpose, remedy)


def _image_sets() -> list[Check]:
    from edgeconvnext.data.sets import load_set_file, resolve_image_set, set_files

    checks = []
    for name in set_files():
        purpose = load_set_file(name).description
        try:
            images = len(resolve_image_set(name))
        except EdgeConvNextError as error:
            checks.append(Check("data", name, None, purpose, str(error)))
        else:
            checks.append(Check("data", name, f"{images} images", purpose))
    return checks
