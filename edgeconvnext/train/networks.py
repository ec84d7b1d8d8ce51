"""From the name of an architecture to a network with new weights, and from trained weights to other classes."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import torch
from torch import nn

from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, ModelConfigError, nearest
from edgeconvnext.model.build import build
from edgeconvnext.model.families import architectures, find_architecture
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.load import load_model, shipped_models
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network, NetworkConfig
from edgeconvnext.train.recipe import Recipe


def architecture_to_train(name: str) -> tuple[str, NetworkConfig]:
    """Return the name and configuration of a preset, a step of the roadmap, or a shipped model or weights file.

    Raises ModelConfigError for an unknown name, CheckpointError for a file that cannot be read.
    """
    if known := find_architecture(name):
        return known.name, known.config
    try:
        model = load_model(name)
    except CheckpointError as error:
        if "There is no model" not in str(error):
            raise
        names = [*shipped_models(), *architectures()]
        raise ModelConfigError(
            f"There is no architecture {name!r}.{nearest(name, names)} Known are {', '.join(names)}, and any weights file, whose "
            "architecture is taken without its weights."
        ) from error
    return model.name, model.config.for_training()


def new_model(name: str, labels: Labels, recipe: Recipe, stem_stride: int | None = None) -> LoadedModel:
    """Build a network with random weights, drawn from the recipe's seed, that tells `labels` apart.

    stem_stride: pixels that a ConvNeXt's patch stem makes one position of, in place of the architecture's own.
    Raises ModelConfigError for another architecture, and for one without a patch stem.
    """
    name, config = architecture_to_train(name)
    config = config.replace(num_classes=len(labels))
    if stem_stride is not None:
        config = _with_stem_stride(name, config, stem_stride)
    size = recipe.sizes[-1]
    _check_sizes(config, recipe.sizes)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        module = build(config)
    for path, parameter in module.named_parameters():
        if (
            path.startswith("stages.") and path.count(".") == 3 and path.endswith(".gamma")
        ):  # GRN's are one level deeper
            nn.init.constant_(parameter, recipe.layer_scale)
    channels = config.in_channels
    preprocess = Preprocess(input_size=(size, size), crop_pct=recipe.crop_pct)
    if channels != len(preprocess.mean):
        preprocess = replace(preprocess, mean=(0.5,) * channels, std=(0.25,) * channels)
    return LoadedModel(module, module.config, preprocess, labels, name, "edgeconvnext", name, sha256="")


def _with_stem_stride(name: str, config: NetworkConfig, stride: int) -> NetworkConfig:
    strided = config.with_stem_stride(stride)
    if strided is None:
        raise ModelConfigError(f"{name} has no patch stem, whose stride --stem-stride sets. Leave it out.")
    return strided


def _check_sizes(config: NetworkConfig, sizes: tuple[int, ...]) -> None:
    """Raise ModelConfigError unless the last size, the network's own, is a multiple of its stride, and the others hold one."""
    for side in sizes[:-1]:
        whole = (
            side - side % config.total_stride or side
        )  # a conv leaves out what does not fill a patch: 48 of stride 32
        check_input_size(config, (whole, whole))
    check_input_size(config, (sizes[-1], sizes[-1]))


def with_classes(model: LoadedModel, labels: Labels, recipe: Recipe) -> LoadedModel:
    """Return a copy of a trained model that tells `labels` apart: with a new head, unless they are its own, in its order."""
    module: Network = copy.deepcopy(model.module).requires_grad_(True)
    if model.labels is None or model.labels.names != labels.names:
        config = module.config.replace(num_classes=len(labels))
        features = module.head.in_features if isinstance(module.head, nn.Linear) else config.dims[-1]
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            module.head = nn.Linear(features, len(labels))
            nn.init.trunc_normal_(module.head.weight, std=0.02)
            nn.init.zeros_(module.head.bias)
        module.config = config
    _check_sizes(module.config, recipe.sizes)
    size = recipe.sizes[-1]
    preprocess = replace(model.preprocess, input_size=(size, size), crop_pct=recipe.crop_pct)
    return replace(
        model, module=module, config=module.config, preprocess=preprocess, labels=labels, sha256="", notes=()
    )


def set_drop_path(module: Network, last: float) -> None:
    """Let images skip blocks while training: with a probability that grows linearly from 0 at the first to `last`."""
    blocks = [block for stage in range(len(module.stages)) for block in module.blocks(stage)]
    for index, block in enumerate(blocks):
        block.drop_path = last * index / max(1, len(blocks) - 1)


def weights_sha256(module: Network) -> str:
    """Hash the names and values of all weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
