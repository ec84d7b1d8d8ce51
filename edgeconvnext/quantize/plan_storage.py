"""Quantised networks on disk: grids, codes and affines in one safetensors file, beside the folded float network they belong to."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch

from edgeconvnext.model.network import Network
from edgeconvnext.quantize.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.rewrite.prepare import Affine, place_affine


def save_plan(plan: QuantPlan, module: Network, path: Path) -> None:
    """Write the plan, and the weights and biases that `module` has for it.

    module: what `reconstruct` returned, or the float network itself where its weights are rounded to the nearest code.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, Any] = {"activations": {}, "weights": {}, "decisions": {}}
    for name, activation in plan.activations.items():
        metadata["activations"][name] = {
            "grid": _grid(name, activation.qparams, tensors),
            "estimator": activation.estimator,
            "mse": activation.mse,
            "signal": activation.signal,
            "candidates": activation.candidates,
        }
    for layer, grid in plan.weights.items():
        found = module.get_submodule(layer)
        weight, bias = (cast(torch.Tensor, found.get_parameter(name)).detach() for name in ("weight", "bias"))
        codes = grid.nearest_code(weight / grid.broadcast(grid.scale, weight))
        metadata["weights"][layer] = _grid(layer, grid, tensors)
        tensors[f"{layer}|codes"], tensors[f"{layer}|bias"] = codes.to(torch.int8).contiguous(), bias.contiguous()
    for layer, decision in plan.decisions.items():
        tensors[f"{layer}|affine_scale"] = decision.affine.scale.contiguous()
        tensors[f"{layer}|affine_shift"] = decision.affine.shift.contiguous()
        metadata["decisions"][layer] = {
            "affine": decision.affine.name,
            "rounding": decision.rounding,
            "block_sqnr_db": decision.block_sqnr_db,
            "plain_sqnr_db": decision.plain_sqnr_db,
            "candidates": decision.candidates,
        }
    path.write_bytes(save(tensors, metadata={"plan": json.dumps(metadata)}))


def load_plan(path: Path, folded: Network) -> tuple[QuantPlan, Network]:
    """Read what `save_plan` wrote; return the plan and a copy of `folded` with its affines, codes and biases in place."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = json.loads(file.metadata()["plan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping
    activations = {
        name: ActivationPlan(
            name,
            _read_grid(name, entry["grid"], tensors),
            entry["estimator"],
            entry["mse"],
            entry["signal"],
            entry["candidates"],
        )
        for name, entry in metadata["activations"].items()
    }
    weights = {layer: _read_grid(layer, entry, tensors) for layer, entry in metadata["weights"].items()}
    decisions = {
        layer: LayerDecision(
            Affine(tensors[f"{layer}|affine_scale"], tensors[f"{layer}|affine_shift"], entry["affine"]),
            entry["rounding"],
            entry["block_sqnr_db"],
            entry["plain_sqnr_db"],
            entry["candidates"],
        )
        for layer, entry in metadata["decisions"].items()
    }
    module = copy.deepcopy(folded).eval()
    for layer, grid in weights.items():
        if layer in decisions and not decisions[layer].affine.is_identity:
            place_affine(module, layer, decisions[layer].affine)
        found = module.get_submodule(layer)
        codes = tensors[f"{layer}|codes"].float()
        found.get_parameter("weight").data.copy_(codes * grid.broadcast(grid.scale, codes))
        found.get_parameter("bias").data.copy_(tensors[f"{layer}|bias"])
    return QuantPlan(activations, weights, decisions), module


def _grid(name: str, grid: QParams, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors[f"{name}|scale"], tensors[f"{name}|zero_point"] = grid.scale.contiguous(), grid.zero_point.contiguous()
    if grid.levels is not None:
        tensors[f"{name}|levels"] = grid.levels.contiguous()
    return {"quant_min": grid.quant_min, "quant_max": grid.quant_max, "axis": grid.axis}


def _read_grid(name: str, entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> QParams:
    return QParams(
        tensors[f"{name}|scale"], tensors[f"{name}|zero_point"], **entry, levels=tensors.get(f"{name}|levels")
    )
