"""The 2:4 pattern: of each four neighbouring weights along a layer's inputs, at most two are not zero."""

from __future__ import annotations

import torch


def masked_fit(
    start: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, steps: int = 50
) -> torch.Tensor:
    """Return the weights that minimise |t - W x|^2 among those that are zero outside `mask`.

    start: weights to begin with, (..., R, K). mask: bool, the same shape. hessian: covariance of x, positive definite,
    (..., K, K). cross: covariance of t with x, (..., R, K). Every row has zeros of its own, so that a closed form would need one
    matrix for each; conjugate gradients, scaled by the diagonal, work on all rows at once. steps: at most.
    """
    weight = start * mask
    scale = hessian.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(hessian.dtype).tiny)[..., None, :]
    residual = (cross - weight @ hessian) * mask
    scaled = residual / scale
    direction = scaled.clone()
    power = (residual * scaled).sum(dim=-1, keepdim=True)
    enough = 1e-12 * power
    for _ in range(steps):
        image = (direction @ hessian) * mask
        curvature = (direction * image).sum(dim=-1, keepdim=True)
        moving = (power > enough) & (curvature > 0)
        if not bool(moving.any()):
            break
        length = torch.where(moving, power / curvature.clamp_min(torch.finfo(power.dtype).tiny), 0.0)
        weight = weight + length * direction
        residual = residual - length * image
        scaled = residual / scale
        following = (residual * scaled).sum(dim=-1, keepdim=True)
        direction = (
            scaled + torch.where(moving, following / power.clamp_min(torch.finfo(power.dtype).tiny), 0.0) * direction
        )
        power = following
    return weight
