"""Label-free recovery: a changed network learns to answer as the original does, from images alone.

The student is compared with the teacher at every block's output and at the logits, on random crops and flips of unlabelled
images. What it learns is bounded by time or epochs; it is saved every minute and goes on where it was stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.decisions import two_logits
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.run.stage_record import json_sha256
from edgeconvnext.train.loop import LoopSettings, Trainer
from edgeconvnext.train.networks import weights_sha256
from edgeconvnext.train.optimizer import recovery_optimizers
from edgeconvnext.train.schedule import rate_factor
from edgeconvnext.train.world import World, own_device

WARM_UP = 0.05
LARGEST_SHIFT = 0.06
"""Random crops move by up to this share of the side."""
FAR = 0.14
"""Relative error of the logits (17 dB) from which on a student learns at the full rate."""
_RATE_POWER = 2 / 3
"""By which a student's rate falls with a lesser error (benchmarks/results/recovery_rates.csv)."""
_IMAGES_COMPARED = 64
_FEATURES_WEIGHT = 10.0
"""Of the units' errors beside the KL of the answers (benchmarks/results/recovery_losses.csv)."""


@dataclass(frozen=True)
class DistillOptions:
    """How long and how fast. epochs: passes over the images; budget_minutes: None, or what ends training earlier.

    Minutes are of this process's time on a CPU, all threads together, and of wall time on a GPU. learning_rate: of Muon for the
    blocks' matrices and, an eighth of it, of AdamW for the rest, where the student's logits are wrong by FAR or more. A student
    that is nearer to the teacher takes less, as the error to the power of two thirds: larger steps would only carry it away. The
    rate follows a cosine over whichever of the two ends first, behind a linear warm-up over the first 5 %.
    """

    epochs: int = 10
    budget_minutes: float | None = None
    batch_size: int = 32
    learning_rate: float = 4e-3
    temperature: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """A student in eval mode and what it took.

    minutes: as in DistillOptions. losses: mean loss of each epoch, the last one partial.
    """

    module: ConvNeXt
    steps: int
    images: int
    minutes: float
    losses: tuple[float, ...]


def distill(
    student: ConvNeXt,
    teacher: ConvNeXt,
    images: ImageSet,
    preprocess: Preprocess,
    options: DistillOptions,
    *,
    indices: Sequence[int] | None = None,
    checkpoint: Path | None = None,
) -> Distilled:
    """Train a copy of `student` towards `teacher` on images without labels, on the GPU where there is one.

    student: of the teacher's depths and dims. indices: the images to use; None: all of the set. checkpoint: a file that training
    is saved to and resumed from; resumed training is the same, step by step, as uninterrupted training (but for time budgets, and
    on a GPU for the order of sums).

    Raises RewriteError where there are fewer than two images, the loss is not finite any more, or a GPU's memory runs out.
    """
    chosen = list(range(len(images))) if indices is None else list(indices)
    batch_size = min(options.batch_size, len(chosen))
    if batch_size < 2:
        raise RewriteError(
            f"Recovery learns from images, and {len(chosen)} are too few; give at least 2, better thousands."
        )
    device = own_device()
    student = copy.deepcopy(student).to(device).requires_grad_(True)
    # The student is left out: fitted anew on another number of threads it may differ in the last bit.
    identity = json_sha256([weights_sha256(teacher), images.fingerprint, chosen, asdict(options)])
    teacher = teacher.eval() if device.type == "cpu" else copy.deepcopy(teacher).eval().to(device)
    units = units_of(teacher)
    some = batches(images, preprocess, indices=chosen[:_IMAGES_COMPARED], workers=0, description="Comparing")
    distance = _distance(student, teacher, torch.cat([batch.images for batch in some]).to(device))
    rate = options.learning_rate * min(1.0, distance / FAR) ** _RATE_POWER

    def loss(images: torch.Tensor, step: int, part: int) -> torch.Tensor:
        return _loss(student, teacher, units, images, options.temperature)

    settings = LoopSettings(
        name="Recovery",
        epochs=options.epochs,
        steps_per_epoch=len(chosen) // batch_size,
        rate_factor=lambda progress: rate_factor(progress, WARM_UP),
        budget_minutes=options.budget_minutes,
        clip_norm=1.0,
        error=RewriteError,
    )
    trainer = Trainer(
        module=student,
        optimizers=recovery_optimizers(student, rate),
        loss=loss,
        settings=settings,
        world=World(0, 1, device),
    )
    if checkpoint is not None and checkpoint.is_file():
        trainer.load(checkpoint, identity)
    stream = _augmented_steps(images, preprocess, batch_size, chosen, settings, options.seed, trainer.steps, device)
    try:
        trainer.run(stream, identity, checkpoint)
    except torch.cuda.OutOfMemoryError as error:
        raise RewriteError(
            "The GPU's memory ran out during recovery. Free some, or recover on the processor: CUDA_VISIBLE_DEVICES='' before the "
            "command."
        ) from error
    spent = trainer.spent_s / 60
    return Distilled(student.eval().cpu(), trainer.steps, trainer.steps * batch_size, spent, tuple(trainer.losses))


@torch.no_grad()
def _distance(student: ConvNeXt, teacher: ConvNeXt, images: torch.Tensor) -> float:
    """Return the relative error of the student's logits."""
    expected = teacher(images)
    return float((student.eval()(images) - expected).norm() / expected.norm())


def _loss(
    student: ConvNeXt, teacher: ConvNeXt, units: Sequence[Unit], images: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Weighted mean over units of the squared error of their outputs, plus KL of the softened answers.

    An error is relative to the variance of what the teacher's unit computes, which of a block is what it adds to its input: in
    most blocks of an Atto three to five hundredths of the output's variance, beside which their errors would count for little.
    """
    expected = given = images
    features: list[torch.Tensor] = []
    for unit in units:
        with torch.no_grad():
            before, expected = expected, unit.run(teacher, expected)
            computed = expected - before if unit.residual else expected
        given = unit.run(student, given)
        if unit.name != "head":
            features.append(F.mse_loss(given, expected) / computed.var().clamp(min=1e-12))
    given, expected = two_logits(given), two_logits(expected)
    answers = F.kl_div(
        (given / temperature).log_softmax(1),
        (expected / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return _FEATURES_WEIGHT * torch.stack(features).mean() + temperature**2 * answers


def _augmented_steps(
    images: ImageSet,
    preprocess: Preprocess,
    batch_size: int,
    chosen: Sequence[int],
    settings: LoopSettings,
    seed: int,
    first_step: int,
    device: torch.device,
) -> Iterator[list[torch.Tensor]]:
    """Yield the images of each step from number `first_step` on, (N, C, H, W), on `device`; an epoch's last few are left out."""
    step = first_step
    while step < settings.total_steps:
        epoch, begun = divmod(step, settings.steps_per_epoch)
        order = _order(chosen, seed, epoch)[begun * batch_size : settings.steps_per_epoch * batch_size]
        for batch in batches(images, preprocess, batch_size, order, description="Reading images"):
            if len(batch.images) > 1:  # a BatchNorm cannot learn from one
                yield [_augmented(batch.images.to(device).contiguous(), seed, step)]
            step += 1


def _order(indices: Sequence[int], seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]


def _augmented(images: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Flip and shift each image at random. images: (N, C, H, W); borders are reflected."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + 7919 * step + 1)
    height, width = images.shape[-2:]
    reach = [max(1, round(LARGEST_SHIFT * side)) for side in (height, width)]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
    shifted = []
    for image in padded:
        top, left = (int(torch.randint(2 * r + 1, (), generator=generator)) for r in reach)
        crop = image[:, top : top + height, left : left + width]
        shifted.append(crop.flip(-1) if bool(torch.rand((), generator=generator) < 0.5) else crop)
    return torch.stack(shifted)
