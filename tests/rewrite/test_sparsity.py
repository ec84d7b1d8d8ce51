"""2:4 sparsity: the pattern is there, fitted well, and still there in the exported file, quantised or not."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from networks import small_network
from reconstructions import photographs, reconstructed, target_with

import edgeconvnext
from edgeconvnext.backends.onnx.sparse import sparse_linears, sparsity_checks
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.load import load_model
from edgeconvnext.model.two_of_four import is_two_of_four, sparse_layers, zero_mask
from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.rounding import factor_hessian, gptq, refit
from edgeconvnext.rewrite.exact import fold_exact
from edgeconvnext.rewrite.sparsity import sparse_weight, sparsify
from edgeconvnext.rewrite.two_of_four import masked_fit


def test_the_pattern_is_two_of_each_four_neighbours_along_the_inputs() -> None:
    assert is_two_of_four(torch.tensor([[1.0, 0, 2, 0, 0, 0, 3, 4]]))
    assert is_two_of_four(torch.tensor([[0.0, 0, 2, 0]]))
    assert not is_two_of_four(
        torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 1]])
    )  # half of the weights, but three of the first four
    assert not is_two_of_four(torch.ones(2, 6))
    assert zero_mask(torch.zeros(2, 4)) is None


def problem(columns: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (6, columns), the covariance of correlated inputs, and the covariance of its outputs with them."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    covariance = mixing @ mixing.T / columns + 0.05 * torch.eye(columns, dtype=torch.float64)
    weight = torch.randn(6, columns, generator=generator, dtype=torch.float64)
    return weight, covariance, weight @ covariance


def lost(weight: torch.Tensor, other: torch.Tensor, covariance: torch.Tensor) -> float:
    return float((((weight - other) @ covariance) * (weight - other)).sum())


def test_masked_fit_is_the_least_squares_solution_of_every_row() -> None:
    weight, covariance, cross = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    fitted = masked_fit(weight, mask, covariance, cross, steps=200)
    for row, free in zip(range(len(weight)), mask, strict=True):
        exact = torch.linalg.solve(covariance[free][:, free], cross[row, free])
        torch.testing.assert_close(fitted[row, free], exact, rtol=1e-5, atol=1e-6)
        assert not fitted[row, ~free].any()


def test_second_order_choice_loses_less_than_dropping_the_smallest() -> None:
    weight, covariance, cross = problem(columns=32)
    sparse = sparse_weight(weight, covariance, cross)
    assert is_two_of_four(sparse)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    smallest = weight.view(6, -1, 4).abs().topk(2, dim=2).indices
    mask.view(6, -1, 4).scatter_(2, smallest, True)
    fitted = masked_fit(weight, mask, covariance, cross)
    assert lost(weight, sparse, covariance) < lost(weight, fitted, covariance) < lost(weight, weight * mask, covariance)


def test_rounding_methods_keep_zeros_of_a_mask() -> None:
    weight, covariance, cross = problem(columns=160)  # more columns than one block of GPTQ
    sparse = sparse_weight(weight, covariance, cross)
    mask = cast(torch.Tensor, zero_mask(sparse))[None]
    step = sparse.abs().amax(dim=1, keepdim=True)[None] / 7
    fitted = refit(sparse[None], covariance[None], cross[None], 0.01, mask)
    ready = factor_hessian(covariance[None])
    grid = QParams(step, torch.tensor(0), -7, 7)
    codes, filled = gptq(fitted, step, grid, ready, mask), gptq(fitted, step, grid, ready)
    assert is_two_of_four(codes[0])
    assert not is_two_of_four(filled[0]), "without a mask GPTQ fills the zeros; otherwise this test shows nothing"
    assert lost(sparse, (codes * step)[0], covariance) < lost(
        sparse, ((sparse / step[0]).round() * step[0]), covariance
    )


def sparse_network() -> ConvNeXt:
    module = fold_exact(small_network(), photographs(4)).module
    images = photographs(24)
    return sparsify(module, images[:16].split(8), images[16:].split(8)).module


@pytest.mark.parametrize("options", [{}, {"rounding": "gptq"}, {"rounding": "adaround", "adaround_minutes": 0.02}])
def test_every_rounding_of_the_engine_leaves_the_pattern(options: dict[str, object]) -> None:
    module = sparse_network()
    result = reconstructed(module, target_with("onnx", weights={"bits": 4, "range_bits": 8}), photographs(), **options)
    layers = [name for name, _ in module.named_modules() if name.endswith(("pwconv1", "pwconv2"))]
    assert layers
    for name in layers:
        weight = result.module.get_parameter(f"{name}.weight").detach()
        assert is_two_of_four(weight), (name, options)
        assert not weight[module.get_parameter(f"{name}.weight") == 0].any()


def test_sparse_layers_answer_nearly_as_before() -> None:
    module, images = small_network(), photographs(48)
    result = sparsify(module, images[:32].split(8), images[32:].split(8))
    assert len(result.layers) == 2 * sum(module.config.depths)
    crude = {layer.name: module.get_parameter(f"{layer.name}.weight").detach() for layer in result.layers}
    with torch.no_grad():
        expected = module(images[32:])
        error = float((result.module(images[32:]) - expected).norm())
        for name, weight in crude.items():
            keep = torch.zeros_like(weight, dtype=torch.bool)
            keep.view(len(weight), -1, 4).scatter_(
                2, weight.view(len(weight), -1, 4).abs().topk(2, dim=2).indices, True
            )
            module.get_parameter(f"{name}.weight").mul_(keep)
        assert error < 0.7 * float((module(images[32:]) - expected).norm())


def test_sparse_v2_networks_keep_their_grn() -> None:
    module = ConvNeXt(ConvNeXtConfig((1, 1), (8, 16), num_classes=3, version=2)).eval()
    images = photographs(12)
    result = sparsify(module, images[:8].split(4), images[8:].split(4))
    assert all(is_two_of_four(result.module.get_parameter(f"{layer.name}.weight")) for layer in result.layers)


def test_widths_that_are_no_multiple_of_four_are_named() -> None:
    module = ConvNeXt(ConvNeXtConfig((1,), (8,), num_classes=3, hidden=((10,),)))
    with pytest.raises(RewriteError, match=r"stages\.0\.0\.pwconv2 has 10"):
        sparsify(module, [torch.zeros(1, 3, 32, 32)], [torch.zeros(1, 3, 32, 32)])


@pytest.mark.exhaustive
def test_the_pattern_is_in_the_exported_files(micro: str, tmp_path: Path) -> None:
    """The whole way of a user: sparse checkpoint, exact folds, INT8, ONNX; and a file whose zeros were filled is refused."""
    import onnx
    from onnx import numpy_helper

    weights = tmp_path / "sparse.safetensors"
    pruned = edgeconvnext.prune(micro, calib="digits", num_images=60, sparsity="2:4", output=weights)
    assert pruned.sparse is not None
    layers = [layer.name for layer in pruned.sparse.layers]
    run = edgeconvnext.export(
        str(weights), target="onnx", calib="digits", num_images=30, latency=False, output=tmp_path / "run"
    )
    path = run.path / "model.onnx"
    assert sparse_linears(path) == dict.fromkeys(layers, True)
    checks = {check.name: check for check in run.report.checks}
    assert checks["2:4 sparsity"].passed and checks["2:4 sparsity"].result.startswith(f"{len(layers)} of {len(layers)}")
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == f"{layers[0]}.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) | 1, weight.name))
    onnx.save(model, tmp_path / "filled.onnx")
    check = sparsity_checks(sparse_layers(load_model(weights).module), tmp_path / "filled.onnx")[0]
    assert not check.passed and layers[0] in check.result
    assert sparsity_checks(sparse_layers(load_model(micro).module), path) == []


def test_engines_are_built_with_the_sparse_flag_where_layers_are_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from edgeconvnext.backends.onnx import sparse as sparse_onnx
    from edgeconvnext.backends.tensorrt import engine as tensorrt

    flags: list[str] = []
    config = SimpleNamespace(set_flag=flags.append)
    runtime = SimpleNamespace(BuilderFlag=SimpleNamespace(SPARSE_WEIGHTS="SPARSE_WEIGHTS"))
    monkeypatch.setattr(sparse_onnx, "sparse_linears", lambda _path: {"stages.0.0.pwconv1": False})
    assert tensorrt._allow_sparse_kernels(runtime, config, tmp_path) == ()
    assert not flags
    monkeypatch.setattr(sparse_onnx, "sparse_linears", lambda _path: {"a": True, "b": False})
    assert tensorrt._allow_sparse_kernels(runtime, config, tmp_path) == ("a",)
    assert flags == ["SPARSE_WEIGHTS"]
