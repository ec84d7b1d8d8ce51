"""Choices that options, plans and records name; types alone, so that every package may use them."""

from __future__ import annotations

from typing import Literal

Calibrator = Literal["auto", "minmax", "percentile", "entropy", "mse", "output"]

Effort = Literal["quick", "default", "best"]

DEFAULT_ADAROUND_MINUTES = 10.0


Smoothing = Literal["auto", "none", "force"]


Rounding = Literal["auto", "nearest", "gptq", "adaround"]


WeightBits = Literal[4, 8]

ActivationBits = Literal[8, 16]


NormScope = Literal["all", "blocks"]


Head = Literal["classifier", "features", "none", "gap"]


Score = Literal["auto", "elimination", "magnitude", "energy", "taylor"]


Operator = Literal["stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head", "conv", "projection"]
"""Kinds of weighted layers, as targets and plans name them."""

CONVNEXT_OPERATORS: tuple[Operator, ...] = ("stem", "depthwise", "pointwise1", "pointwise2", "downsample", "head")

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

CropOffset = Literal["nearest", "floor"]

ClassifierTask = Literal["single-label", "binary", "multi-label"]
"""Tasks of networks that end with logits."""

JudgedBy = Literal["top-1", "accuracy", "agreement"]
"""What points are counted in on held-out images: the score where they have labels, accuracy being that of one logit."""

TaskName = Literal["single-label", "binary", "multi-label", "embedding", "features", "segmentation", "detection"]
InputType = Literal["float32", "uint8"]
"""Element type of an artifact's input."""
