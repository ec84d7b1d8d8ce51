"""Pruning of hidden channels: the budget is met, the re-fit pays, and what cannot be done is said."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.loader import batches
from edgeconvnext.errors import RewriteError
from edgeconvnext.model import load_model
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext import Block, ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs
from edgeconvnext.rewrite import prune
from edgeconvnext.rewrite.exact import fold_exact
from edgeconvnext.rewrite.prune import gather_statistics, prune_hidden

SIZE = (32, 32)


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load_model("digits")


@pytest.fixture(scope="module")
def calibration(digits: LoadedModel) -> list[torch.Tensor]:
    return [batch.images for batch in batches(digits_set("calibration"), digits.preprocess, batch_size=128, workers=0)]


@pytest.fixture(scope="module")
def held_out(digits: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    image_set = digits_set("test")
    stream = batches(image_set, digits.preprocess, batch_size=128, workers=0)
    return torch.cat([batch.images for batch in stream]), torch.tensor(image_set.labels)


@torch.no_grad()
def relative_error(module: ConvNeXt, other: ConvNeXt, images: torch.Tensor) -> float:
    """Return the RMS difference of the logits relative to their RMS."""
    reference = module(images)
    return float((reference - other(images)).norm() / reference.norm())


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4])
def test_budget_is_met_closely_with_round_widths(
    ratio: float, digits: LoadedModel, calibration: list[torch.Tensor]
) -> None:
    result = prune_hidden(digits.module, calibration, ratio, SIZE)
    assert result.macs_before == count_macs(digits.module, SIZE)
    assert result.macs_after == count_macs(result.module, SIZE)
    # The dearest group of eight costs 8 * 2 * 16 channels at 8 * 8 positions: 1.8 % of this network.
    assert ratio - 0.018 < result.macs_after / result.macs_before <= ratio
    assert all(width % 8 == 0 and width >= 8 for width in result.widths.values())
    blocks = {name: block for name, block in result.module.named_modules() if isinstance(block, Block)}
    assert {name: block.pwconv1.out_features for name, block in blocks.items()} == result.widths


def test_digits_survive_losing_two_fifths(
    digits: LoadedModel, calibration: list[torch.Tensor], held_out: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = held_out
    result = prune_hidden(digits.module, calibration, 0.6, SIZE)
    with torch.no_grad():
        before, after = (
            (module(images).argmax(dim=1) == labels).float().mean() for module in (digits.module, result.module)
        )
    assert float(before - after) < 0.01


def test_refit_beats_dropping_channels(
    digits: LoadedModel,
    calibration: list[torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, _ = held_out
    refitted = prune_hidden(digits.module, calibration, 0.6, SIZE)
    monkeypatch.setattr(prune, "RIDGE", 1e9)  # forbids any change of the kept weights
    dropped = prune_hidden(digits.module, calibration, 0.6, SIZE)
    assert refitted.widths == dropped.widths
    error, error_without = (relative_error(digits.module, r.module, images) for r in (refitted, dropped))
    assert error < 0.5 * error_without


def test_reported_error_is_the_branch_error_on_the_calibration_images(
    digits: LoadedModel, calibration: list[torch.Tensor]
) -> None:
    result = prune_hidden(digits.module, calibration, 0.6, SIZE)
    # The first block still gets the inputs it was fitted on.
    images = torch.cat(calibration)
    with torch.no_grad():
        branch, pruned = (_branch(module, images) for module in (digits.module, result.module))
    measured = (branch - pruned).norm() / (branch - branch.mean(dim=0)).norm()
    # The closed form subtracts nearly equal float64 sums of float32 products.
    assert result.errors["stages.0.0"] == pytest.approx(float(measured), rel=0.02)
    assert result.errors["stages.0.0"] > 0.01


def _branch(module: ConvNeXt, images: torch.Tensor) -> torch.Tensor:
    block = module.stages[0][0]
    y = block.norm(block.dwconv(module.downsample_layers[0](images)).permute(0, 2, 3, 1))
    return block.pwconv2(block.act(block.pwconv1(y))).flatten(0, 2)


def test_duplicated_channels_go_without_loss(digits: LoadedModel, calibration: list[torch.Tensor]) -> None:
    """Every hidden channel twice, its output weights split unevenly: half can go, and the re-fit restores the whole."""
    original = digits.module
    wide = ConvNeXt(
        dataclasses.replace(
            original.config, hidden=tuple(tuple(2 * w for w in stage) for stage in original.config.hidden_widths)
        )
    ).eval()
    tensors = original.state_dict()
    for name, value in list(tensors.items()):
        if "pwconv1" in name:
            tensors[name] = torch.cat([value, value])
        elif name.endswith("pwconv2.weight"):
            tensors[name] = torch.cat([0.7 * value, 0.3 * value], dim=1)
    wide.load_state_dict(tensors)
    ratio = count_macs(original, SIZE) / count_macs(wide, SIZE)
    result = prune_hidden(wide, calibration, ratio + 0.15, SIZE)
    assert relative_error(original, result.module, torch.cat(calibration)) < 0.01


def test_statistics_do_not_depend_on_the_batches(digits: LoadedModel, calibration: list[torch.Tensor]) -> None:
    images = torch.cat(calibration)
    large = gather_statistics(digits.module, iter(calibration))
    small = gather_statistics(digits.module, images.split(17))
    for path, statistics in large.items():
        torch.testing.assert_close(statistics.mean, small[path].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.covariance, small[path].covariance, rtol=1e-3, atol=1e-4)
        assert statistics.output_power == pytest.approx(small[path].output_power, rel=1e-4)


def test_input_model_is_left_untouched(digits: LoadedModel, calibration: list[torch.Tensor]) -> None:
    before = copy.deepcopy(digits.module.state_dict())
    prune_hidden(digits.module, calibration, 0.7, SIZE)
    assert all(torch.equal(value, before[name]) for name, value in digits.module.state_dict().items())
    assert digits.module.config.hidden is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in digits.module.modules())


def test_everything_kept_is_the_same_network(digits: LoadedModel, calibration: list[torch.Tensor]) -> None:
    result = prune_hidden(digits.module, calibration, 1.0, SIZE)
    assert result.errors == {}
    assert result.macs_after == result.macs_before
    assert relative_error(digits.module, result.module, calibration[0]) == 0


def test_pruned_network_is_saved_loaded_and_folded(
    digits: LoadedModel, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    result = prune_hidden(digits.module, calibration, 0.6, SIZE)
    folded = fold_exact(result.module, calibration[0]).module
    for module in (result.module, folded):
        path = tmp_path / "pruned.safetensors"
        save_checkpoint(dataclasses.replace(digits, module=module, config=module.config), path)
        again = load_model(path)
        assert again.config == module.config
        assert relative_error(module, again.module, calibration[0]) == 0


def test_folding_first_chooses_the_same_channels(digits: LoadedModel, calibration: list[torch.Tensor]) -> None:
    folded = fold_exact(digits.module, calibration[0]).module
    plain, after_fold = (prune_hidden(module, calibration, 0.6, SIZE) for module in (digits.module, folded))
    assert plain.widths == after_fold.widths
    assert relative_error(plain.module, after_fold.module, calibration[0]) < 1e-3


def test_odd_widths_are_rounded_and_small_ones_stay() -> None:
    torch.manual_seed(0)
    module = ConvNeXt(ConvNeXtConfig(depths=(3,), dims=(12,), num_classes=3, hidden=((20, 48, 5),))).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    images = torch.randn(16, 3, 16, 16)
    result = prune_hidden(module, [images], 0.75, (16, 16))
    assert result.widths["stages.0.2"] == 5
    assert result.widths["stages.0.0"] in (8, 16, 20)
    assert result.widths["stages.0.1"] % 8 == 0
    assert result.macs_after <= 0.75 * result.macs_before


def test_unreachable_budget_names_the_lowest_reachable_one(
    digits: LoadedModel, calibration: list[torch.Tensor]
) -> None:
    with pytest.raises(RewriteError, match=r"cannot reach 0\.1") as caught:
        prune_hidden(digits.module, calibration, 0.1, SIZE)
    said = re.search(r"Ask for ([\d.]+) or more", str(caught.value))
    assert said is not None
    lowest = prune_hidden(digits.module, calibration, float(said[1]), SIZE)
    assert set(lowest.widths.values()) == {8}


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_ratio_outside_its_range_is_refused(ratio: float, digits: LoadedModel) -> None:
    with pytest.raises(RewriteError, match="must lie above 0"):
        prune_hidden(digits.module, [], ratio, SIZE)


def test_grn_networks_are_refused() -> None:
    module = ConvNeXt(ConvNeXtConfig(depths=(1,), dims=(8,), num_classes=2, version=2)).eval()
    with pytest.raises(RewriteError, match="GRN"):
        prune_hidden(module, [torch.randn(2, 3, 16, 16)], 0.7, (16, 16))


def test_pruning_without_images_is_refused_and_leaves_no_hooks(digits: LoadedModel) -> None:
    with pytest.raises(RewriteError, match="there are none"):
        prune_hidden(digits.module, [], 0.7, SIZE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in digits.module.modules())


def test_nan_activations_are_refused(digits: LoadedModel) -> None:
    images = torch.full((2, 3, 32, 32), float("nan"))
    with pytest.raises(RewriteError, match=r"stages\.0\.0 hold NaN"):
        prune_hidden(digits.module, [images], 0.7, SIZE)


def test_rounding_to_less_than_one_channel_is_refused(digits: LoadedModel) -> None:
    with pytest.raises(RewriteError, match="at least 1"):
        prune_hidden(digits.module, [], 0.7, SIZE, multiple=0)
