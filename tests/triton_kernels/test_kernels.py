"""Each kernel computes what torch computes, on sizes that fill no block and with grids that have every part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")

from edgeconvnext.backends.triton.depthwise import depthwise_norm
from edgeconvnext.backends.triton.grids import DepthwiseWeights, Int8Grid, LinearWeights, patches
from edgeconvnext.backends.triton.linear import int8_linear
from edgeconvnext.backends.triton.norms import Norm, norm_rows
from edgeconvnext.backends.triton.quantize import quantize


def random_codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def random_floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid_for(values: torch.Tensor, *, zero: int = 0, prepared: bool = False) -> Int8Grid:
    """A grid that clips some of the values; prepared: with a multiply-add of its own for each channel of the last axis."""
    channels = values.shape[-1]
    factor = random_floats(channels, seed=7).exp() if prepared else torch.ones(channels)
    summand = random_floats(channels, seed=8) if prepared else torch.zeros(channels)
    return Int8Grid.build(float(values.std() / 50), zero, (-128, 127), factor, summand)


def codes_by_torch(values: torch.Tensor, grid: Int8Grid) -> torch.Tensor:
    factor, summand = grid.table[4:].chunk(2)
    steps = ((values * factor + summand) * (1 / torch.tensor(grid.scale))).round() + grid.zero
    return steps.clamp(-128, 127).to(torch.int8)


def assert_codes(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Sums in another order may put a value on the other side of a half: one code, in one of a thousand elements."""
    distance = (ours.int() - theirs.int()).abs()
    assert distance.max() <= 1
    assert (distance > 0).float().mean() <= 1e-3
    assert len(theirs.unique()) > min(100, theirs.numel() // 3)  # the grid is in use


def linear_layer(columns: int, depth: int, zero: int = 0) -> tuple[LinearWeights, torch.Tensor]:
    """Integer weights, and the float32 matrix they stand for at an input scale of 0.02."""
    codes = random_codes(columns, depth, seed=1).clamp(-127, 127)
    scale = random_floats(columns, seed=2).abs() * 1e-3 + 1e-4
    start = -zero * codes.sum(dim=1, dtype=torch.int32)
    return LinearWeights(codes, start, scale * 0.02, random_floats(columns, seed=3)), codes * scale[:, None]


@pytest.mark.parametrize(("rows", "depth", "columns"), [(70, 40, 160), (513, 96, 65), (3, 200, 24)])
@pytest.mark.parametrize("zero", [0, -37])
def test_pwconv1_gelu_and_codes(rows: int, depth: int, columns: int, zero: int) -> None:
    x = random_codes(rows, depth)
    weights, matrix = linear_layer(columns, depth, zero)
    expected = F.gelu(F.linear((x.float() - zero) * 0.02, matrix, weights.bias))
    grid = grid_for(expected, zero=zero, prepared=True)
    floats, codes = int8_linear(x, weights, activate=True, grid=grid)
    assert floats is None
    assert_codes(codes, codes_by_torch(expected, grid))


@pytest.mark.parametrize("float_type", [torch.float32, torch.float16])
def test_pwconv2_residual_and_the_codes_of_what_is_stored(float_type: torch.dtype) -> None:
    x = random_codes(2, 5, 7, 160)
    weights, matrix = linear_layer(40, 160)
    residual = (30 * random_floats(2, 5, 7, 40)).to(float_type)
    expected = (F.linear(x.float() * 0.02, matrix, weights.bias) + residual.float()).to(float_type)
    grid = grid_for(expected.float(), prepared=True)
    floats, codes = int8_linear(x, weights, residual=residual, float_type=float_type, grid=grid)
    assert floats.dtype == float_type and floats.shape == (2, 5, 7, 40)
    torch.testing.assert_close(floats, expected, rtol=1e-3 if float_type == torch.float16 else 1e-5, atol=1e-4)
    assert torch.equal(codes, codes_by_torch(floats.float(), grid))


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("zero", [0, 25])
def test_depthwise_conv_norm_and_codes(kernel_size: int, zero: int) -> None:
    x = random_codes(2, 9, 11, 40)
    taps = random_codes(kernel_size**2, 40, seed=1).clamp(-127, 127)
    scale = random_floats(40, seed=2).abs() * 1e-3 + 1e-4
    norm = Norm(random_floats(40, seed=4), random_floats(40, seed=5), 1e-6)
    weights = DepthwiseWeights(taps, scale * 0.02, random_floats(40, seed=3), kernel_size, zero)
    kernel = (taps * scale).T.reshape(40, 1, kernel_size, kernel_size)
    images = ((x.float() - zero) * 0.02).permute(0, 3, 1, 2)
    convolved = F.conv2d(images, kernel, weights.bias, padding=kernel_size // 2, groups=40).permute(0, 2, 3, 1)
    expected = F.layer_norm(convolved, (40,), norm.weight, norm.bias, 1e-6)
    grid = grid_for(expected, zero=3)
    assert_codes(depthwise_norm(x, weights, norm, grid), codes_by_torch(expected, grid))


def test_depthwise_conv_of_floats_without_its_norm() -> None:
    x = random_floats(2, 6, 5, 24).half()
    weights = DepthwiseWeights(random_floats(49, 24, seed=1), torch.ones(24), random_floats(24, seed=3), 7, 0)
    kernel = weights.taps.T.reshape(24, 1, 7, 7)
    expected = F.conv2d(x.float().permute(0, 3, 1, 2), kernel, weights.bias, padding=3, groups=24).permute(0, 2, 3, 1)
    grid = grid_for(expected, prepared=True)
    codes = depthwise_norm(x, weights, Norm(torch.ones(24), torch.zeros(24), None), grid)
    assert_codes(codes, codes_by_torch(expected, grid))


@pytest.mark.parametrize("epsilon", [1e-6, None])
def test_norm_of_rows_gives_floats_and_their_codes(epsilon: float | None) -> None:
    x = random_floats(3, 50, 24)
    norm = Norm(random_floats(24, seed=4), random_floats(24, seed=5), epsilon)
    expected = x if epsilon is None else F.layer_norm(x, (24,), norm.weight, norm.bias, epsilon)
    grid = grid_for(expected, prepared=True)
    floats, codes = norm_rows(x, norm, torch.float16, grid)
    torch.testing.assert_close(floats, expected.half(), rtol=1e-3, atol=1e-4)
    assert torch.equal(codes, codes_by_torch(floats.float(), grid))
    assert norm_rows(x, norm, None, grid)[0] is None


def test_halves_are_rounded_to_even_and_the_ends_clip() -> None:
    x = torch.tensor([-200.0, -128.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 1e30, -1e30]).view(1, -1)
    grid = Int8Grid.build(1.0, 0, (-128, 127), torch.ones(12), torch.zeros(12))
    assert quantize(x, grid, channel_axis=1).tolist() == [[-128, -128, -2, -2, 0, 0, 2, 2, 126, 127, 127, -128]]


def test_channels_of_images_have_their_own_multiply_add() -> None:
    x = random_floats(2, 8, 9, 3)
    grid = grid_for(x, zero=-5, prepared=True)
    expected = codes_by_torch(x, grid)
    assert_codes(quantize(x, grid, channel_axis=3), expected)
    as_images = quantize(x.permute(0, 3, 1, 2).contiguous(), grid, channel_axis=1)
    assert torch.equal(as_images.permute(0, 2, 3, 1), quantize(x, grid, channel_axis=3))


def test_a_conv_that_strides_by_its_size_is_a_product_over_patches() -> None:
    x, weight = random_floats(2, 8, 12, 5), random_floats(6, 5, 4, 4, seed=1)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=4).permute(0, 2, 3, 1)
    ours = patches(x, 4) @ weight.permute(0, 2, 3, 1).flatten(1).T
    torch.testing.assert_close(ours.view(expected.shape), expected, rtol=1e-4, atol=1e-4)
