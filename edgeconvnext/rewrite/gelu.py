"""GELU by tanh instead of by the error function: cheaper on some processors, at most 0.0005 away (arXiv 1606.08415)."""

from __future__ import annotations

import copy

from torch import nn

from edgeconvnext.model.network import Network
from edgeconvnext.targets import GeluForm


def with_gelu(module: Network, form: GeluForm) -> Network:
    """Return a copy of `module` whose GELUs are computed by `form`; `module` itself where they are already."""
    approximate = {"erf": "none", "tanh": "tanh"}[form]
    if all(child.approximate == approximate for child in module.modules() if isinstance(child, nn.GELU)):
        return module
    changed = copy.deepcopy(module)
    for child in changed.modules():
        if isinstance(child, nn.GELU):
            child.approximate = approximate
    return changed
