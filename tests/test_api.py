"""The functions that `import edgeconvnext` gives: lazily loaded, and doing what the commands do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgeconvnext
from edgeconvnext.machine import describe_device


def test_import_loads_no_framework() -> None:
    code = "import sys, edgeconvnext; print([m for m in ('torch', 'numpy', 'onnx', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_functions_that_quantise_nothing_do_not_wait_for_torchao() -> None:
    code = "import sys, edgeconvnext.api; print([m for m in ('torchao', 'torch._dynamo', 'onnxruntime') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_options_of_compress_are_at_hand() -> None:
    assert edgeconvnext.CompressOptions(macs=0.5).macs == 0.5


def test_every_package_is_recorded_under_one_name() -> None:
    """TensorRT-RTX was there as tensorrt-rtx-cu13 and as tensorrt_rtx_cu13."""
    names = describe_device()
    assert len({name.replace("_", "-") for name in names}) == len(names)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgeconvnext.quantise
    assert {"load_model", "fold", "prune", "quantize", "export", "validate", "analyze"} <= set(dir(edgeconvnext))


def test_a_loaded_model_is_a_network_with_what_it_needs() -> None:
    model = edgeconvnext.load_model("digits")
    height, width = model.preprocess.input_size
    with torch.inference_mode():
        assert model.module(torch.zeros(2, 3, height, width)).shape == (2, 10)
    assert model.labels is not None
    assert model.labels.names[3] == "3"
    assert model.config.dims[0] == 16


def test_fold_and_prune_return_networks_and_save_them(tmp_path: Path) -> None:
    folded = edgeconvnext.fold("digits", calib="digits", output=tmp_path / "folded.safetensors")
    assert max(folded.errors.values()) < 1e-4
    again = edgeconvnext.load_model(tmp_path / "folded.safetensors")
    assert again.config.layer_scale is False
    pruned = edgeconvnext.prune(
        edgeconvnext.load_model("digits"),
        macs=0.8,
        calib="digits",
        num_images=100,
        output=tmp_path / "pruned.safetensors",
    )
    assert pruned.channels is not None
    assert pruned.channels.macs_after <= 0.8 * pruned.channels.macs_before
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(edgeconvnext.load_model(tmp_path / "pruned.safetensors").module(x), pruned.module(x))


def test_quantize_export_and_validate_chain(micro: str, tmp_path: Path) -> None:
    quantized = edgeconvnext.quantize(
        micro, calib="digits", eval="digits_test", num_images=30, effort="quick", output=tmp_path / "q"
    )
    exported = edgeconvnext.export(target="onnx", from_run=quantized.path, latency=False, output=tmp_path / "onnx")
    assert exported.report.accuracy.artifact is not None
    validated = edgeconvnext.validate(exported.path, data="digits", latency=False)
    assert validated.report.accuracy.dataset == "digits"
    assert validated.exit_code == 0
