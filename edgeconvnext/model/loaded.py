"""A model as the rest of the toolkit receives it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.network import Network, NetworkConfig


@dataclass(frozen=True)
class LoadedModel:
    """A trained network with what its checkpoint says about it.

    module: eval mode, float32, logits (N, num_classes) from images (N, C, H, W).
    labels: None where neither the checkpoint nor a file beside it names the classes.
    name: short and safe as a file name. layout: whose tensor names the file used. source: path or hub name.
    sha256: of the weights file. notes: what had to be assumed, for the user to read. weights_from: the network that was asked for
    where a file holds several.
    """

    module: Network
    config: NetworkConfig
    preprocess: Preprocess
    labels: Labels | None
    name: str
    layout: str
    source: str
    sha256: str
    notes: tuple[str, ...] = ()
    weights_from: str | None = None
