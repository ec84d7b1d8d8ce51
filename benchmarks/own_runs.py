"""This project's own rows of the accuracy benchmark: one export each, by the command line, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.grid import ACTIVATIONS, PLACEMENTS
from benchmarks.peers.protocol import Activations, Bits, Placement


@dataclass(frozen=True)
class OwnRun:
    """One export. target: a shipped target's name, or the text of a TOML file. flags: further ones of the command.

    runs_here: whether the artifact runs in onnxruntime; else nothing is timed, and what the run itself measured is judged:
    the artifact in its reference evaluator (coreml) or the simulation (jetson).
    models: the networks it is made for; empty: all.
    """

    method: str
    target: str
    placement: Placement
    activations: Activations
    bits: Bits = "W8A8"
    flags: tuple[str, ...] = ()
    runs_here: bool = True
    models: tuple[str, ...] = ()

    def target_in(self, folder: Path) -> str:
        """Return what `--target` takes: the shipped target's name, or the file, which is written into `folder`."""
        if "\n" not in self.target:
            return self.target
        path = folder / "target.toml"
        path.write_text(self.target, encoding="utf-8")
        return str(path)


OPERATORS: dict[Placement, tuple[str, ...]] = {
    "all weighted ops": ("stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head"),
    "no depthwise": ("stem", "pointwise1", "pointwise2", "downsample", "head"),
    "linears only": ("pointwise1", "pointwise2", "head"),
}


def target_text(placement: Placement, activations: Activations, bits: Bits = "W8A8", prepare: bool = False) -> str:
    """Return a target file for onnxruntime with this placement and these grids.

    prepare: allow multiply-adds in front of quantizers, as the targets for GPUs and Core ML do.
    """
    operators = ", ".join(f'"{operator}"' for operator in OPERATORS[placement])
    return f"""\
name = "accuracy-benchmark"
description = "{placement}, {activations} activations"
exporter = "onnx"
float_type = "float32"
opset = {21 if bits == "W4A8" else 20}
[quantize]
operators = [{operators}]
[quantize.activations]
scheme = "{activations}"
signed = {"true" if activations == "symmetric" else "false"}
[quantize.weights]
bits = {4 if bits == "W4A8" else 8}
[quantize.smoothing]
hidden = "{"channel" if prepare else "none"}"
depthwise = {str(prepare).lower()}
image = {str(prepare).lower()}
[runtime]
name = "onnxruntime"
minimum = "1.18"
"""


SWITCHES: dict[str, tuple[str, ...]] = {
    "no preparation": ("--smoothing", "none"),
    "nearest codes": ("--rounding", "nearest"),
    "no bias correction": ("--no-bias-correction",),
    "each tensor by itself": ("--effort", "quick"),
    "AdaRound too": ("--effort", "best", "--adaround-minutes", "8"),
}

OWN_RUNS: tuple[OwnRun, ...] = (
    OwnRun("target onnx", "onnx", "linears only", "affine"),
    OwnRun("target jetson", "jetson", "all weighted ops", "symmetric", runs_here=False),
    OwnRun("target coreml", "coreml", "all weighted ops", "symmetric", runs_here=False),
    OwnRun(
        "with multiply-adds",
        target_text("all weighted ops", "symmetric", prepare=True),
        "all weighted ops",
        "symmetric",
    ),
    *(
        OwnRun("no multiply-adds", target_text(placement, activations), placement, activations)
        for placement in PLACEMENTS
        for activations in ACTIVATIONS
    ),
    OwnRun(
        "with multiply-adds",
        target_text("all weighted ops", "symmetric", "W4A8", True),
        "all weighted ops",
        "symmetric",
        "W4A8",
    ),
    *(
        OwnRun("no multiply-adds", target_text(placement, "affine", "W4A8"), placement, "affine", "W4A8")
        for placement in PLACEMENTS
    ),
    # What each technique is worth: the whole way with one of them switched off, or with AdaRound on top.
    *(
        OwnRun(f"target jetson, {what}", "jetson", "all weighted ops", "symmetric", "W8A8", flags, False, ("atto",))
        for what, flags in SWITCHES.items()
    ),
    *(
        OwnRun(
            f"with multiply-adds, {what}",
            target_text("all weighted ops", "symmetric", "W4A8", True),
            "all weighted ops",
            "symmetric",
            "W4A8",
            flags,
            models=("atto",),
        )
        for what, flags in SWITCHES.items()
    ),
)
