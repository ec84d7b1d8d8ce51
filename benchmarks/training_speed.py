"""Images a second that `edgeconvnext train` takes on this machine, decoding, augmentation and checkpoints included.

    python -m benchmarks.training_speed [--size 64] [--batch 128] [--minutes 1]    # on a quiet machine

A ConvNeXt-Atto with random weights and the recipe `small-data`. The first call of the training decodes the images, the second one,
which goes on from it, is timed. Nothing is written that stays.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.photographs import use_photographs
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.train.networks import new_model
from edgeconvnext.train.recipe import choose_recipe
from edgeconvnext.train.training import CHECKPOINT_FILE, TrainRequest, train_model

ARCHITECTURE, IMAGES, EPOCHS = "convnext_atto", 16_000, 1000
WARM_UP_MINUTES = 0.05


@dataclass(frozen=True)
class Speed:
    """Images that a training took in a time, in seconds."""

    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def training_speed(images: ImageSet, size: int, batch: int, minutes: float) -> Speed:
    """Train for `minutes` at `size` pixels with `batch` images a step, and return how many that were."""
    recipe = choose_recipe("small-data", {"sizes": (size,), "batch_size": batch, "rate_batch": batch, "epochs": EPOCHS})
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "training"
        begun = _steps(TrainRequest(images, None, recipe, output, pause_minutes=WARM_UP_MINUTES))
        started = time.monotonic()
        steps = _steps(TrainRequest(images, None, recipe, output, pause_minutes=minutes)) - begun
        return Speed(steps * batch, time.monotonic() - started)


def _steps(request: TrainRequest) -> int:
    """Train until the pause, and return the steps that the training has taken in all."""
    train_model(new_model(ARCHITECTURE, request.labels, request.recipe), request, lambda line: None)
    return int(torch.load(request.output / CHECKPOINT_FILE, weights_only=True)["steps"])


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tiny_imagenet", help="training images, a set or a folder")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long is timed")
    options = parser.parse_args()
    use_photographs()
    images = resolve_image_set(options.data).take(IMAGES)
    speed = training_speed(images, options.size, options.batch, options.minutes)
    threads = torch.get_num_threads()
    print(f"{options.size} px, batch {options.batch}, {threads} threads: {speed.images_per_second:.0f} images/s")


if __name__ == "__main__":
    main()
