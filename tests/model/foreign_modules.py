"""Backbones as other libraries build them, small: their tensor names, and a forward written for the tests.

Each returns the outputs of its stages as a list, as libraries' backbones do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig

CONFIG = ConvNeXtConfig(depths=(1, 2), dims=(8, 16), num_classes=0, patch_size=2, kernel_size=5, ends_with="stages")


class Norm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TimmMlp(nn.Module):
    def __init__(self, dim: int, approximate: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(4 * dim, dim, 1)
        self.act = nn.GELU(approximate=approximate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TimmBlock(nn.Module):
    def __init__(self, dim: int, approximate: str) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm = Norm2d(dim, eps=1e-6)
        self.mlp = TimmMlp(dim, approximate)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(self.conv_dw(x))) * self.gamma.view(1, -1, 1, 1)


class TimmStage(nn.Module):
    def __init__(self, before: int, dim: int, depth: int, approximate: str) -> None:
        super().__init__()
        self.downsample = nn.Identity()
        if before != dim:
            self.downsample = nn.Sequential(Norm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, stride=2))
        self.blocks = nn.Sequential(*(TimmBlock(dim, approximate) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class TimmBackbone(nn.Module):
    """timm's names. approximate: of its GELUs; "tanh" computes another network than its tensors say."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        first, second = CONFIG.dims
        self.stem = nn.Sequential(nn.Conv2d(3, first, 2, stride=2), Norm2d(first, eps=1e-6))
        self.stages = nn.Sequential(
            TimmStage(first, first, CONFIG.depths[0], approximate),
            TimmStage(first, second, CONFIG.depths[1], approximate),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, outputs = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class TorchvisionBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
            ToLast(),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            ToFirst(),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer_scale * self.block(x)


class ToLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class ToFirst(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


class TorchvisionBackbone(nn.Module):
    """torchvision's names: stem, stages and downsampling layers in one sequence."""

    def __init__(self) -> None:
        super().__init__()
        first, second = CONFIG.dims
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, first, 2, stride=2), Norm2d(first, eps=1e-6)),
            nn.Sequential(*(TorchvisionBlock(first) for _ in range(CONFIG.depths[0]))),
            nn.Sequential(Norm2d(first, eps=1e-6), nn.Conv2d(first, second, 2, stride=2)),
            nn.Sequential(*(TorchvisionBlock(second) for _ in range(CONFIG.depths[1]))),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index % 2:
                outputs.append(x)
        return outputs


class TransformersLayer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.layernorm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.layer_scale_parameter = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.layernorm(self.dwconv(x).permute(0, 2, 3, 1))
        branch = self.layer_scale_parameter * self.pwconv2(F.gelu(self.pwconv1(branch)))
        return x + branch.permute(0, 3, 1, 2)


class TransformersStage(nn.Module):
    def __init__(self, before: int, dim: int, depth: int) -> None:
        super().__init__()
        self.downsampling_layer = nn.ModuleList()
        if before != dim:
            self.downsampling_layer.extend([Norm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, stride=2)])
        self.layers = nn.ModuleList(TransformersLayer(dim) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.downsampling_layer, *self.layers):
            x = layer(x)
        return x


class TransformersEmbeddings(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, dim, 2, stride=2)
        self.layernorm = Norm2d(dim, eps=1e-6)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layernorm(self.patch_embeddings(pixel_values))


class TransformersBackbone(nn.Module):
    """transformers' names, with the norms that its backbones put on each stage's output."""

    def __init__(self) -> None:
        super().__init__()
        first, second = CONFIG.dims
        self.embeddings = TransformersEmbeddings(first)
        self.encoder = nn.Module()
        self.encoder.stages = nn.ModuleList(
            [TransformersStage(first, first, CONFIG.depths[0]), TransformersStage(first, second, CONFIG.depths[1])]
        )
        self.hidden_states_norms = nn.ModuleDict({"stage1": Norm2d(first), "stage2": Norm2d(second)})

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        x, outputs = self.embeddings(pixel_values), []
        for stage, norm in zip(self.encoder.stages, self.hidden_states_norms.values(), strict=True):
            x = stage(x)
            outputs.append(norm(x))
        return outputs


class OwnBackbone(ConvNeXt):
    """The authors' names, which are this package's."""

    def __init__(self) -> None:
        super().__init__(CONFIG)


class Segmenter(nn.Module):
    """What users build around a backbone: two levels added, a class for each position, and a number for the image."""

    def __init__(self, encoder: nn.Module, classes: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.lateral = nn.ModuleList(nn.Conv2d(dim, 8, 1) for dim in CONFIG.dims)
        self.classes = nn.Conv2d(8, classes, 1)
        self.score = nn.Linear(CONFIG.dims[1], 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        shallow, deep = self.encoder(images)
        total = self.lateral[0](shallow) + F.interpolate(self.lateral[1](deep), scale_factor=2.0, mode="nearest")
        return {"mask": self.classes(F.relu(total)), "score": self.score(deep.mean(dim=(2, 3)))}


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in eval mode with weights and norms that are drawn, so that no part is an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1 and parameter.numel() > parameter.shape[0]:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def smooth_images(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    """Return images (count, 3, side, side) with low frequencies, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=side, mode="bicubic")
