"""Targets: one TOML file each, saying how a model is quantised and exported, for which runtime, and with what gates."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from edgeconvnext.choices import InputType, Operator
from edgeconvnext.config_file import Section
from edgeconvnext.resources import resource_dir

GeluForm = Literal["erf", "tanh"]


class InputSection(Section):
    """What the artifact takes.

    value_range: "normalized" leaves mean and std to the caller; "0..1" and "0..255" fold them into the network.
    type: "uint8" takes pixels as image files hold them, which needs "0..255".
    batch: smallest, typical and largest batch of a dynamic batch axis; three equal numbers fix it.
    """

    value_range: Literal["normalized", "0..1", "0..255"] = "normalized"
    type: InputType = "float32"
    batch: list[int] = Field(default=[1, 8, 32], min_length=3, max_length=3)

    @model_validator(mode="after")
    def _bytes_are_pixels(self) -> InputSection:
        if self.type == "uint8" and self.value_range != "0..255":
            raise ValueError('type "uint8" takes pixels; set value_range = "0..255"')
        return self

    @model_validator(mode="after")
    def _batches_are_ordered(self) -> InputSection:
        low, typical, high = self.batch
        if not 1 <= low <= typical <= high:
            raise ValueError(f"batch {self.batch} must read smallest <= typical <= largest, from 1 on")
        return self

    @property
    def dynamic_batch(self) -> bool:
        return self.batch[0] != self.batch[2]


class OutputSection(Section):
    """What the artifact gives beside its logits. probabilities: an output of this name, softmax, or sigmoid of each logit."""

    probabilities: bool = False


class ActivationSection(Section):
    """Per-tensor activation quantization. scheme "affine" has a zero point, "symmetric" has none (int8).

    bits: 16 means int16 in onnxruntime, and float16 (weights alone are quantised) in Core ML.
    """

    bits: Literal[8, 16] = 8
    scheme: Literal["affine", "symmetric"] = "symmetric"
    signed: bool = True

    @model_validator(mode="after")
    def _symmetric_is_signed(self) -> ActivationSection:
        if self.scheme == "symmetric" and not self.signed:
            raise ValueError(
                'scheme "symmetric" has no zero point, so it needs signed = true; unsigned codes need "affine"'
            )
        return self


class WeightSection(Section):
    """Per-channel symmetric weights. range_bits 7 uses codes -64..64 only, for CPUs whose int8 products saturate.

    With 8, export counts the products that would saturate: a warning, and a failed check on a processor that does.
    bits: 4 uses codes -7..7. block_size: 4-bit linears get one scale for so many input channels instead of one for all.
    palette_bits: 8-bit weights keep to a palette of 2^palette_bits codes a layer, and Core ML stores indices into it. Layers that
    a plan file or --weights gives 4 bits have none.
    """

    bits: Literal[4, 8] = 8
    range_bits: Literal[7, 8] = 8
    block_size: int | None = Field(default=None, ge=16)
    palette_bits: Literal[4, 6] | None = None

    @model_validator(mode="after")
    def _palettes_are_of_whole_bytes(self) -> WeightSection:
        if self.palette_bits is not None and (self.bits, self.range_bits) != (8, 8):
            raise ValueError("palette_bits chooses among the codes of 8-bit weights; leave bits and range_bits at 8")
        return self

    @model_validator(mode="after")
    def _blocks_are_for_four_bits(self) -> WeightSection:
        if self.block_size is not None and self.bits != 4:
            raise ValueError("block_size divides 4-bit weights; set bits = 4, or leave block_size out")
        return self


class SmoothingSection(Section):
    """Where the target allows a multiply-add in front of a quantizer, taken back exactly in the layer behind it.

    hidden: in front of pwconv2 (GELU's output), "shift" for one number, "channel" for a scale and a shift per channel.
    depthwise: a scale per channel in front of depthwise convs. image: one per colour in front of the stem, which makes its
    input exact: pixels are integers. What sits behind a LayerNorm costs nothing and is always allowed.
    """

    hidden: Literal["none", "shift", "channel"] = "none"
    depthwise: bool = False
    image: bool = False


class QuantizeSection(Section):
    """Q/DQ placement: inputs and weights of these operators are quantised, the rest stays in the target's float type.

    operators: of ConvNeXt blocks depthwise, pointwise1 and pointwise2; of ResNet blocks "conv", which feeds another conv through
    ReLU, and "projection", the last conv and the shortcut's, which feed the addition; stem, downsample and head.
    outputs: operators whose output gets a Q/DQ pair as well. float_layers: layers of these operators, by path, that stay float.
    """

    operators: list[Operator] = Field(min_length=1)
    outputs: list[Operator] = Field(default=[])
    float_layers: list[str] = Field(default=[])
    activations: ActivationSection = ActivationSection()
    weights: WeightSection = WeightSection()
    smoothing: SmoothingSection = SmoothingSection()

    @model_validator(mode="before")
    @classmethod
    def _names_smoothing(cls, values: object) -> object:
        if isinstance(values, dict) and "prepare" in values:
            raise ValueError("[quantize.prepare] is no table of a target file; its name is [quantize.smoothing]")
        return values

    def takes(self, layer: str, operator: Operator) -> bool:
        """Whether a layer's input and weights are quantised."""
        return operator in self.operators and layer not in self.float_layers

    def takes_output(self, layer: str, operator: Operator) -> bool:
        """Whether a layer's output is quantised."""
        return operator in self.outputs and layer not in self.float_layers


class LayoutSection(Section):
    """In which form a network is written for onnxruntime; what is fastest depends on the processor.

    linears: "gemm", with the bias in it; "matmul", and Add; "conv", 1 x 1 between two transposes. residual: how the sums that
    blocks add to lie in memory. gelu: by the error function, or by tanh, which is at most 0.0005 away; it is the
    network's, so that calibration, simulation and the float baseline have it as well.
    """

    linears: Literal["gemm", "matmul", "conv"] = "gemm"
    residual: Literal["channels_last", "channels_first"] = "channels_last"
    gelu: GeluForm = "erf"


class RuntimeSection(Section):
    """The runtime that executes the artifact, as its backend is called, and the oldest version it is written for."""

    name: str
    minimum: str


class GateSection(Section):
    """What the artifact must reach; a gate that is absent is not applied.

    score_drop_pp: largest loss of the task's score, such as top-1, against FP32, percentage points. min_feature_sqnr_db: in its
    place where there is no classifier, least SQNR of any output against FP32. min_speedup: against the best float form in the
    same runtime. min_fidelity_db: artifact in its runtime against the simulated graph, its worst output.
    """

    score_drop_pp: float | None = Field(default=None, ge=0)
    min_feature_sqnr_db: float | None = None
    min_speedup: float | None = Field(default=None, gt=0)
    min_fidelity_db: float | None = None


class Fact(Section):
    """Something about the device that a choice in the file rests on, and where that is said.

    source: an address, or how it was measured. confirmed: the source was read, or the measurement made; false says that the fact
    is carried by memory or hearsay and has to be checked on the device.
    """

    about: Literal["runtime", "opset", "alignment", "placement", "power", "memory"]
    text: str
    source: str
    confirmed: bool


class Target(Section):
    """A deployment target, as its TOML file says.

    exporter: name of the backend that writes the artifact; `backends.load_target` asks it whether it takes the rest.
    """

    name: str
    description: str
    exporter: str
    float_type: Literal["float32", "float16"]
    opset: int | None = Field(default=None, ge=19, le=25)
    minimum_os: str | None = None
    input: InputSection = InputSection()
    output: OutputSection = OutputSection()
    quantize: QuantizeSection
    layout: LayoutSection = LayoutSection()
    runtime: RuntimeSection
    gates: GateSection = GateSection()
    # Left out of every dump and hash: what is known of a device changes nothing that is made for it.
    facts: list[Fact] = Field(default=[], exclude=True)

    @field_validator("name")
    @classmethod
    def _fits_a_path(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]{,99}", name):
            raise ValueError(
                f"{name!r} becomes part of a folder's name: use at most 100 letters, digits, '.', '-' and '_'"
            )
        return name

    @property
    def sha256(self) -> str:
        """Hash of the resolved target, so that defaults count and comments do not."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def with_ends(target: Target, input_type: InputType, *, probabilities: bool) -> Target:
    """Return the target with pixels at its artifact's input, and probabilities beside its logits, where asked for."""
    pixels = {"type": input_type} | ({"value_range": "0..255"} if input_type == "uint8" else {})
    output = OutputSection(probabilities=True) if probabilities else target.output
    return target.model_copy(update={"input": target.input.model_copy(update=pixels), "output": output})


def target_files() -> dict[str, Path]:
    """Return the shipped targets by name."""
    return {path.stem: path for path in sorted(resource_dir("targets").glob("*.toml"), key=lambda path: path.stem)}
