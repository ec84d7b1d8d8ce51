"""The NVIDIA board's script: only the standard library, Python 3.8, honest exit codes; TensorRT-RTX builds for real.

No test machine has a GPU. To run the checking and timing too, two things are replaced: CUDA by host memory, and the
engine's execution by onnxruntime on the file the engine was built from.
"""

from __future__ import annotations

import ast
import base64
import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from quantized_programs import CLASSES, images, in_onnxruntime, program_for, run, small_convnext, typed_onnx_bytes

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.kit.write import CheckVectors, KitNetworks, assemble_script, write_device_kit
from edgeconvnext.backends.onnx.file_ends import FileEnds, add_ends
from edgeconvnext.data.preprocess import as_element_type
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.timing import summarize
from edgeconvnext.files import tree_sha256
from edgeconvnext.targets import GateSection

# The script keeps a timing cache for TensorRT; TensorRT-RTX has none and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


SCRIPT = assemble_script(backend("tensorrt").kit_script())


def vectors(count: int = 8) -> CheckVectors:
    batch, network = (
        images(count, seed=9),
        small_convnext(),
    )  # made here: made in inference mode, it could not be exported later
    with torch.inference_mode():
        fp32 = network(batch).numpy()
    simulated = run(program_for("jetson"), batch, "float16")
    return CheckVectors(batch.numpy(), fp32, simulated, labels=fp32.argmax(axis=1))


def make_kit(root: Path, gates: GateSection, count: int = 8, batch: tuple[int, int, int] = (1, 4, 8)) -> Path:
    """A run directory as the exporter leaves it; returns its device folder."""
    (root / "model.onnx").write_bytes(typed_onnx_bytes("jetson"))
    (root / "model_fp16.onnx").write_bytes(typed_onnx_bytes(None))
    networks = KitNetworks(root / "model.onnx", root / "model_fp16.onnx", "W8A8", "FP16")
    target = load_target("jetson")
    target = target.model_copy(update={"gates": gates, "input": target.input.model_copy(update={"batch": list(batch)})})
    write_device_kit(root / "device", vectors(count), networks, model_name="small", target=target)
    return root / "device"


def replace(folder: Path, name: str, content: bytes) -> None:
    """Put another file into a kit, with its hash, as if it had been exported so."""
    (folder / name).unlink()  # a hard link to the run's own
    (folder / name).write_bytes(content)
    about = json.loads((folder / "kit.json").read_text())
    about["files"][name] = tree_sha256(folder / name)
    (folder / "kit.json").write_text(json.dumps(about))


def run_script(folder: Path, *arguments: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the kit's own copy. isolated: without site-packages, as on a board without TensorRT."""
    flags = ["-I", "-S"] if isolated else []
    command = [sys.executable, *flags, str(folder / "build_and_check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def write_script(folder: Path) -> Path:
    (folder / "build_and_check.py").write_text(SCRIPT)
    return folder


def load_script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_and_check", folder / "build_and_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_is_python_3_8() -> None:
    ast.parse(SCRIPT, feature_version=(3, 8))


def test_the_script_needs_only_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_the_kit_keeps_at_most_32_vectors_and_a_short_readme(tmp_path: Path) -> None:
    folder = make_kit(tmp_path, GateSection(), count=40)
    about = json.loads((folder / "kit.json").read_text())
    assert (about["count"], about["classes"], about["image_shape"]) == (32, CLASSES, [3, 32, 32])
    numbers = np.fromfile(folder / "vectors.bin", "<f4")
    expected = vectors(40).first(32)
    parts = (expected.images, expected.fp32, expected.simulated)
    np.testing.assert_array_equal(numbers, np.concatenate([part.ravel() for part in parts]))
    assert len((folder / "README.txt").read_text().splitlines()) == 3


def test_vectors_that_do_not_match_are_refused() -> None:
    good = vectors(4)
    with pytest.raises(ExportError, match="as many answers as images"):
        CheckVectors(good.images[:3], good.fp32, good.simulated)


def test_without_tensorrt_it_ends_with_4_and_says_so(tmp_path: Path) -> None:
    done = run_script(make_kit(tmp_path, GateSection()), isolated=True)
    assert done.returncode == 4
    assert done.stderr.startswith("Error: Python cannot import tensorrt") and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["kit.json", "vectors.bin"])
def test_a_missing_or_cut_file_ends_with_1(name: str, tmp_path: Path) -> None:
    folder = make_kit(tmp_path, GateSection())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 8 * 4])
    cut = run_script(folder, isolated=True)
    (folder / name).unlink()
    missing = run_script(folder, isolated=True)
    for done in (cut, missing):
        assert done.returncode == 1 and name in done.stderr and "Traceback" not in done.stderr


def test_without_a_gpu_it_ends_with_4_before_building(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver; the test is about machines without")
    folder = make_kit(tmp_path, GateSection())
    done = run_script(folder, "--module", "tensorrt_rtx")
    assert done.returncode == 4 and ("libcudart" in done.stderr or "no GPU" in done.stderr)
    assert not (folder / "model.engine").exists()


def test_it_builds_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")
    folder = make_kit(tmp_path, GateSection(min_speedup=1.0))
    done = run_script(folder, "--module", "tensorrt_rtx", "--build-only")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "device.json").read_text())
    assert result["passed"] is None
    for name in ("model.engine", "model_fp16.engine"):
        assert (folder / name).stat().st_size > 10_000
    assert {engine["size_bytes"] for engine in result["engines"].values()} == {
        (folder / name).stat().st_size for name in ("model.engine", "model_fp16.engine")
    }
    assert result["saved"] == ["layers.json", "model.engine", "model_fp16.engine"]
    layers = json.loads((folder / "layers.json").read_text())
    weighted = {"CONVOLUTION", "MATRIX_MULTIPLY"}
    ran_in = {name: [layer["precision"] for layer in layers[name] if layer["kind"] in weighted] for name in layers}
    assert set(ran_in["artifact"]) == {"int8"} and set(ran_in["baseline"]) == {"float16"}
    assert len(ran_in["artifact"]) == len(ran_in["baseline"]) > 5
    replace(folder, "model.onnx", b"not a network")
    broken = run_script(folder, "--module", "tensorrt_rtx", "--build-only")
    assert broken.returncode == 1 and "model.onnx" in broken.stderr and "Traceback" not in broken.stderr


class HostCuda:
    """The script's Cuda on host memory: copies happen at once, events hold the time they were recorded."""

    HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
    stream = 1
    graphs = True

    def __init__(self) -> None:
        self.memory: list[Any] = []
        self.recorded: dict[int, float] = {}

    def allocate(self, size_bytes: int) -> int:
        self.memory.append(ctypes.create_string_buffer(size_bytes))
        return ctypes.addressof(self.memory[-1])

    allocate_host = allocate

    def copy(self, target: int, source: int, size_bytes: int, direction: int) -> None:
        ctypes.memmove(target, source, size_bytes)

    def synchronize(self) -> None:
        """Everything is done already."""

    def event(self) -> int:
        self.recorded[len(self.recorded)] = 0.0
        return len(self.recorded) - 1

    def record(self, event: int) -> None:
        self.recorded[event] = time.perf_counter()

    def elapsed_ms(self, start: int, end: int) -> float:
        return 1000 * (self.recorded[end] - self.recorded[start])

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self.graphs:
            raise RuntimeError("operation not permitted when stream is capturing")
        return work

    def launch(self, graph: Callable[[], None]) -> None:
        graph()

    def describe(self) -> dict[str, str]:
        return {"gpu": "host memory", "compute_capability": "0.0", "cuda_runtime": "0.0"}


class OnnxContext:
    """An execution context that runs the ONNX file behind an engine."""

    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.address: dict[str, int] = {}
        self.outputs = {output.name: output.shape[1:] for output in self.session.get_outputs()}
        self.shape: tuple[int, ...] = ()
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], *self.outputs[name])

    def execute_async_v3(self, stream: int) -> bool:
        if set(self.address) != {"image", *self.outputs}:
            return False  # as TensorRT, which says that an address is missing
        count = int(np.prod(self.shape))
        pixels = self.session.get_inputs()[0].type == "tensor(uint8)"
        source = ((ctypes.c_uint8 if pixels else ctypes.c_float) * count).from_address(self.address["image"])
        batch = np.frombuffer(source, np.uint8 if pixels else np.float32).reshape(self.shape)
        for output in self.session.get_outputs():
            values = self.session.run([output.name], {"image": batch})[0].astype(np.float32)
            ctypes.memmove(self.address[output.name], values.tobytes(), values.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("head", 0.25)
        return True


# As TensorRT's IEngineInspector writes layers of an engine that was built with detailed profiling verbosity.
INSPECTED = {
    "Layers": [
        {
            "Name": "head",
            "LayerType": "CaskGemmMatrixMultiply",
            "Inputs": [{"Name": "a", "Dimensions": [1, 8], "Format/Datatype": "Row major Int8 format"}],
            "Outputs": [{"Name": "b", "Dimensions": [1, 7], "Format/Datatype": "Row major linear FP16 format"}],
            "TacticName": "sm80_xmma_gemm_i8f16",
        },
        {
            "Name": "norm",
            "LayerType": "kgen",
            "Inputs": [{"Name": "c", "Dimensions": [1, 8], "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "d", "Dimensions": [1, 8], "Format/Datatype": "Float"}],
        },
        "a layer without details",
    ]
}


def run_on_host(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the script in this process: TensorRT-RTX builds, onnxruntime executes."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")
    script = load_script(folder)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.files = {
                (folder / "model.engine").read_bytes(): (folder / "model.onnx").read_bytes(),
                (folder / "model_fp16.engine").read_bytes(): (folder / "model_fp16.onnx").read_bytes(),
            }

        def deserialize_cuda_engine(self, engine: bytes) -> SimpleNamespace:
            inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps(INSPECTED))
            context = OnnxContext(self.files[engine])
            source, names = context.session.get_inputs()[0], ["image", *context.outputs]
            kind = rtx.DataType.UINT8 if source.type == "tensor(uint8)" else rtx.DataType.FLOAT
            return SimpleNamespace(
                create_execution_context=lambda: context,
                create_engine_inspector=lambda: inspector,
                num_io_tensors=len(names),
                get_tensor_name=names.__getitem__,
                get_tensor_dtype=lambda name: kind if name == "image" else rtx.DataType.FLOAT,
            )

    mixed = SimpleNamespace(**{name: getattr(rtx, name) for name in dir(rtx) if name != "Runtime"}, Runtime=Runtime)
    mixed.__version__ = "10.3.0"
    monkeypatch.setattr(script, "Cuda", HostCuda)
    monkeypatch.setattr(script, "load_tensorrt", lambda name: mixed)
    monkeypatch.setattr(script, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(script, "BLOCK_SECONDS", 0.02)
    code = script.main(["--seconds", "0.1", *arguments])
    return code, json.loads((folder / "device.json").read_text())


def test_it_checks_times_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_kit(tmp_path, GateSection(min_fidelity_db=30.0, min_speedup=1e-6), batch=(3, 4, 8))
    code, result = run_on_host(folder, monkeypatch)
    assert code == 0 and result["passed"] is True
    known = vectors()
    measured = in_onnxruntime(typed_onnx_bytes("jetson"), images(8, seed=9))
    expected_db = 10 * np.log10((known.simulated**2).sum() / ((known.simulated - measured) ** 2).sum())
    assert result["check"]["images"] == 8
    assert len(base64.b64decode(result["answers"])) == 4 * 8 * CLASSES
    # The last of three batches is filled up with the first images; those rows must not count. A different batch may
    # move a code across a rounding border, so not to the last digit.
    assert result["check"]["fidelity_db"] == pytest.approx(expected_db, abs=1.0)
    assert result["check"]["score_fp32"] == 100.0
    assert {gate["name"]: gate["passed"] for gate in result["gates"]} == {"min_fidelity_db": True, "min_speedup": True}
    for name in ("artifact", "baseline"):
        times = result["latency"][name]
        assert times["runs"] >= 10
        assert 0 < times["gpu"]["median_ms"] <= times["median_ms"] <= times["host"]["max_ms"]
        assert times["copy_in"]["median_ms"] >= 0 and times["copy_out"]["median_ms"] >= 0
    assert result["latency"]["settings"]["CUDA graph, artifact"] == "yes"
    head, norm, bare = result["layers"]["artifact"]
    assert (head["precision"], head["median_ms"], head["tactic"]) == ("int8", 0.25, "sm80_xmma_gemm_i8f16")
    assert (norm["precision"], norm["inputs"], norm["median_ms"]) == ("float32", ["float16"], None)
    assert (bare["name"], bare["precision"]) == ("a layer without details", "?")
    assert result["latency"]["batch"] == 3
    assert result["speedup"]["low"] <= result["speedup"]["value"] <= result["speedup"]["high"]


def test_engines_take_pixels_and_give_probabilities_beside_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, target in (("model.onnx", "jetson"), ("model_fp16.onnx", None)):
        model = onnx_ir.from_proto(onnx.load_from_string(typed_onnx_bytes(target)))
        add_ends(model, FileEnds(pixels=True, probabilities="Softmax"))
        (tmp_path / name).write_bytes(onnx_ir.to_proto(model).SerializeToString())
    # Not whole numbers, some of them outside: the script rounds them as the rest of the toolkit does.
    values = np.random.default_rng(1).uniform(-0.4, 3.4, (8, 3, 32, 32)).astype(np.float32)
    pixels = as_element_type(values, np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": pixels})
    assert np.unique(logits.argmax(1)).size > 1
    networks = KitNetworks(tmp_path / "model.onnx", tmp_path / "model_fp16.onnx", "W8A8", "FP16")
    known = CheckVectors(values, logits, logits, labels=logits.argmax(1))
    write_device_kit(tmp_path / "device", known, networks, model_name="small", target=load_target("jetson"))
    code, result = run_on_host(tmp_path / "device", monkeypatch)
    assert code in (0, 3), "times of this machine decide no more than the gate of speed"
    answers = np.frombuffer(base64.b64decode(result["answers"]), "<f4").reshape(logits.shape)
    # Images go one by one in place of eight at a time, which may move a code across a rounding border.
    assert np.linalg.norm(answers - logits) < 0.03 * np.linalg.norm(logits)
    assert result["check"]["score"] == 100.0


def test_a_missed_gate_ends_with_3_and_keeps_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_kit(tmp_path, GateSection(min_fidelity_db=30.0, min_speedup=1e6))
    code, result = run_on_host(folder, monkeypatch)
    assert code == 3 and result["passed"] is False
    assert {gate["name"]: gate["passed"] for gate in result["gates"]} == {"min_fidelity_db": True, "min_speedup": False}
    assert (folder / "model.engine").exists()


def test_wrong_answers_miss_the_fidelity_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_kit(tmp_path, GateSection(min_fidelity_db=30.0))
    numbers = np.fromfile(folder / "vectors.bin", "<f4")
    numbers[-8 * CLASSES :] *= 1.1
    replace(folder, "vectors.bin", numbers.tobytes())
    code, result = run_on_host(folder, monkeypatch)
    # Answers off by a factor 1.1: 20 log10(1.1 / 0.1) is 20.8 dB.
    assert code == 3 and result["check"]["fidelity_db"] == pytest.approx(20.8, abs=1.5)


def test_answers_that_are_not_finite_are_not_a_number_of_decibels(tmp_path: Path) -> None:
    script = load_script(write_script(tmp_path))
    assert script.ratio_db([1.0, 2.0], [1.0, float("nan")]) is None
    assert script.ratio_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)


def test_the_board_reports_latency_as_the_rest_of_the_toolkit_does(tmp_path: Path) -> None:
    times = np.random.default_rng(0).gamma(4.0, 0.5, size=57)
    theirs = load_script(write_script(tmp_path)).summary(list(times), 2)
    ours = summarize(times, 2).model_dump()
    ours.pop("samples_ms")
    assert theirs == pytest.approx(ours)


def test_a_batch_outside_the_engine_is_refused(tmp_path: Path) -> None:
    done = run_script(make_kit(tmp_path, GateSection()), "--batch", "9", isolated=True)
    assert done.returncode == 1 and "1 to 8" in done.stderr


def test_a_stream_that_takes_no_graph_is_timed_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostCuda, "graphs", False)
    code, result = run_on_host(make_kit(tmp_path, GateSection()), monkeypatch)
    assert code == 0
    told = result["latency"]["settings"]["CUDA graph, baseline"]
    assert told == "no: operation not permitted when stream is capturing"


def test_an_older_tensorrt_than_the_target_needs_ends_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_kit(tmp_path, GateSection())
    script = load_script(folder)
    monkeypatch.setattr(script, "load_tensorrt", lambda name: SimpleNamespace(__version__="8.5.2.2"))
    assert script.main(["--build-only"]) == 4
    script.require_version("tensorrt", "10.13.3.9", "10.3")


def test_a_file_that_was_swapped_is_refused(tmp_path: Path) -> None:
    folder = make_kit(tmp_path, GateSection())
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(typed_onnx_bytes(None))
    done = run_script(folder, isolated=True)
    assert done.returncode == 1 and "model.onnx is not the file that was exported" in done.stderr


def test_an_engine_that_was_exported_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.engine").write_bytes(b"an engine")
    script = load_script(write_script(tmp_path))
    about, layers = script.built(None, None, tmp_path / "model.engine", (1, 8, 32))
    assert (about["file"], about["build_seconds"], layers) == ("model.engine", None, [])
