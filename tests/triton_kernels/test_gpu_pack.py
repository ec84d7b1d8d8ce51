"""What travels to a GPU machine: a packed network gives the codes and answers of the run it is of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeconvnext
from benchmarks.gpu import accuracy, collect, images_of, measure, read_photographs, read_settings, unpack
from benchmarks.gpu_pack import pack
from edgeconvnext.commands.bench_triton import load_planned_run
from edgeconvnext.errors import ImageSetError
from edgeconvnext.files import tree_size

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "run"
    edgeconvnext.quantize("digits", calib="digits", target="rtx", num_images=30, effort="quick", output=path)
    return path


@pytest.fixture(scope="module")
def packed(run: Path) -> Path:
    return pack(run, run.parent / "pack", "digits_test")


def test_a_packed_network_is_the_runs(run: Path, packed: Path) -> None:
    ours, theirs = unpack(packed), load_planned_run(run)
    assert (ours.float_type, ours.input_size, ours.folded.config) == (torch.float16, (32, 32), theirs.folded.config)
    for name, value in theirs.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], value), name
    # Float weights stay behind: their codes are a quarter of them.
    photographs = (packed / "photographs.npz").stat().st_size
    assert tree_size(packed) - photographs < (run / "folded.safetensors").stat().st_size / 2


def test_photographs_travel_with_their_classes_and_logits(packed: Path) -> None:
    photographs, settings = read_photographs(packed), read_settings(packed)
    assert len(photographs.jpegs) == len(photographs.classes) == 599
    assert images_of(photographs.jpegs[:3], settings).shape == (3, 3, 32, 32)
    assert (photographs.fp32.argmax(axis=1) == photographs.classes).mean() > 0.98
    assert photographs.simulated.shape == photographs.fp32.shape == (599, 10)


def test_the_kernels_classify_packed_photographs_as_the_simulation_does(packed: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    from edgeconvnext.backends.triton.network import TritonNetwork

    photographs = read_photographs(packed)
    few = replace(
        photographs,
        jpegs=photographs.jpegs[:6],
        classes=photographs.classes[:6],
        fp32=photographs.fp32[:6],
        simulated=photographs.simulated[:6],
    )
    planned = unpack(packed)
    int8 = TritonNetwork(planned.network, planned.plan, planned.float_type, torch.device("cpu"))
    found = accuracy(int8, read_settings(packed), few, torch.device("cpu"))
    assert (found.images, found.agreement) == (6, 100)
    # The stream is float16 here and float32 in the simulated graph; the quantization error itself is at 30 to 45 dB.
    assert found.fidelity_db > 35 and found.sqnr_db > 20


def test_a_network_with_other_codes_has_no_times(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    check: Future[dict[str, Any]] = Future()
    check.set_result({"right": False, "codes": [{"layer": "stages.0.0.pwconv2", "largest": 3}]})
    assert not collect({packed: check}, {(packed, 1): Future()}, tmp_path)
    assert '"largest": 3' in (tmp_path / "gpu.json").read_text()
    assert not (tmp_path / "gpu.csv").exists()


def test_what_was_timed_is_written_though_another_batch_failed(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    from edgeconvnext.backends.triton.timing import TimedForm

    check: Future[dict[str, Any]] = Future()
    check.set_result({"right": True, "codes": []})
    well, failed = Future[list[TimedForm]](), Future[list[TimedForm]]()
    form = TimedForm("net", "32x32", 8, "INT8", 1.5, 2, 3, 5333, 0, 9, 1, 1, 1, None, None, None, "gpu", "torch", "")
    well.set_result([form])
    failed.set_exception(RuntimeError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        collect({packed: check}, {(packed, 128): failed, (packed, 8): well}, tmp_path)
    _, line = (tmp_path / "gpu.csv").read_text().splitlines()
    assert line.startswith("net,32x32,8,INT8,1.5,")


def test_networks_are_checked_in_processes_of_their_own(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")
    alone = tmp_path / "pack" / packed.name
    shutil.copytree(packed, alone, ignore=shutil.ignore_patterns("photographs.npz"))
    assert measure([alone], torch.device("cpu"), tmp_path, [], 0.1)
    (found,) = json.loads((tmp_path / "gpu.json").read_text())["networks"].values()
    assert len(found["codes"]) > 10 and all(layer["largest"] == 0 for layer in found["codes"])


def test_a_set_without_labels_is_refused(run: Path, tmp_path: Path, photo_folder: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted(photo_folder.glob("temple/*"))[:2]:
        (flat / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ImageSetError, match="has no labels"):
        pack(run, tmp_path / "pack", str(flat))


def test_an_empty_pack_and_a_machine_without_a_gpu_are_said(packed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--pack"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "benchmarks.gpu_pack --run RUN" in done.stderr
    if not torch.cuda.is_available():
        done = subprocess.run([*command, str(packed.parent)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 4 and done.stderr.startswith("error: --runtime triton needs"), done.stderr
