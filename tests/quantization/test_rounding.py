"""Each rounding method on a case built for it."""

import pytest
import torch

from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.rounding import factor_hessian, gptq, nearest, refit


def grid(limit: int, levels: list[float] | None = None) -> QParams:
    """Codes -limit..limit, or only some of them; the steps are given beside it."""
    some = None if levels is None else torch.tensor(levels)
    return QParams(torch.tensor(1.0), torch.tensor(0), -limit, limit, levels=some)


def output_error(weight: torch.Tensor, codes: torch.Tensor, step: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((codes * step - weight)[0] @ inputs.T).square().mean())


def correlated_inputs(columns: int = 32, rows: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, 6, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64) @ mixing.T + noise


def test_two_equal_inputs_share_one_error() -> None:
    """The example of the docstring: 0.4 and 0.4 in steps of 1 become 0 and 1, not 0 and 0."""
    weight, step = torch.tensor([[[0.4, 0.4]]], dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    hessian = torch.tensor([[[1.0, 0.999], [0.999, 1.0]]], dtype=torch.float64)
    assert nearest(weight, step, grid(7)).sum() == 0
    assert gptq(weight, step, grid(7), factor_hessian(hessian)).sum() == 1


def test_gptq_at_four_bits_has_less_than_half_of_the_error_of_nearest_codes_on_correlated_inputs() -> None:
    inputs = correlated_inputs()
    weight = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = weight.abs().amax(dim=2, keepdim=True) / 7
    hessian = (inputs.T @ inputs / len(inputs))[None]
    plain = output_error(weight, nearest(weight, step, grid(7)), step, inputs)
    assert output_error(weight, gptq(weight, step, grid(7), factor_hessian(hessian)), step, inputs) < plain / 2


def test_gptq_on_independent_inputs_is_nearest_rounding() -> None:
    weight = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    hessian = torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    assert torch.equal(gptq(weight, step, grid(127), factor_hessian(hessian)), nearest(weight, step, grid(127)))


def test_gptq_treats_groups_apart_and_takes_blocks_of_more_than_64_columns() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 3, 150, generator=generator, dtype=torch.float64)
    roots = torch.randn(2, 150, 150, generator=generator, dtype=torch.float64)
    hessian, step = roots @ roots.transpose(1, 2), torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    together = gptq(weight, step, grid(7), factor_hessian(hessian))
    for group in range(2):
        alone = gptq(weight[group : group + 1], step, grid(7), factor_hessian(hessian[group : group + 1]))
        assert torch.equal(together[group : group + 1], alone)
    assert together.abs().max() <= 7


def test_a_channel_that_is_always_zero_does_no_harm() -> None:
    hessian = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))[None]
    codes = gptq(
        torch.tensor([[[1.2, 5.0, -0.7]]], dtype=torch.float64),
        torch.ones(1, 1, 1, dtype=torch.float64),
        grid(7),
        factor_hessian(hessian),
    )
    assert codes.isfinite().all()
    assert codes[0, 0].tolist() == [1.0, 5.0, -1.0]


def test_both_methods_keep_to_the_levels_of_a_palette() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(2, 3, 20, generator=generator, dtype=torch.float64)
    step = torch.full((1, 1, 1), 0.05, dtype=torch.float64)
    roots = torch.randn(2, 20, 20, generator=generator, dtype=torch.float64)
    levels = [-40.0, -7.0, 0.0, 3.0, 11.0, 60.0]
    palette = grid(127, levels)
    for codes in (nearest(weight, step, palette), gptq(weight, step, palette, factor_hessian(roots @ roots.mT))):
        assert set(codes.flatten().tolist()) <= set(levels)
    distance = (weight / step)[..., None] - torch.tensor(levels)
    expected = torch.tensor(levels)[distance.abs().argmin(dim=-1)]
    assert torch.equal(nearest(weight, step, palette).float(), expected)


def test_refitting_takes_back_a_gain_that_earlier_layers_lost() -> None:
    """The quantised network hands over inputs 10 % too small; the re-fitted weights are larger by as much."""
    inputs = correlated_inputs()
    weight = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    given = 0.9 * inputs
    targets = inputs @ weight[0].T
    hessian, cross = (given.T @ given / len(given))[None], (targets.T @ given / len(given))[None]
    fitted = refit(weight, hessian, cross, 1e-4)
    before = (given @ weight[0].T - targets).square().mean()
    after = (given @ fitted[0].T - targets).square().mean()
    assert after < before / 100


@pytest.mark.parametrize("ridge", [1e6, 1e9])
def test_a_large_ridge_leaves_the_weights_alone(ridge: float) -> None:
    weight = torch.randn(1, 2, 3, dtype=torch.float64)
    fitted = refit(weight, torch.eye(3, dtype=torch.float64)[None], torch.randn(1, 2, 3, dtype=torch.float64), ridge)
    assert torch.allclose(fitted, weight, atol=1e-5)
