"""LayerNorms replaced in closed form: what is fitted beats what is not, and the result is a network like any other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from norm_networks import CONFIGS, SMALL, folded_network
from torch import nn

from edgeconvnext.errors import ModelConfigError, RewriteError
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.load import load_model
from edgeconvnext.rewrite.exact import fold_exact
from edgeconvnext.rewrite.norms import replace_each, replace_norms, replaceable_norms
from edgeconvnext.rewrite.paired_networks import StoredImages


@pytest.fixture
def images(tmp_path: Path) -> Iterator[StoredImages]:
    """48 smooth pictures to fit on, 24 held out, (3, 32, 32)."""
    generator = torch.Generator().manual_seed(3)
    coarse = (
        torch.randn(72, 3, 8, 8, generator=generator)
        * torch.linspace(0.3, 2.0, 72).view(-1, 1, 1, 1)[torch.randperm(72, generator=generator)]
    )
    pictures = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    with StoredImages(tmp_path, pictures[:48].split(16), pictures[48:].split(16)) as stored:
        yield stored


def logit_error(result_logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result_logits - expected).square().sum() / (expected - expected.mean(0)).square().sum())


def with_constant_scale(module: ConvNeXt, norm: str, images: StoredImages) -> ConvNeXt:
    """The naive way: the norm's mean and deviation over all positions, and nothing else changed."""
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(norm).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in images.fit():
            module(batch)
    handle.remove()
    values = torch.cat(seen)
    rows = values.permute(0, 2, 3, 1) if norm.startswith("downsample") else values
    mean, deviation = rows.mean(), rows.var(-1, correction=0).mean().sqrt()

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - mean) / deviation

    naive = copy.deepcopy(module)
    naive.set_submodule(norm, Constant())
    return naive


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_norm_of_every_kind_can_go(kind: str, images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS[kind])
    norms = replaceable_norms(module)
    assert len(norms) == 1 + 3 + 1 + 1  # stem, blocks, downsampling, head
    result = replace_norms(module, norms, images, tmp_path)
    assert result.module.config.identity_norms == module.config.norm_paths
    assert not any(isinstance(m, nn.LayerNorm) for m in result.module.modules())
    assert set(result.errors) == set(norms)
    assert bool(result.logits.isfinite().all())
    # Random networks are the hard case; nothing but the mean would leave an error of 1.
    assert logit_error(result.logits, result.reference_logits) < 0.9


@pytest.mark.parametrize("norm", ["stages.1.0.norm", "downsample_layers.1.0", "stages.1.1.norm"])
def test_refitted_layers_beat_a_constant_scale(norm: str, images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS["v1"])
    fitted = replace_norms(module, [norm], images, tmp_path)
    naive = with_constant_scale(module, norm, images)
    with torch.no_grad():
        logits = torch.cat([naive(batch) for batch in images.held_out()])
    assert logit_error(fitted.logits, fitted.reference_logits) < 0.6 * logit_error(logits, fitted.reference_logits)


def test_blocks_behind_a_replaced_norm_make_up_for_part_of_it(images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS["v1"])
    together = replace_norms(module, ["stages.0.0.norm"], images, tmp_path)
    _, alone = replace_each(module, images, tmp_path)
    without = logit_error(alone["stages.0.0.norm"].logits, together.reference_logits)
    assert logit_error(together.logits, together.reference_logits) < without


def test_each_alone_is_measured_for_every_norm(images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS["v1"])
    expected, alone = replace_each(module, images, tmp_path)
    assert set(alone) == set(replaceable_norms(module))
    with torch.no_grad():
        torch.testing.assert_close(expected, torch.cat([module(batch) for batch in images.held_out()]))
    last = replace_norms(module, ["norm"], images, tmp_path)
    torch.testing.assert_close(alone["norm"].logits, last.logits)
    assert alone["norm"].error == pytest.approx(last.errors["norm"])


def test_images_that_are_all_the_same_give_finite_errors(tmp_path: Path) -> None:
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with StoredImages(tmp_path, [picture.repeat(4, 1, 1, 1)], [picture]) as same:
        _, each = replace_each(folded_network(CONFIGS["v1"]), same, tmp_path)
    assert each and all(0 <= found.error < 1e7 for found in each.values())


def test_nothing_to_replace_changes_nothing(images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS["v1"])
    result = replace_norms(module, [], images, tmp_path)
    torch.testing.assert_close(result.logits, result.reference_logits)
    assert result.module.config == module.config


def test_depthwise_outputs_are_standardised_where_the_norm_was(images: StoredImages, tmp_path: Path) -> None:
    """Quantizers then see what they saw behind the norm: channels of one size."""
    module = folded_network(CONFIGS["v1"])
    result = replace_norms(module, ["stages.1.0.norm"], images, tmp_path)
    seen: list[torch.Tensor] = []
    result.module.get_submodule("stages.1.0.dwconv").register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        for batch in images.fit():
            result.module(batch)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_a_network_that_was_changed_before_is_fitted_to_the_original(images: StoredImages, tmp_path: Path) -> None:
    original = folded_network(CONFIGS["v1"])
    changed = copy.deepcopy(original)
    with torch.no_grad():  # as pruning would, with nothing fitted behind it
        changed.get_submodule("stages.0.0").pwconv1.weight[:12] = 0
        changed.get_submodule("stages.0.0").pwconv1.bias[:12] = 0
    norms = ["stages.1.0.norm"]
    to_itself = replace_norms(changed, norms, images, tmp_path)
    to_original = replace_norms(changed, norms, images, tmp_path, reference=original)
    target = to_original.reference_logits
    assert logit_error(to_original.logits, target) < logit_error(to_itself.logits, target)


def test_the_result_is_a_checkpoint_like_any_other(images: StoredImages, tmp_path: Path) -> None:
    digits = load_model("digits")
    folded = fold_exact(digits.module, torch.rand(2, digits.config.in_channels, *digits.preprocess.input_size)).module
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(24, digits.config.in_channels, *digits.preprocess.input_size, generator=generator)
    (tmp_path / "own").mkdir()
    with StoredImages(tmp_path / "own", [pictures[:16]], [pictures[16:]]) as stored:
        result = replace_norms(folded, [f"stages.{s}.0.norm" for s in range(2)], stored, tmp_path / "own")
    path = tmp_path / "without.safetensors"
    save_checkpoint(dataclasses.replace(digits, module=result.module, config=result.module.config), path)
    loaded = load_model(path)
    assert loaded.config.identity_norms == ("stages.0.0.norm", "stages.1.0.norm")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(pictures), result.module(pictures))


def test_a_head_norm_that_is_the_output_stays() -> None:
    module = folded_network(ConvNeXtConfig(**{**SMALL, "num_classes": 0}))
    assert "norm" not in replaceable_norms(module)


def test_bad_requests_are_refused_by_name(images: StoredImages, tmp_path: Path) -> None:
    module = folded_network(CONFIGS["v1"])
    with pytest.raises(RewriteError, match=r"stages\.9\.norm is no LayerNorm"):
        replace_norms(module, ["stages.9.norm"], images, tmp_path)
    scaled = ConvNeXt(ConvNeXtConfig(**{**SMALL, "layer_scale": True})).eval()
    with pytest.raises(RewriteError, match="fold this one first"):
        replace_norms(scaled, ["norm"], images, tmp_path)
    gone = replace_norms(module, ["norm"], images, tmp_path).module
    with pytest.raises(RewriteError, match="norm is no LayerNorm of this network"):
        replace_norms(gone, ["norm"], images, tmp_path)
    with pytest.raises(ModelConfigError, match="no norm of this network"):
        ConvNeXtConfig(**SMALL, identity_norms=("stages.0.0.dwconv",))
