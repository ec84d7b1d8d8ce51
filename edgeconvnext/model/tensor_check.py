"""A checkpoint's tensors against the network they are for."""

from __future__ import annotations

import torch

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.build import build_empty
from edgeconvnext.model.families import family_of
from edgeconvnext.model.network import NetworkConfig
from edgeconvnext.model.renamed import Renamed, listed


def check_tensors(renamed: Renamed, config: NetworkConfig, source: str) -> None:
    """Raise CheckpointError naming every missing, unexpected and misshapen tensor, under the file's own names."""
    empty = build_empty(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    found = {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}
    theirs = renamed.theirs
    missing = [theirs.get(name, name) for name in expected if name not in found]
    unexpected = [*renamed.unexpected, *(theirs.get(name, name) for name in found if name not in expected)]
    of_other_shape = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    misshapen = [f"{theirs.get(name, name)} is {found[name]}, expected {expected[name]}" for name in of_other_shape]
    floats = {
        name
        for name, tensor in renamed.tensors.items()
        if tensor.dtype in (torch.float32, empty.get(name, tensor).dtype)
    }
    problems = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
            (
                "not floating-point (already quantised?)",
                [theirs.get(name, name) for name in found if name not in floats],
            ),
        )
        if names
    ]
    if problems:
        family = family_of(config)
        variant = f", {family.variant(config)}" if family.variant(config) else ""
        raise CheckpointError(
            f"{source} does not fit the {family.title} its tensors describe (read as {renamed.layout} layout{variant}"
            f", depths {list(config.depths)}, dims {list(config.dims)}). Tensors {'; '.join(problems)}."
            f"{family.hint(missing, unexpected, [theirs.get(name, name) for name in of_other_shape])}"
        )
