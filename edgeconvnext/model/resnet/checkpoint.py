"""ResNet checkpoints as torchvision and timm name them (`layer1.0.conv1`, `fc`): renaming, and the sizes their tensors have.

Bottleneck networks load: ResNet-50, -101 and -152, the wide ones, and ResNeXt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch

from edgeconvnext.errors import CheckpointError, ModelConfigError
from edgeconvnext.model.renamed import Renamed
from edgeconvnext.model.resnet.network import ResNetConfig
from edgeconvnext.received import reason

LAYOUT = "torchvision (ResNet)"
_PATTERNS = (
    (r"conv1\.(\w+)", r"downsample_layers.0.0.\1"),
    (r"bn1\.(\w+)", r"downsample_layers.0.1.\1"),
    (r"layer([1-9]\d?)\.(\d{1,4})\.conv(\d)\.(\w+)", r"stages.<\1>.\2.conv\3.\4"),
    (r"layer([1-9]\d?)\.(\d{1,4})\.bn(\d)\.(\w+)", r"stages.<\1>.\2.norm\3.\4"),
    (r"layer([1-9]\d?)\.(\d{1,4})\.downsample\.([01])\.(\w+)", r"stages.<\1>.\2.shortcut.\3.\4"),
    (r"fc\.(\w+)", r"head.\1"),
)


def rename_resnet(tensors: Mapping[str, torch.Tensor], source: str) -> Renamed | None:
    """Rename a ResNet's tensors; None where they are none of a ResNet.

    Counters of training batches that old files lack are added. Raises CheckpointError for blocks of two convs.
    """
    renamed: dict[str, torch.Tensor] = {}
    theirs = {ours: name for name in _possible_names(tensors) if (ours := _our_name(name))}
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        ours = _our_name(name)
        if ours is None:
            unexpected.append(name)
        else:
            renamed[ours] = tensor
    if "stages.0.0.conv1.weight" not in renamed or 2 * len(renamed) < len(tensors):
        return None
    if not any(name.endswith(".conv3.weight") for name in renamed):
        raise CheckpointError(
            f"{source} is a ResNet with blocks of two 3x3 convs (ResNet-18, ResNet-34); read are those with bottlenecks, from "
            "ResNet-50 on, and ResNeXt."
        )
    for name in [name for name in renamed if name.endswith("running_var")]:
        renamed.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return Renamed(LAYOUT, renamed, theirs, tuple(unexpected))


def infer_resnet(renamed: Renamed, source: str) -> ResNetConfig:
    """Read depths, widths, groups and classes off the shapes; raises CheckpointError where they make no ResNet."""
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}
    stages = sorted({int(match[1]) for name in shapes if (match := re.match(r"stages\.(\d+)\.", name))})
    try:
        depths = tuple(
            1 + max(int(name.split(".")[2]) for name in shapes if name.startswith(f"stages.{s}.")) for s in stages
        )
        spatial = [shapes[f"stages.{s}.0.conv2.weight"] for s in stages]
        if stages != list(range(len(stages))) or max(depths) > len(shapes):
            raise KeyError(f"stages.{len(stages) - 1}")
        return ResNetConfig(
            depths=depths,
            dims=tuple(shapes[f"stages.{s}.0.conv3.weight"][0] for s in stages),
            hidden=tuple(shape[0] for shape in spatial),
            stem_dim=shapes["downsample_layers.0.0.weight"][0],
            num_classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
            in_channels=shapes["downsample_layers.0.0.weight"][1],
            groups=spatial[0][0] // spatial[0][1],
            kernel_size=spatial[0][-1],
        )
    except KeyError as error:
        raise CheckpointError(
            f"{source} is an incomplete ResNet: it has no {error.args[0]} (in this package's names). Save the whole state dict "
            "again, or load the original file."
        ) from error
    except (ModelConfigError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source} has the tensor names of a ResNet, but sizes that make none: {reason(error)}"
        ) from error


def _possible_names(names: Iterable[str]) -> Iterator[str]:
    """Yield the file's names of all tensors that its blocks can have, present or not."""
    blocks = {match[0] for name in names if (match := re.match(r"layer[1-9]\d?\.\d{1,4}\.", name, re.ASCII))}
    norms = [f"bn{number}" for number in (1, 2, 3)]
    convs = [f"conv{number}" for number in (1, 2, 3)]
    layers = ["conv1", "bn1", "fc"]
    layers += [f"{block}{part}" for block in blocks for part in (*convs, *norms, "downsample.0", "downsample.1")]
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return (f"{layer}.{kind}" for layer in layers for kind in kinds)


def _our_name(name: str) -> str | None:
    for pattern, ours in _PATTERNS:
        if match := re.fullmatch(pattern, name, re.ASCII):
            return re.sub(r"<(\d+)>", lambda number: str(int(number[1]) - 1), match.expand(ours))
    return None
