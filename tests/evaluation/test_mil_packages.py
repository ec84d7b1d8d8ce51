"""Whole packages in the reference evaluator: what the file computes, against the simulated graph it was made from."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools", reason="packages are read with coremltools: pip install 'edgeconvnext[coreml]'")

import coremltools as ct
from quantized_programs import METADATA, VARIANTS, Variant, images, program_for, run, sqnr_db

from edgeconvnext.backends.coreml.convert import export_coreml
from edgeconvnext.backends.coreml.mil.evaluate import Classified, Evaluator
from edgeconvnext.backends.coreml.mil.operators import OPERATORS
from edgeconvnext.backends.coreml.mil.program import read_program
from edgeconvnext.backends.coreml.package import open_package
from edgeconvnext.backends.coreml.runner import CoreMLRunner
from edgeconvnext.errors import ExportError

PIXELS = ((images(20, seed=7).clamp(-2, 2) + 2) * 63).round()
PIXEL_METADATA = replace(METADATA, value_range="0..255")


def write(program: torch.export.ExportedProgram, folder: Path, minimum_os: str = "iOS17") -> Path:
    return export_coreml(program, folder / "model.mlpackage", metadata=PIXEL_METADATA, minimum_os=minimum_os)


Packages = Callable[[str | None, Variant, str], Path]


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / path.name))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Packages of `program_for`, each written once; not to be changed."""

    @cache
    def written(target: str | None, variant: Variant, minimum_os: str) -> Path:
        return write(program_for(target, variant), tmp_path_factory.mktemp("package"), minimum_os)

    return written


# One variant shows iOS 18's own weight operator.
KINDS: list[Any] = [(variant, "coreml", "iOS17") for variant in VARIANTS]
KINDS += [pytest.param(variant, None, "iOS17", marks=pytest.mark.exhaustive) for variant in VARIANTS]
KINDS.append((VARIANTS[0], "coreml", "iOS18"))


@pytest.mark.parametrize(("variant", "target", "minimum_os"), KINDS, ids=str)
def test_package_computes_the_simulated_graph(
    variant: Variant, target: str | None, minimum_os: str, packages: Packages
) -> None:
    """What is left are float16 roundings in another order, which now and then move an int8 code by one."""
    program = program_for(target, variant)
    found = Evaluator(packages(target, variant, minimum_os)).run(PIXELS)
    assert found["logits"].dtype == torch.float16
    least = 55 if target is None else 40
    assert sqnr_db(run(program, PIXELS, "float16"), found["logits"].float().numpy()) >= least


def test_images_are_computed_alone_or_together_alike(packages: Packages) -> None:
    evaluator = Evaluator(packages("coreml", VARIANTS[0], "iOS17"))
    assert evaluator.batch is None
    together = evaluator.run(PIXELS[:5])["logits"]
    alone = torch.cat([evaluator.run(image)["logits"] for image in PIXELS[:5].split(1)])
    assert sqnr_db(together.float().numpy(), alone.float().numpy()) >= 60


def test_class_and_probabilities_come_with_the_logits(packages: Packages) -> None:
    found = Evaluator(packages("coreml", VARIANTS[0], "iOS17")).run(PIXELS)
    classified = found["classLabel"]
    assert isinstance(classified, Classified)
    assert classified.labels == tuple(f"class {index}" for index in found["logits"].argmax(dim=1))
    assert found["classLabel_probs"] is classified
    torch.testing.assert_close(classified.probabilities.sum(dim=1), torch.ones(len(PIXELS)), rtol=0, atol=4e-3)


def test_every_intermediate_result_has_the_type_that_the_program_declares(packages: Packages) -> None:
    evaluator = Evaluator(packages("coreml", VARIANTS[1], "iOS17"))
    declared = {
        value.name: value for step in evaluator.program.steps for value in step.outputs if value.dtype is not None
    }
    found = evaluator.run(PIXELS[:2], keep=declared)
    assert set(declared) <= set(found)
    for name, value in declared.items():
        assert found[name].dtype == value.dtype, name
        assert tuple(found[name].shape) == (2, *value.shape[1:]), name
    assert {torch.int8, torch.float16, torch.float32} == {value.dtype for value in declared.values()}


def test_weights_are_the_files(packages: Packages, tmp_path: Path) -> None:
    """One code of a weight changed in the package changes what is computed."""
    path = copied(packages("coreml", VARIANTS[0], "iOS17"), tmp_path)
    before = Evaluator(path).run(PIXELS)["logits"]
    _, operations = open_package(path)
    codes = next(op.quantized_data.val for op in operations if op.op_type == "constexpr_affine_dequantize")
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = bytearray(weights.read_bytes())
    start = content.index(codes.tobytes())
    content[start : start + codes.size] = bytes(codes.size)
    weights.write_bytes(content)
    assert not torch.equal(Evaluator(path).run(PIXELS)["logits"], before)


class Chain(nn.Module):
    """(x / 255 + 1.0009765625) * 1.0009765625: what is left of the last digits depends on where float16 rounds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x.mean(dim=(2, 3)) * 0.01 + 1.0009765625) * 1.0009765625).tanh()


def convert(module: nn.Module, path: Path, channels: int = 3, precision: str = "FLOAT16", side: int = 8) -> Path:
    """Write a torch module as a package that takes an image, without anything of this project."""
    example = torch.zeros(1, channels, side, side)
    program = torch.export.export(module.eval(), (example,)).run_decompositions({})
    model = ct.convert(
        program,
        inputs=[ct.ImageType(name="image", shape=tuple(example.shape), scale=1 / 2)],
        compute_precision=getattr(ct.precision, precision),
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def test_float16_rounds_between_operators(tmp_path: Path) -> None:
    evaluator = Evaluator(convert(Chain(), tmp_path / "chain.mlpackage"))
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    (output,) = evaluator.program.outputs
    found = evaluator.run(pixels)[output]
    halves = [(pixels / 2).half()]  # ImageType's scale
    halves.append(halves[-1].float().mean(dim=(2, 3)).half())
    halves.append((halves[-1].float() * torch.tensor(0.01).half().float()).half())
    halves.append((halves[-1].float() + 1.0009765625).half())
    halves.append((halves[-1].float() * 1.0009765625).half())
    halves.append(halves[-1].float().tanh().half())
    torch.testing.assert_close(found.float(), halves[-1].float(), rtol=0, atol=0)
    exact = Chain()(pixels / 2)
    assert not torch.equal(found.float(), exact)


def test_a_float32_program_is_not_rounded(tmp_path: Path) -> None:
    evaluator = Evaluator(convert(Chain(), tmp_path / "chain.mlpackage", precision="FLOAT32"))
    pixels = torch.full((2, 3, 8, 8), 201.0)
    (output,) = evaluator.program.outputs
    torch.testing.assert_close(evaluator.run(pixels)[output], Chain()(pixels / 2), rtol=1e-6, atol=0)


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)).sin()


class Mixed(nn.Module):
    """Mixes images, if there were several: the evaluator has to take them one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)).reshape(3, 1).mul(2.0).reshape(1, 3)


def test_an_unknown_operator_is_named_with_its_place(tmp_path: Path) -> None:
    path = convert(Sine(), tmp_path / "sine.mlpackage")
    with pytest.raises(
        ExportError, match=r"does not know the operator 'sin' \(operation \d+, 'sin\w*', of .*sine\.mlpackage\)"
    ):
        read_program(path)


def test_an_unknown_argument_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "tanh", lambda y: y)
    path = convert(Chain(), tmp_path / "chain.mlpackage")
    with pytest.raises(
        ExportError, match=r"does not know the argument 'x' of tanh \(operation \d+, '\w+', of .*chain\.mlpackage\)"
    ):
        read_program(path)


def test_a_program_that_mixes_rows_runs_one_image_at_a_time(tmp_path: Path) -> None:
    evaluator = Evaluator(convert(Mixed(), tmp_path / "mixed.mlpackage"))
    assert evaluator.batch == 1
    pixels = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    (output,) = evaluator.program.outputs
    assert evaluator.run(pixels)[output].tolist() == [[0.0, 1.0, 2.0]]


def test_images_of_another_size_and_broken_packages_are_clear_errors(packages: Packages, tmp_path: Path) -> None:
    path = copied(packages(None, VARIANTS[0], "iOS17"), tmp_path)
    with pytest.raises(ExportError, match=r"takes images of shape \[3, 32, 32\]; these have \[3, 16, 16\]"):
        Evaluator(path).run(torch.zeros(1, 3, 16, 16))
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot be read"):
        Evaluator(path)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs here")
def test_runner_takes_normalised_images_as_every_runner_does(packages: Packages) -> None:
    path = packages("coreml", VARIANTS[0], "iOS17")
    runner = CoreMLRunner(path)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (METADATA.preprocess.mean, METADATA.preprocess.std))
    logits = runner(((PIXELS / 255 - mean) / std).numpy())
    assert runner.runtime.startswith("reference evaluator")
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, Evaluator(path).run(PIXELS)["logits"].float().numpy())


def test_a_package_without_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="how images are prepared"):
        CoreMLRunner(convert(Chain(), tmp_path / "chain.mlpackage"))
