"""Folded parameters to the last bit, against float64 sums in numpy; and the limit at which a rewrite is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.resnet.network import ResNet, ResNetConfig
from edgeconvnext.rewrite import exact

SIZES = {"depths": (1, 2), "dims": (4, 6), "num_classes": 3, "hidden": ((5,), (7, 3))}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Not ImageNet's, all different, and no power of two.
PREPROCESS = Preprocess((32, 32), mean=(0.48, 0.35, 0.61), std=(0.23, 0.31, 0.17))


def network(seed: int = 0, **changes: Any) -> ConvNeXt:
    """A small ConvNeXt with every parameter drawn: scales near 1, the rest near 0."""
    module = ConvNeXt(ConvNeXtConfig(**(SIZES | changes))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = name.endswith("gamma") or (name.endswith("weight") and parameter.dim() == 1)
            parameter.copy_(is_scale + 0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def wide(module: nn.Module) -> dict[str, np.ndarray]:
    """Every tensor of a network in float64."""
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def assert_state(module: nn.Module, expected: dict[str, np.ndarray]) -> None:
    """Tensors are the expected ones, rounded once to float32: sums in another order move float64 by less than 1e-14."""
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert state[name].dtype == torch.float32
        # Half a step of float32 and the rounding of float64 sums.
        np.testing.assert_allclose(state[name].double().numpy(), values, rtol=2**-24, atol=1e-14, err_msg=name)


BLOCKS = ("stages.0.0", "stages.1.0", "stages.1.1")


def test_layer_scale_multiplies_rows_of_pwconv2() -> None:
    module = network()
    expected = wide(module)
    for block in BLOCKS:
        gamma = expected.pop(f"{block}.gamma")
        expected[f"{block}.pwconv2.weight"] = np.diag(gamma) @ expected[f"{block}.pwconv2.weight"]
        expected[f"{block}.pwconv2.bias"] = gamma * expected[f"{block}.pwconv2.bias"]
    folded = exact.fold_layer_scale(module)
    assert folded.config == dataclasses.replace(module.config, layer_scale=False)
    assert_state(folded, expected)


@pytest.mark.parametrize("changes", [{}, {"head_norm": "before_pool"}, {"num_classes": 0}, {"stem": "overlap"}])
def test_affines_go_into_the_columns_and_the_bias_of_the_next_layer(changes: dict[str, Any]) -> None:
    module = network(1, **changes)
    expected = wide(module)
    pairs = [(f"{block}.norm", f"{block}.pwconv1") for block in BLOCKS]
    pairs += [("downsample_layers.1.0", "downsample_layers.1.1")]
    pairs += [("norm", "head")] if module.config.num_classes else []
    for norm, layer in pairs:
        scale, shift = expected[f"{norm}.weight"], expected[f"{norm}.bias"]
        weight = expected[f"{layer}.weight"]
        flat = weight.reshape(
            len(weight), len(scale), -1
        )  # kernel positions last: one for a linear, four for a 2x2 conv
        expected[f"{layer}.bias"] = expected[f"{layer}.bias"] + np.einsum("oip,i->o", flat, shift)
        expected[f"{layer}.weight"] = np.einsum("oip,i->oip", flat, scale).reshape(weight.shape)
        expected[f"{norm}.weight"], expected[f"{norm}.bias"] = np.ones_like(scale), np.zeros_like(shift)
    assert_state(exact.fold_norm_affine(module), expected)


def test_norms_that_are_gone_are_passed_over() -> None:
    module = network(1, identity_norms=("stages.1.0.norm", "downsample_layers.1.0"))
    folded = exact.fold_norm_affine(module)
    for layer in ("stages.1.0.pwconv1", "downsample_layers.1.1"):
        assert torch.equal(folded.get_parameter(f"{layer}.weight"), module.get_parameter(f"{layer}.weight"))
    assert not torch.equal(folded.get_parameter("head.weight"), module.get_parameter("head.weight"))


def test_grn_shifts_go_into_the_bias_of_pwconv2() -> None:
    module = network(2, version=2)
    expected = wide(module)
    for block in BLOCKS:
        weight, beta = expected[f"{block}.pwconv2.weight"], expected[f"{block}.grn.beta"]
        expected[f"{block}.pwconv2.bias"] = expected[f"{block}.pwconv2.bias"] + (weight * beta).sum(axis=1)
        expected[f"{block}.grn.beta"] = np.zeros_like(beta)
    assert_state(exact.fold_grn_shift(module), expected)
    assert_state(exact.fold_grn_shift(network(2)), wide(network(2)))


@pytest.mark.parametrize(("value_range", "unit"), [("0..1", 1), ("0..255", 255)])
def test_mean_and_std_go_into_a_patch_stem(value_range: Any, unit: int) -> None:
    module = network(3)
    expected = wide(module)
    stem = "downsample_layers.0.0"
    weight = expected[f"{stem}.weight"] / (unit * np.array(PREPROCESS.std))[None, :, None, None]
    expected[f"{stem}.bias"] = expected[f"{stem}.bias"] - np.einsum(
        "oihw,i->o", weight, unit * np.array(PREPROCESS.mean)
    )
    expected[f"{stem}.weight"] = weight
    folded = exact.fold_input_normalization(module, PREPROCESS, value_range)
    assert type(folded) is ConvNeXt
    assert_state(folded, expected)


@pytest.mark.parametrize(("value_range", "unit"), [("0..1", 1), ("0..255", 255)])
def test_an_overlapping_stem_takes_the_mean_off_first(value_range: Any, unit: int) -> None:
    module = network(3, stem="overlap").train()
    expected = wide(module)
    expected["downsample_layers.0.0.weight"] /= (unit * np.array(PREPROCESS.std))[None, :, None, None]
    expected["input_shift"] = -unit * np.array(PREPROCESS.mean).reshape(1, 3, 1, 1)
    folded = exact.fold_input_normalization(module, PREPROCESS, value_range)
    assert folded.input_shift is not None and folded.training
    assert_state(folded, expected)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(folded.forward_stem(pixels), folded.downsample_layers[0](pixels + folded.input_shift))
    assert exact.fold_input_normalization(module.eval(), PREPROCESS, value_range).training is False
    shift = exact.fold_input_normalization(module.double(), PREPROCESS, value_range).get_buffer("input_shift")
    assert shift.dtype == torch.float64
    np.testing.assert_allclose(shift.numpy(), expected["input_shift"], rtol=1e-15)


def test_the_example_of_imagenets_red_channel() -> None:
    module = network(4)
    folded = exact.fold_input_normalization(module, Preprocess((32, 32)), "0..255")
    stem = folded.downsample_layers[0][0]
    old = module.downsample_layers[0][0]
    assert torch.equal(stem.weight[:, 0], (old.weight[:, 0].double() / 58.395).float())
    # A picture of the mean colour, 123.675, 116.28, 103.53, normalises to zero: what remains is the old bias.
    mean_colour = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    expected = old.bias.view(1, -1, 1, 1).expand(1, -1, 2, 2)
    # Products of some 48 weights with values of about 2 cancel in float32: 48 * 2 * 2**-24.
    np.testing.assert_allclose(stem(mean_colour).detach().numpy(), expected.detach().numpy(), atol=6e-6)


def test_normalised_input_needs_nothing() -> None:
    module = network(5)
    folded = exact.fold_input_normalization(module, PREPROCESS, "normalized")
    assert folded is not module
    assert_state(folded, wide(module))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_mean_and_one_std_a_channel(count: int) -> None:
    preprocess = Preprocess((32, 32), mean=(0.5,) * count, std=(0.2,) * count)
    with pytest.raises(RewriteError, match=f"{count} means and {count} stds, but the network takes 3 channels"):
        exact.fold_input_normalization(network(), preprocess, "0..1")


SMALL_RESNET = ResNetConfig(depths=(1, 1), dims=(8, 12), hidden=(4, 6), stem_dim=4, num_classes=3)


def test_a_padded_resnet_stem_takes_no_pixels_and_a_patch_stem_does() -> None:
    padded, patch = (
        ResNet(dataclasses.replace(SMALL_RESNET, stem=stem, norm="layer")) for stem in ("conv_pool", "patch")
    )
    with pytest.raises(RewriteError, match="padded stem of a ResNet"):
        exact.fold_input_normalization(padded, PREPROCESS, "0..1")
    folded = exact.fold_input_normalization(patch, PREPROCESS, "0..1")
    weight, stds = patch.downsample_layers[0][0].weight, torch.tensor(PREPROCESS.std, dtype=torch.float64)
    assert torch.equal(folded.downsample_layers[0][0].weight, (weight.double() / stds.view(3, 1, 1)).float())


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (network(), ["layer_scale", "norm_affine"]),
        (network(layer_scale=False), ["norm_affine"]),
        (network(version=2), ["norm_affine", "grn_shift"]),
        (ResNet(SMALL_RESNET).eval(), ["batch_norm"]),
        (ResNet(dataclasses.replace(SMALL_RESNET, folded=True)).eval(), []),
        (ResNet(dataclasses.replace(SMALL_RESNET, norm="layer")).eval(), []),
    ],
)
def test_each_network_has_its_rewrites(module: Any, names: list[str]) -> None:
    assert list(exact.fold_exact(module, IMAGES).errors) == names


@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    version=st.sampled_from([1, 2]),
    stem=st.sampled_from(["patch", "overlap"]),
    head_norm=st.sampled_from(["after_pool", "before_pool"]),
    value_range=st.sampled_from(["normalized", "0..1", "0..255"]),
    classes=st.sampled_from([0, 3]),
)
def test_a_folded_network_is_the_same_function(
    seed: int, version: Any, stem: Any, head_norm: Any, value_range: Any, classes: int
) -> None:
    """In float64 every fold leaves the outputs to a few thousand roundings of 1e-16; folding again changes nothing."""
    config = {"version": version, "stem": stem, "head_norm": head_norm, "num_classes": classes}
    module = network(seed, **config).double()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    folded: Any = exact.fold_grn_shift(exact.fold_norm_affine(exact.fold_layer_scale(module)))
    again = exact.fold_grn_shift(exact.fold_norm_affine(exact.fold_layer_scale(folded)))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in folded.state_dict().items())
    folded = exact.fold_input_normalization(folded, PREPROCESS, value_range)
    unit = {"normalized": 0, "0..1": 1, "0..255": 255}[value_range]
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    pixels = (images * std + mean) * unit if unit else images
    with torch.no_grad():
        expected, answer = module(images), folded(pixels)
    assert float((answer - expected).abs().max()) < 1e-12 * float(expected.abs().max())


def moved(module: Any, change: Sequence[float]) -> Any:
    """A rewrite's result whose logits are those of `module` plus `change`, one for each class."""
    other = network()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.head.bias += torch.tensor(change)
    return other


def constant(*logits: float) -> ConvNeXt:
    """A network that answers `logits` whatever it sees."""
    module = network()
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.copy_(torch.tensor(logits))
    return module


def test_the_error_is_the_largest_change_over_the_largest_logit() -> None:
    # Powers of two: float32 holds every sum.
    rewrites = {
        "first": lambda module: moved(module, (0, 2**-14, 0)),
        "second": lambda module: moved(module, (-(2**-13), 0, 0)),
        "third": lambda module: module,
    }
    result = exact.apply_rewrites(constant(1, 1, -4), rewrites, IMAGES)
    # Errors are against the first network, with all rewrites so far; the largest logit is 4.
    assert result.errors == {"first": 2**-16, "second": 2**-15, "third": 2**-15}
    assert result.module(IMAGES[:1]).tolist() == [[1 - 2**-13, 1 + 2**-14, -4]]


def test_the_error_is_relative_to_the_logits_before_not_after() -> None:
    rewrites = {"up": lambda module: moved(module, (0, 0, 2**-14))}
    assert exact.apply_rewrites(constant(1, 1, 4), rewrites, IMAGES).errors == {"up": 2**-16}


@pytest.mark.parametrize(("steps", "refused"), [(-1, False), (1, True)])
def test_a_ten_thousandth_of_the_largest_logit_is_the_limit(steps: int, refused: bool) -> None:
    assert exact.EXACT_LIMIT == 1e-4
    # Logits of 0 move by one step of float32 less or more than the 1.6384 that 1e-4 of 16384 are.
    change = float(np.nextafter(np.float32(1.6384), np.float32(steps * 10), dtype=np.float32))
    rewrites = {"shift": lambda module: moved(module, (0, change, 0))}
    if refused:
        with pytest.raises(RewriteError, match="shift is not exact on this model: it moves logits"):
            exact.apply_rewrites(constant(0, 0, -16384), rewrites, IMAGES)
    else:
        assert exact.apply_rewrites(constant(0, 0, -16384), rewrites, IMAGES).errors["shift"] < 1e-4


def test_an_error_of_exactly_the_limit_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "EXACT_LIMIT", 2**-10)
    for change, refused in ((2**-10, False), (2**-10 + 2**-20, True)):
        rewrites = {"shift": lambda module, change=change: moved(module, (0, change, 0))}
        if refused:
            with pytest.raises(RewriteError, match="not exact"):
                exact.apply_rewrites(constant(0, 0, 1), rewrites, IMAGES)
        else:
            assert exact.apply_rewrites(constant(0, 0, 1), rewrites, IMAGES).errors == {"shift": 2**-10}


def test_logits_of_nothing_but_zeros_may_stay_and_not_move() -> None:
    assert exact.apply_rewrites(constant(0, 0, 0), {"same": lambda module: module}, IMAGES).errors == {"same": 0.0}
    with pytest.raises(RewriteError, match="not exact"):
        exact.apply_rewrites(constant(0, 0, 0), {"shift": lambda module: moved(module, (1e-30, 0, 0))}, IMAGES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [True, False])
def test_nan_before_or_after_is_no_proof(bad: float, before: bool) -> None:
    with pytest.raises(RewriteError, match="rewrite shift cannot be proven"):
        exact.apply_rewrites(
            constant(0, bad, 1) if before else constant(0, 0, 1),
            {"shift": lambda module: constant(0, 0, 1) if before else constant(0, bad, 1)},
            IMAGES,
        )


@pytest.mark.parametrize("stage", [0, 1])
def test_the_worst_output_of_a_backbone_counts(stage: int) -> None:
    def shifted(module: Any) -> Any:
        other = exact.fold_norm_affine(module)
        with torch.no_grad():
            other.stages[stage][-1].pwconv2.bias += 1.0
        return other

    module = network(6, num_classes=0, ends_with="stages", layer_scale=False)
    assert exact.apply_rewrites(module, {"fold": exact.fold_norm_affine}, IMAGES).errors["fold"] < 1e-5
    with pytest.raises(RewriteError, match=f"moves stage{stage + 1} by"):
        exact.apply_rewrites(module, {"shifted": shifted}, IMAGES)


def test_the_largest_error_of_several_outputs_is_reported() -> None:
    def shifted(module: Any) -> Any:
        other = network(6, num_classes=0, ends_with="stages", layer_scale=False)
        with torch.no_grad():
            other.stages[1][-1].pwconv2.bias[0] += 1e-4
        return other

    module = network(6, num_classes=0, ends_with="stages", layer_scale=False)
    with torch.no_grad():
        _, second = module(IMAGES)
    error = exact.apply_rewrites(module, {"shifted": shifted}, IMAGES).errors["shifted"]
    # 1e-4 is added to values of at most 4, which float32 holds to 2.4e-7.
    assert error == pytest.approx(1e-4 / float(second.abs().max()), rel=5e-3)


def batch_sizes(module: ConvNeXt, inputs: Any) -> list[int]:
    sizes: list[int] = []
    handle = module.downsample_layers[0].register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    exact.apply_rewrites(module, {}, inputs)
    handle.remove()
    return sizes


def test_images_go_through_a_few_at_a_time_by_their_area() -> None:
    module = network()
    # Four pictures of 224x224 are 200,704 pixels: two of 32x3136, and 32 at most however small they are.
    assert batch_sizes(module, torch.zeros(5, 3, 32, 3136)) == [2, 2, 1]
    assert batch_sizes(module, torch.zeros(5, 3, 3136, 32)) == [2, 2, 1]
    assert batch_sizes(module, torch.zeros(40, 3, 8, 8)) == [32, 8]
    assert batch_sizes(module, [torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 8, 8)]) == [3, 2]


@pytest.mark.parametrize("inputs", [[], torch.zeros(0, 3, 32, 32), [torch.zeros(0, 3, 32, 32)]])
def test_no_images_prove_nothing(inputs: Any) -> None:
    with pytest.raises(RewriteError, match="there are none"):
        exact.apply_rewrites(network(), {}, inputs)


def test_one_image_among_empty_batches_is_enough() -> None:
    given_batches: Iterator[torch.Tensor] = iter([torch.zeros(0, 3, 32, 32), IMAGES[:1]])
    assert exact.apply_rewrites(network(), {"same": lambda module: module}, given_batches).errors == {"same": 0.0}


def test_every_image_is_compared() -> None:
    """A rewrite that fails on the last of several batches only is refused."""

    class Failing(ConvNeXt):
        def forward_stem(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward_stem(x) + (x.amax() > 50)

    module = network(7)
    failing = Failing(module.config).eval()
    failing.load_state_dict(module.state_dict())
    bright = torch.zeros(2, 3, 32, 32)
    bright[1, 0, 3, 3] = 99
    assert exact.apply_rewrites(module, {"failing": lambda _module: failing}, [IMAGES]).errors == {"failing": 0.0}
    with pytest.raises(RewriteError, match="on 5 images"):
        exact.apply_rewrites(module, {"failing": lambda _module: failing}, [IMAGES, bright])


def test_what_was_not_rewritten_is_copied_and_what_was_is_not() -> None:
    module, other = network(), network()
    assert exact.apply_rewrites(module, {}, IMAGES).module is not module
    assert exact.apply_rewrites(module, {"same": lambda given: given}, IMAGES).module is not module
    assert exact.apply_rewrites(module, {"other": lambda given: other}, IMAGES).module is other


def test_the_input_fold_is_measured_like_the_others() -> None:
    module = network(8)
    result = exact.fold_exact(module, IMAGES, preprocess=PREPROCESS, value_range="0..255")
    assert list(result.errors) == ["layer_scale", "norm_affine", "input_normalization"]
    pixels = (
        IMAGES.double() * torch.tensor(PREPROCESS.std).view(3, 1, 1) + torch.tensor(PREPROCESS.mean).view(3, 1, 1)
    ) * 255
    with torch.no_grad():
        difference = (result.module(pixels.float()) - module(IMAGES)).abs().max() / module(IMAGES).abs().max()
    # Both are float32 rounding, of pixels up to 255 here and there in another order.
    assert 0 < result.errors["input_normalization"] < 1e-5 and float(difference) < 1e-5


def test_a_wrong_input_fold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = exact.fold_input_normalization
    wrong = dataclasses.replace(PREPROCESS, mean=(0.48, 0.35, 0.62))
    monkeypatch.setattr(exact, "fold_input_normalization", lambda module, _given, unit: fold(module, wrong, unit))
    with pytest.raises(RewriteError, match="input_normalization is not exact"):
        exact.fold_exact(network(8), IMAGES, preprocess=PREPROCESS, value_range="0..1")


def test_commands_prove_folds_on_sixteen_images() -> None:
    assert exact.PROOF_IMAGES == 16
