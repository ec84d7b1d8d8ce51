"""Constants of an exported graph, as tensors."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node


def tensor_of(module: GraphModule, node: Node) -> torch.Tensor:
    """Return the stored tensor that an attribute node stands for."""
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), leaf).detach()
