"""`edgeconvnext doctor` tells the truth about this machine, whatever it is."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeconvnext.commands import doctor
from edgeconvnext.commands.doctor import Check, diagnose, render


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Make packages look absent."""
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)


def test_every_check_says_what_it_is_for_and_every_absent_one_how_to_get_it() -> None:
    checks = diagnose()
    assert len(by_name(checks)) == len(checks)
    for check in checks:
        assert check.purpose, check
        assert bool(check.remedy) != check.present, check


def test_versions_are_those_of_the_installed_packages() -> None:
    checks = by_name(diagnose())
    for package in ("torch", "torchao", "onnxruntime"):
        assert checks[package].found == importlib.metadata.version(package)


def test_a_package_that_is_not_here_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "coremltools", "tensorrt-rtx-cu13")
    monkeypatch.setattr(sys, "platform", "linux")
    checks = by_name(diagnose())
    assert checks["coremltools"].remedy == "pip install 'edgeconvnext[coreml]'"
    assert checks["tensorrt-rtx-cu13"].remedy == "pip install 'edgeconvnext[rtx]'"


def test_on_a_mac_core_ml_runs_and_tensorrt_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt")
    monkeypatch.setattr(sys, "platform", "darwin")
    checks = by_name(diagnose())
    assert checks["coremltools"].purpose == "converts and runs .mlpackage"
    assert "pip install" not in checks["tensorrt"].remedy


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("NVIDIA L4, 8.9, 580.65\nNVIDIA L4, 8.9, 580.65\n", "NVIDIA L4, compute capability 8.9, driver 580.65"),
        ("NVIDIA, odd name, 8.9, 580.65", "NVIDIA, odd name, compute capability 8.9, driver 580.65"),
        ("", None),
        ("No devices were found", None),
    ],
)
def test_a_gpu_is_present_only_when_the_driver_shows_one(
    monkeypatch: pytest.MonkeyPatch, answer: str, found: str | None
) -> None:
    def answered(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", answered)
    assert by_name(diagnose())["NVIDIA GPU"].found == found


def test_a_cpu_without_int8_dot_products_is_told_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.machine.instruction_sets", lambda: frozenset({"avx2"}))
    check = by_name(diagnose())["INT8 dot products"]
    assert not check.present
    assert "7 bits" in check.remedy
    monkeypatch.setattr("edgeconvnext.machine.instruction_sets", lambda: frozenset({"avx2", "avx_vnni"}))
    assert by_name(diagnose())["INT8 dot products"].found == "avx_vnni"


def test_the_embedded_digits_are_always_here_and_absent_photographs_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    checks = by_name(diagnose())
    assert checks["digits"].present
    assert checks["digits_test"].present
    assert not checks["imagenette"].present
    assert "edgeconvnext data get imagenette" in checks["imagenette"].remedy


def test_the_runtimes_are_not_imported_to_be_looked_at() -> None:
    program = (
        "import sys; from edgeconvnext.commands.doctor import diagnose; diagnose(); "
        "print({'coremltools', 'tensorrt_rtx', 'tensorrt', 'onnxruntime', 'torchao'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_package_without_a_version_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib.metadata answers None where the file with the version is gone."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: None)
    assert by_name(diagnose())["torch"].found == "unknown version"


def test_what_an_nvidia_driver_says_need_not_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_bytes(b"#!/bin/sh\nprintf 'NVIDIA \\377\\033[2J, 8.9, 580\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = by_name(diagnose())["NVIDIA GPU"].found
    assert found == "NVIDIA \ufffd\x1b[2J, compute capability 8.9, driver 580"


def test_names_and_versions_are_shown_as_they_are() -> None:
    """Neither Rich's markup nor a terminal's control characters are obeyed, and no line is forged."""
    from rich.console import Console

    odd = "[/bold] [red]x\x1b[2J\ny\u202e"
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(render([Check("data", odd, odd, odd), Check("data", odd, None, odd, odd)]))
    lines = console.export_text().splitlines()
    assert sum(line.count(r"[/bold] [red]x\x1b[2J\ny\u202e") for line in lines) == 6
    assert all(line.isprintable() for line in lines)
    assert len([line for line in lines if "red" in line]) == 2
