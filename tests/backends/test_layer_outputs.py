"""Blocks of a file become outputs of it without the onnx package, and their values are those of the simulated graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from quantized_programs import EACH_VARIANT, METADATA, VARIANTS, Variant, images, onnx_bytes, program_for, sqnr_db
from resnets import CONFIGS, narrow, trained_like

from edgeconvnext.backends import load_target
from edgeconvnext.backends.onnxruntime.layer_outputs import COMPARED_IMAGES, added_outputs, layer_outputs, sample
from edgeconvnext.backends.onnxruntime.write import export_onnx
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.rewrite.batch_norm import fold_batch_norm


@EACH_VARIANT
def test_every_block_has_an_output_and_runs_as_simulated(variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("onnx", variant))
    batch = images(6, seed=9).numpy()
    outputs = layer_outputs(simulator(program_for("onnx", variant)), tmp_path / "model.onnx", batch)
    assert [output.name for output in outputs] == ["stages.0.0", "stages.1.0", "stages.1.1"]
    session = onnxruntime.InferenceSession(
        onnx_bytes("onnx", variant) + added_outputs(outputs), providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["logits", *(output.tensor for output in outputs)]
    computed = session.run([output.tensor for output in outputs], {"image": batch[:COMPARED_IMAGES]})
    for output, values in zip(outputs, computed, strict=True):
        flat = values.reshape(COMPARED_IMAGES, -1)
        assert flat.shape[1] == output.size
        # As the logits: only the order of sums differs, and a code on a rounding border may fall to the other side.
        assert sqnr_db(output.values, sample(flat)) > 50, output.name


@pytest.mark.parametrize(
    "name", ["resnet50", "inverted_bottleneck", pytest.param("depthwise_first", marks=pytest.mark.exhaustive)]
)
def test_blocks_of_a_resnet_have_outputs_as_well(name: str, tmp_path: Path) -> None:
    module = fold_batch_norm(trained_like(narrow(CONFIGS[name])))
    target = load_target("onnx")
    statistics = collect_statistics(module, [images(24, seed=1)], [images(12, seed=2)], target.quantize.outputs)
    plan = build_plan(module, statistics, target, effort="quick")
    program = quantize_program(export_program(module, images(2), max_batch=32), plan)
    path = export_onnx(program, tmp_path / "model.onnx", opset=21, metadata=METADATA)
    batch = images(COMPARED_IMAGES, seed=9).numpy()
    outputs = layer_outputs(simulator(program), path, batch)
    assert [output.name for output in outputs] == ["stages.0.0", "stages.1.0", "stages.1.1"]
    content = path.read_bytes() + added_outputs(outputs)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    computed = session.run([output.tensor for output in outputs], {"image": batch})
    for output, values in zip(outputs, computed, strict=True):
        # Integer convs round their output once more; codes may differ by one where the float sum lies between two.
        assert sqnr_db(output.values, sample(values.reshape(COMPARED_IMAGES, -1))) > 28, output.name


def test_a_file_of_another_network_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("onnx", VARIANTS[1]))
    assert layer_outputs(simulator(program_for("onnx")), tmp_path / "model.onnx", images(2).numpy()) == ()


def test_samples_are_spread_evenly_and_all_are_taken_of_few() -> None:
    assert sample(np.arange(2048.0)[None]).tolist() == [list(range(0, 2048, 4))]
    assert sample(np.arange(3.0)[None]).tolist() == [[0, 1, 2]]
