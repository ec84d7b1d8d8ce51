"""A checkpoint's tensors under this package's names, beside the names of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgeconvnext.escape import for_terminal

OWN_LAYOUT = "edgeconvnext"
_LISTED = 8
"""How many tensor names an error lists before it counts the rest."""


@dataclass(frozen=True)
class Renamed:
    """A checkpoint under our names.

    layout: name of the library whose names the file has. tensors: by our name. theirs: the file's name for each name of ours the
    layout knows, present or not. unexpected: names of the file that mean nothing in this layout.
    """

    layout: str
    tensors: dict[str, torch.Tensor]
    theirs: dict[str, str]
    unexpected: tuple[str, ...]


def own_names(tensors: Mapping[str, torch.Tensor]) -> Renamed:
    """Take a file of this package's own names as it is."""
    return Renamed(OWN_LAYOUT, dict(tensors), {name: name for name in tensors}, ())


def listed(names: list[str]) -> str:
    """Join the first few names and count the rest."""
    rest = len(names) - _LISTED
    return ", ".join(for_terminal(name)[:200] for name in names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
