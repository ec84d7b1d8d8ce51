"""`bench --runtime triton` without a GPU: what it refuses, what it writes, and the figures that need none."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_network

import edgeconvnext
from edgeconvnext.backends.triton.gpu import Peaks, require_gpu
from edgeconvnext.backends.triton.planned import PlannedNetwork
from edgeconvnext.backends.triton.roofline import Work, block_work, network_work
from edgeconvnext.cli import main
from edgeconvnext.commands.bench_triton import load_planned_run
from edgeconvnext.errors import QuantizationError, RunDirectoryError, RuntimeMissingError
from edgeconvnext.evaluation.timing import Samples
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.rewrite.exact import fold_exact

ROOT = Path(__file__).resolve().parents[2]
PEAKS = Peaks(bytes_per_s=3e12, int8_ops=1.5e15, float_ops=5e13)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the embedded network for target rtx, without its artifact."""
    path = tmp_path_factory.mktemp("triton") / "run"
    edgeconvnext.quantize("digits", calib="digits", target="rtx", num_images=30, effort="quick", output=path)
    return path


def bench(
    *arguments: str | Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Run `edgeconvnext bench` in this process; return its exit code and what it printed as an error."""
    monkeypatch.setattr(sys, "argv", ["edgeconvnext", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


def test_a_run_gives_its_plan_and_both_networks(run: Path) -> None:
    planned = load_planned_run(run)
    assert planned.float_type == torch.float16
    assert planned.input_size == (32, 32)
    assert set(planned.plan.weights) == set(layer_macs(planned.folded, (32, 32)))
    weight = "stages.0.0.pwconv1.weight"
    codes = planned.network.state_dict()[weight] / planned.plan.weights["stages.0.0.pwconv1"].scale[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert not torch.equal(planned.network.state_dict()[weight], planned.folded.state_dict()[weight])


def test_without_a_gpu_bench_says_so_and_ends_4(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, error = bench(run, "--runtime", "triton", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 4
    assert "needs an NVIDIA GPU" in error or "needs Triton, which is not installed" in error
    assert error.count("\n") == 1
    assert not (run / "triton.csv").exists()


def test_an_old_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(RuntimeMissingError, match=r"Tesla T4 has 7\.5"):
        require_gpu()


def test_what_bench_cannot_take_is_said_before_the_gpu_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = bench(tmp_path / "none", "--runtime", "triton", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "There is no run directory" in error) == (1, True)
    for option in (("--threads", "2"), ("--against", "float.onnx"), ("--profile",)):
        code, error = bench(tmp_path, "--runtime", "triton", *option, capsys=capsys, monkeypatch=monkeypatch)
        assert (code, "leave out --against, --threads and --profile" in " ".join(error.split())) == (2, True), error
    code, error = bench(tmp_path, "--runtime", "cuda", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "triton" in error) == (2, True)


def test_a_run_whose_network_takes_raw_pixels_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "run"
    edgeconvnext.quantize("digits", calib="digits", target="coreml", num_images=30, effort="quick", output=path)
    with pytest.raises(QuantizationError, match="--target rtx --from"):
        load_planned_run(path)


def test_a_backbone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    edgeconvnext.quantize(
        "digits", calib="digits", target="rtx", num_images=30, effort="quick", head="features", output=path
    )
    with pytest.raises(QuantizationError, match="without a head"):
        load_planned_run(path)


def test_a_changed_plan_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "plan.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(RunDirectoryError, match="changed after the run was finished"):
        load_planned_run(copy)


def test_the_work_of_a_block_is_what_its_formula_says() -> None:
    # Tiny's first block at 224 px, batch 1: 3136 positions of 96 channels, 384 hidden ones.
    depthwise, up, down = block_work(3136, 96, 384, 7, float_bytes=2, hands_on_codes=True)
    assert depthwise == Work("depthwise", 2 * 301056 + 4704, float_ops=29503488)
    assert up == Work("pwconv1", 301056 + 1204224 + 36864, int8_ops=231211008)
    assert down == Work("pwconv2", 1204224 + 5 * 301056 + 36864, int8_ops=231211008)
    assert up.seconds(PEAKS) == pytest.approx(1542144 / 3e12)
    assert Work("w", 1, int8_ops=3 * 10**15).seconds(PEAKS) == 2.0


def test_the_int8_operations_of_a_network_are_its_macs() -> None:
    config = ConvNeXtConfig((1, 2), (16, 32), num_classes=7, layer_scale=False)
    work = network_work(config, (64, 96), batch=3, float_bytes=2)
    macs = layer_macs(config, (64, 96))
    depthwise = sum(count for layer, count in macs.items() if layer.endswith("dwconv"))
    assert sum(kernel.int8_ops for kernel in work) == 2 * 3 * (sum(macs.values()) - depthwise)
    assert sum(kernel.float_ops for kernel in work) == 2 * 3 * depthwise


def test_forms_with_and_without_layer_scale_compute_the_same() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    from edgeconvnext.backends.triton.forms import with_layer_scale

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = fold_exact(small_network(), images).module
    separate = with_layer_scale(folded)
    assert folded.config.layer_scale is False and separate.config.layer_scale is True
    with torch.inference_mode():
        assert torch.equal(folded(images), separate(images))


def test_times_become_lines_of_a_csv(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    from edgeconvnext.backends.triton.timing import BASELINE, timed_forms, write_csv

    network = fold_exact(small_network(), torch.randn(2, 3, 32, 32)).module
    planned = PlannedNetwork("net for rtx", network, network, QuantPlan({}, {}), torch.float16, (32, 32))
    turns = np.repeat(np.arange(10), 5)
    samples = {
        BASELINE: Samples(np.full(50, 3.0), turns),
        "INT8 Triton, layer scale folded": Samples(np.full(50, 1.5), turns),
    }
    forms = timed_forms(planned, ["stages.0.0.pwconv1", "stages.0.0.pwconv2"], 8, samples, PEAKS, seconds=0.1)
    write_csv(tmp_path / "triton.csv", forms)
    baseline, int8 = csv.DictReader((tmp_path / "triton.csv").open())
    assert (baseline["speedup"], int8["speedup"]) == ("1", "2")
    assert (int8["batch"], int8["median_ms"], float(int8["throughput"])) == ("8", "1.5", pytest.approx(5333, rel=1e-3))
    assert baseline["roofline_ms"] == "" and float(int8["roofline_ms"]) > 0
    assert 0 < float(int8["int8_share_of_macs"]) < 1
    assert "TB/s copied" in int8["settings"] and "torch" in int8["versions"] and int8["device"]


def test_the_gpu_modules_need_nothing_but_torch_numpy_safetensors_and_triton() -> None:
    """The machine with the GPU may have no pydantic, psutil, torchao or onnx, and not this package."""
    code = """
import sys
for name in ("pydantic", "psutil", "torchao", "onnx", "onnxruntime", "onnxscript", "typer", "rich", "jinja2"):
    sys.modules[name] = None
from importlib import metadata
installed = metadata.version
def version(name):
    if name == "edgeconvnext":
        raise metadata.PackageNotFoundError(name)
    return installed(name)
metadata.version = version
import benchmarks.gpu, edgeconvnext.quantization.plan_storage, edgeconvnext.model.build, edgeconvnext.data.preprocess
try:
    import triton
except ImportError:
    print("without triton")
else:
    import edgeconvnext.backends.triton.timing
    print("with triton")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
