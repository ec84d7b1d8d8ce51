"""Run directories: stages that are reused when nothing they read has changed, and files that are whole or absent.

    runs/<model>-<target>-<key8>/
      config.json            what was asked, written first
      stages/<name>.json     one record per finished stage: key, files with their sha256, cost, values
      <files of the stages>  moved here when their stage is finished
      manifest.json          written last; a folder without it is an unfinished run (see edgeconvnext.run.manifest)

A stage's key is a hash of its name, its inputs and the code. Files are written to `.tmp-<stage>-<pid>`, moved, and only
then recorded; `stages/<name>.moving` lists what a move touches, so that the next opening can undo one that was killed.

Whose stages are reused. One of the same folder, or of a run that was named: where this user's toolkit made it (the code of its
record says so, see edgeconvnext.run.provenance), or where it is data only; scripts, pages and engines of others are made again.
One of a run beside it that nobody named: where this user's toolkit made it. What is made from a stage of others gets no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import TEMPORARY_PREFIX, atomic_write, storage_errors, tree_files, tree_sha256, tree_size
from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.received import read_json
from edgeconvnext.run.cost import CostMeter
from edgeconvnext.run.lock import claim_folder, hold, is_run
from edgeconvnext.run.manifest import FinishedRun, load_run, write_manifest
from edgeconvnext.run.provenance import user_key
from edgeconvnext.run.stage_record import (
    CONFIG_FILE,
    FORMAT,
    MANIFEST_FILE,
    STAGES_FOLDER,
    StageRecord,
    code_version,
    is_plain_file,
    is_stage_file,
    json_sha256,
    json_text,
    lies_in,
    plain_json,
    read_record,
)
from edgeconvnext.schema.report import StageCost

__all__ = [
    "FinishedRun",
    "RunDirectory",
    "StageResult",
    "atomic_write",
    "default_run_path",
    "load_run",
    "run_key",
    "tree_sha256",
    "tree_size",
]

Make = Callable[[Path], Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class StageResult:
    """A finished stage. values: what `make` returned, as JSON gives it back; folder: the run directory.

    taken_from: the run directory an earlier result was copied from; None where it was made or found here.
    """

    record: StageRecord
    folder: Path
    reused: bool
    taken_from: Path | None = None

    @property
    def values(self) -> dict[str, Any]:
        return self.record.values

    @property
    def key(self) -> str:
        """Hash of all the stage read: what a later stage that reads this one takes as its input."""
        return self.record.key

    @property
    def cost(self) -> StageCost:
        """Time and memory of the stage when it was made."""
        record = self.record
        return StageCost(stage=record.stage, seconds=record.seconds, peak_mib=record.peak_mib, reused=self.reused)

    def path(self, name: str) -> Path:
        """Return the path of a file or folder that this stage wrote."""
        if not any(file == name or file.startswith(f"{name}/") for file in self.record.files):
            raise KeyError(
                f"stage {self.record.stage} wrote no {name}; it wrote {', '.join(self.record.files) or 'nothing'}"
            )
        return self.folder / name


class RunDirectory:
    """A run directory held by this process alone; made by `RunDirectory.open`.

    results: the stages of this run so far, by name, in order.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        user_key: bytes | None,
        named: Path | None,
        reuse_beside: bool,
        own_inputs: bool,
    ) -> None:
        self.path = path
        self.config = config
        self.results: dict[str, StageResult] = {}
        self._named = named
        self._reuse_beside = reuse_beside
        self._user_key = user_key
        self._all_own = own_inputs

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        config: Mapping[str, Any],
        reuse_from: Path | None = None,
        *,
        reuse_beside: bool = False,
        own_inputs: bool = True,
    ) -> Iterator[RunDirectory]:
        """Create `path` or take it up again, and hold it until the block ends.

        config: what was asked, JSON-able; a run of another config["model"] or config["target"] is not written over.
        reuse_from: a run whose finished stages are copied first; after it, the runs beside `path` are looked at.
        reuse_beside: the runs beside `path` are named, too: stages of others in them are copied where they are data.
        own_inputs: False where a stage's inputs are what a run of others says of itself: then no stage gets the user's code.
        Raises RunDirectoryError where the folder is in use, cannot be written, or is not a run.
        """
        if reuse_from is not None and not is_run(reuse_from):
            raise RunDirectoryError(
                f"{reuse_from} is not a run directory: it holds no {MANIFEST_FILE} and no {STAGES_FOLDER}/."
            )
        key = user_key()
        created = claim_folder(path)
        with storage_errors(path), hold(path):
            run = cls(path, plain_json(config), key, reuse_from, reuse_beside, own_inputs)
            run._refuse_links()
            run._refuse_another_run()
            (path / STAGES_FOLDER).mkdir(exist_ok=True)
            run._clean()
            atomic_write(path / CONFIG_FILE, json_text({"format": FORMAT, "config": run.config}))
            try:
                yield run
            finally:
                if created and not any((path / STAGES_FOLDER).glob("*.json")):
                    shutil.rmtree(path, ignore_errors=True)  # nothing was finished: leave no empty run behind

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Make,
        values: type[BaseModel] | None = None,
    ) -> StageResult:
        """Return the finished stage `name`: the one here, a copy of another run's, or what `make` writes now.

        inputs: all that the result depends on, JSON-able: settings, sha256 of files read, keys of earlier stages, and
            the version of a runtime it executes. torch, torchao and this package's code are part of every key.
        make: writes files into the folder it is given, under the names they get in the run directory, and returns
            values, JSON-able and without absolute paths (another run may take the stage over).
        values: what the values of a stored stage must be for it to be used; a run of others may claim anything.
        Raises RunDirectoryError where the disk is full or refuses; what was finished before stays.
        """
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ValueError(f"stage name {name!r} is not made of lower-case letters, digits, '-' and '_'")
        plain = plain_json(inputs)
        key = json_sha256({"stage": name, "format": FORMAT, "code": code_version(), "inputs": plain})
        result = (
            self._finished(name, key, values) or self._copied(name, key, values) or self._made(name, key, plain, make)
        )
        self._all_own = self._all_own and (not result.reused or result.record.is_own(self._user_key))
        self.results[name] = result
        return result

    def kept(self, name: str, values: type[BaseModel] | None = None) -> StageResult | None:
        """Return a finished stage as it lies here, whatever it was made from; None where there is none or its files changed."""
        record = read_record(self.path, name)
        if record is None or not record.has_values(values) or not record.holds_in(self.path):
            return None
        self._all_own = self._all_own and record.is_own(self._user_key)
        return StageResult(record, self.path, reused=True)

    def extend(self, finished: FinishedRun) -> Path:
        """Write the manifest of a finished run again, as it was, with the stages of this session added to it."""
        known = {stage["stage"] for stage in finished.manifest["stages"]}
        costs = [result.cost.model_dump() for name, result in self.results.items() if name not in known]
        manifest = finished.manifest | {
            "stages": [*finished.manifest["stages"], *costs],
            "files": dict(sorted((finished.files | self._files()).items())),
        }
        target = self.path / MANIFEST_FILE
        atomic_write(target, json_text(manifest))
        return target

    def finish(self, details: Mapping[str, Any] | None = None) -> Path:
        """Write manifest.json, which makes the run whole, and return its path.

        details: seeds, hash of the image list and the like, JSON-able; added under their own keys.
        """
        costs = [result.cost for result in self.results.values()]
        files = {CONFIG_FILE: tree_sha256(self.path / CONFIG_FILE)} | self._files()
        return write_manifest(self.path, self.config, files, costs, plain_json(details or {}))

    def _files(self) -> dict[str, str]:
        """Return the sha256 of every file of this session's stages, and of their records, by relative path."""
        files: dict[str, str] = {}
        for name, result in self.results.items():
            record = f"{STAGES_FOLDER}/{name}.json"
            files |= {**result.record.files, record: tree_sha256(self.path / record)}
        return files

    def _finished(self, name: str, key: str, values: type[BaseModel] | None) -> StageResult | None:
        record = read_record(self.path, name)
        if record is None or record.key != key or not self._may_reuse(record, values, named=True):
            return None
        return StageResult(record, self.path, reused=True) if record.holds_in(self.path) else None

    def _may_reuse(self, record: StageRecord, values: type[BaseModel] | None, named: bool) -> bool:
        """Say whether a stage is the user's own, or data of a run that was named; its files may still not hold."""
        return record.has_values(values) and (record.is_own(self._user_key) or (named and record.is_data))

    def _copied(self, name: str, key: str, values: type[BaseModel] | None) -> StageResult | None:
        """Copy the stage from the run that was named, or from one beside this one, if one has it whole under the same key."""
        beside = [(source, self._reuse_beside) for source in sorted(self.path.absolute().parent.glob("*/"))]
        for source, named in [*([] if self._named is None else [(self._named, True)]), *beside]:
            record = read_record(source, name)
            if record is None or record.key != key or source.samefile(self.path):
                continue
            if not self._may_reuse(record, values, named):
                continue
            if not all(is_plain_file(source, file) for file in record.files):
                continue
            with self._temporary(name) as folder:
                for file in record.files:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(source / file, folder / file, follow_symlinks=False)
                # The other run may be at work on this very stage: only what was copied counts.
                if record.holds_in(folder):
                    self._commit(record, folder)
                    return StageResult(record, self.path, reused=True, taken_from=source)
        return None

    def _made(self, name: str, key: str, inputs: dict[str, Any], make: Make) -> StageResult:
        with self._temporary(name) as folder:
            give_back_free_memory()
            with CostMeter() as cost:
                values = make(folder)
            record = StageRecord(
                stage=name,
                key=key,
                inputs=inputs,
                files={file: tree_sha256(path) for file, path in tree_files(folder).items()},
                seconds=round(cost.seconds, 3),
                peak_mib=round(cost.peak_mib, 1),
                values=plain_json(values or {}),
            )
            record = record.signed(self._user_key if self._all_own else None)
            self._commit(record, folder)
        return StageResult(record, self.path, reused=False)

    @contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        folder = self.path / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}"
        try:
            with storage_errors(self.path):
                folder.mkdir()
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _commit(self, record: StageRecord, folder: Path) -> None:
        """Move a stage's files from `folder` to their place, then record it."""
        self._refuse_shared_files(record)
        old = read_record(self.path, record.stage)
        moving = self.path / STAGES_FOLDER / f"{record.stage}.moving"
        atomic_write(moving, json_text(sorted({*record.files, *(old.files if old else {})})))
        try:
            (self.path / MANIFEST_FILE).unlink(missing_ok=True)  # from here on the run is no longer what it was
            if old is not None:
                self._remove(record.stage, list(old.files))
            _move(folder, self.path)
            atomic_write(self.path / STAGES_FOLDER / f"{record.stage}.json", json_text(record.model_dump(mode="json")))
        except BaseException:
            self._settle(moving)
            raise
        moving.unlink()

    def _refuse_shared_files(self, record: StageRecord) -> None:
        for other in (self.path / STAGES_FOLDER).glob("*.json"):
            theirs = read_record(self.path, other.stem)
            shared = set(record.files) & set(theirs.files) if theirs and other.stem != record.stage else set()
            if not shared:
                continue
            names = ", ".join(sorted(shared))
            if other.stem in self.results:
                raise ValueError(f"stages {record.stage} and {other.stem} both write {names}")
            raise RunDirectoryError(
                f"{for_terminal(other)} claims files that the stage {record.stage} writes: {for_terminal(names)}. This version "
                "did not make it; choose another folder with --output."
            )

    def _settle(self, moving: Path) -> None:
        """End a move: keep the stage where its record holds, else remove every file the move may have touched."""
        record = read_record(self.path, moving.stem)
        if record is None or not record.holds_in(self.path):
            self._remove(moving.stem, _listed(moving))
        moving.unlink()

    def _remove(self, stage: str, files: list[str]) -> None:
        (self.path / STAGES_FOLDER / f"{stage}.json").unlink(missing_ok=True)
        for file in files:
            if not lies_in(self.path, file):
                continue
            (self.path / file).unlink(missing_ok=True)
            for folder in list((self.path / file).parents):
                if folder == self.path or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()

    def _clean(self) -> None:
        """Remove what a killed process left; this process holds the lock, so nobody is writing it."""
        temporary = f"{TEMPORARY_PREFIX}*"
        for leftover in [*self.path.glob(temporary), *(self.path / STAGES_FOLDER).glob(temporary)]:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        for moving in (self.path / STAGES_FOLDER).glob("*.moving"):
            self._settle(moving)

    def _refuse_links(self) -> None:
        """Records would be written and removed outside of the run."""
        if (self.path / STAGES_FOLDER).is_symlink():
            raise RunDirectoryError(
                f"{self.path / STAGES_FOLDER} is a link to another folder, and a run writes into its own folder only. Choose "
                "another folder with --output."
            )

    def _refuse_another_run(self) -> None:
        if not (self.path / CONFIG_FILE).exists():
            return
        try:
            before = read_json(self.path / CONFIG_FILE, RunDirectoryError)["config"]
            known = {what: before.get(what) for what in ("model", "target")}
        except (RunDirectoryError, KeyError, TypeError, AttributeError):
            return
        for what, old in known.items():
            new = self.config.get(what)
            if old != new:
                raise RunDirectoryError(
                    f"{self.path} holds a run of another {what} ({_brief(old)}, now {_brief(new)}). "
                    "Nothing was changed; choose another folder with --output, or remove this one."
                )


def run_key(config: Mapping[str, Any]) -> str:
    """Return eight hex digits that stand for a configuration."""
    return json_sha256(plain_json(config))[:8]


def default_run_path(root: Path, model: str, target: str, key: str) -> Path:
    """Return runs/<model>-<target>-<key8>, the folder of a run whose user named none."""
    return root / f"{model}-{target}-{key[:8]}"


def _move(source: Path, destination: Path) -> None:
    """Move all that is in `source` into `destination`; a folder that is new there arrives in one rename."""
    for item in list(source.iterdir()):
        target = destination / item.name
        if target.is_symlink():  # it would lead out of the run
            target.unlink()
        if item.is_dir() and target.is_dir():
            _move(item, target)
        else:
            item.replace(target)


def _listed(moving: Path) -> list[str]:
    """Read which files a move touches; those that a stage may not write, and what is no list, are left out."""
    try:
        names = read_json(moving, RunDirectoryError)
    except RunDirectoryError:
        return []
    return [
        name for name in (names if isinstance(names, list) else []) if isinstance(name, str) and is_stage_file(name)
    ]


def _brief(value: object) -> str:
    if isinstance(value, dict) and "name" in value:
        return for_terminal(f"{value['name']}, sha256 {str(value.get('sha256'))[:12]}")[:200]
    return for_terminal(str(value))[:200]
