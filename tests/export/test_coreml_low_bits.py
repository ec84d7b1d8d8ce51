"""Core ML packages with 4-bit weights, and with quantised weights alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from networks import small_network
from quantized_programs import METADATA
from reconstructions import photographs, reconstructed, target_with

from edgeconvnext.export.coreml import export_coreml
from edgeconvnext.export.coreml_package import check_weights, inspect_mlpackage
from edgeconvnext.quantize.precision import BitPlan
from edgeconvnext.quantize.program import export_program, quantize_program
from edgeconvnext.rewrite.exact import fold_norm_affine

pytest.importorskip("coremltools")

IMAGES = photographs(24)


def package(tmp_path: Path, bits: BitPlan, minimum_os: str):
    module = fold_norm_affine(small_network())
    target = target_with("coreml").model_copy(update={"minimum_os": minimum_os})
    result = reconstructed(module, target, IMAGES, bits=bits)
    program = quantize_program(export_program(result.module, IMAGES[:2], max_batch=32), result.plan)
    metadata = replace(METADATA, labels=None, value_range="0..255")
    path = export_coreml(program, tmp_path / "model.mlpackage", metadata=metadata, minimum_os=minimum_os)
    return inspect_mlpackage(path), check_weights(program, path)


def test_four_bit_weights_are_stored_as_such_and_equal_the_simulations(tmp_path: Path) -> None:
    info, weights = package(tmp_path, BitPlan(weights=4), "iOS18")
    assert info.weight_types["int4"] == 11
    assert (weights.layers, weights.int8_layers) == (12, 11)
    assert info.count("quantize") == 11


def test_eight_bit_weights_stay_bytes_on_ios_18(tmp_path: Path) -> None:
    info, _ = package(tmp_path, BitPlan(), "iOS18")
    assert info.weight_types == {"float16": 1, "int8": 11}


def test_sixteen_bit_activations_mean_quantised_weights_alone(tmp_path: Path) -> None:
    info, weights = package(tmp_path, BitPlan(activations=16), "iOS17")
    assert info.count("quantize") == 0
    assert info.weight_types["int8"] == weights.int8_layers == 11
