"""Core ML packages with 4-bit weights, and with quantised weights alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from networks import small_network
from quantized_programs import METADATA, run, sqnr_db
from reconstructions import photographs, reconstructed, target_with
from torch.export import ExportedProgram

from edgeconvnext.backends.coreml.convert import export_coreml
from edgeconvnext.backends.coreml.mil.evaluate import Evaluator
from edgeconvnext.backends.coreml.package import (
    PackageInfo,
    WeightCheck,
    check_weights,
    inspect_mlpackage,
    open_package,
)
from edgeconvnext.errors import ExportError
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.rewrite.exact import fold_norm_affine
from edgeconvnext.targets import Target

pytest.importorskip("coremltools")

IMAGES = photographs(24)
Palettised = Callable[[int], tuple[ExportedProgram, Path]]


def quantised(target: Target, bits: BitPlan | None = None) -> ExportedProgram:
    module = fold_norm_affine(small_network())
    result = reconstructed(module, target, IMAGES, bits=bits)
    return quantize_program(export_program(result.module, IMAGES[:2], max_batch=32), result.plan)


def write(program: ExportedProgram, target: Target, path: Path) -> Path:
    metadata = replace(METADATA, labels=None, value_range="0..255")
    palette_bits = target.quantize.weights.palette_bits
    assert target.minimum_os is not None
    return export_coreml(program, path, metadata=metadata, minimum_os=target.minimum_os, palette_bits=palette_bits)


def package(tmp_path: Path, bits: BitPlan, minimum_os: str) -> tuple[PackageInfo, WeightCheck]:
    """Describe the package, and hold what the reference evaluator computes from it against the simulated graph."""
    target = target_with("coreml").model_copy(update={"minimum_os": minimum_os})
    program = quantised(target, bits)
    path = write(program, target, tmp_path / "model.mlpackage")
    assert fidelity_db(program, path) >= 40
    return inspect_mlpackage(path), check_weights(program, path)


def fidelity_db(program: ExportedProgram, path: Path) -> float:
    pixels = (IMAGES * 0.25 + 0.5).mul(255).round()
    found = Evaluator(path).run(pixels)["logits"].float().numpy()
    return sqnr_db(run(program, pixels, "float16"), found)


def test_four_bit_weights_are_stored_as_such_and_equal_the_simulations(tmp_path: Path) -> None:
    info, weights = package(tmp_path, BitPlan(weights=4), "iOS18")
    assert info.weight_types["int4"] == 11
    assert (weights.layers, weights.int8_layers) == (12, 11)
    assert info.count("quantize") == 11


@pytest.mark.exhaustive
def test_eight_bit_weights_stay_bytes_on_ios_18(tmp_path: Path) -> None:
    info, _ = package(tmp_path, BitPlan(), "iOS18")
    assert info.weight_types == {"float16": 1, "int8": 11}


def test_sixteen_bit_activations_mean_quantised_weights_alone(tmp_path: Path) -> None:
    info, weights = package(tmp_path, BitPlan(activations=16), "iOS17")
    assert info.count("quantize") == 0
    assert info.weight_types["int8"] == weights.int8_layers == 11


@pytest.fixture(scope="module")
def palettised(tmp_path_factory: pytest.TempPathFactory) -> Palettised:
    """A program with palettes of so many bits and its package, made once."""

    @cache
    def made(palette_bits: int) -> tuple[ExportedProgram, Path]:
        target = target_with("coreml-p6", weights={"palette_bits": palette_bits})
        program = quantised(target)
        return program, write(program, target, tmp_path_factory.mktemp("palette") / "palette.mlpackage")

    return made


@pytest.mark.parametrize("palette_bits", [4, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_palettised_weights_are_indices_and_equal_the_simulations(palettised: Palettised, palette_bits: int) -> None:
    program, path = palettised(palette_bits)
    info, weights = inspect_mlpackage(path), check_weights(program, path)
    assert info.weight_types == {"float16": 1, f"palettised uint{palette_bits}": 11}
    assert info.count("constexpr_lut_to_dense") == info.count("constexpr_blockwise_shift_scale") == 11
    assert info.count("quantize") == 0
    assert weights.int8_layers == 11
    assert "compressed weights" in info.description
    assert fidelity_db(program, path) >= 55  # float16 throughout: no code can flip
    # One palette a layer, and a scale per channel beside it.
    _, operations = open_package(path)
    for op in operations:
        if op.op_type == "constexpr_lut_to_dense":
            assert op.lut.shape == (1, 1, 1, 1, 2**palette_bits, 1)


@pytest.mark.exhaustive
def test_palettes_are_smaller_than_bytes(palettised: Palettised, tmp_path: Path) -> None:
    paths = [
        palettised(6)[1],
        write(palettised(6)[0], target_with("coreml-p6", weights={"palette_bits": None}), tmp_path / "bytes.mlpackage"),
    ]
    palette, whole = ((path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for path in paths)
    assert palette < whole


def test_a_changed_palette_is_noticed(palettised: Palettised) -> None:
    with pytest.raises(ExportError, match=r"stages\.0\.0\.dwconv differs .* does not belong to this model"):
        check_weights(palettised(4)[0], palettised(6)[1])
