"""What a family of networks brings, so that its checkpoints load and it is described.

ARCHITECTURE.md says how to add one. The network says of itself what the rest of the package needs: the kinds of its layers
(`operators`), `is_residual`, `exact_folds`, `inverted_bottlenecks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgeconvnext.model.network import Network, NetworkConfig
from edgeconvnext.model.renamed import Renamed


@dataclass(frozen=True)
class Architecture:
    """A published network. published_gflops: 1e9 multiply-adds at 224x224, as its authors print them."""

    name: str
    config: NetworkConfig
    published_gflops: float | None


@dataclass(frozen=True)
class NormRow:
    """One norm: what follows it, the layer its affine folds into exactly (None where it cannot), and why (not)."""

    name: str
    channels: int
    followed_by: str
    folds_into: str | None
    reason: str


class Family:
    """A kind of network; a subclass fills in the first five attributes, `rename` and `infer`.

    name: in stored configurations. title: for people. readable: the checkpoints that load. config, network: its classes; a network
    is built from its config alone. architectures: published networks by name. norm_kind: heading of `norm_rows`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    readable: ClassVar[str]
    config: ClassVar[type[NetworkConfig]]
    network: ClassVar[type[Any]]
    architectures: ClassVar[Mapping[str, Architecture]] = {}
    norm_kind: ClassVar[str] = "Norms"

    def rename(self, tensors: Mapping[str, torch.Tensor], source: str) -> Renamed | None:
        """Return the tensors of a file under our names; None where they are no checkpoint of this family."""
        raise NotImplementedError

    def infer(self, renamed: Renamed, source: str) -> NetworkConfig:
        """Read the sizes off the shapes. Raises CheckpointError where they make no network of this family."""
        raise NotImplementedError

    def canonical(self, config: Any) -> NetworkConfig:
        """Return the configuration of the same network, with the same tensors, in the family that knows it best."""
        return config  # type: ignore[no-any-return]

    def hint(self, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
        """Return a sentence, after a space, on the known variant that explains these tensors; "" where none does."""
        return ""

    def find(self, name: str) -> Architecture | None:
        """Return the published network of a name, whatever spellings of it people use."""
        return self.architectures.get(name)

    def hub_name(self, name: str) -> str | None:
        """Return the hub name of the weights that a plain model name stands for."""
        return None

    def match(self, config: Any) -> Architecture | None:
        """Return the published network with this architecture, whatever its classes and folding."""
        return next((known for known in self.architectures.values() if known.config == config), None)

    def variant(self, config: Any) -> str:
        """Return what sets this network apart within its family, as in "V2"."""
        return ""

    def stem_and_head(self, config: Any) -> str:
        """Return what the stem and the head are, for people."""
        return "its own"

    def norm_rows(self, module: Network) -> list[NormRow]:
        """Return the norms in the order data passes them."""
        return []
