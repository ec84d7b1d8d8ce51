"""Make a ConvNeXt V2 Atto (with GRN) for the accuracy benchmark: a V1 Atto's weights, fine-tuned for a few epochs.

    python -m benchmarks.v2_atto [--weights convnext_atto_imagenette.pth] [--output FILE.safetensors] [--epochs 3]

Layer scale is folded into pwconv2, every block gets a Global Response Normalization with small random parameters, and
AdamW trains on Imagenette's training photographs at 128 pixels, one thread, about five minutes an epoch. Progress goes to
a .log beside the output, and an interrupted run continues after its last whole epoch.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.photographs import WEIGHTS, use_photographs
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.rewrite.exact import fold_layer_scale

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / ".cache" / "convnextv2_atto_imagenette.safetensors"


@dataclass(frozen=True)
class Recipe:
    """AdamW with a short warm-up and cosine decay, flips and random resized crops.

    grn_spread: standard deviation of GRN's first gamma and beta. grn_rate: GRN's learning rate over the others', which
    start from trained weights and need less.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 2e-4
    grn_rate: float = 10.0
    weight_decay: float = 0.05
    warm_up_steps: int = 50
    label_smoothing: float = 0.1
    grn_spread: float = 0.1
    smallest_crop: float = 0.5
    seed: int = 0


def make_v2(weights: Path, output: Path, recipe: Recipe) -> None:
    """Write the V2 checkpoint and its JSON to `output`, with the score of the validation photographs in the log."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    source = load_model(weights)
    module = to_v2(source.module, recipe.grn_spread).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fine_tune(module, source, output, recipe)
    model = dataclasses.replace(
        source, module=module.eval(), config=module.config, name=output.stem, layout="edgeconvnext"
    )
    save_checkpoint(model, output)
    _log(output, f"validation top-1 {validation_top1(model):.2f} %")
    _state_file(output).unlink(missing_ok=True)


def to_v2(module: ConvNeXt, grn_spread: float) -> ConvNeXt:
    """Return a V2 network with the weights of a V1 one, layer scale folded, and random GRN parameters."""
    folded = fold_layer_scale(module)
    network = ConvNeXt(dataclasses.replace(folded.config, version=2, layer_scale=False))
    network.load_state_dict(folded.state_dict(), strict=False)
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, Block) and block.grn is not None:
                block.grn.gamma.normal_(0, grn_spread)
                block.grn.beta.normal_(0, grn_spread)
    return network


def fine_tune(module: ConvNeXt, source: LoadedModel, output: Path, recipe: Recipe) -> None:
    """Train `module` in place, taking up a state that lies beside `output`."""
    images = resolve_image_set("imagenette")
    steps = math.ceil(len(images) / recipe.batch_size)
    optimizer = torch.optim.AdamW(_groups(module, recipe))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe, steps * recipe.epochs))
    state_file, first = _state_file(output), 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    module.train()
    for epoch in range(first, recipe.epochs):
        started, losses, right, seen = time.perf_counter(), [], 0, 0
        for step, (pixels, labels) in enumerate(training_batches(images, source.preprocess, recipe, epoch)):
            logits = module(pixels)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            right, seen = right + int((logits.argmax(1) == labels).sum()), seen + len(labels)
            if step % 20 == 19:
                _log(
                    output,
                    f"epoch {epoch + 1} step {step + 1}/{steps} loss {np.mean(losses[-20:]):.3f} "
                    f"train top-1 {100 * right / seen:.1f} % {time.perf_counter() - started:.0f} s",
                )
        torch.save(
            {
                "module": copy.deepcopy(module.state_dict()),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch + 1,
            },
            state_file,
        )


def training_batches(
    images: ImageSet, preprocess: Preprocess, recipe: Recipe, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield augmented batches in an order that depends on the epoch alone: (N, C, H, W) and (N,)."""
    rng = np.random.default_rng((recipe.seed, epoch))
    order = rng.permutation(len(images))
    assert images.labels is not None
    for start in range(0, len(order), recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        pixels = np.stack([_augmented(images.read(int(i)), preprocess, recipe, rng) for i in chosen])
        tensor = torch.from_numpy(preprocess.normalize(pixels)).permute(0, 3, 1, 2)
        yield tensor, torch.tensor([images.labels[int(i)] for i in chosen])


def _augmented(image: Image.Image, preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Cut a random rectangle (torchvision's RandomResizedCrop), resize it and mirror it at random; uint8 (H, W, C)."""
    image = image.convert("RGB")
    width, height = image.size
    area = width * height * rng.uniform(recipe.smallest_crop, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    size = preprocess.input_size[::-1]
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


@torch.no_grad()
def validation_top1(model: LoadedModel) -> float:
    """Return top-1 on imagenette_val, per cent."""
    images = resolve_image_set("imagenette_val")
    assert images.labels is not None
    right = 0
    for batch in batches(images, model.preprocess, workers=0, description="Validating"):
        labels = torch.tensor([images.labels[index] for index in batch.indices])
        right += int((model.module(batch.images).argmax(1) == labels).sum())
    return 100 * right / len(images)


def _groups(module: ConvNeXt, recipe: Recipe) -> list[dict[str, object]]:
    """Group parameters: GRN's faster, and no weight decay for vectors."""
    named = list(module.named_parameters())
    grn = [p for name, p in named if ".grn." in name]
    matrices = [p for name, p in named if ".grn." not in name and p.dim() > 1]
    vectors = [p for name, p in named if ".grn." not in name and p.dim() == 1]
    rate = recipe.learning_rate
    return [
        {"params": matrices, "lr": rate, "weight_decay": recipe.weight_decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
        {"params": grn, "lr": rate * recipe.grn_rate, "weight_decay": 0.0},
    ]


def _rate(step: int, recipe: Recipe, total: int) -> float:
    if step < recipe.warm_up_steps:
        return (step + 1) / recipe.warm_up_steps
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up_steps) / max(1, total - recipe.warm_up_steps)))


def _state_file(output: Path) -> Path:
    return output.with_suffix(".state.pt")


def _log(output: Path, line: str) -> None:
    with output.with_suffix(".log").open("a") as file:
        file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    options = parser.parse_args()
    use_photographs()
    make_v2(options.weights, options.output, Recipe(epochs=options.epochs))


if __name__ == "__main__":
    main()
