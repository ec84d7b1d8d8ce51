"""A runtime is one folder: nothing outside of backends/ knows which there are, and one of a test's own goes all the way."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy_on_device
import pytest
import torch
from numpy_on_device import Evaluator

import edgeconvnext
from edgeconvnext import backends
from edgeconvnext.backends.base import (
    Backend,
    Exported,
    InputShape,
    KitScript,
    LatencyResult,
    LatencySettings,
    Programs,
)
from edgeconvnext.backends.latency import interleaved_latency
from edgeconvnext.backends.limits import Limits
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.write import build_onnx, save_onnx
from edgeconvnext.backends.programs import for_batch_of
from edgeconvnext.commands.bench import bench_artifact
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.errors import ConfigFileError, RunDirectoryError, TargetError
from edgeconvnext.evaluation.runner import Outputs
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request
from edgeconvnext.schema.report import ExportCheck
from edgeconvnext.sqnr import logit_sqnr_db
from edgeconvnext.targets import Target

PACKAGE = Path(edgeconvnext.__file__).parent
RUNTIMES = {"onnxruntime", "openvino", "executorch", "tensorrt", "tensorrt_rtx", "coremltools", "triton"}
# Whose versions are recorded beside every figure: distributions, some of which are called as a backend is.
RECORDED = {"machine.py": "RECORDED_PACKAGES"}

TARGET = """
name = "desk"
description = "numpy on this machine"
exporter = "numpy-onnx"
float_type = "float32"
opset = 21

[quantize]
operators = ["pointwise1", "pointwise2", "downsample", "head"]

[quantize.activations]
scheme = "affine"
signed = false

[runtime]
name = "numpy"
minimum = "1.20"

[gates]
min_fidelity_db = 30.0
min_speedup = 0.0001
"""


class NumpyRunner:
    """An ONNX file computed by numpy, on normalised images."""

    batch = None

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.name, self.runtime = path.name, f"numpy {np.__version__}"
        self._evaluator = Evaluator(path)
        self._metadata = ArtifactMetadata.from_properties(self._evaluator.metadata)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return self.run(self.prepare(images))

    def prepare(self, images: np.ndarray) -> np.ndarray:
        return to_value_range(images, self._metadata.preprocess, self._metadata.value_range)

    def run(self, inputs: np.ndarray) -> Outputs:
        return tuple(self._evaluator.run(inputs))


class NumpyBackend(Backend):
    """ONNX files of a suffix of their own, which nothing but numpy runs."""

    name = "numpy-onnx"
    runtime = "numpy"
    artifact = "network.npx"
    baseline = "float/network_float.npx"
    suffixes = (".npx",)
    limits = Limits(float_type="float32", channel_multiple=4, low_bits_opset=21, opsets=(21,))

    def write(
        self, target: Target, program: torch.export.ExportedProgram, path: Path, metadata: ArtifactMetadata
    ) -> Path:
        assert target.opset is not None
        model = build_onnx(for_batch_of(target, program), opset=target.opset, outputs=metadata.outputs)
        return save_onnx(model, path, metadata=metadata)

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        model, baseline = folder / self.artifact, folder / self.baseline
        baseline.parent.mkdir()
        self.write(target, programs.quantized, model, metadata)
        self.write(target, programs.floating, baseline, metadata)
        (logits,) = NumpyRunner(model).run(programs.images)
        decibels = logit_sqnr_db(programs.simulated[0], logits)
        return Exported([ExportCheck(name="numpy", passed=decibels >= 30, result=f"{decibels:.1f} dB")], {})

    def runner(self, path: Path) -> NumpyRunner:
        return NumpyRunner(path)

    def timed_runner(self, path: Path, threads: int) -> NumpyRunner:
        return NumpyRunner(path)

    def input_of(self, path: Path) -> InputShape:
        return InputShape(None, 3, (32, 32))

    def latency(self, baseline: Path | None, artifact: Path, settings: LatencySettings) -> LatencyResult:
        return interleaved_latency(self.timed_runner, baseline, artifact, settings)

    def kit_script(self) -> KitScript:
        return KitScript(
            "measure.py",
            Path(numpy_on_device.__file__),
            needs="numpy and onnx",
            does="checks the network",
            imports="numpy",
        )

    def how_to_run(self) -> str:
        return "Give {{ report.artifact|py }} to numpy.\n"


@pytest.fixture(scope="module")
def numpy_backend() -> Iterator[NumpyBackend]:
    own = NumpyBackend()
    backends.register(own)
    yield own
    del backends._loaded[own.name]


@pytest.fixture(scope="module")
def exported(numpy_backend: NumpyBackend, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A two-block network with random weights, exported for numpy and measured there."""
    folder = tmp_path_factory.mktemp("numpy")
    (folder / "desk.toml").write_text(TARGET)
    torch.manual_seed(0)
    torch.save(ConvNeXt(ConvNeXtConfig((1, 1), (8, 16), num_classes=10)).state_dict(), folder / "two_blocks.pth")
    request = Request(
        model=str(folder / "two_blocks.pth"),
        target=str(folder / "desk.toml"),
        calib="digits",
        num_images=24,
        effort="quick",
        resolution=32,
        output=folder / "run",
    )
    return pipeline.export(request)


def test_a_backend_of_a_tests_own_is_exported_to_validated_and_timed(exported: Outcome) -> None:
    report = exported.report
    assert (report.artifact, report.exporter) == ("network.npx", "numpy-onnx")
    assert [check.name for check in report.checks] == ["numpy"] and report.checks[0].passed
    assert report.accuracy.runtime == f"numpy {np.__version__}"
    # Float sums in another order move a value across a rounding border now and then: the same codes otherwise.
    assert report.fidelity_db is not None and report.fidelity_db > 30
    assert report.latency.fp32 is not None and report.latency.runtime == f"numpy {np.__version__}"
    assert report.speedup_interval is not None
    passed = {gate.name: gate.passed for gate in report.gates}
    assert passed.keys() == {"min_fidelity_db", "min_speedup"} and passed["min_fidelity_db"]
    assert passed["min_speedup"] is not False, "noisy timings decide nothing"
    assert "Give 'network.npx' to numpy." in (exported.path / "MODEL_CARD.md").read_text()
    assert bench_artifact(exported.path, seconds=0.05).speedup is not None
    assert bench_artifact(exported.path / "network.npx", seconds=0.05).baseline == "network_float.npx"


def test_what_its_kit_measures_is_merged_into_the_report(exported: Outcome, tmp_path: Path) -> None:
    kit = tmp_path / "board"
    shutil.copytree(exported.path / "device", kit)
    assert json.loads((kit / "kit.json").read_text())["module"] is None
    result = subprocess.run([sys.executable, "-I", kit / "measure.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    merged = pipeline.merge_device(exported.path, kit / "device.json")
    device = merged.report.device
    assert device is not None and device.runtime == f"numpy {np.__version__}"
    assert device.speedup is not None
    # Kit and host run the same evaluator on the same images, so that they are as far from the simulation.
    assert device.fidelity_db is not None and device.fidelity_db > 30
    validated = pipeline.validate(exported.path, Validate(latency=False))
    assert validated.report.latency == exported.report.latency, "what was timed here stays"
    assert validated.report.device is not None and validated.report.device.fidelity_db == device.fidelity_db


def test_a_name_is_taken_once(numpy_backend: NumpyBackend) -> None:
    with pytest.raises(ValueError, match="'numpy-onnx' already"):
        backends.register(NumpyBackend())


def test_its_limits_refuse_what_it_does_not_write(numpy_backend: NumpyBackend, tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(TARGET.replace("opset = 21", "opset = 20"))
    with pytest.raises(ConfigFileError, match='exporter "numpy-onnx" does not write opset 20; set opset = 21'):
        backends.load_target(str(path))
    path.write_text(TARGET.replace('"numpy-onnx"', '"numpi-onnx"'))
    with pytest.raises(ConfigFileError, match=r"exporter: .* \(found 'numpi-onnx'\)\. Did you mean numpy-onnx"):
        backends.load_target(str(path))
    path.write_text(TARGET.replace('name = "numpy"', 'name = "numpie"'))
    with pytest.raises(ConfigFileError, match=r"runtime\.name: .* Did you mean numpy"):
        backends.load_target(str(path))
    with pytest.raises(TargetError, match="Did you mean numpy-onnx"):
        backends.backend("numpyonnx")


def test_a_run_for_a_backend_that_is_gone_is_refused(exported: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(backends._loaded, "numpy-onnx")
    with pytest.raises(RunDirectoryError, match="exporter: input should be"):
        pipeline.validate(exported.path)


def test_backends_are_known_without_importing_a_runtime() -> None:
    code = "import sys; from edgeconvnext import backends; known = set(sys.modules); backends.backends(); "
    code += "print(sorted(set(sys.modules) & {*sys.argv[1:]}), sorted(known & {'torch', 'pydantic', 'numpy'}))"
    heavy = [*sorted(RUNTIMES), "torch", "onnx"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] []"


def modules() -> list[Path]:
    """Every module of the package outside of backends/."""
    every = PACKAGE.rglob("*.py")
    return [path for path in every if path.relative_to(PACKAGE).parts[0] != "backends"]


def test_no_module_outside_imports_a_runtime() -> None:
    imports = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported(node)
        if name.partition(".")[0] in RUNTIMES
    }
    assert imports == set()


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def test_no_module_outside_names_a_backend_a_runtime_or_an_artifact() -> None:
    words = {
        word
        for known in map(backends.backend, backends.HOMES)
        for word in (known.name, known.runtime, known.artifact, known.baseline, Path(known.baseline).name)
    }
    assert {"onnx", "tensorrt-rtx", "model.engine", "model_fp32.onnx"} <= words
    assert [place for path in modules() for place in named(path, words)] == []


def named(path: Path, words: set[str]) -> list[str]:
    """Where a module has a string that is one of `words`: docstrings and help texts are longer, and lists of versions exempt."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = RECORDED.get(path.relative_to(PACKAGE).as_posix())
    exempt = {
        id(part)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == listed
        for part in ast.walk(node)
    }
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in exempt)
    return [f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}" for node in strings if node.value in words]
