"""The cases: what is asked of the command line, with the options that every version has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .resnet50_checkpoint import write_resnet50

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A command of edgeconvnext.

    arguments: given the folder of the case, in which whatever the command needs may be made.
    """

    name: str
    arguments: Callable[[Path], list[str]]


def photographs() -> Path:
    """Return the folder of image sets: $EDGECONVNEXT_DATA, else the one beside the checkout."""
    return Path(os.environ.get("EDGECONVNEXT_DATA") or CHECKOUT.parent / "shared" / "data").resolve()


def _digits(name: str, *options: str) -> Case:
    images = ["--calib", "digits", "--eval", "digits_test", "--num-images", "256"]
    return Case(name, lambda folder: _export(folder, "onnx", "digits", *images, *options))


def _atto(target: str) -> Case:
    """ConvNeXt-Atto, its weights in a folder beside that of the image sets."""
    weights = photographs().parent / "weights" / "convnext_atto_imagenette.pth"
    images = ["--calib", "imagenette", "--eval", "imagenette_val", "--num-images", "64"]
    return Case(f"atto-{target}", lambda folder: _export(folder, target, str(weights), *images))


def _export(folder: Path, target: str, model: str, *options: str) -> list[str]:
    run = ["--no-latency", "--output", str(folder / "run")]
    return ["export", "--target", target, "--model", model, *options, *run]


def _roadmap(folder: Path) -> list[str]:
    """ResNet-50 from a torchvision checkpoint, and a step with depthwise convs, GELU and random weights; effort quick."""
    checkpoint = folder / "resnet50_torchvision.safetensors"
    write_resnet50(checkpoint)
    steps = ["--steps", "resnet50,fewer_norms", "--trained", f"resnet50={checkpoint}"]
    images = ["--calib", "digits", "--num-images", "12", "--resolution", "64"]
    how = ["--target", "onnx", "--effort", "quick", "--no-latency", "--output", str(folder / "roadmap")]
    return ["roadmap", *steps, *images, *how]


CASES = {
    case.name: case
    for case in (
        _digits("digits-compressed", "--prune-macs", "0.6", "--replace-norm"),
        _digits("digits-4-bit", "--weights", "4"),
        _digits("digits-features", "--head", "features"),
        Case("roadmap", _roadmap),
        _atto("onnx"),
        _atto("jetson"),
        _atto("coreml"),
        _atto("coreml-p6"),
    )
}
