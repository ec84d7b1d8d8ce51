"""Core ML packages: int8 where the target says so, the weights that were simulated, and written whole or not at all."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

pytest.importorskip("coremltools", reason="Core ML packages need coremltools: pip install 'edgeconvnext[coreml]'")

from quantized_programs import (
    EACH_VARIANT,
    VARIANTS,
    Variant,
    images,
    layers_of,
    program_for,
    run,
    small_convnext,
    sqnr_db,
)

import edgeconvnext
from edgeconvnext.backends import load_target
from edgeconvnext.backends.constants import tensor_of
from edgeconvnext.backends.coreml import convert as coreml
from edgeconvnext.backends.coreml.convert import export_coreml
from edgeconvnext.backends.coreml.graph import (
    HALF_LARGEST,
    HALF_SMALLEST_NORMAL,
    graph_module,
    layer_weights,
    lift_small_scales,
    scale_sums_of_squares,
    single_image_program,
    weighted_nodes,
)
from edgeconvnext.backends.coreml.mil.evaluate import Evaluator
from edgeconvnext.backends.coreml.package import check_weights, inspect_mlpackage, open_package
from edgeconvnext.backends.coreml.runtime import CoreMLModel
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess, to_value_range
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ExportError, RunDirectoryError, RuntimeMissingError
from edgeconvnext.files import tree_size
from edgeconvnext.model import load_model
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.rewrite.exact import fold_exact

LABELS = ("tench", "springer", "church", "horn", "truck", "pump", "parachute")
LAYERS = len(layers_of())  # stem, downsampling conv, head, and three in each of three blocks
QUANTISED = LAYERS - 1  # the target leaves the stem in float16


def describe(**changes: object) -> ArtifactMetadata:
    values = {
        "model_name": "convnext_small_test",
        "labels": LABELS,
        "preprocess": Preprocess(input_size=(32, 32)),
        "value_range": "0..255",
        "edgeconvnext_version": "1.2.3",
        "notes": {"calibration": "64 pictures"},
    }
    return ArtifactMetadata(**(values | changes))  # type: ignore[arg-type]


def write(program: ExportedProgram, folder: Path, minimum_os: str = "iOS17", **changes: object) -> Path:
    return export_coreml(program, folder / "model.mlpackage", metadata=describe(**changes), minimum_os=minimum_os)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(program_for("coreml"), tmp_path_factory.mktemp("coreml"))


@pytest.fixture(scope="module")
def float_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(program_for(None), tmp_path_factory.mktemp("float"))


def with_channels(channels: int) -> ExportedProgram:
    """The small float network for images of another number of channels."""
    module = copy.deepcopy(small_convnext())
    module.downsample_layers[0][0] = torch.nn.Conv2d(channels, 16, kernel_size=4, stride=4)
    return export_program(module, torch.zeros(1, channels, 32, 32), max_batch=None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@EACH_VARIANT
def test_planned_layers_have_int8_inputs_and_weights_and_the_rest_is_float16(
    variant: Variant, package: Path, tmp_path: Path
) -> None:
    path = package if variant == VARIANTS[0] else write(program_for("coreml", variant), tmp_path)
    info = inspect_mlpackage(path)
    kinds = list(layers_of(variant).values())
    stem = kinds.count("stem")
    quantised = len(kinds) - stem
    assert info.weight_types == {"float16": stem, "int8": quantised}
    assert info.count("constexpr_affine_dequantize") == info.count("quantize") == info.count("dequantize") == quantised
    assert info.count("conv") == len(kinds)
    assert info.count("linear") == info.count("transpose") == info.count("batch_norm") == 0
    assert info.float32_operators == ()
    assert (info.count("layer_norm"), info.count("gelu")) == (6, 3)  # one node each, nothing taken apart
    assert info.count("sqrt") == (3 if variant.version == 2 else 0)


def test_affine_activations_keep_their_zero_point(tmp_path: Path) -> None:
    program = program_for("onnx")
    path = write(program, tmp_path)
    _, operations = open_package(path)
    planned = [node.args[2] for node in program.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    stored = [int(op.zero_point.val) for op in operations if op.op_type == "dequantize"]
    assert stored == planned
    assert any(planned)
    assert check_weights(program, path).int8_layers == len(planned)


def test_weights_in_the_package_are_exactly_those_simulated(package: Path) -> None:
    """Dequantised by coremltools itself, every weight is code times scale, in float16 and without a difference."""
    _, operations = open_package(package)
    stored = [op.weight.op for op in operations if op.op_type in ("conv", "linear")]
    module = graph_module(program_for("coreml"))
    lift_small_scales(module)
    weights = [node.args[1] for node in weighted_nodes(module)]
    assert len(stored) == len(weights) == LAYERS
    for source, weight in zip(stored[1:], weights[1:], strict=True):
        codes, scale = (tensor_of(module, node).numpy() for node in weight.args[:2])
        expected = codes.astype(np.float16) * scale.astype(np.float16).reshape(-1, *[1] * (codes.ndim - 1))
        np.testing.assert_array_equal(source.materialized_val_inference().reshape(expected.shape), expected)


def test_weight_check_reports_only_rounding(package: Path) -> None:
    check = check_weights(program_for("coreml"), package)
    assert (check.layers, check.int8_layers) == (LAYERS, QUANTISED)
    assert check.largest_scale_error == 0  # the plan's scales are float16 numbers already
    assert check.largest_float_error <= 2**-11


def test_weight_check_names_the_layer_that_differs(package: Path) -> None:
    other = graph_module(program_for("coreml"))
    codes, _ = stored_weight(other, "stages.0.0.pwconv2")
    changed = tensor_of(other, codes).clone()
    changed[0] = -changed[0]
    other.register_buffer(str(codes.target), changed)
    with pytest.raises(ExportError, match=r"int8 weights of stages\.0\.0\.pwconv2"):
        check_weights(torch.export.export(other, (images(2),)), package)
    with pytest.raises(ExportError, match="12 convs and linears; the quantised model has 13"):
        check_weights(program_for("coreml", VARIANTS[2]), package)


def test_package_takes_an_image_and_names_classes(package: Path) -> None:
    info = inspect_mlpackage(package)
    assert [(f.name, f.kind, f.detail) for f in info.inputs] == [("image", "image", "RGB 32x32")]
    outputs = {f.name: (f.kind, f.detail) for f in info.outputs}
    assert outputs == {
        "classLabel": ("text", ""),
        "classLabel_probs": ("dictionary", ""),
        "logits": ("array", "float16 1x7"),
    }
    assert info.labels == LABELS
    assert info.specification == 8  # iOS 17
    assert info.version == "1.2.3"
    assert "int8" in info.description
    stored = ArtifactMetadata.from_properties(info.metadata)
    assert (stored.preprocess, stored.labels, stored.value_range) == (describe().preprocess, LABELS, "0..255")
    assert stored.notes["calibration"] == "64 pictures"


def test_model_without_labels_gives_logits_only(tmp_path: Path) -> None:
    info = inspect_mlpackage(write(program_for("coreml"), tmp_path, labels=None))
    assert [feature.name for feature in info.outputs] == ["logits"]
    assert info.labels is None
    assert info.count("softmax") == info.count("classify") == 0


def test_grey_model_takes_a_grey_image(tmp_path: Path) -> None:
    info = inspect_mlpackage(write(with_channels(1), tmp_path))
    assert info.inputs[0].detail == "GRAYSCALE 32x32"


def test_classes_of_the_same_name_stay_apart() -> None:
    labels = coreml._class_labels(program_for(None), describe(labels=("crane", "b", "c", "crane", "e", "f", "g")))
    assert labels == ["crane (class 0)", "b", "c", "crane (class 3)", "e", "f", "g"]


def test_ios18_writes_its_own_weight_operator(tmp_path: Path) -> None:
    program = program_for("coreml")
    path = write(program, tmp_path, minimum_os="iOS18")
    info = inspect_mlpackage(path)
    assert info.specification == 9
    assert info.count("constexpr_blockwise_shift_scale") == QUANTISED
    assert info.weight_types == {"float16": 1, "int8": QUANTISED}
    assert check_weights(program, path).int8_layers == QUANTISED


def test_float_program_becomes_a_larger_float16_package(package: Path, float_package: Path) -> None:
    path = float_package
    info = inspect_mlpackage(path)
    assert info.weight_types == {"float16": LAYERS}
    assert info.count("quantize") == 0
    assert "float16" in info.description
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (path / weights).stat().st_size > 1.5 * (package / weights).stat().st_size


@EACH_VARIANT
def test_prepared_graph_computes_the_same_logits(variant: Variant) -> None:
    """Only powers of two move; a linear as a 1x1 conv adds up in another order, which changes the last bits."""
    program = program_for("coreml", variant)
    prepared = single_image_program(program, probabilities=True).module()
    for image in images(4, seed=3).split(1):
        probabilities, logits = prepared(image)
        torch.testing.assert_close(logits, program.module()(image), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))


def test_scales_below_float16_are_lifted_without_changing_a_product() -> None:
    module = with_small_scales()
    before = layer_weights(module)
    lift_small_scales(module)
    after = layer_weights(module)
    for old, new in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(new.scale, old.scale, rtol=0, atol=0)
    for node in weighted_nodes(module)[1:]:
        source, weight = node.args[:2]
        assert source.args[1] >= HALF_SMALLEST_NORMAL  # type: ignore[union-attr, operator]
        assert tensor_of(module, weight.args[1]).min() >= HALF_SMALLEST_NORMAL  # type: ignore[union-attr, arg-type]


def test_small_scales_reach_the_package_with_all_their_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(with_small_scales(), (images(1),))
    assert check_weights(program, write(program, tmp_path)).largest_scale_error <= 2**-10
    monkeypatch.setattr("edgeconvnext.backends.coreml.graph.lift_small_scales", lambda module: None)
    assert check_weights(program, write(program, tmp_path)).largest_scale_error > 2**-9  # what lifting is for


def with_small_scales() -> torch.fx.GraphModule:
    """The small network with the first pwconv2's weights 2000 times smaller, as a small layer scale leaves them."""
    module = graph_module(program_for("coreml"))
    _, scale = stored_weight(module, "stages.0.0.pwconv2")
    module.register_buffer(str(scale.target), tensor_of(module, scale) / 2000)
    return module


def stored_weight(module: torch.fx.GraphModule, layer: str) -> tuple[torch.fx.Node, torch.fx.Node]:
    """Nodes of a layer's int8 codes and their scales."""
    (node,) = (node for node in weighted_nodes(module) if str(node.args[2].target) == f"{layer}.bias")
    return node.args[1].args[:2]


def test_response_norm_stays_within_float16() -> None:
    """At 56 x 56 positions with a root mean square of 20, the plain sum of squares is 1.3 million."""

    class Norm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().sum(dim=(1, 2), keepdim=True).sqrt()

    x = 20 * torch.randn(1, 56, 56, 8, generator=torch.Generator().manual_seed(0))
    module = torch.export.export(Norm(), (x,)).module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    assert largest_intermediate(module, x) > HALF_LARGEST
    expected = module(x)
    scale_sums_of_squares(module)
    module.recompile()
    assert largest_intermediate(module, x) < HALF_LARGEST
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def largest_intermediate(module: torch.fx.GraphModule, x: torch.Tensor) -> float:
    values = []

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                values.append(float(result.abs().max()))
            return result

    Recorder(module).run(x)
    return max(values)


def test_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    module = copy.deepcopy(small_convnext())
    with torch.no_grad():
        module.head.bias[0] = 1e5
    with pytest.raises(ExportError, match=r"head\.bias holds 100000"):
        write(export_program(module, images(1), max_batch=None), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minimum_os": "iOS16"}, "from iOS17 and macOS14 on"),
        ({"minimum_os": "ios17"}, "Did you mean .*iOS17"),
        ({"value_range": "normalized"}, 'input.value_range = "0..255"'),
        ({"labels": ("one", "two")}, "7 classes and 2 labels"),
    ],
)
def test_what_core_ml_cannot_take_is_an_error_with_a_way_out(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        write(program_for("coreml"), tmp_path, **changes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_four_channels_and_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="1 or 3 channels"):
        write(with_channels(4), tmp_path)
    with pytest.raises(ExportError, match=r"must be named \*\.mlpackage"):
        export_coreml(program_for("coreml"), tmp_path / "model.onnx", metadata=describe(), minimum_os="iOS17")


@pytest.mark.parametrize(
    ("failure", "shown"),
    [(OSError(28, "No space left on device"), RunDirectoryError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "Ctrl-C"],
)
def test_failed_export_keeps_the_former_package_and_leaves_nothing_else(
    failure: BaseException,
    shown: type[BaseException],
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    shutil.copytree(package, tmp_path / "model.mlpackage")
    with monkeypatch.context() as patch:
        patch.setattr(coreml, "check_weights", fail)  # the last step before the package gets its name
        with pytest.raises(shown):
            write(program_for(None), tmp_path)
    assert contents(tmp_path / "model.mlpackage") == contents(package)
    assert [path.name for path in tmp_path.iterdir()] == ["model.mlpackage"]


def test_new_package_replaces_the_former_one(package: Path, float_package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    (tmp_path / "model.mlpackage" / "former.txt").write_text("from the run before")
    written = contents(write(program_for(None), tmp_path))
    assert written.keys() == contents(float_package).keys() == contents(package).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model.mlpackage"]


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from quantized_programs import METADATA, program_for
from edgeconvnext.backends.coreml import convert as coreml
coreml.check_weights = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
metadata = dataclasses.replace(METADATA, value_range="0..255")
coreml.export_coreml(program_for(None), Path(sys.argv[1]), metadata=metadata, minimum_os="iOS17")
"""


@pytest.mark.exhaustive
def test_killed_export_leaves_no_package_and_no_noise(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "model.mlpackage"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (tmp_path / "model.mlpackage").exists()
    for noise in ("passes", "Torch version", "scikit-learn", "_MLModelProxy"):  # coremltools' bars and known warnings
        assert noise not in result.stderr


def test_broken_package_is_named(float_package: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(float_package, tmp_path / "model.mlpackage"))
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"model\.mlpackage cannot be read"):
        inspect_mlpackage(path)
    with pytest.raises(ExportError, match=r"no Manifest\.json"):
        inspect_mlpackage(tmp_path / "absent.mlpackage")


def test_missing_coremltools_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(RuntimeMissingError, match=r"edgeconvnext\[coreml\]") as caught:
        write(program_for("coreml"), tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_prediction_away_from_a_mac_says_where_to_go(package: Path) -> None:
    with pytest.raises(RuntimeMissingError, match=r"Apple devices only.*macOS 14") as caught:
        CoreMLModel(package)
    assert caught.value.exit_code == 4


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_core_ml_agrees_with_the_simulation(package: Path) -> None:
    """The target's fidelity gate: 30 dB between Core ML and the simulated graph."""
    pixels = ((images(16, seed=5).clamp(-2, 2) + 2) * 63).round()
    simulated = run(program_for("coreml"), pixels)
    assert sqnr_db(simulated, CoreMLModel(package).predict(pixels.numpy())) >= 30


def test_embedded_digits_model_becomes_a_classifier(tmp_path: Path) -> None:
    model = load_model(Path(edgeconvnext.__file__).parent / "model" / "weights" / "digits.safetensors")
    assert model.labels is not None
    program = export_program(model.module, torch.zeros(1, 3, *model.preprocess.input_size), max_batch=None)
    path = write(program, tmp_path, labels=model.labels.names, preprocess=model.preprocess)
    info = inspect_mlpackage(path)
    assert info.labels == tuple("0123456789")
    assert info.float32_operators == ()


@pytest.mark.data
def test_trained_atto_keeps_its_folded_weights_and_halves_in_size(
    atto_weights: Path, photographs: Path, tmp_path: Path
) -> None:
    """Folding leaves a dozen layers with scales below float16's normal range; the package still holds them exactly."""
    model = load_model(atto_weights)
    photos = resolve_image_set(str(photographs / "imagenette2-160" / "val"))
    stream = batches(photos, model.preprocess, batch_size=16, indices=range(0, 1920, 40), workers=0)
    inputs = [batch.images for batch in stream]
    folded = fold_exact(model.module, inputs[:1], preprocess=model.preprocess, value_range="0..255").module
    pixels = [torch.from_numpy(to_value_range(batch.numpy(), model.preprocess, "0..255")) for batch in inputs]
    plan = build_plan(folded, collect_statistics(folded, pixels[:2], pixels[2:]), load_target("coreml"), effort="quick")
    small = [layer for layer, grid in plan.weights.items() if grid.scale.min() < HALF_SMALLEST_NORMAL]
    assert len(small) >= 10
    floating = export_program(folded, pixels[0][:1], max_batch=16)
    quantised = quantize_program(floating, plan)
    metadata = ArtifactMetadata(model.name, model.labels.names, model.preprocess, "0..255", "1.2.3")  # type: ignore[union-attr]
    sizes = []
    for name, program in (("int8", quantised), ("float16", floating)):
        path = export_coreml(program, tmp_path / f"{name}.mlpackage", metadata=metadata, minimum_os="iOS17")
        sizes.append(tree_size(path))
    check = check_weights(quantised, tmp_path / "int8.mlpackage")
    assert (check.layers, check.int8_layers, check.largest_scale_error) == (41, 40, 0)
    for name, program, least in (("int8", quantised, 40), ("float16", floating, 50)):
        found = Evaluator(tmp_path / f"{name}.mlpackage").run(pixels[0].round())["logits"].float().numpy()
        assert sqnr_db(run(program, pixels[0], "float16"), found) >= least
    assert sizes[0] < 0.55 * sizes[1]
