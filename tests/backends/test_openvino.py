"""IR files: written from the plan's own scales, run in OpenVINO, equal to the simulation, equal from run to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.base import LatencySettings
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.loader import batches
from edgeconvnext.errors import ExportError
from edgeconvnext.files import tree_sha256
from edgeconvnext.model.program import export_program
from edgeconvnext.sqnr import logit_sqnr_db
from tests.in_process import run_command
from tests.micro import micro_model, write_micro

openvino = pytest.importorskip("openvino", reason="OpenVINO: pip install 'edgeconvnext[openvino]'")

OPENVINO = backend("openvino")
# Sums of float32 in another order, and codes that a tie rounds the other way: 40 dB is 1 % of the signal.
LEAST_FIDELITY_DB = 40.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the micro network on the digits."""
    folder = tmp_path_factory.mktemp("openvino")
    model = write_micro(folder / "micro.safetensors")
    options = ("--calib", "digits", "--eval", "digits_test", "--num-images", "60", "--effort", "quick")
    done = run_command("export", "--target", "openvino", "--model", model, *options, "--output", folder / "run")
    assert done.returncode in (0, 3), done.stdout + done.stderr  # a slow machine may miss the gate of speed
    return folder / "run"


def float_file(folder: Path) -> Path:
    model = micro_model()
    metadata = ArtifactMetadata("micro", None, model.preprocess, "normalized", "0.1")
    program = export_program(model.module, torch.zeros(1, 3, 16, 16), max_batch=8)
    return OPENVINO.write(load_target("openvino"), program, folder / "float.openvino", metadata)


def test_a_run_measures_the_artifact_in_its_runtime(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"]["runtime"].startswith("OpenVINO ")
    assert report["accuracy"]["measured_on"] == "artifact"
    fp32, artifact = (np.load(run / name)[key] for name, key in (("reference.npz", "fp32"), ("logits.npz", "artifact")))
    noise = np.square(fp32.astype(np.float64) - artifact).sum()
    own = 10 * np.log10(np.square(fp32.astype(np.float64)).sum() / noise)
    assert report["accuracy"]["sqnr_db"] == pytest.approx(own, abs=1e-6)
    # Errors of the runtime itself are 40 dB down, those of quantization about 25: they add up to 0.14 dB.
    assert own == pytest.approx(report["accuracy"]["simulated_sqnr_db"], abs=0.2)
    assert report["fidelity_db"] > LEAST_FIDELITY_DB
    assert report["latency"]["runtime"].startswith("OpenVINO ")


def test_linears_are_multiplied_in_int8(run: Path) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    profile = OPENVINO.profile(run / "model.openvino", images, 1)
    assert profile is not None
    kinds = {node.name: node.kind for node in profile.nodes}
    linears = {name: kind for name, kind in kinds.items() if "pwconv" in name and "quantize" not in name}
    assert len(linears) >= 4
    assert {kind.lower() for kind in linears.values()} <= {"i8", "u8"}


def test_the_float_file_computes_what_the_module_does(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = micro_model().module(images).numpy()
    logits = OPENVINO.runner(float_file(tmp_path))(images.numpy())
    # Float32 sums of at most 5 * 5 * 16 products in another order.
    assert np.abs(logits - expected).max() < 400 * 2.0**-24 * np.abs(expected).max()


def test_the_file_gives_the_same_answers_one_image_at_a_time_and_reshaped(run: Path) -> None:
    """A free batch axis does not: OpenVINO 2026.4.1 computes other classes then."""
    images = np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype(np.float32)
    network = openvino.Core().read_model(run / "model.openvino" / "model.xml")
    single = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    one_by_one = np.concatenate([single([image[None]])[0] for image in images])
    expected = OPENVINO.runner(run / "model.openvino")(images)
    np.testing.assert_allclose(one_by_one, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.exhaustive
def test_a_file_of_several_sizes_computes_each_of_them_with_free_axes_and_reshaped(tmp_path: Path) -> None:
    """Its axes stay free. The free batch axis that breaks a file of one size does no harm there."""
    model, sizes = write_micro(tmp_path / "micro.safetensors"), [(16, 16), (32, 32), (16, 48)]
    options = ("--calib", "digits", "--eval", "digits_test", "--num-images", "30", "--effort", "quick", "--no-latency")
    further = ("--sizes", "32,16x48", "--output", tmp_path / "run")
    done = run_command("export", "--target", "openvino", "--model", model, *options, *further)
    assert done.returncode in (0, 3), done.stderr
    records = {tuple(row["size"]): row for row in json.loads((tmp_path / "run/report.json").read_text())["sizes"]}
    assert set(records) == {*sizes[1:]}
    network = openvino.Core().read_model(tmp_path / "run/model.openvino/model.xml")
    assert str(network.inputs[0].partial_shape) == "[?,3,?,?]"
    free = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    module, own = micro_model().module, micro_model().preprocess
    for size in sizes:
        stream = batches(digits_set("test").take(200), replace(own, input_size=size))
        images = torch.cat([batch.images for batch in stream]).contiguous()
        with torch.no_grad():
            fp32 = module(images).numpy()
        reshaped = OPENVINO.runner(tmp_path / "run/model.openvino")(images.numpy())
        answers = free([images.numpy()])[0]
        # The order of float32 sums moves codes across rounding borders: LEAST_FIDELITY_DB is 1 %.
        assert logit_sqnr_db(reshaped, answers) > LEAST_FIDELITY_DB
        assert (answers.argmax(1) == reshaped.argmax(1)).mean() > 0.99
        if size in records:
            assert records[size]["fidelity_db"] > LEAST_FIDELITY_DB
            # 200 of the 599 images that the report compares.
            assert logit_sqnr_db(fp32, reshaped) == pytest.approx(records[size]["sqnr_db"], abs=1.0)


def test_equal_networks_are_equal_bytes(tmp_path: Path) -> None:
    first, second = (float_file(tmp_path / name) for name in "ab" if not (tmp_path / name).mkdir())
    assert tree_sha256(first) == tree_sha256(second)


def test_an_ir_file_of_somebody_else(tmp_path: Path) -> None:
    parameter = openvino.opset13.parameter([1, 3, 8, 8])
    other = openvino.Model([openvino.opset13.relu(parameter)], [parameter], "other")
    openvino.save_model(other, tmp_path / "other.xml")
    with pytest.raises(ExportError, match=r"other\.xml was not written by edgeconvnext"):
        OPENVINO.runner(tmp_path / "other.xml")


@pytest.mark.parametrize("missing", ["model.xml", "model.bin"])
def test_a_missing_half_is_named(tmp_path: Path, missing: str) -> None:
    folder = float_file(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ExportError, match=missing):
        OPENVINO.runner(folder)


def test_a_cut_graph_is_named(tmp_path: Path) -> None:
    folder = float_file(tmp_path)
    (folder / "model.xml").write_text((folder / "model.xml").read_text()[:2000])
    with pytest.raises(ExportError, match=r"model\.xml cannot be read by OpenVINO"):
        OPENVINO.runner(folder)


def test_another_resolution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not run on"):
        OPENVINO.runner(float_file(tmp_path))(np.zeros((1, 1, 16, 16), np.float32))


def test_latency_is_measured_in_turns(tmp_path: Path) -> None:
    folder = float_file(tmp_path)
    result = OPENVINO.latency(folder, folder, LatencySettings(seconds=0.02, input_size=(16, 16)))
    assert result.speedup is not None
    assert result.comparison.runtime.startswith("OpenVINO ")


def test_a_signal_after_another_thread_dropped_a_runner_does_no_harm(tmp_path: Path) -> None:
    code = f"""
import faulthandler, signal, subprocess, threading
from pathlib import Path
import numpy as np
from edgeconvnext.backends import backend
faulthandler.enable()
runners = [backend("openvino").runner(Path({str(float_file(tmp_path))!r}))]
runners[0].run(np.zeros((1, 3, 16, 16), np.float32))
thread = threading.Thread(target=runners.clear)
thread.start()
thread.join()
signal.signal(signal.SIGCHLD, lambda number, frame: None)
subprocess.run(["true"])
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize(("option", "value"), [("--weights", "4"), ("--activations", "16")])
def test_what_it_cannot_do_is_refused(tmp_path: Path, option: str, value: str) -> None:
    model = write_micro(tmp_path / "micro.safetensors")
    done = run_command("export", "--target", "openvino", "--model", model, "--calib", "digits", option, value)
    assert done.returncode == 1
    assert "which exporter openvino does not write" in done.stderr.replace("\n", " ")


def test_the_kit_measures_on_another_machine(run: Path) -> None:
    command = [sys.executable, str(run / "device" / "check.py"), "--seconds", "0.05"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONPATH": str(Path(openvino.__file__).parents[1])
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode in (0, 3), done.stderr
    result = json.loads((run / "device" / "device.json").read_text())
    assert result["runtime"]["name"] == "openvino"
    assert result["check"]["fidelity_db"] > LEAST_FIDELITY_DB
    assert result["layers"]["artifact"]
    refused = subprocess.run(
        [*command, "--device", "NPU"], capture_output=True, text=True, env=environment, check=False
    )
    assert refused.returncode == 4
    assert "sees no device NPU" in refused.stderr
