"""What `train` and `fine-tune` do: from labelled images to a network of the toolkit's own format.

The folder holds `recipe.toml`, `log.csv`, `curves.svg`, `last.ckpt` and `model.safetensors` with its JSON; the same command goes
on where an interrupted one stopped. Under torchrun several processes train one network, and the first of them writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch.nn.parallel import DistributedDataParallel

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import TrainingError
from edgeconvnext.files import atomic_write
from edgeconvnext.memory import keep_freed_memory
from edgeconvnext.model.build import config_json
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.progress import without_bars
from edgeconvnext.received import reading
from edgeconvnext.run.lock import create_run_folder, folder_lock
from edgeconvnext.run.stage_record import json_sha256
from edgeconvnext.train.average import WeightAverage
from edgeconvnext.train.lanes import Lanes, lanes_for, threads
from edgeconvnext.train.log import Curve, EpochRow, curves_svg, log_csv
from edgeconvnext.train.loop import LoopSettings, Trainer
from edgeconvnext.train.mixing import mix
from edgeconvnext.train.networks import set_drop_path, weights_sha256
from edgeconvnext.train.optimizer import recipe_optimizer
from edgeconvnext.train.precision import precision_on
from edgeconvnext.train.recipe import Recipe, differences, read_recipe, recipe_toml
from edgeconvnext.train.schedule import recipe_factor
from edgeconvnext.train.small_images import SmallImages, delete_small_images, side_for, small_images
from edgeconvnext.train.stream import TrainingBatch, TrainingStream, check_trainable
from edgeconvnext.train.world import ALONE, World, joined_world

RECIPE_FILE, LOG_FILE, CURVES_FILE, CHECKPOINT_FILE = "recipe.toml", "log.csv", "curves.svg", "last.ckpt"
MODEL_FILE, IMAGES_FILE = "model.safetensors", "images.cache"
_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TrainRequest:
    """What is trained on what. evaluation: labelled images that are scored every `evaluate_every` epochs and at the end.

    pause_minutes: of wall time, after which training pauses; the same request goes on.
    """

    images: ImageSet
    evaluation: ImageSet | None
    recipe: Recipe
    output: Path
    evaluate_every: int = 1
    pause_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.evaluate_every < 1:
            raise TrainingError(f"--eval-every counts epochs, from 1 on; it is {self.evaluate_every}.")
        if self.pause_minutes is not None and not self.pause_minutes > 0:
            raise TrainingError(f"--budget-minutes is a time above 0; it is {self.pause_minutes:g}.")

    @property
    def labels(self) -> Labels:
        """The classes that are learnt, in the order of the outputs."""
        names = self.images.class_names
        return Labels(names, self.images.descriptions or names)


@dataclass(frozen=True)
class Trained:
    """model: what is in `path`: the average of the weights, or without one the weights. rows: the log. finished: else paused.

    leads: whether this is the process that writes and speaks.
    """

    model: LoadedModel
    path: Path
    rows: tuple[EpochRow, ...]
    finished: bool
    leads: bool


def train_model(model: LoadedModel, request: TrainRequest, say: Callable[[str], None] = print) -> Trained:
    """Train the network of `model`, in place, on labelled images; its labels are the set's classes.

    Raises TrainingError for images or recipes that do not fit together, and for a folder that holds another training.
    """
    with joined_world() as world:
        precision = precision_on(world.device, request.recipe.precision)
        request = replace(request, recipe=request.recipe.model_copy(update={"precision": precision}))
        keep_freed_memory()
        if world.leads:
            create_run_folder(request.output)
        world.wait()
        # The caller's random numbers stay what they would be without training.
        generators = torch.random.fork_rng([world.device] if world.device.type == "cuda" else [])
        with folder_lock(request.output) if world.leads else without_bars(), generators:
            return _train(model, request, world, say if world.leads else lambda line: None)


def _train(model: LoadedModel, request: TrainRequest, world: World, say: Callable[[str], None]) -> Trained:
    recipe, folder = request.recipe, request.output
    _check_folder(folder, recipe)
    check_trainable(request.images, recipe, world)
    model.preprocess.check_channels()
    classes = None if request.evaluation is None else _classes(request.evaluation, model)
    identity = _identity(model, request)
    stream = TrainingStream(_decoded(request, world), recipe, model.preprocess, world)
    cores = torch.get_num_threads()
    lanes = lanes_for(model.module, recipe.batch_size // recipe.accumulate, world)
    trainer = _trainer(model, recipe, request.pause_minutes, stream, world, lanes)
    if (folder / CHECKPOINT_FILE).is_file():
        trainer.load(folder / CHECKPOINT_FILE, identity)
        is_done = trainer.epoch >= recipe.epochs
        say(
            f"all {recipe.epochs} epochs were trained before"
            if is_done
            else f"going on at epoch {trainer.epoch + 1} of {recipe.epochs}"
        )
    if world.leads:
        atomic_write(folder / RECIPE_FILE, recipe_toml(recipe))
    with reading(folder / CHECKPOINT_FILE, TrainingError, "Delete it to start anew."):
        rows = TypeAdapter(list[EpochRow]).validate_python(trainer.notes.get("rows", []))
    result = replace(model, module=trainer.module if trainer.average is None else trainer.average.module)

    def end_epoch() -> None:
        with threads(cores):
            rows.append(_row(trainer, result, request, classes, world))
        trainer.notes["rows"] = [asdict(row) for row in rows]
        if world.leads:
            _write(result, rows, folder)
        say(_line(rows[-1], recipe))

    with threads(cores // lanes):
        finished = trainer.run(stream.from_step(trainer.steps), identity, folder / CHECKPOINT_FILE, end_epoch)
    if finished and world.leads:
        delete_small_images(folder / IMAGES_FILE)
    world.wait()
    result.module.eval().cpu()
    return Trained(result, folder / MODEL_FILE, tuple(rows), finished, world.leads)


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise TrainingError where the folder holds a training with another recipe."""
    if not (folder / RECIPE_FILE).is_file() or not (folder / CHECKPOINT_FILE).is_file():
        return
    changed = differences(read_recipe(folder / RECIPE_FILE), recipe)
    if changed:
        raise TrainingError(
            f"{folder} holds a training with another recipe ({', '.join(changed)}). Go on with its own, --preset "
            f"{folder / RECIPE_FILE}, or choose another folder with --output."
        )


def _classes(images: ImageSet, model: LoadedModel) -> np.ndarray:
    """Return the model's class of each evaluation image."""
    found = match_labels(images, model.labels, model.config.num_classes)
    return found[np.array(images.labels, dtype=np.int64)]


def _identity(model: LoadedModel, request: TrainRequest) -> str:
    """What a checkpoint belongs to: where training starts, what it learns from, and how."""
    recipe = request.recipe.model_dump()
    return json_sha256([config_json(model.config), weights_sha256(model.module), request.images.fingerprint, recipe])


def _decoded(request: TrainRequest, world: World) -> SmallImages:
    """Return the images at the size of training; the first process decodes them, the others find them decoded."""
    side, file = side_for(max(request.recipe.sizes)), request.output / IMAGES_FILE
    if world.leads:
        found = small_images(request.images, side, file)
    world.wait()
    return found if world.leads else small_images(request.images, side, file)


def _trainer(
    model: LoadedModel, recipe: Recipe, pause_minutes: float | None, stream: TrainingStream, world: World, lanes: int
) -> Trainer[TrainingBatch]:
    module = model.module.to(world.device)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_drop_path(module, recipe.drop_path)
    distributed = DistributedDataParallel(module) if world.size > 1 else None
    forward = distributed or (Lanes(module, lanes) if lanes > 1 else module)
    classes = model.config.num_classes

    def loss(part: TrainingBatch, step: int, number: int) -> torch.Tensor:
        place = [recipe.seed, step, number, world.rank]
        # Blocks are skipped by torch's own generator: it starts anew in each part, so that a resumed training draws the same.
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        images = to_input(part.pixels, model.preprocess, world.device)
        mixed = mix(images, part.labels.to(world.device), classes, recipe, np.random.default_rng(place))
        return F.cross_entropy(forward(_laid_out(mixed.images, recipe)).float(), mixed.weights)

    settings = LoopSettings(
        name="Training",
        epochs=recipe.epochs,
        steps_per_epoch=stream.steps_per_epoch,
        rate_factor=lambda progress: recipe_factor(recipe, progress),
        pause_minutes=pause_minutes,
        clip_norm=recipe.clip_norm,
        precision=precision_on(world.device, recipe.precision),
    )
    return Trainer(
        module=module,
        optimizers=[recipe_optimizer(module, recipe)],
        loss=loss,
        settings=settings,
        world=world,
        average=WeightAverage(module, recipe.ema_decay) if recipe.ema_decay else None,
        distributed=distributed,
    )


def to_input(pixels: torch.Tensor, preprocess: Preprocess, device: torch.device) -> torch.Tensor:
    """Return normalised values, float32 (N, C, H, W), channels last in memory, of uint8 pixels (N, H, W, C)."""
    mean, std = (torch.tensor(values, device=device) for values in (preprocess.mean, preprocess.std))
    return ((pixels.to(device, torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2)


def _laid_out(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)


def _row(
    trainer: Trainer[TrainingBatch], model: LoadedModel, request: TrainRequest, classes: np.ndarray | None, world: World
) -> EpochRow:
    """Return the log's line of the epoch that just ended, with the evaluation where it is due."""
    epoch, recipe = trainer.epoch, request.recipe
    row = EpochRow(
        epoch=epoch,
        steps=trainer.steps,
        size=recipe.size_of_epoch(epoch - 1),
        learning_rate=trainer.optimizers[0].param_groups[-1]["lr"],
        loss=trainer.losses[-1],
        minutes=trainer.spent_s / 60,
    )
    if request.evaluation is None or classes is None or (epoch % request.evaluate_every and epoch < recipe.epochs):
        return row
    right, images = count_right(model, request.evaluation, classes, world)
    return replace(row, right=right, images=images)


@torch.no_grad()
def count_right(model: LoadedModel, images: ImageSet, classes: np.ndarray, world: World = ALONE) -> tuple[int, int]:
    """Return how many images the network gets right, and how many were scored; the world's processes share the work.

    classes: the model's class of each image.
    """
    module = model.module.eval()
    right = scored = 0
    mine = list(range(len(images)))[world.rank :: world.size]
    for batch in batches(images, model.preprocess, _EVALUATION_BATCH, mine, description="Evaluating"):
        answers = module(batch.images.to(world.device)).argmax(1).cpu().numpy()
        right += int((answers == classes[batch.indices]).sum())
        scored += len(batch.indices)
    total = world.sums(right, scored)
    return int(total[0]), int(total[1])


def _write(model: LoadedModel, rows: list[EpochRow], folder: Path) -> None:
    save_checkpoint(model, folder / MODEL_FILE)
    atomic_write(folder / LOG_FILE, log_csv(rows))
    atomic_write(folder / CURVES_FILE, curves_svg(f"{model.name}: training", [Curve(model.name, rows)]))


def _line(row: EpochRow, recipe: Recipe) -> str:
    text = f"epoch {row.epoch} of {recipe.epochs}, {row.size} px: loss {row.loss:.3f}"
    if row.top1 is not None and row.interval is not None:
        text += f", top-1 {row.top1:.2f} % ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
    return f"{text}, {row.minutes:.1f} min"
