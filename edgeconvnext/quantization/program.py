"""The quantised graph: a torch.export program with Q/DQ nodes, made by torchao's PT2E flow from a `QuantPlan`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import ExportedProgram
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from edgeconvnext.errors import QuantizationError
from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.model.program import free_axes
from edgeconvnext.quantization.biases import round_biases
from edgeconvnext.quantization.plan import QParams, QuantPlan

_CONV = torch.ops.aten.conv2d.default
_LINEAR = torch.ops.aten.linear.default


def quantize_program(program: ExportedProgram, plan: QuantPlan) -> ExportedProgram:
    """Insert the plan's Q/DQ pairs into an exported float graph, with int8 weights.

    Residual adds, LayerNorm and GELU stay in float; only edges into (and, where planned, out of) weighted operators change, and
    biases move to the nearest whole number of product steps, which integer kernels add them in.
    Raises QuantizationError when a planned layer is not in the graph, or the weights of a palettised one are not on its levels.
    """
    _check_palettes(program, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(program.module(), ConvNeXtQuantizer(plan))
        converted = convert_pt2e(prepared)
        give_back_free_memory()  # of the folding of weights
        round_biases(converted, plan)
        _insert_blocked_weights(converted, plan)
        _drop_unused(converted)
        return torch.export.export(
            converted, program.example_inputs[0], dynamic_shapes=(free_axes(program),), strict=False
        )


def _check_palettes(program: ExportedProgram, plan: QuantPlan) -> None:
    """PT2E would round a weight beside its palette's levels to the nearest whole number, and the artifact could not store it."""
    for layer, grid in plan.weights.items():
        if grid.levels is None:
            continue
        weight = program.state_dict[f"{layer}.weight"].detach()
        steps = weight / grid.broadcast(grid.scale, weight)
        if not torch.allclose(grid.nearest_code(steps), steps, rtol=0, atol=1e-3):
            raise QuantizationError(
                f"The weights of {layer} are not on the {len(grid.levels)} levels of its palette. Export the network that "
                "load_plan or reconstruct returned with this plan."
            )


def _insert_blocked_weights(module: torch.fx.GraphModule, plan: QuantPlan) -> None:
    """Store weights with several scales a row as codes of shape (out * blocks, block), one scale for each of these short rows.

    PT2E's own operators know one scale per tensor or per channel; behind them the weight takes its shape (out, in) again.
    """
    blocked = {f"{layer}.weight": grid for layer, grid in plan.weights.items() if grid.blocked}
    for node in list(module.graph.nodes):
        grid = blocked.get(str(node.target)) if node.op == "get_attr" else None
        if grid is None:
            continue
        path, _, attribute = str(node.target).rpartition(".")
        owner = module.get_submodule(path)
        weight = getattr(owner, attribute).detach()
        codes = (weight / grid.broadcast(grid.scale, weight)).round().clamp(grid.quant_min, grid.quant_max)
        block = weight.shape[1] // grid.scale.shape[1]
        stored = {
            "codes": codes.to(torch.int8).reshape(-1, block),
            "scale": grid.scale.flatten(),
            "zero_point": torch.zeros(grid.scale.numel(), dtype=torch.int32),
        }
        for name, value in stored.items():
            owner.register_buffer(f"{attribute}_{name}", value)
        with module.graph.inserting_before(node):
            parts = [module.graph.get_attr(f"{path}.{attribute}_{name}") for name in stored]
            dequantized = module.graph.call_function(
                torch.ops.quantized_decomposed.dequantize_per_channel.default,
                (*parts, 0, grid.quant_min, grid.quant_max, torch.int8),
            )
            whole = module.graph.call_function(torch.ops.aten.view.default, (dequantized, list(weight.shape)))
        node.replace_all_uses_with(whole)
        module.graph.erase_node(node)
    module.recompile()


def _drop_unused(module: torch.fx.GraphModule) -> None:
    """Remove the float weights that int8 ones replaced; torch.export would keep them in the program."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)


class PresetObserver(ObserverBase):
    """Observes nothing: hands the planned grid to `convert_pt2e`."""

    def __init__(self, qparams: QParams, **_spec: Any) -> None:
        super().__init__(dtype=_dtype(qparams))
        self.quant_min = qparams.quant_min
        self.quant_max = qparams.quant_max
        self.qscheme = torch.per_tensor_affine if qparams.axis is None else torch.per_channel_symmetric
        self.ch_axis = qparams.axis
        self.scale = qparams.scale
        self.zero_point = qparams.zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale, self.zero_point


class ConvNeXtQuantizer(Quantizer):
    """Annotates the convs and linears of an exported ConvNeXt as a `QuantPlan` says; everything else stays float."""

    def __init__(self, plan: QuantPlan) -> None:
        super().__init__()
        self.plan = plan

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        annotated = set()
        for node in model.graph.nodes:
            if node.op != "call_function" or node.target not in (_CONV, _LINEAR):
                continue
            layer = str(node.args[1].target).removesuffix(".weight")
            inputs: dict[torch.fx.Node, Any] = {}
            if layer in self.plan.weights:
                annotated.add(layer)
                source = self.plan.activations.get(f"{layer}:input")
                if source is not None:
                    inputs[node.args[0]] = _spec(source.qparams)
                if not self.plan.weights[layer].blocked:
                    inputs[node.args[1]] = _spec(self.plan.weights[layer])
            output = self.plan.activations.get(f"{layer}:output")
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=inputs,
                output_qspec=_spec(output.qparams) if output else None,
                allow_implicit_sharing=False,
                _annotated=True,
            )
        missing = sorted(set(self.plan.weights) - annotated)
        if missing:
            raise QuantizationError(
                f"The plan quantises layers that the exported graph does not have: {', '.join(missing)}."
            )
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to refuse: the plan was checked while annotating."""


def _dtype(qparams: QParams) -> torch.dtype:
    if qparams.bits == 16:
        return torch.int16 if qparams.signed else torch.uint16
    return torch.int8 if qparams.signed else torch.uint8


def _spec(qparams: QParams) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=_dtype(qparams),
        observer_or_fake_quant_ctr=PresetObserver.with_args(qparams=qparams),
        quant_min=qparams.quant_min,
        quant_max=qparams.quant_max,
        qscheme=torch.per_tensor_affine if qparams.axis is None else torch.per_channel_symmetric,
        ch_axis=qparams.axis,
    )
