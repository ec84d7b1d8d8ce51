"""Kinds of weighted operators, as targets and plans name them."""

from __future__ import annotations

from typing import Literal

Operator = Literal["stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head", "conv", "projection"]

CONVNEXT_OPERATORS: tuple[Operator, ...] = ("stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head")
