"""Which configurations of which peer are measured. Methods are keys of the METHODS of the peer's worker module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.protocol import Activations, Bits, Placement

PeerName = Literal["onnxruntime", "nncf", "modelopt", "torchao"]
Environment = PeerName | Literal["torch_pruning"]


@dataclass(frozen=True)
class Configuration:
    """One way to quantise with one peer."""

    peer: PeerName
    method: str
    placement: Placement = "peer's own default"
    activations: Activations = "affine"
    bits: Bits = "W8A8"


PLACEMENTS: tuple[Placement, ...] = ("all weighted ops", "no depthwise", "linears only")
ACTIVATIONS: tuple[Activations, ...] = ("affine", "symmetric")

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("onnxruntime", "MinMax"),
    Configuration("onnxruntime", "Entropy"),
    Configuration("onnxruntime", "Percentile"),
    Configuration("onnxruntime", "MinMax, 7-bit weights"),
    Configuration("onnxruntime", "MinMax", activations="symmetric"),
    *(
        Configuration("onnxruntime", "MinMax", placement, activations, bits)
        for bits in ("W8A8", "W4A8")
        for placement in PLACEMENTS
        for activations in ACTIVATIONS
    ),
    *(
        Configuration("onnxruntime", method, placement)
        for method in ("MinMax, 7-bit weights", "Entropy", "Percentile")
        for placement in ("all weighted ops", "linears only")
    ),
    Configuration("nncf", "default preset", activations="symmetric"),
    Configuration("nncf", "model_type=TRANSFORMER"),
    Configuration("nncf", "MIXED preset"),
    Configuration("nncf", "MIXED preset, accurate bias correction"),
    Configuration("nncf", "default preset", "no depthwise", "symmetric"),
    Configuration("nncf", "MIXED preset", "no depthwise"),
    Configuration("nncf", "default preset", "linears only", "symmetric"),
    Configuration("nncf", "MIXED preset", "linears only"),
    Configuration("nncf", "MIXED preset", bits="W4A8"),
    Configuration("modelopt", "max", activations="symmetric"),
    Configuration("modelopt", "entropy", activations="symmetric"),
    *(Configuration("modelopt", "max", placement, "symmetric") for placement in PLACEMENTS),
    Configuration("modelopt", "entropy", "all weighted ops", "symmetric"),
    Configuration("torchao", "X86InductorQuantizer"),
    Configuration("torchao", "X86InductorQuantizer, reduce_range"),
)

SUFFIXES: dict[PeerName, str] = {"onnxruntime": ".onnx", "nncf": ".xml", "modelopt": ".onnx", "torchao": ".pt2"}
RUNTIMES: dict[PeerName, PeerName] = {
    "onnxruntime": "onnxruntime",
    "nncf": "nncf",
    "modelopt": "onnxruntime",
    "torchao": "torchao",
}
