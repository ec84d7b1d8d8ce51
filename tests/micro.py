"""A network of two blocks that tells the embedded digits apart: seconds an export, for tests of what is written and reused."""

from __future__ import annotations

from pathlib import Path

import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.loaded import LoadedModel

CONFIG = ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=10, patch_size=2, kernel_size=5)
RIDGE = 1e-3


def micro_model() -> LoadedModel:
    """Return the network: drawn from a seed, its classifier fitted by least squares on the digits to train on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ConvNeXt(CONFIG).eval()
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    names = tuple(str(digit) for digit in range(10))
    preprocess = Preprocess(input_size=(16, 16), crop_pct=1.0)
    model = LoadedModel(
        module, module.config, preprocess, Labels(names, names), "micro", "edgeconvnext", "micro", sha256=""
    )
    _fit_head(model)
    return model


def write_micro(path: Path) -> Path:
    """Save the network as a checkpoint and return its path."""
    save_checkpoint(micro_model(), path)
    return path


def _fit_head(model: LoadedModel) -> None:
    images = digits_set("train")
    assert images.labels is not None
    kept: list[torch.Tensor] = []
    hook = model.module.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    with torch.inference_mode():
        for batch in batches(images, model.preprocess):
            model.module(batch.images)
    hook.remove()
    rows = torch.cat(kept).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    answers = torch.nn.functional.one_hot(torch.tensor(images.labels), 10).double()
    gram = rows.T @ rows + RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    solution = 10 * torch.linalg.solve(gram, rows.T @ answers)
    with torch.no_grad():
        model.module.head.weight.copy_(solution[:-1].T)
        model.module.head.bias.copy_(solution[-1])
