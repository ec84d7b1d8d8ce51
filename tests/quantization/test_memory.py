"""Calibration memory: the same for few images as for many."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from networks import small_network

from edgeconvnext.quantization.statistics import collect_statistics

BATCHES, BATCH = 240, 4


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_statistics_keep_nothing_of_an_image_once_it_is_counted() -> None:
    """The quantised tensors alone are 0.26 MB an image, 250 MB in all; the process may grow by a tenth of it."""
    resident: list[int] = []

    def images() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(BATCHES):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
            yield torch.randn(BATCH, 3, 64, 64, generator=generator)

    network = small_network()
    sizes: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, args: sizes.append(args[0].nbytes))
        for layer in network.modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    collect_statistics(network, images(), [torch.randn(1, 3, 64, 64)])
    for handle in handles:
        handle.remove()
    seen = sum(sizes)
    assert seen > 200e6
    assert resident[-1] - resident[BATCHES // 10] < seen / 10
