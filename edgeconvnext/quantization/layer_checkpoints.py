"""Layers that were quantised so far, kept beside the run while others still are: an interrupted reconstruction goes on there.

    <folder>/<identity>/index.json                 the steps that are whole, in order, with the sha256 of their files, and a code
    <folder>/<identity>/0003.plan.safetensors      one step: the plan, codes and biases of its layers
    <folder>/<identity>/0003.statistics.safetensors

The index is written last, so that a step is there whole or not at all. Its code is made with this user's key: what somebody else
left in a folder is not gone on from. All files together are as large as the plan and its statistics.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import atomic_write, tree_sha256
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.plan_storage import restore_plan, save_plan
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.received import read_json
from edgeconvnext.run.provenance import code_of, is_code_of
from edgeconvnext.run.stage_record import file_sha256, json_sha256, json_text

INDEX = "index.json"


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    files: dict[str, str]


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: list[_Step]
    code: str | None = None

    def content(self, identity: str) -> bytes:
        return json_sha256({"identity": identity, "steps": [step.model_dump() for step in self.steps]}).encode()


class LayerCheckpoints:
    """The finished steps of one reconstruction, by name ("stages.0.0.dwconv"), in the order they are taken.

    identity: hash of all that the result depends on; steps of another one are never read. key: this user's; None reads none.
    """

    def __init__(self, folder: Path, identity: str, key: bytes | None) -> None:
        self.folder = folder / identity
        self._identity = identity
        self._key = key
        self._index = self._read()
        self._taken = 0
        self._remove_strangers()

    def restore(self, name: str, module: Network, *, scalings: bool = True) -> tuple[QuantPlan, Statistics] | None:
        """Put the next step, if it is the one of this name, into `module`; return its plan and statistics, or None.

        scalings: whether those in front of the step's layers are placed as well; they are already there where codes only moved.
        Where a step is not there, those after it are forgotten: they were made from it.
        """
        steps = self._index.steps
        if self._taken >= len(steps) or steps[self._taken].name != name:
            del steps[self._taken :]
            return None
        plan_file, statistics_file = self._files(self._taken)
        plan = restore_plan(plan_file, module, scalings=scalings)
        statistics = Statistics.load(statistics_file)
        self._taken += 1
        return plan, statistics

    def save(self, name: str, plan: QuantPlan, module: Network, statistics: Statistics) -> None:
        """Write a step. plan, statistics: of its layers alone; module: holds their codes and biases."""
        if self._key is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._files(self._taken)
        save_plan(plan, module, files[0])
        statistics.save(files[1])
        self._index.steps.append(_Step(name=name, files={file.name: tree_sha256(file) for file in files}))
        self._taken += 1
        self._index.code = code_of(self._index.content(self._identity), self._key)
        atomic_write(self.folder / INDEX, json_text(self._index.model_dump()))

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:04d}.plan.safetensors", self.folder / f"{number:04d}.statistics.safetensors"

    def _read(self) -> _Index:
        """Read the steps that this user's toolkit finished, up to the first whose files changed."""
        try:
            index = _Index.model_validate(read_json(self.folder / INDEX, RunDirectoryError))
        except (RunDirectoryError, ValueError):
            return _Index(steps=[])
        if not is_code_of(index.code, index.content(self._identity), self._key):
            return _Index(steps=[])
        whole = 0
        while whole < len(index.steps) and self._holds(number=whole, files=index.steps[whole].files):
            whole += 1
        return _Index(steps=index.steps[:whole])

    def _remove_strangers(self) -> None:
        """Remove what is no file of a whole step: parts of one, and links, which would lead writes out of the folder."""
        if self.folder.is_symlink():
            self.folder.unlink()
        own = {name for step in self._index.steps for name in step.files} | {INDEX}
        for path in self.folder.glob("*"):
            if path.is_symlink() or path.name not in own:
                remove_checkpoints(path)

    def _holds(self, number: int, files: Mapping[str, str]) -> bool:
        names = {file.name for file in self._files(number)}
        return files.keys() == names and all(file_sha256(self.folder, name) == sha256 for name, sha256 in files.items())


def remove_checkpoints(folder: Path) -> None:
    """Remove a folder of `LayerCheckpoints`, or a file of one; a link is removed, not followed."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
