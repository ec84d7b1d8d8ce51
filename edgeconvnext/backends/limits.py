"""What a runtime and its file format take, as data, and the sentences for targets that ask for something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgeconvnext.choices import ActivationBits, Operator, WeightBits
    from edgeconvnext.data.preprocess import ValueRange
    from edgeconvnext.targets import Target

_SENTENCES = {
    "float_type": 'exporter "{exporter}" writes {float_type}; set float_type = "{float_type}"',
    "runtime": 'what exporter "{exporter}" writes runs in {runtime}; set runtime.name = "{runtime}"',
    "block_scales": 'quantize.weights.block_size is written to ONNX only; exporter "{exporter}" has none',
    "layouts": '[layout] is about files for onnxruntime; exporter "{exporter}" has no choice there',
    "palettes": 'quantize.weights.palette_bits is written to Core ML only; exporter "{exporter}" has no palettes',
    "minimum_os": 'exporter "{exporter}" needs minimum_os, such as "{first_system}"',
    "palette_system": 'exporter "{exporter}" has no palettes for {minimum_os}; leave quantize.weights.palette_bits out',
    "value_range": 'exporter "{exporter}" takes no {value_range} values; set input.value_range = "{first_range}"',
    "ends": 'exporter "{exporter}" writes neither uint8 inputs nor probabilities; leave out --input uint8 and --probabilities',
    "batch": 'exporter "{exporter}" takes {largest_batch} images at most; lower input.batch',
    "opset": 'exporter "{exporter}" needs opset, such as {first_opset}',
    "zero_points": 'exporter "{exporter}" has no zero points; set quantize.activations.scheme = "symmetric"',
    "opsets": 'exporter "{exporter}" does not write opset {opset}; set opset = {first_opset}',
    "free_sizes": "Target {target} has one input size. Leave out --sizes, and export once for each size with --resolution.",
    "activation_bits": "{layer} asks for {activations}-bit activations, which exporter {exporter} does not write. Use {allowed}.",
    "weight_bits": "{layer} asks for {weights}-bit weights, which exporter {exporter} does not write. Use {allowed}.",
    "low_bits_opset": (
        "{layer} asks for {weights}-bit weights and {activations}-bit activations, which ONNX has from opset {low_bits_opset} "
        "on; target {target} writes opset {opset}. Set opset = {low_bits_opset} in a target file of your own."
    ),
    "low_bits_system": "{layer} asks for {weights}-bit weights, which exporter {exporter} does not write for {minimum_os}.",
}


@dataclass(frozen=True)
class Limits:
    """What a runtime and its format take.

    float_type: what is written around the quantised operators. channel_multiple: what pruned widths are rounded to.
    low_bits_opset: the first ONNX opset with 4-bit weights and 16-bit activations; None where no opset matters.
    zero_points: whether activations may be affine. block_scales: whether a weight may have several scales a row; palettes:
    whether weights may be indices; layouts: whether [layout] offers a choice. outputs_too: operators that are multiplied in
    integers only where their outputs are quantised as well. ends: whether the input may be uint8, and probabilities beside the
    logits. largest_batch: None where there is none.
    free_sizes: whether height and width may be free. opsets: () where the format is not ONNX. systems: values of minimum_os that
    are offered, the first as an example; () where the format has none; systems_without_low_bits: those that have neither 4-bit
    weights nor palettes. sentences: in a backend's own words what is refused, by limit, in place of the general ones.
    """

    float_type: Literal["float32", "float16"]
    channel_multiple: int = 8
    weight_bits: tuple[WeightBits, ...] = (4, 8)
    activation_bits: tuple[ActivationBits, ...] = (8, 16)
    low_bits_opset: int | None = None
    zero_points: bool = True
    block_scales: bool = False
    palettes: bool = False
    layouts: bool = False
    outputs_too: frozenset[Operator] = frozenset()
    ends: bool = False
    value_ranges: tuple[ValueRange, ...] = ("normalized", "0..1", "0..255")
    largest_batch: int | None = None
    free_sizes: bool = True
    opsets: tuple[int, ...] = ()
    systems: tuple[str, ...] = ()
    systems_without_low_bits: tuple[str, ...] = ()
    sentences: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, target: Target, runtime: str) -> str | None:
        """Return what of `target` the format does not take, in a sentence without its full stop; None where it takes all.

        runtime: the one that executes what is written.
        """
        weights, batch = target.quantize.weights, target.input.batch
        palette, plain_layout = weights.palette_bits is not None, type(target.layout)()
        affine = target.quantize.activations.scheme == "affine"
        refused = {
            "float_type": target.float_type != self.float_type,
            "runtime": target.runtime.name != runtime,
            "block_scales": weights.block_size is not None and not self.block_scales,
            "layouts": target.layout != plain_layout and not self.layouts,
            "palettes": palette and not self.palettes,
            "minimum_os": bool(self.systems) and target.minimum_os is None,
            "palette_system": palette and target.minimum_os in self.systems_without_low_bits,
            "ends": (target.input.type == "uint8" or target.output.probabilities) and not self.ends,
            "value_range": target.input.value_range not in self.value_ranges,
            "batch": self.largest_batch is not None and batch[2] > self.largest_batch,
            "opset": bool(self.opsets) and target.opset is None,
            "zero_points": affine and not self.zero_points,
            "opsets": bool(self.opsets) and target.opset not in self.opsets,
        }
        first = next((limit for limit, missed in refused.items() if missed), None)
        return None if first is None else self._sentence(first, target, runtime=runtime)

    def refused_bits(
        self,
        target: Target,
        weights: WeightBits,
        activations: ActivationBits,
        layer: str,
    ) -> str | None:
        """Return why a layer cannot have these bits in what is written for `target`; None where it can."""
        low = weights == 4 or activations == 16
        old_opset = self.low_bits_opset is not None and (target.opset or 0) < self.low_bits_opset
        refused = {
            "activation_bits": activations not in self.activation_bits,
            "weight_bits": weights not in self.weight_bits,
            "low_bits_opset": low and old_opset,
            "low_bits_system": weights == 4 and target.minimum_os in self.systems_without_low_bits,
        }
        first = next((limit for limit, missed in refused.items() if missed), None)
        if first is None:
            return None
        allowed = self.activation_bits if first == "activation_bits" else self.weight_bits
        return self._sentence(
            first,
            target,
            layer=layer,
            weights=weights,
            activations=activations,
            allowed=" or ".join(map(str, allowed)),
        )

    def allowed_bits(self, target: Target) -> list[tuple[int, int]]:
        """Return the bits of weights and of activations that layers may have together in what is written for `target`."""
        pairs = ((weights, activations) for weights in self.weight_bits for activations in self.activation_bits)
        return [pair for pair in pairs if self.refused_bits(target, *pair, layer="") is None]

    def refused_sizes(self, target: Target) -> str:
        """Return why `target` takes one input size only."""
        return self._sentence("free_sizes", target)

    def _sentence(self, limit: str, target: Target, **words: object) -> str:
        return (self.sentences.get(limit) or _SENTENCES[limit]).format(
            target=target.name,
            exporter=target.exporter,
            opset=target.opset,
            minimum_os=target.minimum_os,
            value_range=target.input.value_range,
            float_type=self.float_type,
            first_system=self.systems[0] if self.systems else "",
            first_range=self.value_ranges[-1],
            first_opset=self.opsets[0] if self.opsets else "",
            largest_batch=self.largest_batch,
            low_bits_opset=self.low_bits_opset,
            **words,
        )
