"""What every network of this package looks like: a stem, stages of blocks with downsampling between them, a head.

The networks of all families (`families.FAMILIES`) are of this form and name their parts alike, so that quantization, export and
validation need to know no more than this:

    downsample_layers.0    stem       downsample_layers.i    in front of stage i; an identity where blocks stride themselves
    stages.s.b             blocks     norm, head             behind the last stage, identities in a backbone
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import nn

from edgeconvnext.choices import Operator
from edgeconvnext.errors import ModelConfigError

EndsWith = Literal["head", "last_stage", "stages"]
ExactFold = Literal["layer_scale", "norm_affine", "grn_shift", "batch_norm"]
InputFold = Literal["stem", "shift", "none"]

# A configuration may come from a file of anybody's. The largest published ConvNeXt has 36 blocks of up to 2,816 channels.
MOST_STAGES, MOST_BLOCKS, MOST_CHANNELS, MOST_KERNEL, MOST_CLASSES = 16, 200, 2**16, 255, 10**6


def check_bounds(depths: Iterable[int], channels: Iterable[int], kernels: Iterable[int], num_classes: int) -> None:
    """Raise ModelConfigError, before anything is built, for sizes no network of this package can have.

    channels: every number of channels, inside blocks and between them. kernels: sizes of convs and patches.
    """
    depths = tuple(depths)
    if len(depths) > MOST_STAGES or sum(depths) > MOST_BLOCKS:
        raise ModelConfigError(
            f"A network has at most {MOST_STAGES} stages and {MOST_BLOCKS} blocks in all; {len(depths)} stages of {sum(depths):,} "
            "blocks were asked for."
        )
    for name, values, most in (
        ("channels", channels, MOST_CHANNELS),
        ("kernel and patch sizes", kernels, MOST_KERNEL),
        ("num_classes", (num_classes,), MOST_CLASSES),
    ):
        if (largest := max(values, default=0)) > most:
            raise ModelConfigError(f"{name} go up to {most:,} in this package; {largest:,} were asked for.")


class NetworkConfig:
    """Sizes of a network: the base of every family's frozen dataclass, which has these fields and its own.

    depths, dims: blocks and output channels of each stage. num_classes: 0 leaves the classifier out. kernel_size: of the blocks'
    spatial convs. layer_scale: whether blocks multiply what they compute by a parameter of each channel. ends_with: "stages" gives
    the output of every stage, "last_stage" that of the last one.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int
    in_channels: int
    kernel_size: int
    ends_with: EndsWith
    layer_scale: bool | None = False

    @property
    def total_stride(self) -> int:
        """Input pixels per position of the last stage; input sizes must be multiples of it."""
        raise NotImplementedError

    @property
    def input_fold(self) -> InputFold:
        """Where the input normalisation folds.

        "stem": all of it into the stem. "shift": std into the stem, the mean into a shift in front of it. "none": it does not.
        """
        return "none"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields."""
        return cast(Self, dataclasses.replace(cast(Any, self), **changes))

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name."""
        return dataclasses.asdict(cast(Any, self))

    def with_end(self, ends_with: EndsWith) -> Self:
        """Return the sizes of the same network without its classifier, ending as `ends_with` says."""
        return self.replace(num_classes=0, ends_with=ends_with)

    def with_norm_eps(self, every: float | None, head: float | None) -> Self:
        """Return the sizes with the epsilons that a checkpoint's JSON names: of every norm, and of the head's; None: not named."""
        return self

    def for_training(self) -> Self:
        """Return the sizes of the network as it is trained, nothing folded."""
        return self

    def without_batch_norms(self) -> Self:
        """Return the sizes of the network once its BatchNorms are folded."""
        return self

    def with_stem_stride(self, stride: int) -> Self | None:
        """Return the sizes with a stem that makes one position of `stride` pixels a side; None for a stem that has no choice."""
        return None


class NetworkBlock(nn.Module):
    """A block of a stage. operators: its convs and linears in the order data passes them, with their kind."""

    operators: ClassVar[dict[str, Operator]]
    drop_path: float = 0.0
    """Probability that an image skips the block while it is trained (stochastic depth); `train` sets it."""
    skip_generator: torch.Generator | None = None
    """What draws the images that skip the block; None is torch's own generator."""

    def dropped(self, branch: torch.Tensor) -> torch.Tensor:
        """Return what is added to the block's input: in training, nothing for some images and more for the others. (N, ...)"""
        if not self.training or not self.drop_path:
            return branch
        keep = 1 - self.drop_path
        shape = (len(branch), *[1] * (branch.dim() - 1))
        kept = torch.rand(shape, generator=self.skip_generator, device=branch.device) < keep
        return branch * (kept / keep).to(branch.dtype)

    @property
    def is_residual(self) -> bool:
        """Whether the output is the input plus what the block computes, and nothing after that."""
        return True


class Network(nn.Module):
    """From images (N, in_channels, H, W) to logits (N, num_classes), or to what `config.ends_with` says."""

    config: NetworkConfig
    downsample_layers: nn.ModuleList
    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    input_shift: torch.Tensor | None
    """What is added to each input channel first, (1, in_channels, 1, 1), so that a network with a padded stem takes raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_shift", None)

    @property
    def exact_folds(self) -> tuple[ExactFold, ...]:
        """The exact rewrites (`rewrite.exact`) that this network takes, in order."""
        return ()

    @property
    def inverted_bottlenecks(self) -> tuple[str, ...]:
        """Paths of the blocks with ConvNeXt's parts and attributes (`convnext.network.Block`), in order.

        Pruning, replacing LayerNorms, 2:4 sparsity and the Triton kernels know this form, and refuse networks of other blocks.
        """
        return ()

    def norms_in_front(self) -> Iterator[tuple[str, str]]:
        """Yield each norm whose scale and shift fold exactly into the layer behind it, and that layer, by their paths."""
        yield from ()

    def norms_behind(self) -> Iterator[tuple[str, str]]:
        """Yield each conv and linear that a BatchNorm follows, and that BatchNorm, by their paths."""
        yield from ()

    def blocks(self, stage: int) -> list[NetworkBlock]:
        """Return the blocks of one stage."""
        return cast(list[NetworkBlock], list(cast(nn.Sequential, self.stages[stage])))

    def forward_stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of each stage, (N, dims[s], H / 2**(s+2), W / 2**(s+2))."""
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(self.downsample_layers[index](x) if index else self.forward_stem(x))
            outputs.append(x)
        return outputs

    def forward_stem(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stem's output, (N, channels, H / 4, W / 4), for images (N, in_channels, H, W)."""
        x = x if self.input_shift is None else x + self.input_shift
        return cast(torch.Tensor, self.downsample_layers[0](x))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits for the last stage's output."""
        raise NotImplementedError

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output is called in artifacts and reports: "logits", "embedding", or "stage1" and so on."""
        stages = tuple(f"stage{number}" for number in range(1, len(self.stages) + 1))
        pooled = ("logits" if self.config.num_classes else "embedding",)
        return {"head": pooled, "last_stage": stages[-1:], "stages": stages}[self.config.ends_with]

    def outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return every output, in the order of `output_names`."""
        stages = self.forward_stages(x)
        if self.config.ends_with == "stages":
            return tuple(stages)
        return (stages[-1] if self.config.ends_with == "last_stage" else self.forward_head(stages[-1]),)

    def forward(self, x: torch.Tensor) -> Any:
        """Return the only output, or all of them as a tuple."""
        outputs = self.outputs(x)
        return outputs if len(outputs) > 1 else outputs[0]
