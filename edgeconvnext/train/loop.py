"""The one training loop: steps, learning rates, checkpoints, exact resume. What is learnt, and from what, is the caller's.

All randomness of a step is drawn from its number, so nothing but what `Trainer.save` writes is needed to go on exactly.
"""

from __future__ import annotations

import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

from edgeconvnext.errors import EdgeConvNextError, TrainingError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import atomic_write
from edgeconvnext.model.network import Network
from edgeconvnext.model.torch_file import TorchFile
from edgeconvnext.progress import progress_bar
from edgeconvnext.train.average import WeightAverage
from edgeconvnext.train.depthwise import fast_weight_gradients
from edgeconvnext.train.recipe import Precision
from edgeconvnext.train.world import World

Part = TypeVar("Part")
SAVE_EVERY_S = 60.0
# What load_state_dict raises for something else depends on what it happens to be.
_NO_CHECKPOINT = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class LoopSettings:
    """How long, how fast, and how it is called.

    rate_factor: of each group's rate, from the share of training that is done.
    budget_minutes: ends training earlier, and the learning rate falls towards that end. Of this process's time on a CPU, all
    threads together (decoding has processes of its own), and of wall time on a GPU. pause_minutes: of wall time, after which this
    call pauses and a later one goes on.
    clip_norm: 0 does not clip. error: raised when the loss is not finite any more, and for a checkpoint of something else.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    rate_factor: Callable[[float], float]
    budget_minutes: float | None = None
    pause_minutes: float | None = None
    clip_norm: float = 0.0
    precision: Precision = "fp32"
    error: type[EdgeConvNextError] = TrainingError

    @property
    def total_steps(self) -> int:
        return max(1, self.epochs * self.steps_per_epoch)


@dataclass
class Trainer(Generic[Part]):
    """A network in training, and where training is.

    optimizers: of different parameters, all of which take every step; each group's rate is under "rate".
    loss: of one part of a step, from the part, the step's number and the part's. It computes with `module` or with `distributed`,
    which is the same network averaging its gradients over the world's processes.
    losses: mean loss of each epoch. notes: values of the caller's that travel with the checkpoint.
    """

    module: Network
    optimizers: Sequence[torch.optim.Optimizer]
    loss: Callable[[Part, int, int], torch.Tensor]
    settings: LoopSettings
    world: World
    average: WeightAverage | None = None
    distributed: DistributedDataParallel | None = None
    steps: int = 0
    spent_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _epoch_loss: float = 0.0

    def __post_init__(self) -> None:
        self._scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.settings.precision == "fp16")
        self._clock = self._now()
        self._saved = time.monotonic()

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.steps // self.settings.steps_per_epoch

    @property
    def progress(self) -> float:
        """How much of training is done, 0..1, by steps or by time, whichever is further."""
        share, budget = self.steps / self.settings.total_steps, self.settings.budget_minutes
        return min(1.0, share if budget is None else max(share, self.spent_s / (60 * budget)))

    def run(
        self,
        stream: Iterator[Sequence[Part]],
        identity: str,
        checkpoint: Path | None = None,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train until the end, or until the time to pause, and say whether the end was reached.

        stream: the parts of each step from number `steps` on. identity: what the checkpoint belongs to. on_epoch: called behind
        each epoch. Ctrl-C, SIGTERM and SIGHUP end the step that is being computed, save, and raise KeyboardInterrupt.
        """
        started = time.monotonic()
        self._clock = self._now()
        self.module.train()
        with stop_signal() as stopped, progress_bar(self.settings.name, 1000) as advance:
            shown = 0
            while self.progress < 1:
                if (parts := next(stream, None)) is None:
                    break
                self.step(parts)
                advance(int(1000 * self.progress) - shown)
                shown = int(1000 * self.progress)
                if self.steps % self.settings.steps_per_epoch == 0:
                    self._end_epoch(self.settings.steps_per_epoch)
                    on_epoch()
                    self.module.train()
                    self._clock = self._now()
                    self.save(checkpoint, identity)
                pause = self.settings.pause_minutes
                late = pause is not None and time.monotonic() - started > 60 * pause
                # All processes must stop at the same step, or the others would wait for the one that did.
                asked, timely = self.world.sums(float(stopped.is_set()), float(late and self.world.leads))
                if asked or (timely and self.progress < 1):
                    self.save(checkpoint, identity)
                    if asked:
                        raise KeyboardInterrupt
                    return False
                if time.monotonic() - self._saved > SAVE_EVERY_S:
                    self.save(checkpoint, identity)
        self.save(checkpoint, identity)
        # Where a budget ended it inside an epoch, the checkpoint holds the sum of the losses, and not yet their mean.
        if begun := self.steps % self.settings.steps_per_epoch:
            self._end_epoch(begun)
        return True

    def step(self, parts: Sequence[Part]) -> None:
        """Take one step of the optimiser; its loss is the mean over `parts`."""
        factor = self.settings.rate_factor(self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with _gradients_kept(self.distributed, kept=not last):
                with self._autocast(), self._kernels():
                    loss = self.loss(part, self.steps, number) / len(parts)
                self._scaler.scale(loss).backward()
            total += float(loss.detach())
        (total,) = self.world.sums(total / self.world.size)
        if not abs(total) < float("inf"):
            raise self.settings.error(
                f"{self.settings.name} diverged: the loss is not finite any more after {self.steps} steps. Use a smaller learning "
                "rate."
            )
        if self.settings.clip_norm:
            for optimizer in self.optimizers:
                self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        for optimizer in self.optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        self.steps += 1
        if self.average is not None:
            self.average.update(self.module, self.steps)
        self._epoch_loss += total
        now = self._now()
        self.spent_s += now - self._clock
        self._clock = now

    def save(self, path: Path | None, identity: str) -> None:
        """Write everything that going on needs, whole or not at all."""
        self._saved = time.monotonic()
        if path is None or not self.world.leads:
            return
        buffer = io.BytesIO()
        state = {
            "identity": identity,
            "module": self.module.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self._scaler.state_dict(),
            "steps": self.steps,
            "spent_s": self.spent_s,
            "losses": self.losses,
            "epoch_loss": self._epoch_loss,
            "notes": self.notes,
        }
        torch.save(state, buffer)
        atomic_write(path, buffer.getvalue())

    def load(self, path: Path, identity: str) -> None:
        """Go on from a checkpoint; raises the settings' error for one of something else."""
        try:
            with TorchFile(path, self.settings.error) as file:
                state = _checked(file.everything(), identity)
            self.module.load_state_dict(state["module"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                _check_optimizer(optimizer, kept)
                optimizer.load_state_dict(kept)
            if state["scaler"].keys() != self._scaler.state_dict().keys() or not _are_finite(state["scaler"].values()):
                raise ValueError("the gradients' scale is none")
            self._scaler.load_state_dict(state["scaler"])
        except _NO_CHECKPOINT as error:
            name, why = self.settings.name.lower(), error if isinstance(error, _ForeignCheckpointError) else ""
            raise self.settings.error(
                f"{for_terminal(path)} is no checkpoint of this {name}{why}; delete it to start anew."
            ) from error
        except EdgeConvNextError as error:
            raise self.settings.error(
                f"{for_terminal(path)} is no checkpoint of this {self.settings.name.lower()}; delete it to start anew. {error}"
            ) from error
        self.steps, self.spent_s, self._epoch_loss = state["steps"], state["spent_s"], state["epoch_loss"]
        self.losses, self.notes = list(state["losses"]), dict(state["notes"])

    def _end_epoch(self, steps: int) -> None:
        self.losses.append(self._epoch_loss / steps)
        self._epoch_loss = 0.0

    def _autocast(self) -> torch.autocast:
        kind = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.world.device.type, dtype=kind, enabled=self.settings.precision != "fp32")

    def _kernels(self) -> AbstractContextManager[None]:
        return fast_weight_gradients(self.module) if self.world.device.type == "cpu" else nullcontext()

    def _now(self) -> float:
        return time.process_time() if self.world.device.type == "cpu" else time.monotonic()


class _ForeignCheckpointError(ValueError):
    """The message is the end of a sentence."""


def _checked(state: dict[str, Any], identity: str) -> dict[str, Any]:
    """Return what `Trainer.save` wrote; raises ValueError or TypeError where training could not go on from it."""
    if state["identity"] != identity:
        raise _ForeignCheckpointError(", but of one of another network, other images or other options")
    steps, losses = state["steps"], state["losses"]
    if not isinstance(steps, int) or steps < 0 or not isinstance(losses, list) or not isinstance(state["notes"], dict):
        raise TypeError("steps, losses or notes are of another type")
    if not _are_finite((*losses, state["epoch_loss"], state["spent_s"])) or state["spent_s"] < 0:
        raise ValueError("a loss or the time spent is no finite number")
    return state


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, float | int) and math.isfinite(value) for value in values)


def _check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError unless `state` is of the same parameters and settings: load_state_dict takes any, and a step then fails."""
    groups = optimizer.state_dict()["param_groups"]
    if [_settings(group) for group in groups] != [_settings(group) for group in state["param_groups"]]:
        raise ValueError("the optimizer has other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        for value in values.values():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise ValueError("a moment has another shape than its weight")


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "lr"}


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set in place of ending the process; the second one ends it."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stopped
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    # A shell starts background jobs with Ctrl-C ignored, and so it stays.
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP, a closed terminal's
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _gradients_kept(distributed: DistributedDataParallel | None, *, kept: bool) -> Iterator[None]:
    """Keep the gradients of this process by itself until the last part of a step."""
    if distributed is None or not kept:
        yield
        return
    with distributed.no_sync():
        yield
