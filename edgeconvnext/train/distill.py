"""Label-free recovery: a changed network learns to answer as the original does, from images alone.

The student is compared with the teacher at every block's output and at the logits, on random crops and flips of unlabelled
images. What it learns is bounded by time or epochs; it is saved every minute and goes on where it was stopped.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import RewriteError
from edgeconvnext.files import atomic_write
from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.model.units import units_of
from edgeconvnext.progress import progress_bar
from edgeconvnext.records import json_sha256
from edgeconvnext.rewrite.channel_norm import set_share

SAVE_EVERY_S = 60.0
LARGEST_SHIFT = 0.06
"""Random crops move by up to this share of the side."""


@dataclass(frozen=True)
class DistillOptions:
    """How long and how fast. epochs: passes over the images; budget_minutes: None, or what ends training earlier.

    Minutes are of processor time on a CPU, all threads together, and of wall time on a GPU. The learning rate follows a cosine
    over whichever of the two ends first, behind a linear warm-up over the first 5 %.
    anneal_share: the part of training in which ChannelNorms go from LayerNorm to BatchNorm.
    """

    epochs: int = 10
    budget_minutes: float | None = None
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    temperature: float = 2.0
    anneal_share: float = 0.3
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
    """Train a copy of `student` towards `teacher` on images without labels.

    student: of the teacher's depths and dims. indices: the images to use; None: all of the set. checkpoint: a file that training
    is saved to and resumed from; resumed training is the same, step by step, as uninterrupted training (but for time budgets).

    Raises RewriteError where there are fewer images than a batch, or the loss is not finite any more.
    """
    chosen = list(range(len(images))) if indices is None else list(indices)
    batch_size = min(options.batch_size, len(chosen))
    if batch_size < 2:
        raise RewriteError(
            f"Recovery learns from images, and {len(chosen)} are too few; give at least 2, better thousands."
        )
    run = _Run(copy.deepcopy(student), teacher, options, steps_per_epoch=len(chosen) // batch_size)
    # The student is left out: fitted anew on another number of threads it may differ in the last bit.
    identity = json_sha256([_weights_sha256(teacher), images.fingerprint, chosen, asdict(options)])
    if checkpoint is not None and checkpoint.is_file():
        run.load(checkpoint, identity)
    with progress_bar("Recovering", 1000) as advance:
        shown = 0
        while run.progress < 1:
            order = _order(chosen, options.seed, run.epoch)[run.step_in_epoch * batch_size :]
            stream = batches(images, preprocess, batch_size, order, description="Reading images")
            for batch in stream:
                if len(batch.images) < 2 or run.step_in_epoch >= run.steps_per_epoch:
                    break
                run.step(_augmented(batch.images.contiguous(), options.seed, run.steps))
                advance(int(1000 * min(1, run.progress)) - shown)
                shown = int(1000 * min(1, run.progress))
                if checkpoint is not None and run.due():
                    run.save(checkpoint, identity)
                if run.progress >= 1:
                    break
            run.end_epoch()
    if checkpoint is not None:
        run.save(checkpoint, identity)
    set_share(run.student, 1.0)
    return Distilled(run.student.eval(), run.steps, run.steps * batch_size, run.spent_s / 60, tuple(run.losses))


class _Run:
    """Where training is; everything that a resumed one needs is in `save`'s file."""

    def __init__(self, student: ConvNeXt, teacher: ConvNeXt, options: DistillOptions, steps_per_epoch: int) -> None:
        self.student = student.train()
        for parameter in self.student.parameters():
            parameter.requires_grad_(True)
        self.teacher = teacher.eval()
        self.options = options
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = max(1, options.epochs * steps_per_epoch)
        self.on_gpu = next(student.parameters()).is_cuda
        decayed = [p for p in self.student.parameters() if p.dim() > 1]
        others = [p for p in self.student.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=options.learning_rate,
        )
        self.units = units_of(teacher)
        self.steps = 0
        self.epoch = 0
        self.step_in_epoch = 0
        self.spent_s = 0.0
        self.losses: list[float] = []
        self._epoch_loss = 0.0
        self._clock = self._now()
        self._saved = time.monotonic()

    @property
    def progress(self) -> float:
        """How much of training is done, 0..1, by steps or by time, whichever is further."""
        share = self.steps / self.total_steps
        budget = self.options.budget_minutes
        return share if budget is None else max(share, self.spent_s / (60 * budget))

    def step(self, images: torch.Tensor) -> None:
        progress = self.progress
        set_share(self.student, min(1.0, progress / max(self.options.anneal_share, 1e-9)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * _schedule(progress)
        loss = self._loss(images)
        if not bool(loss.isfinite()):
            raise RewriteError(
                f"Recovery diverged: the loss is not finite any more after {self.steps} steps. Use a smaller learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        self.step_in_epoch += 1
        self._epoch_loss += float(loss.detach())
        now = self._now()
        self.spent_s += now - self._clock
        self._clock = now

    def _loss(self, images: torch.Tensor) -> torch.Tensor:
        """Mean over units of the squared error relative to the teacher's variance, plus KL of the softened answers."""
        expected = given = images
        features: list[torch.Tensor] = []
        for unit in self.units:
            with torch.no_grad():
                expected = unit.run(self.teacher, expected)
            given = unit.run(self.student, given)
            if unit.name != "head":
                features.append(F.mse_loss(given, expected) / expected.var().clamp(min=1e-12))
        temperature = self.options.temperature
        answers = F.kl_div(
            (given / temperature).log_softmax(1),
            (expected / temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return torch.stack(features).mean() + temperature**2 * answers

    def end_epoch(self) -> None:
        self.losses.append(self._epoch_loss / max(1, self.step_in_epoch))
        self.epoch += 1
        self.step_in_epoch = 0
        self._epoch_loss = 0.0

    def due(self) -> bool:
        return time.monotonic() - self._saved > SAVE_EVERY_S

    def save(self, path: Path, identity: str) -> None:
        buffer = io.BytesIO()
        state = {
            "identity": identity,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": [self.steps, self.epoch, self.step_in_epoch],
            "spent_s": self.spent_s,
            "losses": self.losses,
            "epoch_loss": self._epoch_loss,
        }
        torch.save(state, buffer)
        atomic_write(path, buffer.getvalue())
        self._saved = time.monotonic()

    def load(self, path: Path, identity: str) -> None:
        try:
            state = torch.load(path, weights_only=True)
            if state["identity"] != identity:
                raise ValueError("made from another network, other images or other options")
            self.student.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError, EOFError) as error:
            raise RewriteError(f"{path} is no checkpoint of this recovery; delete it to start anew.") from error
        self.steps, self.epoch, self.step_in_epoch = state["counts"]
        self.spent_s, self.losses, self._epoch_loss = state["spent_s"], list(state["losses"]), state["epoch_loss"]

    def _now(self) -> float:
        return time.monotonic() if self.on_gpu else time.process_time()


def _weights_sha256(module: ConvNeXt) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _schedule(progress: float) -> float:
    """Linear warm-up over the first 5 %, then a cosine to zero."""
    warm_up = 0.05
    if progress < warm_up:
        return max(progress / warm_up, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


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
