"""Float networks in onnxruntime: the graph is the network's, and two are compared in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeconvnext.backends.onnx import write as onnx_export
from edgeconvnext.backends.onnxruntime import float_latency
from edgeconvnext.backends.onnxruntime.runner import onnx_session
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import Samples
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig

CONFIG = ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=5)


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt(CONFIG).eval()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_answers_as_the_network_does(network: ConvNeXt, batch: int, tmp_path: Path) -> None:
    image = torch.randn(batch, 3, 32, 40)
    path = tmp_path / "graph.onnx"
    path.write_bytes(float_latency.float_graph(network, (3, 32, 40)))
    (found,) = onnx_session(path).run(None, {"image": image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(image), rtol=1e-4, atol=1e-5)


def test_part_of_a_network_has_a_graph_too(network: ConvNeXt, tmp_path: Path) -> None:
    features = torch.randn(1, 16, 4, 4)
    block = network.get_submodule("stages.1.0")
    path = tmp_path / "graph.onnx"
    path.write_bytes(float_latency.float_graph(block, (16, 4, 4)))
    (found,) = onnx_session(path).run(None, {"image": features.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), block(features), rtol=1e-4, atol=1e-5)


def test_two_networks_are_timed_together(network: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    timed_at_once = []

    def watched(calls: dict[str, Callable[[], None]], *arguments: float) -> dict[str, Samples]:
        timed_at_once.append(list(calls))
        return timing.time_interleaved(calls, *arguments)

    monkeypatch.setattr(float_latency, "time_interleaved", watched)
    timed = float_latency.compare_latency(network, network, (3, 32, 32))
    assert timed_at_once == [["before", "after"]]
    assert timed.before_ms > 0 and timed.after_ms > 0
    assert timed.low <= timed.speedup <= timed.high


def test_the_speed_up_is_of_the_second(network: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(graphs: Iterable[tuple[str, bytes]], **_: object) -> dict[str, Samples]:
        times = {name: 10.0 if index == 0 else 4.0 for index, (name, _) in enumerate(graphs)}
        return {name: Samples(np.full(20, ms), np.arange(20)) for name, ms in times.items()}

    monkeypatch.setattr(float_latency, "float_graph", lambda *_: b"")
    monkeypatch.setattr(float_latency, "time_graphs", samples)
    timed = float_latency.compare_latency(network, network, (3, 32, 32))
    assert (timed.before_ms, timed.after_ms) == (10, 4)
    assert timed.speedup == pytest.approx(2.5) and timed.low == timed.high == timed.speedup


def test_a_network_that_no_graph_can_hold_is_refused(network: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_LARGEST_FILE_BYTES", 100)
    with pytest.raises(ExportError, match=r"float network's graph would hold .* ends at 2 GiB"):
        float_latency.float_graph(network, (3, 32, 32))


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ExportError, match="cannot be opened in onnxruntime"):
        float_latency.time_graphs([("nothing", b"none")])
