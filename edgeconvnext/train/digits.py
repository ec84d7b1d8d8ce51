"""Train the embedded default: a small ConvNeXt that reads handwritten digits.

    python -m edgeconvnext.train.digits --output edgeconvnext/model/weights/digits.safetensors

writes the weights, a JSON with preprocessing and labels, and a card with the measured test accuracy. Widths, epochs
and distortions were compared on the fifth of the training images that `--hold-out` leaves out, the other settings were
never varied; the test split is read once, at the end.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgeconvnext.data.digits import CLASS_NAMES, digits_set
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.evaluation.intervals import wilson
from edgeconvnext.files import atomic_write
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters

CONFIG = ConvNeXtConfig(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=10)
# Mean and standard deviation of the training images at 32x32, rounded.
PREPROCESS = Preprocess(input_size=(32, 32), crop_pct=1.0, mean=(0.31,) * 3, std=(0.35,) * 3)


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and cosine decay, an average of the weights, and small random affine distortions.

    rotation: degrees; shift: share of the image's side; scale: largest relative change of size. All are half ranges.
    layer_scale: initial gamma. The paper's 1e-6 suits 18 blocks and 300 epochs; five blocks start faster at 0.1.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warm_up_epochs: int = 5
    label_smoothing: float = 0.1
    ema_decay: float = 0.995
    layer_scale: float = 0.1
    rotation: float = 15.0
    shift: float = 0.06
    scale: float = 0.15
    seed: int = 0


def train(images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> ConvNeXt:
    """Return the averaged network in eval mode. images: 0..1, (N, 3, 32, 32); labels: (N,)."""
    torch.manual_seed(recipe.seed)
    module = ConvNeXt(CONFIG)
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, recipe.layer_scale)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    decayed = [p for p in module.parameters() if p.dim() > 1]
    exempt = [p for p in module.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": exempt, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    steps_per_epoch = math.ceil(len(images) / recipe.batch_size)
    warm_up, total = recipe.warm_up_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, warm_up, total))
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(images)).split(recipe.batch_size):
            logits = module(_normalize(distort(images[chosen], recipe)))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(module)
    return cast(ConvNeXt, average.module.eval())


def distort(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Rotate, scale and shift each image at random; what enters at the border is black. images: 0..1, (N, C, H, W)."""
    n = len(images)

    def uniform(half_range: float) -> torch.Tensor:
        return (torch.rand(n) * 2 - 1) * half_range

    angle, zoom = uniform(math.radians(recipe.rotation)), 1 + uniform(recipe.scale)
    # The grid runs over -1..1, so a shift by a share of the side is twice that share.
    x, y = uniform(2 * recipe.shift), uniform(2 * recipe.shift)
    rows = [[zoom * angle.cos(), -zoom * angle.sin(), x], [zoom * angle.sin(), zoom * angle.cos(), y]]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _learning_rate(step: int, warm_up: int, total: int) -> float:
    """Return the factor of the learning rate at `step`."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def _normalize(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    return (images - mean) / std


def load_pixels(image_set: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a set at 32x32 with values 0..1, (N, 3, 32, 32), and their labels, (N,)."""
    pixels = np.stack([PREPROCESS.pixels(image_set.read(index)) for index in range(len(image_set))])
    assert image_set.labels is not None
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(image_set.labels)


@torch.no_grad()
def hits(module: ConvNeXt, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Return how many images get their own class as top-1."""
    return int((module(_normalize(images)).argmax(dim=1) == labels).sum())


def main() -> None:
    """Train on the training split and write weights, JSON and card; or try a recipe without touching the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("digits.safetensors"), help="weights file to write")
    parser.add_argument(
        "--hold-out", action="store_true", help="only print the accuracy on a fifth of the training images"
    )
    arguments = parser.parse_args()
    # Sums over several threads depend on their number; one thread gives the same weights on every run.
    torch.set_num_threads(1)
    recipe = Recipe()
    images, labels = load_pixels(digits_set("train"))
    if arguments.hold_out:
        held_out = torch.arange(len(images)) % 5 == 4
        module = train(images[~held_out], labels[~held_out], recipe)
        right = hits(module, images[held_out], labels[held_out])
        print(f"{right} of {int(held_out.sum())} held-out training images right")
        return
    started = time.perf_counter()
    module = train(images, labels, recipe)
    minutes = (time.perf_counter() - started) / 60
    test_images, test_labels = load_pixels(digits_set("test"))
    right = hits(module, test_images, test_labels)
    write(module, arguments.output, recipe, right, len(test_images), minutes)
    print(f"{arguments.output}: {right} of {len(test_images)} test images right, trained in {minutes:.1f} minutes")


def write(module: ConvNeXt, path: Path, recipe: Recipe, right: int, tested: int, minutes: float) -> None:
    """Write the weights, the JSON of the same stem and the card."""
    labels = Labels(names=CLASS_NAMES, descriptions=CLASS_NAMES)
    model = LoadedModel(module, CONFIG, PREPROCESS, labels, path.stem, "edgeconvnext", str(path), sha256="")
    save_checkpoint(model, path)
    atomic_write(path.with_suffix(".md"), card(path, recipe, right, tested, minutes))


def card(path: Path, recipe: Recipe, right: int, tested: int, minutes: float) -> str:
    """Return the model card: what the network is, its data, its recipe and its test accuracy."""
    low, high = wilson(right, tested)
    interval = f"{100 * low:.2f} to {100 * high:.2f} %"
    macs = f"{count_macs(CONFIG, PREPROCESS.input_size) / 1e6:.2f} M"
    trained = len(digits_set("train"))
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(recipe).items())
    return f"""# {path.stem}

A ConvNeXt V1 (depths {CONFIG.depths}, dims {CONFIG.dims}) for 32x32 images in three channels:
{count_parameters(CONFIG):,} parameters, {macs} multiply-adds. It reads handwritten digits, and exists so that every
command of this toolkit has a real network and real images to run on without a download. It is no general digit reader.

FP32 top-1 on the held-out test split: **{100 * right / tested:.2f} %**
({right} of {tested} images; 95 % Wilson interval {interval}).

## Data

1,797 images of 8x8 pixels (UCI Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, CC BY 4.0),
resized to 32x32. `edgeconvnext/data/digits.py` splits them:
{trained:,} for training, {tested} for test. Widths, epochs and the strength of the distortions were compared
on a fifth of the training images, which `--hold-out` leaves out of training; the other settings were never varied. The
test images were scored once, with the finished network.

## Recipe

    python -m edgeconvnext.train.digits --output {path.name}

{minutes:.1f} minutes on one CPU thread, torch {torch.__version__}. The same machine and versions give the same weights.

| setting | value |
|---|---|
{settings}
"""


if __name__ == "__main__":
    main()
