"""The layout that suits the Neural Engine: channels second everywhere, linears as 1x1 convs, LayerNorm over the channel axis.

Apple's advice for the Neural Engine (machinelearning.apple.com/research/neural-engine-transformers) is (N, C, 1, S) data, 1x1
convs in place of linears, and no transposes; coremltools itself writes the LayerNorm of that article as `layer_norm` over axis 1.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from edgeconvnext.backends.channels_first import TO_FIRST, TO_LAST, ChannelsFirst


class _CoreMLChannelsFirst(ChannelsFirst):
    runtime = "Core ML"


def channels_first(module: GraphModule) -> None:
    """Rewrite an exported ConvNeXt, in place, so that every tensor between image and logits is (N, C, H, W).

    LayerNorms stay as torch has them, between two permutes that `fold_norm_transposes` takes out of the converted program.
    Raises ExportError for an operator that a ConvNeXt does not have.
    """
    _CoreMLChannelsFirst(module).rewrite()


def fold_norm_transposes(program: Any) -> int:
    """Replace transpose, layer_norm over the last axis, transpose back by layer_norm over axis 1, in place; return how many were.

    program: coremltools' MIL program, of a graph that `channels_first` made.
    """
    from coremltools.converters.mil.mil import Builder as mb

    folded = 0
    for function in program.functions.values():
        for norm in list(function.operations):
            if norm.op_type != "layer_norm":
                continue
            before, after = norm.x.op, list(norm.outputs[0].child_ops)
            if not (_transposes(before, TO_LAST) and len(after) == 1 and _transposes(after[0], TO_FIRST)):
                continue
            back = after[0]
            with function:
                result = mb.layer_norm(
                    x=before.x,
                    axes=[1],
                    gamma=norm.gamma,
                    beta=norm.beta,
                    epsilon=norm.epsilon,
                    before_op=norm,
                    name=f"{norm.name}_channels",
                )
            # Every operator has to say which line of the traced network it comes from; these come from the same one.
            for made in (result.op, result.op.axes.op):
                made.scopes = norm.scopes
            function.replace_uses_of_var_after_op(
                anchor_op=back, old_var=back.outputs[0], new_var=result, no_check_var_types=True
            )
            function.remove_ops([back, norm])
            if not before.outputs[0].child_ops:
                function.remove_ops([before])
            folded += 1
    return folded


def _transposes(op: Any, order: list[int]) -> bool:
    return op is not None and op.op_type == "transpose" and [axis % 4 for axis in op.perm.val] == order
