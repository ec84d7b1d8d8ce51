"""What measures float networks in a runtime of this machine, as pruning and the removal of norms ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import nn

from edgeconvnext.schema.report import FloatLatency


class FloatTimer(Protocol):
    """Times float networks and parts of them, batch 1, in turns with each other.

    A graph is a network as the runtime takes it, in bytes.
    """

    def float_graph(self, module: nn.Module, input_shape: tuple[int, int, int], /) -> bytes:
        """Return the graph of a network or a part of one that takes (N, C, H, W). input_shape: (C, H, W)."""
        ...

    def without_norms(self, graph: bytes, positions: Sequence[int], /) -> bytes:
        """Return the graph with some LayerNorms bypassed. positions: among all LayerNorms, in forward order."""
        ...

    def medians_ms(
        self,
        graphs: Iterable[tuple[str, bytes]],
        *,
        threads: int = 1,
        seconds: float | None = None,
        warm_up_s: float | None = None,
    ) -> dict[str, float]:
        """Return the median time of each graph by name, ms. seconds, warm_up_s: of each; None: the timer's own."""
        ...

    def foreign_latency_ms(self, module: nn.Module, input_size: tuple[int, int], /, *, threads: int = 1) -> float:
        """Return the median of a network that is none of this package's, RGB images of input_size, (height, width)."""
        ...

    def compare_latency(
        self,
        before: nn.Module,
        after: nn.Module,
        input_shape: tuple[int, int, int],
        /,
        *,
        threads: int = 1,
    ) -> FloatLatency:
        """Time two networks; return their medians and the speed-up with its interval."""
        ...
