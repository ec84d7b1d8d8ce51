"""ConvNeXt V1 (arXiv 2201.03545) and V2 (arXiv 2301.00808), readable from top to bottom.

Parameters are named as in the authors' code (github.com/facebookresearch/ConvNeXt), so its checkpoints are the native layout:

    downsample_layers.0.0  stem conv          downsample_layers.0.1  stem norm
    downsample_layers.i.0  downsample norm    downsample_layers.i.1  downsample conv, 2x2 stride 2   (i = 1..3)
    stages.s.b.dwconv / norm / pwconv1 / grn (V2) / pwconv2 / gamma (V1)
    norm                   head norm          head                   classifier

Overlapping stems hold two 3x3 stride-2 convs: `downsample_layers.0.0`, `.1`, and their norm is `downsample_layers.0.2`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import nn

from edgeconvnext.choices import Operator
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.blocks import LayerNorm2d, check_end, initialise_truncated_normal
from edgeconvnext.model.network import (
    EndsWith,
    ExactFold,
    InputFold,
    Network,
    NetworkBlock,
    NetworkConfig,
    check_bounds,
)

Stem = Literal["patch", "overlap", "overlap_tiered"]
MOST_EXPONENT = 24


@dataclass(frozen=True)
class ConvNeXtConfig(NetworkConfig):
    """Sizes and variant of a ConvNeXt.

    depths, dims: blocks and channels of each stage.
    num_classes: 0 builds a network that ends with the pooled, normalised features.
    ends_with: "stages" gives the output of every stage, "last_stage" that of the last one, both without head norm and classifier.
    version: 1 (layer scale) or 2 (Global Response Normalization).
    stem: "patch" is one `patch_size` x `patch_size` conv with that stride; "overlap" and "overlap_tiered" are timm's two 3x3
        stride-2 convs, the first one to dims[0] or to dims[0] // 2 rounded to a multiple of 8.
    head_norm: "after_pool" normalises the pooled vector (the paper); "before_pool" normalises each position (timm's `_hnf`).
    layer_scale: whether blocks multiply by `gamma`; False after it was folded.
    hidden: width between pwconv1 and pwconv2 for each block of each stage; None means 4 x dim everywhere (pruning changes it).
    norm_eps, head_norm_eps: epsilon of the LayerNorms (transformers uses 1e-12 for the last).
    identity_norms: paths of LayerNorms that were replaced by what the layers around them compute (`rewrite/norms.py`).
    stream_exponents: by stage, the k of a residual stream that is scaled by 2^-k (`rewrite/residual_streams.py`); () scales none.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int = 1000
    in_channels: int = 3
    version: Literal[1, 2] = 1
    stem: Stem = "patch"
    patch_size: int = 4
    kernel_size: int = 7
    head_norm: Literal["after_pool", "before_pool"] = "after_pool"
    layer_scale: bool | None = None
    hidden: tuple[tuple[int, ...], ...] | None = None
    norm_eps: float = 1e-6
    head_norm_eps: float = 1e-6
    identity_norms: tuple[str, ...] = ()
    stream_exponents: tuple[int, ...] = ()
    ends_with: EndsWith = "head"
    hidden_widths: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.dims):
            raise ModelConfigError(
                f"depths {self.depths} and dims {self.dims} must name the same number of stages, at least one."
            )
        if min(self.depths) < 1 or min(self.dims) < 1:
            raise ModelConfigError(f"depths {self.depths} and dims {self.dims} must all be at least 1.")
        if self.in_channels < 1 or self.num_classes < 0 or self.patch_size < 1:
            raise ModelConfigError(
                f"in_channels ({self.in_channels}) and patch_size ({self.patch_size}) must be at least 1, "
                f"num_classes ({self.num_classes}) at least 0."
            )
        check_bounds(self.depths, (*self.dims, self.in_channels), (self.kernel_size, self.patch_size), self.num_classes)
        if not all(0 <= eps < math.inf for eps in (self.norm_eps, self.head_norm_eps)):
            raise ModelConfigError(
                f"norm_eps ({self.norm_eps}) and head_norm_eps ({self.head_norm_eps}) must be finite and not below 0."
            )
        check_end(self.ends_with, self.num_classes)
        if self.kernel_size % 2 == 0:
            raise ModelConfigError(
                f"kernel_size must be odd, so that a block keeps its size; it is {self.kernel_size}."
            )
        if self.layer_scale is None:
            object.__setattr__(self, "layer_scale", self.version == 1)
        widths = self.hidden or tuple((4 * dim,) * depth for depth, dim in zip(self.depths, self.dims, strict=True))
        if tuple(len(stage) for stage in widths) != self.depths:
            raise ModelConfigError(f"hidden {widths} must give one width for each block of depths {self.depths}.")
        if min(min(stage) for stage in widths) < 1:
            raise ModelConfigError(f"hidden {widths} must all be at least 1.")
        check_bounds(self.depths, (max(stage) for stage in widths), (), 0)
        object.__setattr__(self, "hidden_widths", widths)
        unknown = sorted(set(self.identity_norms) - set(self.norm_paths))
        if unknown:
            raise ModelConfigError(f"identity_norms names {unknown[0]}, which is no norm of this network.")
        exponents = self.stream_exponents
        if exponents and (
            len(exponents) != len(self.dims) or not 0 <= min(exponents) <= max(exponents) <= MOST_EXPONENT
        ):
            raise ModelConfigError(
                f"stream_exponents {exponents} must give a number from 0 to {MOST_EXPONENT} for each stage, or none."
            )

    @property
    def norm_paths(self) -> tuple[str, ...]:
        """Paths of all norms, replaced ones included, in the order data passes them."""
        paths = []
        for stage, depth in enumerate(self.depths):
            stem = "downsample_layers.0.1" if self.stem == "patch" else "downsample_layers.0.2"
            paths.append(f"downsample_layers.{stage}.0" if stage else stem)
            paths += [f"stages.{stage}.{block}.norm" for block in range(depth)]
        return (*paths, "norm") if self.ends_with == "head" else tuple(paths)

    def stream_eps(self, stage: int, eps: float) -> float:
        """Return the epsilon of a norm that reads the residual stream of a stage, scaled by 2^-k: eps * 4^-k."""
        return eps * 4.0 ** -self.stream_exponents[stage] if self.stream_exponents else eps

    def with_stem_stride(self, stride: int) -> Self | None:
        return self.replace(patch_size=stride) if self.stem == "patch" else None

    @property
    def stem_stride(self) -> int:
        return self.patch_size if self.stem == "patch" else 4

    @property
    def total_stride(self) -> int:
        """Input pixels per position of the last stage; input sizes must be multiples of it (32 for the paper's networks)."""
        return self.stem_stride * 2 ** (len(self.dims) - 1)

    @property
    def input_fold(self) -> InputFold:
        return "stem" if self.stem == "patch" else "shift"

    def with_end(self, ends_with: EndsWith) -> Self:
        norms = (
            self.identity_norms
            if ends_with == "head"
            else tuple(path for path in self.identity_norms if path != "norm")
        )
        return self.replace(num_classes=0, ends_with=ends_with, identity_norms=norms)

    def with_norm_eps(self, every: float | None, head: float | None) -> Self:
        changes = {} if every is None else {"norm_eps": every, "head_norm_eps": every}
        return self.replace(**changes | ({} if head is None else {"head_norm_eps": head}))


class GlobalResponseNorm(nn.Module):
    """GRN: divide each channel's spatial L2 norm by the mean over channels, then scale, shift and add. x: (N, H, W, C)."""

    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + self.eps))) + self.beta + x


class Block(NetworkBlock):
    """Depthwise conv, LayerNorm, pointwise up, GELU, (GRN), pointwise down, (layer scale), residual add. x: (N, C, H, W).

    The part behind the depthwise conv runs channels-last, so that LayerNorm and both linears work on the last axis.
    """

    operators: ClassVar[dict[str, Operator]] = {
        "dwconv": "depthwise",
        "pwconv1": "pointwise1",
        "pwconv2": "pointwise2",
    }

    def __init__(self, dim: int, hidden: int, config: ConvNeXtConfig, stage: int = 0) -> None:
        super().__init__()
        k = config.kernel_size
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=k, padding=k // 2, groups=dim)
        self.norm: nn.Module = nn.LayerNorm(dim, eps=config.stream_eps(stage, config.norm_eps))
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(hidden) if config.version == 2 else None
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6)) if config.layer_scale else None

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return what reaches pwconv2, (N, H, W, hidden)."""
        y = self.dwconv(x)
        y = y.permute(0, 2, 3, 1)
        y = self.norm(y)
        y = self.act(self.pwconv1(y))
        return y if self.grn is None else self.grn(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pwconv2(self.hidden(x))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.dropped(y.permute(0, 3, 1, 2))


def build_stem(config: ConvNeXtConfig) -> nn.Sequential:
    """Conv(s) to 1/4 resolution, then LayerNorm. (N, in_channels, H, W) -> (N, dims[0], H/4, W/4)."""
    dim = config.dims[0]
    norm = LayerNorm2d(dim, eps=config.norm_eps)
    if config.stem == "patch":
        return nn.Sequential(nn.Conv2d(config.in_channels, dim, config.patch_size, config.patch_size), norm)
    middle = tiered_stem_width(dim) if config.stem == "overlap_tiered" else dim
    return nn.Sequential(
        nn.Conv2d(config.in_channels, middle, kernel_size=3, stride=2, padding=1),
        nn.Conv2d(middle, dim, kernel_size=3, stride=2, padding=1),
        norm,
    )


def tiered_stem_width(dim: int) -> int:
    """Half of `dim`, rounded to a multiple of 8 but never more than 10 % down (timm's rule)."""
    half = dim // 2
    width = max(8, (half + 4) // 8 * 8)
    return width + 8 if width < 0.9 * half else width


class ConvNeXt(Network):
    """The network: logits (N, num_classes) from images (N, in_channels, H, W)."""

    config: ConvNeXtConfig

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.downsample_layers = nn.ModuleList([build_stem(config)])
        for stage, (dim, next_dim) in enumerate(zip(config.dims, config.dims[1:], strict=False)):
            norm = LayerNorm2d(dim, eps=config.stream_eps(stage, config.norm_eps))
            self.downsample_layers.append(nn.Sequential(norm, nn.Conv2d(dim, next_dim, kernel_size=2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, hidden, config, stage) for hidden in widths))
            for stage, (dim, widths) in enumerate(zip(config.dims, config.hidden_widths, strict=True))
        )
        norm_type = LayerNorm2d if config.head_norm == "before_pool" else nn.LayerNorm
        has_norm = config.ends_with == "head"
        eps = config.stream_eps(-1, config.head_norm_eps)
        self.norm: nn.Module = norm_type(config.dims[-1], eps=eps) if has_norm else nn.Identity()
        self.head = nn.Linear(config.dims[-1], config.num_classes) if config.num_classes else nn.Identity()
        self.apply(initialise_truncated_normal)
        for path in config.identity_norms:
            self.set_submodule(path, nn.Identity())

    @property
    def exact_folds(self) -> tuple[ExactFold, ...]:
        first: tuple[ExactFold, ...] = ("layer_scale",) if self.config.layer_scale else ()
        last: tuple[ExactFold, ...] = ("grn_shift",) if self.config.version == 2 else ()
        return (*first, "norm_affine", *last)

    @property
    def inverted_bottlenecks(self) -> tuple[str, ...]:
        return tuple(
            f"stages.{stage}.{block}" for stage, depth in enumerate(self.config.depths) for block in range(depth)
        )

    def norms_in_front(self) -> Iterator[tuple[str, str]]:
        """Yield the blocks' norms, those in front of downsampling convs, which have no padding, and the head's."""
        yield from ((f"{path}.norm", f"{path}.pwconv1") for path in self.inverted_bottlenecks)
        yield from (
            (f"downsample_layers.{stage}.0", f"downsample_layers.{stage}.1") for stage in range(1, len(self.stages))
        )
        if self.config.num_classes:
            yield "norm", "head"

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits for the last stage's output: pooled, normalised (in the config's order) and classified."""
        x = self.norm(x).mean(dim=(2, 3)) if self.config.head_norm == "before_pool" else self.norm(x.mean(dim=(2, 3)))
        return self.head(x)
