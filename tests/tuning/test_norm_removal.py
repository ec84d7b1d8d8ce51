"""The search for LayerNorms that can go: budgets hold, every norm has a verdict, and times are per norm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from norm_networks import CONFIGS, folded_network
from torch import nn

from edgeconvnext.backends import timing_runtime
from edgeconvnext.backends.onnxruntime import float_latency
from edgeconvnext.evaluation.timing import Samples
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.rewrite.norms import replace_norms, replaceable_norms
from edgeconvnext.rewrite.paired_networks import StoredImages
from edgeconvnext.tuning.norm_latency import measure_norm_latencies, norm_elements, norm_groups
from edgeconvnext.tuning.norm_removal import KL_PER_POINT, measure_loss, replace_within_budget


@pytest.fixture(scope="module")
def module() -> ConvNeXt:
    return folded_network(CONFIGS["v1"])


@pytest.fixture
def images(tmp_path: Path) -> Iterator[StoredImages]:
    generator = torch.Generator().manual_seed(3)
    pictures = nn.functional.interpolate(torch.randn(60, 3, 8, 8, generator=generator), size=(32, 32), mode="bilinear")
    with StoredImages(tmp_path, pictures[:40].split(16), pictures[40:].split(16)) as stored:
        yield stored


def test_a_tiny_budget_leaves_the_network_as_it_is(module: ConvNeXt, images: StoredImages, tmp_path: Path) -> None:
    found = replace_within_budget(
        module, images, tmp_path, None, max_drop=1e-6, saved=norm_elements(module, (32, 32)), unit="values"
    )
    assert found.module is module
    assert [row.verdict for row in found.verdicts] == ["kept"] * len(module.config.norm_paths)
    assert all("the budget is 1e-06 points" in row.why for row in found.verdicts)
    assert found.loss.points == 0 and found.loss.agreement == 100


def test_a_wide_budget_takes_all_of_them_in_one_step(
    module: ConvNeXt, images: StoredImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeconvnext.tuning import norm_removal

    calls = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args[1])
        return replace_norms(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(norm_removal, "replace_norms", counted)
    saved = norm_elements(module, (32, 32))
    found = replace_within_budget(module, images, tmp_path, None, max_drop=100, saved=saved, unit="values")
    assert len(calls) == 1
    assert found.module.config.identity_norms == module.config.norm_paths
    assert all(row.verdict == "replaced" and row.saved_ms is None for row in found.verdicts)


def test_a_budget_between_is_kept_on_held_out_images(module: ConvNeXt, images: StoredImages, tmp_path: Path) -> None:
    everything = replace_norms(module, replaceable_norms(module), images, tmp_path)
    whole = measure_loss(everything.reference_logits, everything.logits, None)
    budget = max(whole.points, whole.kl / KL_PER_POINT) / 2
    found = replace_within_budget(
        module, images, tmp_path, None, max_drop=budget, saved=norm_elements(module, (32, 32)), unit="values"
    )
    assert found.loss.within(budget)
    verdicts = {row.norm: row.verdict for row in found.verdicts}
    assert set(verdicts.values()) == {"replaced", "kept"}
    gone = {norm for norm, verdict in verdicts.items() if verdict == "replaced"}
    assert gone == set(found.module.config.identity_norms)
    # What is reported is what the network does.
    with torch.no_grad():
        expected, logits = (torch.cat([m(batch) for batch in images.held_out()]) for m in (module, found.module))
    again = measure_loss(expected, logits, None)
    assert again.kl == pytest.approx(found.loss.kl, rel=1e-4) and again.points == found.loss.points


def test_what_saves_most_for_its_cost_goes_first(module: ConvNeXt, images: StoredImages, tmp_path: Path) -> None:
    everything = replace_norms(module, replaceable_norms(module), images, tmp_path)
    budget = measure_loss(everything.reference_logits, everything.logits, None).points / 2
    favourite = "stages.1.1.norm"
    saved = dict.fromkeys(replaceable_norms(module), 1e-9) | {favourite: 1e9}
    found = replace_within_budget(module, images, tmp_path, None, max_drop=max(budget, 6), saved=saved, unit="ms")
    row = next(row for row in found.verdicts if row.norm == favourite)
    assert row.verdict == "replaced" and row.saved_ms == 1e9


def test_savings_below_zero_do_not_turn_the_order_round(
    module: ConvNeXt, images: StoredImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeconvnext.tuning import norm_removal

    tried: list[list[str]] = []

    def noted(module: ConvNeXt, norms: list[str], *args: object, **kwargs: object) -> object:
        tried.append(norms)
        return replace_norms(module, norms, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(norm_removal, "replace_norms", noted)
    norms = replaceable_norms(module)
    saved = dict.fromkeys(norms, -0.01) | {norms[0]: 0.02}
    found = replace_within_budget(module, images, tmp_path, None, max_drop=100, saved=saved, unit="ms")
    alone = {row.norm: row.kl_alone for row in found.verdicts if row.kl_alone is not None}
    order = [norm for norm in tried[0] if norm != norms[0]]
    assert len(order) == len(norms) - 1 and order == sorted(order, key=lambda norm: alone[norm])


def test_loss_with_labels_without_and_by_probability() -> None:
    expected = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])  # the second image changes its answer
    unlabelled = measure_loss(expected, logits, None)
    assert unlabelled.points == 25 and unlabelled.agreement == 75
    sure = float(torch.tensor([2.0, 0.0]).softmax(0)[0])
    assert unlabelled.expected_points == pytest.approx(25 * (2 * sure - 1))
    assert measure_loss(expected, logits, np.array([0, 0, 1, 1])).points == 25
    gained = measure_loss(expected, logits, np.array([0, 1, 1, 1]))
    assert gained.points == -25 and gained.points_low < -25 and unlabelled.points_low == 25
    assert not gained.within(1.0)  # a lucky answer does not make up for one that the network itself would not expect


def test_norms_of_one_stage_are_timed_together(module: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert norm_groups(module) == [
        ("downsample_layers.0.1",),
        ("stages.0.0.norm",),
        ("downsample_layers.1.0",),
        ("stages.1.0.norm", "stages.1.1.norm"),
        ("norm",),
    ]
    saved = measure_norm_latencies(module, (32, 32), timing_runtime())
    assert set(saved) == set(replaceable_norms(module))
    assert saved["stages.1.0.norm"] == saved["stages.1.1.norm"]


def test_what_a_norm_saves_is_its_share_of_the_difference(module: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(graphs: list[tuple[str, bytes]], **_: object) -> dict[str, Samples]:
        times = {name: 10 - 3 + graph.count(b"LayerNormalization") for name, graph in graphs}
        return {name: Samples(np.full(5, float(ms)), np.arange(5)) for name, ms in times.items()}

    monkeypatch.setattr(float_latency, "time_graphs", samples)
    saved = measure_norm_latencies(module, (32, 32), timing_runtime())
    assert saved == dict.fromkeys(replaceable_norms(module), 1.0)


def test_a_network_without_norms_is_not_timed(module: ConvNeXt, images: StoredImages, tmp_path: Path) -> None:
    bare = replace_norms(module, replaceable_norms(module), images, tmp_path).module
    assert measure_norm_latencies(bare, (32, 32), timing_runtime()) == {}


def test_values_that_pass_each_norm(module: ConvNeXt) -> None:
    assert norm_elements(module, (32, 32)) == {
        "downsample_layers.0.1": 8 * 8 * 8,
        "stages.0.0.norm": 8 * 8 * 8,
        "downsample_layers.1.0": 8 * 8 * 8,
        "stages.1.0.norm": 4 * 4 * 16,
        "stages.1.1.norm": 4 * 4 * 16,
        "norm": 16,
    }
