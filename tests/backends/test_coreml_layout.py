"""Channels first for the Neural Engine: no transposes, linears as 1x1 convs, LayerNorm over axis 1, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quantized_programs import EACH_VARIANT, METADATA, Variant, images, program_for

from edgeconvnext.backends.coreml.graph import graph_module, layer_weights
from edgeconvnext.backends.coreml.layout import channels_first
from edgeconvnext.errors import ExportError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.program import export_program


def rewritten(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    module = graph_module(program)
    channels_first(module)
    return module


def targets(module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("target", [None, "coreml"], ids=["float", "W8A8"])
@EACH_VARIANT
def test_the_same_logits_come_out(variant: Variant, target: str | None) -> None:
    """In float32; int8 codes hardly ever sit on an edge that another order of additions pushes them over."""
    program = program_for(target, variant)
    pictures = images(4, seed=3)
    torch.testing.assert_close(rewritten(program)(pictures), program.module()(pictures), rtol=1e-4, atol=1e-4)


@EACH_VARIANT
def test_linears_become_convs_and_only_norms_keep_permutes(variant: Variant) -> None:
    program = program_for("coreml", variant)
    before, after = targets(graph_module(program)), targets(rewritten(program))
    linears, norms = before.count("aten.linear.default"), before.count("aten.layer_norm.default")
    assert linears and "aten.linear.default" not in after
    assert after.count("aten.conv2d.default") == before.count("aten.conv2d.default") + linears
    assert after.count("aten.layer_norm.default") == norms
    assert after.count("aten.permute.default") == 2 * norms


def test_the_program_itself_stays_as_it_was() -> None:
    program = program_for("coreml")
    before = [(layer.name, layer.weight.clone()) for layer in layer_weights(graph_module(program))]
    rewritten(program)
    for (name, weight), layer in zip(before, layer_weights(graph_module(program)), strict=True):
        assert name == layer.name
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)


def test_a_network_without_classifier_gives_its_features_as_a_vector() -> None:
    torch.manual_seed(0)
    config = ConvNeXtConfig(depths=(1,), dims=(8,), num_classes=0, layer_scale=False)
    program = export_program(ConvNeXt(config).eval(), images(2), max_batch=None)
    features = rewritten(program)(images(2))
    assert features.shape == (2, 8)
    torch.testing.assert_close(features, program.module()(images(2)), rtol=1e-5, atol=1e-5)


class Shuffle(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.permute(0, 2, 3, 1)).mean(dim=(1, 2), keepdim=True)


class Turn(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 2, 1)


class Mix(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Shuffle(), r"relu is aten\.relu\.default of a tensor with channels last"),
        (Turn(), r"permute permutes channels-first data to \[0, 3, 2, 1\]"),
        (Mix(), "add mixes tensors of two layouts"),
    ],
)
def test_what_no_convnext_has_is_named(module: torch.nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        rewritten(torch.export.export(module, (torch.zeros(1, 4, 4, 4),)))


@EACH_VARIANT
def test_norms_of_the_package_work_over_axis_1(variant: Variant, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from edgeconvnext.backends.coreml.convert import export_coreml
    from edgeconvnext.backends.coreml.package import open_package

    metadata = replace(METADATA, value_range="0..255")
    path = export_coreml(program_for(None, variant), tmp_path / "m.mlpackage", metadata=metadata, minimum_os="iOS17")
    _, operations = open_package(path)
    norms = [op for op in operations if op.op_type == "layer_norm"]
    assert len(norms) == 6
    assert all(list(op.axes.val) == [1] and op.x.rank == 4 for op in norms)
    kernels = [op.weight.shape for op in operations if op.op_type == "conv"]
    assert all(len(shape) == 4 for shape in kernels)
