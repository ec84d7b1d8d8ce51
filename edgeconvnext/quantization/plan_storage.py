"""Quantised networks on disk: qparams, codes and scalings in one safetensors file, beside the folded float network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.convnext.network import MOST_EXPONENT
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.received import parse_json, reading, reason, require_regular_file
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, place_scaling
from edgeconvnext.rewrite.residual_streams import scale_streams
from edgeconvnext.tensor_header import in_one_order


def save_plan(plan: QuantPlan, module: Network, path: Path) -> None:
    """Write the plan, and the weights and biases that `module` has for it.

    module: what `reconstruct` returned, or the float network itself where its weights are rounded to the nearest code.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, Any] = {
        "activations": {},
        "weights": {},
        "decisions": {},
        "stream_exponents": list(plan.stream_exponents),
    }
    for name, activation in plan.activations.items():
        metadata["activations"][name] = {
            "grid": _write_qparams(name, activation.qparams, tensors),
            "estimator": activation.estimator,
            "mse": activation.mse,
            "signal": activation.signal,
            "candidates": activation.candidates,
        }
    for layer, qparams in plan.weights.items():
        placed = module.get_submodule(layer)
        weight, bias = (cast(torch.Tensor, placed.get_parameter(name)).detach() for name in ("weight", "bias"))
        codes = qparams.nearest_code(weight / qparams.broadcast(qparams.scale, weight))
        metadata["weights"][layer] = _write_qparams(layer, qparams, tensors)
        tensors[f"{layer}|codes"], tensors[f"{layer}|bias"] = codes.to(torch.int8).contiguous(), bias.contiguous()
    for layer, decision in plan.decisions.items():
        tensors[f"{layer}|affine_scale"] = decision.scaling.scale.contiguous()
        tensors[f"{layer}|affine_shift"] = decision.scaling.shift.contiguous()
        metadata["decisions"][layer] = {
            "affine": decision.scaling.name,
            "rounding": decision.rounding,
            "block_sqnr_db": decision.block_sqnr_db,
            "plain_sqnr_db": decision.plain_sqnr_db,
            "candidates": decision.candidates,
        }
    path.write_bytes(in_one_order(save(tensors, metadata={"plan": json.dumps(metadata)})))


def load_plan(path: Path, folded: Network) -> tuple[QuantPlan, Network]:
    """Read what `save_plan` wrote; return the plan and a copy of `folded` with its scalings, codes and biases in place.

    Raises RunDirectoryError where the file holds anything else, or the plan of another network.
    """
    plan, tensors = _read(path)
    try:
        return plan, _with_plan(plan, tensors, folded)
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise RunDirectoryError(
            f"{for_terminal(path)} is the plan of another network than the folded one beside it ({reason(error)}). Make the run "
            "again with the same command."
        ) from error


def restore_plan(path: Path, module: Network, *, scalings: bool) -> QuantPlan:
    """Read a plan of some layers and put their codes and biases into `module`, in place; return the plan.

    scalings: whether those in front of the layers are placed, too. Raises RunDirectoryError as `load_plan`.
    """
    plan, tensors = _read(path)
    _place(plan, tensors, module, scalings=scalings)
    return plan


def _read(path: Path) -> tuple[QuantPlan, dict[str, torch.Tensor]]:
    """Read a plan and its tensors; raises RunDirectoryError where the file holds anything else."""
    from safetensors import safe_open

    require_regular_file(path, RunDirectoryError)
    with reading(path, RunDirectoryError, "Make the run again with the same command."):
        with safe_open(str(path), framework="pt") as file:
            metadata = _Metadata.of(parse_json(file.metadata()["plan"], path, RunDirectoryError))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping
        return _read_plan(metadata, tensors), tensors


def _read_plan(metadata: _Metadata, tensors: dict[str, torch.Tensor]) -> QuantPlan:
    activations = {
        name: ActivationPlan(
            name, _read_qparams(name, entry.grid, tensors), entry.estimator, entry.mse, entry.signal, entry.candidates
        )
        for name, entry in metadata.activations.items()
    }
    weights = {layer: _read_qparams(layer, entry, tensors) for layer, entry in metadata.weights.items()}
    decisions = {
        layer: LayerDecision(
            ChannelScaling(
                _floats(tensors, f"{layer}|affine_scale", 1), _floats(tensors, f"{layer}|affine_shift", 1), entry.affine
            ),
            entry.rounding,
            entry.block_sqnr_db,
            entry.plain_sqnr_db,
            entry.candidates,
        )
        for layer, entry in metadata.decisions.items()
    }
    return QuantPlan(activations, weights, decisions, metadata.stream_exponents)


def _with_plan(plan: QuantPlan, tensors: dict[str, torch.Tensor], folded: Network) -> Network:
    """Return a copy of the network with a plan's scalings, codes and biases; raises ValueError for another network's plan."""
    layers = weighted_layers(folded)
    strangers = {name.partition(":")[0] for name in (*plan.activations, *plan.weights, *plan.decisions)} - set(layers)
    if strangers:
        raise ValueError(f"its network has a layer {min(strangers)}, and the run's has none")
    module = scale_streams(folded, plan.stream_exponents).eval()
    _place(plan, tensors, module, scalings=True)
    return module


def _place(plan: QuantPlan, tensors: dict[str, torch.Tensor], module: Network, *, scalings: bool) -> None:
    """Put scalings, codes and biases into `module`; raises ValueError for tensors of other shapes."""
    for layer, qparams in plan.weights.items():
        if scalings and layer in plan.decisions and not plan.decisions[layer].scaling.is_identity:
            place_scaling(module, layer, plan.decisions[layer].scaling)
        placed = module.get_submodule(layer)
        weight, bias = placed.get_parameter("weight").data, placed.get_parameter("bias").data
        codes, stored_bias = tensors[f"{layer}|codes"], tensors[f"{layer}|bias"]
        if codes.dtype != torch.int8 or codes.shape != weight.shape or stored_bias.shape != bias.shape:
            raise ValueError(f"the codes of {layer} are not of its shape")
        if qparams.axis is not None and qparams.scale.shape[0] != weight.shape[qparams.axis]:
            raise ValueError(f"{layer} has not one scale for each channel")
        weight.copy_(codes.float() * qparams.broadcast(qparams.scale, codes))
        bias.copy_(stored_bias)


# Checked by hand: the machine with the GPU that reads plans may have torch, numpy and safetensors alone.
@dataclass(frozen=True)
class _CodeRange:
    quant_min: int
    quant_max: int
    axis: int | None

    @classmethod
    def of(cls, value: Any) -> _CodeRange:
        entry = _entry(value, {"quant_min": (int,), "quant_max": (int,), "axis": (int, type(None))})
        if (
            not -(2**15) <= entry["quant_min"] <= 0
            or not 1 <= entry["quant_max"] < 2**16
            or entry["axis"] not in (0, None)
        ):
            raise ValueError("a grid is out of range")
        return cls(**entry)


@dataclass(frozen=True)
class _Activation:
    grid: _CodeRange
    estimator: str
    mse: float
    signal: float
    candidates: dict[str, float]

    @classmethod
    def of(cls, value: Any) -> _Activation:
        kinds = {"grid": (dict,), "estimator": (str,), "mse": _NUMBER, "signal": _NUMBER, "candidates": (dict,)}
        entry = _entry(value, kinds)
        return cls(**entry | {"grid": _CodeRange.of(entry["grid"]), "candidates": _figures(entry["candidates"])})


@dataclass(frozen=True)
class _Decision:
    affine: str
    rounding: str
    block_sqnr_db: float
    plain_sqnr_db: float
    candidates: dict[str, float]

    @classmethod
    def of(cls, value: Any) -> _Decision:
        texts: dict[str, tuple[type, ...]] = {"affine": (str,), "rounding": (str,)}
        kinds = texts | {"block_sqnr_db": _NUMBER, "plain_sqnr_db": _NUMBER, "candidates": (dict,)}
        entry = _entry(value, kinds)
        return cls(**entry | {"candidates": _figures(entry["candidates"])})


@dataclass(frozen=True)
class _Metadata:
    activations: dict[str, _Activation]
    weights: dict[str, _CodeRange]
    decisions: dict[str, _Decision]
    stream_exponents: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> _Metadata:
        kinds = {"activations": (dict,), "weights": (dict,), "decisions": (dict,), "stream_exponents": (list,)}
        entry = _entry(value, kinds)
        exponents = entry["stream_exponents"]
        if any(type(exponent) is not int or not 0 <= exponent <= MOST_EXPONENT for exponent in exponents):
            raise ValueError("an exponent of a stream is out of range")
        return cls(
            {name: _Activation.of(item) for name, item in entry["activations"].items()},
            {name: _CodeRange.of(item) for name, item in entry["weights"].items()},
            {name: _Decision.of(item) for name, item in entry["decisions"].items()},
            tuple(exponents),
        )


_NUMBER: tuple[type, ...] = (int, float)


def _entry(value: Any, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return a JSON object that has exactly these keys with values of these types; raises ValueError for another one."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ValueError(f"it does not hold {', '.join(kinds)}")
    for name, types in kinds.items():
        if type(value[name]) not in types:  # a bool is no int
            raise ValueError(f"{name} is of another type")
    return value


def _figures(value: dict[str, Any]) -> dict[str, float]:
    return {name: float(figure) for name, figure in _entry(value, dict.fromkeys(value, _NUMBER)).items()}


def _write_qparams(name: str, qparams: QParams, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors[f"{name}|scale"], tensors[f"{name}|zero_point"] = (
        qparams.scale.contiguous(),
        qparams.zero_point.contiguous(),
    )
    if qparams.levels is not None:
        tensors[f"{name}|levels"] = qparams.levels.contiguous()
    return {"quant_min": qparams.quant_min, "quant_max": qparams.quant_max, "axis": qparams.axis}


def _read_qparams(name: str, entry: _CodeRange, tensors: dict[str, torch.Tensor]) -> QParams:
    scale, zero_point = _floats(tensors, f"{name}|scale", 2), tensors[f"{name}|zero_point"]
    if not bool((scale > 0).all()) or (entry.axis is None) != (scale.dim() == 0):
        raise ValueError(f"the scales of {name} are no scales")
    inside = zero_point.dtype == torch.int32 and zero_point.shape == scale.shape
    if not inside or not bool(((zero_point >= entry.quant_min) & (zero_point <= entry.quant_max)).all()):
        raise ValueError(f"the zero points of {name} are not on its grid")
    levels = _floats(tensors, f"{name}|levels", 1) if f"{name}|levels" in tensors else None
    if levels is not None and not (2 <= len(levels) <= 256 and bool((levels.diff() >= 0).all())):
        raise ValueError(f"the levels of {name} are no palette")
    return QParams(scale, zero_point, entry.quant_min, entry.quant_max, entry.axis, levels)


def _floats(tensors: dict[str, torch.Tensor], key: str, most_axes: int) -> torch.Tensor:
    values = tensors[key]
    if values.dtype != torch.float32 or values.dim() > most_axes or not bool(values.isfinite().all()):
        raise ValueError(f"{key} holds no finite numbers of float32")
    return values
