"""The commands, the moments at which they are disturbed, and how a signal meets that moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

SIGNALS = ("KILL", "TERM", "INT", "HUP")
_DIGITS = ("--calib", "digits", "--num-images", "30")
_PRUNED = ("--prune-macs", "0.7", "--recover", "--epochs", "2")


@dataclass(frozen=True)
class Command:
    """name: of the table. arguments: of edgeconvnext. output: what it writes, relative to its folder.

    stages: whether it writes a run directory, whose stages are the moments; else `moments` names them.
    disks_kib: sizes of file systems that are too small for it. locks: whether it holds its folder for itself.
    saves_itself: whether a signal makes it save and end with 130, as training does.
    """

    name: str
    arguments: tuple[str, ...]
    output: str
    stages: bool = False
    moments: tuple[str, ...] = ()
    saves_itself: bool = False
    disks_kib: tuple[int, ...] = ()
    locks: bool = False


COMMANDS = (
    Command(
        "export",
        ("export", "--target", "onnx", "--model", "digits", *_DIGITS, "--eval", "digits_test", "--effort", "quick",
         "--no-latency", "--output", "run"),
        "run",
        stages=True,
        disks_kib=(64, 400, 700, 1000),
        locks=True,
    ),
    Command(
        "export, pruned and recovered",
        ("export", "--target", "onnx", "--model", "digits", *_DIGITS, *_PRUNED, "--eval", "digits_test", "--effort",
         "quick", "--no-latency", "--output", "run"),
        "run",
        moments=("step 1 of recovery", "saving recovery's checkpoint"),
        saves_itself=True,
    ),
    Command(
        "train",
        ("train", "digits", "--data", "digits", "--eval", "digits_test", "--preset", "small-data", "--sizes", "32",
         "--epochs", "2", "--warm-up-epochs", "0", "--batch-size", "200", "--output", "training"),
        "training",
        moments=("step 1", "step 3", "saving a checkpoint", "writing the model"),
        disks_kib=(64, 300),
        saves_itself=True,
    ),
    Command(
        "search",
        ("search", "digits", "--calib", "digits", "--num-images", "12", "--budget-minutes", "0", "--output", "search"),
        "search",
        moments=("measuring", "writing target.toml"),
    ),
)  # fmt: skip


def moments_of(command: Command, undisturbed: Path) -> list[str]:
    """Return the moments of a command; of a run: while each stage is made, and while its files are moved to their place."""
    if not command.stages:
        return list(command.moments)
    folder = undisturbed / command.output / "stages"
    order = json.loads((undisturbed / command.output / "manifest.json").read_text())["stages"]
    names = [stage["stage"] for stage in order if (folder / f"{stage['stage']}.json").exists()]
    return [*(f"{what} {name}" for name in names for what in ("making", "moving")), "writing the manifest"]


def send_at(command: Command, moment: str, number: int) -> None:
    """Arrange that this process gets signal `number` at a moment."""
    at_moment(command, moment, lambda: os.kill(os.getpid(), number))


def at_moment(command: Command, moment: str, act: Callable[[], None]) -> None:
    """Call `act` at a moment, in the function that is running then."""
    from edgeconvnext.run import directory as runs
    from edgeconvnext.run import manifest, stage_files
    from edgeconvnext.train import loop
    from edgeconvnext.tuning import placement_trials

    what, _, name = moment.partition(" ")
    if what == "making":
        _around_make(runs.RunDirectory, name, act)
    elif what == "moving":
        # Between the note of what is moved and the record: a part of the files is in its place.
        _after(stage_files, "_move", act, lambda arguments: arguments[0].name.startswith(f".tmp-{name}-"))
    elif moment == "writing the manifest":
        _before(runs, "write_manifest", act)
        _before(manifest, "write_manifest", act)
    elif what == "step":
        wanted = int(name.split()[0])
        _before(loop.Trainer, "step", act, lambda arguments: arguments[0].steps == wanted)
    elif moment in ("saving recovery's checkpoint", "saving a checkpoint"):
        _before(loop, "atomic_write", act)
    elif moment == "measuring":
        _before(placement_trials.Trials, "measure", act)
    elif moment == "writing the model":
        from edgeconvnext.train import training

        _before(training, "save_checkpoint", act)
    elif moment == "writing target.toml":
        from edgeconvnext import api

        _before(api, "atomic_write", act)
    else:
        raise ValueError(f"{command.name} has no moment {moment!r}")


Test = Callable[[Sequence[Any]], bool]


def _before(owner: Any, name: str, act: Callable[[], None], wanted: Test = lambda arguments: True) -> None:
    _patch(owner, name, wanted, before=act)


def _after(owner: Any, name: str, act: Callable[[], None], wanted: Test) -> None:
    _patch(owner, name, wanted, after=act)


def _patch(
    owner: Any,
    name: str,
    wanted: Test,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def patched(*arguments: Any, **named: Any) -> Any:
        meets = wanted(arguments)
        if meets:
            before()
        result = original(*arguments, **named)
        if meets:
            after()
        return result

    setattr(owner, name, patched)


def _around_make(owner: Any, stage: str, act: Callable[[], None]) -> None:
    """Act when a stage has written its files and they are not yet in their place."""
    original = owner._commit

    @wraps(original)
    def commit(self: Any, record: Any, *arguments: Any, **named: Any) -> Any:
        if record.stage == stage:
            act()
        return original(self, record, *arguments, **named)

    owner._commit = commit
