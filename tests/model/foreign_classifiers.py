"""ConvNeXts as a user's program holds them: modules under the tensor names of three libraries, each with a forward of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.convnext.layouts import LAYOUTS
from edgeconvnext.model.loaded import LoadedModel


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W), as the authors compute it."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


class AuthorsBlock(nn.Module):
    def __init__(self, dim: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(self.act(self.pwconv1(y)))).permute(0, 3, 1, 2)


class AuthorsConvNeXt(nn.Module):
    """The authors' names and order of work."""

    def __init__(self, model: LoadedModel, gelu: nn.Module | None = None) -> None:
        super().__init__()
        config = model.config
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(3, config.dims[0], config.patch_size, config.patch_size),
                    ChannelsFirstNorm(config.dims[0]),
                ),
                *(
                    nn.Sequential(ChannelsFirstNorm(dim), nn.Conv2d(dim, wider, 2, 2))
                    for dim, wider in zip(config.dims, config.dims[1:], strict=False)
                ),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(AuthorsBlock(dim, config.kernel_size, gelu or nn.GELU()) for _ in range(depth)))
            for dim, depth in zip(config.dims, config.depths, strict=True)
        )
        self.norm = nn.LayerNorm(config.dims[-1], eps=1e-6)
        self.head = nn.Linear(config.dims[-1], config.num_classes)
        _take_weights(self, model, "facebookresearch")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean([-2, -1])))


class Norm2d(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TimmBlock(nn.Module):
    def __init__(self, dim: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = Norm2d(dim, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Conv2d(dim, 4 * dim, 1))
        self.mlp.add_module("act", gelu)
        self.mlp.add_module("fc2", nn.Conv2d(4 * dim, dim, 1))
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(self.conv_dw(x))).mul(self.gamma.reshape(1, -1, 1, 1)) + x


class TimmStage(nn.Module):
    def __init__(self, before: int, dim: int, depth: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if before:
            self.downsample = nn.Sequential(Norm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, 2))
        self.blocks = nn.Sequential(*(TimmBlock(dim, kernel, gelu) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class TimmConvNeXt(nn.Module):
    """timm's names, pointwise layers as 1x1 convs. gelu: what every block takes between them."""

    def __init__(self, model: LoadedModel, gelu: nn.Module | None = None) -> None:
        super().__init__()
        config = model.config
        self.stem = nn.Sequential(
            nn.Conv2d(3, config.dims[0], config.patch_size, config.patch_size), Norm2d(config.dims[0], eps=1e-6)
        )
        self.stages = nn.Sequential(
            *(
                TimmStage(before, dim, depth, config.kernel_size, gelu or nn.GELU())
                for before, dim, depth in zip((0, *config.dims), config.dims, config.depths, strict=False)
            )
        )
        self.head = nn.Sequential()
        for name, layer in (
            ("global_pool", nn.AdaptiveAvgPool2d(1)),
            ("norm", Norm2d(config.dims[-1], eps=1e-6)),
            ("flatten", nn.Flatten(1)),
            ("fc", nn.Linear(config.dims[-1], config.num_classes)),
        ):
            self.head.add_module(name, layer)
        self.pretrained_cfg = {
            "architecture": "convnext_micro",
            "input_size": (3, *model.preprocess.input_size),
            "crop_pct": model.preprocess.crop_pct,
            "interpolation": "bicubic",
            "mean": model.preprocess.mean,
            "std": model.preprocess.std,
        }
        _take_weights(self, model, "timm")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)))


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.order)


class TorchvisionBlock(nn.Module):
    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_scale * self.block(x) + x


class TorchvisionConvNeXt(nn.Module):
    """torchvision's names: one Sequential of stem, stages and downsampling."""

    def __init__(self, model: LoadedModel, gelu: nn.Module | None = None) -> None:
        super().__init__()
        config = model.config
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, config.dims[0], config.patch_size, config.patch_size), Norm2d(config.dims[0], eps=1e-6)
            )
        ]
        for stage, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            if stage:
                before = config.dims[stage - 1]
                layers.append(nn.Sequential(Norm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, 2)))
            layers.append(nn.Sequential(*(TorchvisionBlock(dim, config.kernel_size) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            Norm2d(config.dims[-1], eps=1e-6), nn.Flatten(1), nn.Linear(config.dims[-1], config.num_classes)
        )
        _take_weights(self, model, "torchvision")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))


def _take_weights(module: nn.Module, model: LoadedModel, layout: str) -> None:
    """Give a module the weights of a model, by the names of a library."""
    config = model.config
    table = next(known for known in LAYOUTS if known.name == layout)
    theirs = dict(table.names(len(config.depths), max(config.depths)))
    weights = {theirs[name]: tensor for name, tensor in model.module.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in weights.items()})
