"""ResNet-50 (arXiv 1512.03385), ResNeXt-50 (arXiv 1611.05431), and every step from there to ConvNeXt (arXiv 2201.03545).

One definition, switched by `ResNetConfig`; `roadmap` lists the steps. Parameters are named as ConvNeXt's (see `network`), so that
the last step holds exactly the tensors of `ConvNeXt`, and layers are called alike in reports of every step:

    stages.s.b.conv1 / norm1 / conv2 / norm2 / conv3 / norm3            bottleneck: 1x1, kxk (maybe depthwise), 1x1
    stages.s.b.dwconv / norm / pwconv1 / norm1 / pwconv2 / norm2 / gamma   the same with the depthwise conv moved up
    stages.s.b.shortcut.0 / .1                                          1x1 conv and norm where a block changes size or width

What the paper leaves open is read as follows: the patch stem is a conv and a norm, without ReLU and pooling; where norms and
activations are removed from the residual branch, the norm of the shortcut stays. MACs do not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ResNetConfig(NetworkConfig):
    """Sizes of a residual network, and how far it is modernised.

    depths, dims, hidden: blocks, output channels and channels inside the blocks, of each stage. stem_dim: the stem's channels.
    num_classes: 0 builds a network that ends with the pooled features.
    stem: "conv_pool" is a 7x7 stride-2 conv, norm, ReLU and max pooling; "patch" a 4x4 stride-4 conv and a norm.
    groups: of the spatial conv; None makes it depthwise. depthwise_first: whether it comes before both 1x1 convs.
    few_activations: one between the 1x1 convs in place of one behind every conv but the last and one behind the addition.
    few_norms: one in front of the 1x1 convs in place of one behind every conv.
    separate_downsampling: norm and 2x2 stride-2 conv between stages, and a norm behind pooling, in place of strides in blocks.
    layer_scale: whether blocks multiply by `gamma`. folded: whether BatchNorms were folded into the convs in front of them.
    ends_with: as in `ConvNeXtConfig`.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    dims: tuple[int, ...] = (256, 512, 1024, 2048)
    hidden: tuple[int, ...] = (64, 128, 256, 512)
    stem_dim: int = 64
    num_classes: int = 1000
    in_channels: int = 3
    stem: Literal["conv_pool", "patch"] = "conv_pool"
    groups: int | None = 1
    depthwise_first: bool = False
    kernel_size: int = 3
    activation: Literal["relu", "gelu"] = "relu"
    few_activations: bool = False
    few_norms: bool = False
    norm: Literal["batch", "layer"] = "batch"
    separate_downsampling: bool = False
    layer_scale: bool = False
    folded: bool = False
    ends_with: EndsWith = "head"

    def __post_init__(self) -> None:
        sizes = (self.depths, self.dims, self.hidden)
        if not self.depths or len({len(values) for values in sizes}) != 1 or min(map(min, sizes)) < 1:
            raise ModelConfigError(
                f"depths {self.depths}, dims {self.dims} and hidden {self.hidden} must give the same number of stages, and be at "
                "least 1."
            )
        channels = (*self.dims, *self.hidden, self.stem_dim, self.in_channels)
        check_bounds(self.depths, channels, (self.kernel_size,), self.num_classes)
        if self.in_channels < 1 or self.num_classes < 0 or self.stem_dim < 1 or self.kernel_size % 2 == 0:
            raise ModelConfigError(
                f"in_channels ({self.in_channels}) and stem_dim ({self.stem_dim}) must be at least 1, num_classes "
                f"({self.num_classes}) at least 0, kernel_size ({self.kernel_size}) odd."
            )
        if self.groups is not None and (self.groups < 1 or any(width % self.groups for width in self.hidden)):
            raise ModelConfigError(f"groups ({self.groups}) must divide the hidden widths {self.hidden}.")
        if self.depthwise_first and self.groups is not None:
            raise ModelConfigError("Only a depthwise conv is moved up: depthwise_first needs groups=None.")
        if (self.few_activations or self.few_norms or self.layer_scale) and not self.depthwise_first:
            raise ModelConfigError("few_activations, few_norms and layer_scale are of blocks with depthwise_first.")
        if self.separate_downsampling and (self.norm != "layer" or self.stem_dim != self.dims[0]):
            raise ModelConfigError(
                f'separate_downsampling needs norm "layer" and a stem of dims[0] channels ({self.dims[0]}, not '
                f"{self.stem_dim}): blocks have no shortcut convs then."
            )
        if self.folded and self.norm != "batch":
            raise ModelConfigError('Only BatchNorms fold into convs: folded needs norm "batch".')
        check_end(self.ends_with, self.num_classes)

    @property
    def total_stride(self) -> int:
        """Input pixels per position of the last stage."""
        return 4 * 2 ** (len(self.dims) - 1)

    @property
    def input_fold(self) -> InputFold:
        return "stem" if self.stem == "patch" else "none"

    def for_training(self) -> Self:
        return self.replace(folded=False)

    def without_batch_norms(self) -> Self:
        return self.replace(folded=self.norm == "batch")


class BatchNormLast(nn.BatchNorm2d):
    """BatchNorm of channels-last activations. x: (N, H, W, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _norm(config: ResNetConfig, channels: int, channels_last: bool = False) -> nn.Module:
    if config.folded:
        return nn.Identity()
    if config.norm == "batch":
        return BatchNormLast(channels) if channels_last else nn.BatchNorm2d(channels)
    return nn.LayerNorm(channels, eps=1e-6) if channels_last else LayerNorm2d(channels, eps=1e-6)


def _activation(config: ResNetConfig) -> nn.Module:
    return nn.ReLU() if config.activation == "relu" else nn.GELU()


def _shortcut(config: ResNetConfig, channels: int, dim: int, stride: int) -> nn.Module:
    if stride == 1 and channels == dim:
        return nn.Identity()
    conv = nn.Conv2d(channels, dim, kernel_size=1, stride=stride, bias=_has_bias(config))
    return nn.Sequential(conv, _norm(config, dim))


def _has_bias(config: ResNetConfig, normed: bool = True) -> bool:
    """A conv has a bias unless a BatchNorm follows, which has one of its own."""
    return not normed or config.folded or config.norm == "layer"


class Bottleneck(NetworkBlock):
    """1x1, spatial and 1x1 conv, each normalised, and the addition. x: (N, C, H, W). The spatial conv strides (torchvision)."""

    operators: ClassVar[dict[str, Operator]] = {
        "conv1": "conv",
        "conv2": "conv",
        "conv3": "projection",
        "shortcut.0": "projection",
    }

    def __init__(self, channels: int, dim: int, hidden: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        bias, k = _has_bias(config), config.kernel_size
        groups = hidden if config.groups is None else config.groups
        self.conv1 = nn.Conv2d(channels, hidden, kernel_size=1, bias=bias)
        self.norm1 = _norm(config, hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, k, stride, padding=k // 2, groups=groups, bias=bias)
        self.norm2 = _norm(config, hidden)
        self.conv3 = nn.Conv2d(hidden, dim, kernel_size=1, bias=bias)
        self.norm3 = _norm(config, dim)
        self.shortcut = _shortcut(config, channels, dim, stride)
        self.act = _activation(config)

    @property
    def is_residual(self) -> bool:
        return False  # an activation follows the addition

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.act(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.act(self.dropped(y) + self.shortcut(x))


class DepthwiseFirstBlock(NetworkBlock):
    """Depthwise conv and two 1x1 convs, which run channels-last as linears, and the addition. x: (N, C, H, W).

    With few activations and norms, GELU, LayerNorm and layer scale this is ConvNeXt's block.
    """

    operators: ClassVar[dict[str, Operator]] = {
        "dwconv": "depthwise",
        "pwconv1": "pointwise1",
        "pwconv2": "pointwise2",
        "shortcut.0": "projection",
    }

    def __init__(self, channels: int, dim: int, hidden: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        k, each = config.kernel_size, not config.few_norms
        self.few_activations = config.few_activations
        self.dwconv = nn.Conv2d(channels, channels, k, stride, k // 2, groups=channels, bias=_has_bias(config))
        self.norm = _norm(config, channels, channels_last=True)
        self.pwconv1 = nn.Linear(channels, hidden, bias=_has_bias(config, each))
        self.norm1 = _norm(config, hidden, channels_last=True) if each else nn.Identity()
        self.pwconv2 = nn.Linear(hidden, dim, bias=_has_bias(config, each))
        self.norm2 = _norm(config, dim, channels_last=True) if each else nn.Identity()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6)) if config.layer_scale else None
        self.shortcut = _shortcut(config, channels, dim, stride)
        self.act = _activation(config)

    @property
    def is_residual(self) -> bool:
        return self.few_activations and isinstance(self.shortcut, nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        if not self.few_activations:
            y = self.act(y)
        y = self.act(self.norm1(self.pwconv1(y)))
        y = self.norm2(self.pwconv2(y))
        if self.gamma is not None:
            y = self.gamma * y
        y = self.shortcut(x) + self.dropped(y.permute(0, 3, 1, 2))
        return y if self.few_activations else self.act(y)


def _stem(config: ResNetConfig) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, stem_dim, H / 4, W / 4)."""
    bias, norm = _has_bias(config), _norm(config, config.stem_dim)
    if config.stem == "patch":
        return nn.Sequential(nn.Conv2d(config.in_channels, config.stem_dim, 4, 4, bias=bias), norm)
    conv = nn.Conv2d(config.in_channels, config.stem_dim, 7, 2, padding=3, bias=bias)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))


class ResNet(Network):
    """The network: logits (N, num_classes) from images (N, in_channels, H, W)."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        block = DepthwiseFirstBlock if config.depthwise_first else Bottleneck
        self.downsample_layers = nn.ModuleList([_stem(config)])
        self.stages = nn.ModuleList()
        channels = config.stem_dim
        for stage, (depth, dim, hidden) in enumerate(zip(config.depths, config.dims, config.hidden, strict=True)):
            stride = 2 if stage else 1
            if stage and config.separate_downsampling:
                norm = LayerNorm2d(channels, eps=1e-6)
                self.downsample_layers.append(nn.Sequential(norm, nn.Conv2d(channels, dim, kernel_size=2, stride=2)))
                channels, stride = dim, 1
            elif stage:
                self.downsample_layers.append(nn.Identity())
            first = block(channels, dim, hidden, stride, config)
            self.stages.append(nn.Sequential(first, *(block(dim, dim, hidden, 1, config) for _ in range(depth - 1))))
            channels = dim
        has_norm = config.separate_downsampling and config.ends_with == "head"
        self.norm = nn.LayerNorm(channels, eps=1e-6) if has_norm else nn.Identity()
        self.head = nn.Linear(channels, config.num_classes) if config.num_classes else nn.Identity()
        self.apply(_initialise_he if config.norm == "batch" else initialise_truncated_normal)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits for the last stage's output: pooled, normalised where downsampling is separate, classified."""
        return self.head(self.norm(x.mean(dim=(2, 3))))  # type: ignore[no-any-return]

    @property
    def exact_folds(self) -> tuple[ExactFold, ...]:
        return ("batch_norm",) if self.config.norm == "batch" and not self.config.folded else ()

    def norms_behind(self) -> Iterator[tuple[str, str]]:
        pairs = [("downsample_layers.0.0", "downsample_layers.0.1")]
        names = ("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"), ("shortcut.0", "shortcut.1")
        if self.config.depthwise_first:
            names = ("dwconv", "norm"), ("pwconv1", "norm1"), ("pwconv2", "norm2"), ("shortcut.0", "shortcut.1")
        for stage, depth in enumerate(self.config.depths):
            for block in range(depth):
                pairs += [(f"stages.{stage}.{block}.{a}", f"stages.{stage}.{block}.{b}") for a, b in names]
        modules = dict(self.named_modules())
        yield from ((layer, norm) for layer, norm in pairs if isinstance(modules.get(norm), nn.BatchNorm2d))


def _initialise_he(module: nn.Module) -> None:
    """He's normal initialisation by outgoing connections (torchvision's), biases zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
