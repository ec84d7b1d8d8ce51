"""Blocks of a file become outputs of it without the onnx package, and their values are those of the simulated graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from quantized_programs import VARIANTS, Variant, images, onnx_bytes, program_for, sqnr_db

from edgeconvnext.backends.onnxruntime.layer_outputs import COMPARED_IMAGES, added_outputs, layer_outputs, sample
from edgeconvnext.quantization.simulate import simulator


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_block_is_found_and_runs_as_simulated(variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("onnx", variant))
    batch = images(6, seed=9).numpy()
    outputs = layer_outputs(simulator(program_for("onnx", variant)), tmp_path / "model.onnx", batch)
    assert [output.name for output in outputs] == ["stages.0.0", "stages.1.0", "stages.1.1"]
    session = onnxruntime.InferenceSession(
        onnx_bytes("onnx", variant) + added_outputs(outputs), providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["logits", *(output.tensor for output in outputs)]
    found = session.run([output.tensor for output in outputs], {"image": batch[:COMPARED_IMAGES]})
    for output, values in zip(outputs, found, strict=True):
        flat = values.reshape(COMPARED_IMAGES, -1)
        assert flat.shape[1] == output.size
        # As the logits: only the order of sums differs, and a code on a rounding border may fall to the other side.
        assert sqnr_db(output.values, sample(flat)) > 50, output.name


def test_a_file_of_another_network_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("onnx", VARIANTS[1]))
    assert layer_outputs(simulator(program_for("onnx")), tmp_path / "model.onnx", images(2).numpy()) == []


def test_samples_are_spread_evenly_and_all_are_taken_of_few() -> None:
    assert sample(np.arange(2048.0)[None]).tolist() == [list(range(0, 2048, 4))]
    assert sample(np.arange(3.0)[None]).tolist() == [[0, 1, 2]]
