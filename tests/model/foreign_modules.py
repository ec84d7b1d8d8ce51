"""ConvNeXts as a user's program holds them, small: modules under the tensor names of four libraries, with forwards of their own.

Backbones have drawn weights and return the outputs of their stages as a list, as libraries' backbones do. Classifiers have the
weights of a model. gelu: what every block takes between its linears; another one computes another network than the tensors say.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.convnext.layouts import LAYOUTS
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.loaded import LoadedModel

CONFIG = ConvNeXtConfig(depths=(1, 2), dims=(8, 16), num_classes=0, patch_size=2, kernel_size=5, ends_with="stages")


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
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def patches(config: ConvNeXtConfig) -> nn.Sequential:
    """Return a stem: patches and their norm."""
    side = config.patch_size
    return nn.Sequential(nn.Conv2d(3, config.dims[0], side, side), Norm2d(config.dims[0], eps=1e-6))


def downsampling(before: int, dim: int) -> nn.Sequential:
    return nn.Sequential(Norm2d(before, eps=1e-6), nn.Conv2d(before, dim, 2, 2))


def named(**layers: nn.Module) -> nn.Sequential:
    """Return a Sequential whose layers have names."""
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence


class TimmBlock(nn.Module):
    def __init__(self, dim: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = Norm2d(dim, eps=1e-6)
        self.mlp = named(fc1=nn.Conv2d(dim, 4 * dim, 1), act=gelu, fc2=nn.Conv2d(4 * dim, dim, 1))
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(self.conv_dw(x))).mul(self.gamma.reshape(1, -1, 1, 1)) + x


class TimmStage(nn.Module):
    def __init__(self, before: int, dim: int, depth: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.downsample = downsampling(before, dim) if before else nn.Identity()
        self.blocks = nn.Sequential(*(TimmBlock(dim, kernel, gelu) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class TimmBackbone(nn.Module):
    """timm's names, pointwise layers as 1x1 convs."""

    def __init__(self, gelu: nn.Module | None = None, config: ConvNeXtConfig = CONFIG) -> None:
        super().__init__()
        self.stem = patches(config)
        self.stages = nn.Sequential(
            *(
                TimmStage(before, dim, depth, config.kernel_size, gelu or nn.GELU())
                for before, dim, depth in zip((0, *config.dims), config.dims, config.depths, strict=False)
            )
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(itertools.accumulate(self.stages, lambda x, stage: stage(x), initial=self.stem(x)))[1:]


class TimmConvNeXt(TimmBackbone):
    """What timm makes of it: a head in one sequence, and a pretrained_cfg."""

    def __init__(self, model: LoadedModel, gelu: nn.Module | None = None) -> None:
        super().__init__(gelu, model.config)
        dim = model.config.dims[-1]
        self.head = named(
            global_pool=nn.AdaptiveAvgPool2d(1),
            norm=Norm2d(dim, eps=1e-6),
            flatten=nn.Flatten(1),
            fc=nn.Linear(dim, model.config.num_classes),
        )
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
    def __init__(self, dim: int, kernel: int, gelu: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(dim, 4 * dim),
            gelu,
            nn.Linear(4 * dim, dim),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_scale * self.block(x) + x


class TorchvisionBackbone(nn.Module):
    """torchvision's names: one Sequential of stem, stages and downsampling."""

    def __init__(self, gelu: nn.Module | None = None, config: ConvNeXtConfig = CONFIG) -> None:
        super().__init__()
        layers: list[nn.Module] = [patches(config)]
        for before, dim, depth in zip((0, *config.dims), config.dims, config.depths, strict=False):
            layers += [downsampling(before, dim)] if before else []
            blocks = (TorchvisionBlock(dim, config.kernel_size, gelu or nn.GELU()) for _ in range(depth))
            layers.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(itertools.accumulate(self.features, lambda x, layer: layer(x), initial=x))[2::2]


class TorchvisionConvNeXt(TorchvisionBackbone):
    """What torchvision makes of it: a classifier behind the pooling."""

    def __init__(self, model: LoadedModel, gelu: nn.Module | None = None) -> None:
        super().__init__(gelu, model.config)
        dim = model.config.dims[-1]
        self.classifier = nn.Sequential(Norm2d(dim, eps=1e-6), nn.Flatten(1), nn.Linear(dim, model.config.num_classes))
        _take_weights(self, model, "torchvision")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))


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


def _take_weights(module: nn.Module, model: LoadedModel, layout: str) -> None:
    """Give a module the weights of a model, by the names of a library."""
    config = model.config
    table = next(known for known in LAYOUTS if known.name == layout)
    theirs = dict(table.names(len(config.depths), max(config.depths)))
    weights = {theirs[name]: tensor for name, tensor in model.module.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in weights.items()})


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
