"""First and second moments of a layer's inputs and of what it should compute, summed up while activations stream by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeconvnext.errors import RewriteError


@dataclass(frozen=True)
class Moments:
    """Moments of inputs x and targets t over positions, float64. Groups, if any, are the first axis of all four.

    mean: of x, (..., K). covariance: of x, (..., K, K). target_mean: of t, (..., R). cross: covariance of t with x, (..., R, K).
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    target_mean: torch.Tensor
    cross: torch.Tensor


class MomentSums:
    """Running sums: products of a batch in float32, over batches in float64. Their size does not grow with the images."""

    def __init__(
        self,
        inputs: int,
        targets: int,
        groups: int | None = None,
        *,
        origin: torch.Tensor | None = None,
        inputs_first: bool = False,
    ) -> None:
        """inputs, targets: numbers of columns, K and R. groups: None where rows have no axis for them.

        origin: (..., K), taken off the inputs, so that float32 suffices; None: the first batch's mean. inputs_first: the order of
        the factors in the product of targets and inputs, on which the last bit of a float32 product depends.
        """
        axes = () if groups is None else (groups,)
        self.count = 0
        self._origin = origin
        self.inputs_first = inputs_first
        self.sum = torch.zeros(*axes, inputs, dtype=torch.float64)
        self.products = torch.zeros(*axes, inputs, inputs, dtype=torch.float64)
        self.target_sum = torch.zeros(*axes, targets, dtype=torch.float64)
        self.cross = torch.zeros(*axes, targets, inputs, dtype=torch.float64)

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        """x: inputs, (..., positions, K). t: targets, (..., positions, R)."""
        if self._origin is None:
            self._origin = x.mean(dim=-2)
        x = x - self._origin[..., None, :]
        self.count += x.shape[-2]
        self.sum += x.sum(dim=-2, dtype=torch.float64)
        self.products += x.mT @ x
        self.target_sum += t.sum(dim=-2, dtype=torch.float64)
        self.cross += (x.mT @ t).mT if self.inputs_first else t.mT @ x

    @classmethod
    def joined(cls, parts: Sequence[MomentSums]) -> MomentSums:
        """Return the sums over all positions of several, which have one origin."""
        whole = cls(parts[0].sum.shape[-1], parts[0].target_sum.shape[-1], origin=parts[0].origin)
        whole.count = sum(part.count for part in parts)
        whole.sum = torch.stack([part.sum for part in parts]).sum(0)
        whole.products = torch.stack([part.products for part in parts]).sum(0)
        whole.target_sum = torch.stack([part.target_sum for part in parts]).sum(0)
        whole.cross = torch.stack([part.cross for part in parts]).sum(0)
        return whole

    @property
    def origin(self) -> torch.Tensor:
        """What is taken off the inputs, (..., K)."""
        assert self._origin is not None, "no rows were added"
        return self._origin

    def centred(self) -> Moments:
        """Return the moments with `mean` as seen from the origin."""
        mean, target_mean = self.sum / self.count, self.target_sum / self.count
        covariance = self.products / self.count - mean[..., :, None] * mean[..., None, :]
        cross = self.cross / self.count - target_mean[..., :, None] * mean[..., None, :]
        return Moments(mean, covariance, target_mean, cross)

    def result(self) -> Moments:
        """Return the moments."""
        moments = self.centred()
        return Moments(moments.mean + self.origin, moments.covariance, moments.target_mean, moments.cross)


def require_finite(moments: Moments, path: str) -> Moments:
    """Return the moments of the layer at `path`; raises RewriteError where its inputs held NaN or infinity."""
    if not moments.covariance.isfinite().all():
        raise RewriteError(
            f"The activations of {path} hold NaN or Inf on the calibration images, so its channels cannot be "
            f"ranked. Check the weights and the preprocessing of the checkpoint."
        )
    return moments
