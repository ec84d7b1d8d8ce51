"""The device description says what a latency was measured on, and nothing about who measured it."""

from __future__ import annotations

import platform
import socket
from pathlib import Path

from edgeconvnext.machine import describe_device, instruction_sets


def test_the_description_is_complete_and_anonymous() -> None:
    device = describe_device()
    assert {"cpu", "cores", "architecture", "instruction_sets", "os", "python", "torch", "onnxruntime"} <= set(device)
    assert all(device.values())
    assert int(device["cores"]) >= 1
    text = " ".join(device.values())
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert private not in text


def test_instruction_sets_are_those_of_the_architecture() -> None:
    expected = {"x86_64": "sse2", "AMD64": "sse2", "aarch64": "neon", "arm64": "neon"}.get(platform.machine())
    assert expected is None or expected in instruction_sets()
