"""A run whose kit the tests send about."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeconvnext.backends.base import KitScript
from edgeconvnext.backends.kit import write as device_kit
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.ssh import kit_run

ROOT = Path(__file__).resolve().parents[2]


def hurried(script: KitScript) -> str:
    """Assemble a kit's script that times for a tenth of a second."""
    text = device_kit.assemble_script(script)
    assert "default=3.0" in text
    return text.replace("default=3.0", "default=0.1")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_run, "assemble_script", hurried)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for a CPU board, of a network whose files are large enough to be cut off in the middle."""
    folder = tmp_path_factory.mktemp("run")
    target = (ROOT / "targets" / "onnx.toml").read_text().replace("min_speedup = 1.0", "min_speedup = 0.001")
    (folder / "board.toml").write_text(target.replace('name = "onnx"', 'name = "board"'))
    request = Request(
        model="digits",
        calib="digits",
        eval="digits_test",
        num_images=48,
        effort="quick",
        latency=False,
        target=str(folder / "board.toml"),
        output=folder / "board",
    )
    return pipeline.export(request).path


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that has onnxruntime, by its full name: a login over ssh has no virtual environment."""
    return sys.executable
