"""Linear fits from streamed sums: the same answer as from the rows themselves, and a ridge that is judged on rows held out."""

from __future__ import annotations

import pytest
import torch

from edgeconvnext.rewrite.least_squares import FOLDS, LinearFit


def rows(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs (count, 6), targets (count, 3), and the weight and bias that made them."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
    x = torch.randn(count, 6, generator=generator) + 5
    return x, x @ weight.T + bias + noise * torch.randn(count, 3, generator=generator), weight, bias


def fitted(x: torch.Tensor, t: torch.Tensor, batch: int = 20) -> LinearFit:
    fit = LinearFit(x.shape[1], t.shape[1])
    for start in range(0, len(x), batch):
        fit.add(x[start : start + batch], t[start : start + batch])
    return fit


def test_what_made_the_targets_is_found() -> None:
    x, t, weight, bias = rows(600, noise=0.0)
    found = fitted(x, t).solve(ridges=(1e-9,))
    torch.testing.assert_close(found.weight.float(), weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.bias.float(), bias, atol=1e-3, rtol=0)
    assert found.error < 1e-6


def test_large_offsets_do_not_hurt() -> None:
    x, t, weight, _ = rows(600, noise=0.0)
    found = fitted(x + 1000, t).solve(ridges=(1e-9,))
    torch.testing.assert_close(found.weight.float(), weight, atol=1e-3, rtol=0)


def test_error_is_that_of_fits_to_the_other_folds() -> None:
    x, t, _, _ = rows(240, noise=1.0)
    found = fitted(x, t).solve(ridges=(1e-9,))
    fold = (torch.arange(240) // 20) % FOLDS
    lost = 0.0
    for number in range(FOLDS):
        rest, held = fold != number, fold == number
        ones = torch.ones(240, 1)
        solution = torch.linalg.lstsq(torch.cat([x, ones], 1)[rest].double(), t[rest].double()).solution
        lost += float((torch.cat([x, ones], 1)[held].double() @ solution - t[held]).square().sum())
    total = float((t - t.mean(0)).double().square().sum())
    assert found.error == pytest.approx(lost / total, rel=1e-4)


def test_few_noisy_rows_get_a_large_ridge_and_many_a_small_one() -> None:
    ridges = (1e-4, 10.0)
    x, t, _, _ = rows(12, noise=30.0)
    assert fitted(x, t, batch=4).solve(ridges=ridges).ridge == 10.0
    x, t, _, _ = rows(3000, noise=0.1)
    assert fitted(x, t).solve(ridges=ridges).ridge == 1e-4


def test_a_large_ridge_stays_at_the_prior() -> None:
    x, t, _, _ = rows(300, noise=0.1)
    prior = torch.full((3, 6), 0.5)
    found = fitted(x, t).solve(prior, ridges=(1e9,))
    torch.testing.assert_close(found.weight.float(), prior, atol=1e-4, rtol=0)
    # The bias still meets the means.
    torch.testing.assert_close((x @ found.weight.float().T + found.bias.float()).mean(0), t.mean(0), atol=1e-3, rtol=0)


def test_inputs_that_depend_on_each_other_are_no_problem() -> None:
    x, t, _, _ = rows(300, noise=0.0)
    twice = torch.cat([x, x], 1)
    found = fitted(twice, t).solve()
    assert found.error < 1e-3 and bool(found.weight.isfinite().all())


def test_moments_are_the_inputs() -> None:
    x, t, _, _ = rows(300, noise=0.0)
    mean, deviation = fitted(x, t).input_spread()
    torch.testing.assert_close(mean.float(), x.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation.float(), x.std(0, correction=0), atol=1e-4, rtol=0)
