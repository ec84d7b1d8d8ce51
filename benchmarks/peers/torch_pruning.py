"""Torch-Pruning on a network of this toolkit, in its own environment; torch, numpy and torch_pruning only.

    python torch_pruning.py WORK FOLDER "magnitude, global, hidden only" 0.9 0.7 0.5

WORK holds network.py with its weights, calibration.npy, calibration_labels.npy and evaluation.npy. Pruning goes in many small
steps, widths in multiples of eight, importance computed anew for every one (Taylor's gradients, which the tool narrows with the
weights, for every tenth); whenever a share of the multiply-adds is reached, the network answers the evaluation images:
FOLDER/<share>.npz with logits, macs, parameters and seconds, and FOLDER/<share>.pt with the pruned weights.

hidden only: pwconv1's outputs, as this toolkit prunes. whole network: every channel but the classifier's outputs, the tool's
default. Taylor's gradients are those of the cross-entropy with the images' labels. Its dependency graph, its importances and its
stepping are used as its documentation shows them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
import torch_pruning as tp  # noqa: E402  (this file has the package's name)

STEPS = 100
STEPS_PER_GRADIENT = 10
BATCH = 64


def main() -> None:
    work, folder, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    shares = sorted(map(float, sys.argv[4:]), reverse=True)
    importance_name, ranking, scope = method.split(", ")
    sys.path.insert(0, str(work))
    from network import load_network

    model = load_network()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    images = torch.from_numpy(np.load(work / "calibration.npy"))
    labels = torch.from_numpy(np.load(work / "calibration_labels.npy"))
    evaluation = torch.from_numpy(np.load(work / "evaluation.npy"))
    example = images[:1]
    total = macs_of(model, example)
    # The whole network may lose every channel down to eight; only hidden ones are at most 7/8 of a block here.
    importance = (
        tp.importance.GroupTaylorImportance()
        if importance_name == "taylor"
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    hidden = {layer for name, layer in model.named_modules() if name.endswith("pwconv1")}
    weighted = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    ignored = [layer for layer in weighted if layer not in hidden] if scope == "hidden only" else [model.head]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=importance,
        global_pruning=ranking == "global",
        pruning_ratio=0.97,
        max_pruning_ratio=0.97,
        iterative_steps=STEPS,
        ignored_layers=ignored,
        round_to=8,
    )
    start = time.perf_counter()
    for step in range(STEPS):
        if not shares:
            break
        if importance_name == "taylor" and step % STEPS_PER_GRADIENT == 0:
            gradients(model, images, labels)
        pruner.step()
        share = macs_of(model, example) / total
        while shares and share <= shares[0]:
            torch.save(model.state_dict(), folder / f"{shares[0]}.pt")
            np.savez(
                folder / f"{shares.pop(0)}.npz",
                logits=answers(model, evaluation),
                macs=macs_of(model, example),
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                seconds=time.perf_counter() - start,
            )
    if shares:
        raise SystemExit(f"torch_pruning: {method} ends at {share:.3f} of the multiply-adds")


def gradients(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Leave the gradients of the mean loss over the calibration images in the parameters."""
    model.zero_grad()
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        (torch.nn.functional.cross_entropy(model(x), y, reduction="sum") / len(images)).backward()


@torch.no_grad()
def answers(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    return torch.cat([model(batch) for batch in images.split(BATCH)]).numpy()


@torch.no_grad()
def macs_of(model: torch.nn.Module, example: torch.Tensor) -> int:
    """Weights of convs and linears times the positions they are applied to, batch 1: this toolkit's count."""
    total = 0

    def count(layer: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        channels = layer.weight.shape[0]
        total += layer.weight.numel() * (output.numel() // channels)

    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(example)
    for hook in hooks:
        hook.remove()
    return total


if __name__ == "__main__":
    main()
