"""Run directories: stages that are reused when nothing they read has changed, and files that are whole or absent.

    runs/<model>-<target>-<key8>/
      config.json            what was asked, written first
      stages/<name>.json     one record per finished stage: key, files with their sha256, cost, values
      <files of the stages>  moved here when their stage is finished
      manifest.json          written last; a folder without it is an unfinished run (see edgeconvnext.run.manifest)

A stage's key is a hash of its name, its inputs and the code. How its files get to their place: edgeconvnext.run.stage_files.

Whose stages are reused. One of the same folder, or of a run that was named: where this user's toolkit made it (the code of its
record says so, see edgeconvnext.run.provenance), or where it is data only; scripts, pages and engines of others are made again.
One of a run beside it that nobody named: where this user's toolkit made it. What is made from a stage of others gets no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, overload

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import atomic_write, storage_errors, tree_files, tree_sha256
from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.received import read_json
from edgeconvnext.run.cost import CostMeter
from edgeconvnext.run.lock import create_run_folder, folder_lock, is_run
from edgeconvnext.run.manifest import FinishedRun, write_manifest
from edgeconvnext.run.provenance import user_key
from edgeconvnext.run.stage_files import commit, remove_leftovers, temporary_folder
from edgeconvnext.run.stage_record import (
    CONFIG_FILE,
    FORMAT,
    MANIFEST_FILE,
    STAGES_FOLDER,
    StageRecord,
    StageValues,
    Values,
    code_version,
    is_plain_file,
    json_sha256,
    json_text,
    plain_json,
    read_record,
)
from edgeconvnext.schema.report import StageCost

__all__ = ["RunDirectory", "StageResult", "StageValues", "default_run_path", "run_key"]


@dataclasses.dataclass(frozen=True)
class StageResult(Generic[Values]):
    """A finished stage. values: what `make` returned, as JSON gives it back; folder: the run directory.

    copied_from: the run directory an earlier result was copied from; None where it was made or stored in this one.
    """

    record: StageRecord
    values: Values
    folder: Path
    reused: bool
    copied_from: Path | None = None

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
    """A run directory locked by this process; made by `RunDirectory.open`.

    results: the stages that this process has asked for, by name, in order.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        user_key: bytes | None,
        reuse_from: Path | None,
        reuse_beside: bool,
        own_inputs: bool,
        again: Collection[str],
    ) -> None:
        self.path = path
        self.config = config
        self.results: dict[str, StageResult[Any]] = {}
        self._reuse_from = reuse_from
        self._reuse_beside = reuse_beside
        self._user_key = user_key
        self._all_own = own_inputs
        self._again = frozenset(again)

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
        again: Collection[str] = (),
    ) -> Iterator[RunDirectory]:
        """Create `path` or open it again, and lock it until the block ends.

        config: what was asked, JSON-able; a run of another config["model"] or config["target"] is not written over.
        reuse_from: a run whose finished stages are copied first; after it, the runs beside `path` are looked at.
        reuse_beside: the runs beside `path` are named, too: stages of others in them are copied where they are data.
        again: stages that are made again, whatever is stored.
        own_inputs: False where a stage's inputs are what a run of others says of itself: then no stage gets the user's code.
        Raises RunDirectoryError where the folder is in use, cannot be written, or is not a run.
        """
        if reuse_from is not None and not is_run(reuse_from):
            raise RunDirectoryError(
                f"{reuse_from} is not a run directory: it holds no {MANIFEST_FILE} and no {STAGES_FOLDER}/."
            )
        key = user_key()
        created = create_run_folder(path)
        with storage_errors(path), folder_lock(path):
            run = cls(path, plain_json(config), key, reuse_from, reuse_beside, own_inputs, again)
            run._refuse_links()
            run._refuse_another_run()
            (path / STAGES_FOLDER).mkdir(exist_ok=True)
            remove_leftovers(path)
            atomic_write(path / CONFIG_FILE, json_text({"format": FORMAT, "config": run.config}))
            try:
                yield run
            finally:
                if created and not any((path / STAGES_FOLDER).glob("*.json")):
                    shutil.rmtree(path, ignore_errors=True)  # nothing was finished: leave no empty run behind

    @overload
    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> StageResult[StageValues]: ...

    @overload
    def stage(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Values], values: type[Values]
    ) -> StageResult[Values]: ...

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Any],
        values: type[Any] = StageValues,
    ) -> StageResult[Any]:
        """Return the finished stage `name`: the stored one, a copy of another run's, or what `make` writes now.

        inputs: all that the result depends on, JSON-able: settings, sha256 of files read, keys of earlier stages, and
            the version of a runtime it executes. torch, torchao and this package's code are part of every key.
        make: writes files into the folder it is given, under the names they get in the run directory, and returns
            values without absolute paths (another run may copy the stage).
        values: the type of what `make` returns. A stored stage with other values is made again: a run of others may claim
            anything.
        Raises RunDirectoryError where the disk is full or refuses; what was finished before stays.
        """
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ValueError(f"stage name {name!r} is not made of lower-case letters, digits, '-' and '_'")
        plain, key = plain_json(inputs), self.stage_key(name, inputs)
        stored = None if name in self._again else self._reused(name, key, values) or self._copied(name, key, values)
        result = stored or self._made(name, key, plain, make, values)
        self._all_own = self._all_own and (not result.reused or result.record.is_own(self._user_key))
        self.results[name] = result
        return result

    @staticmethod
    def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
        """Return the hash of all that a stage depends on: its inputs and the code."""
        plain = plain_json(inputs)
        return json_sha256({"stage": name, "format": FORMAT, "code": code_version(), "inputs": plain})

    @property
    def own_key(self) -> bytes | None:
        """This user's key; None where there is none, or where a stage so far goes back to somebody else."""
        return self._user_key if self._all_own else None

    def kept(self, name: str, inputs: Mapping[str, Any], kind: type[Values]) -> StageResult[Values] | None:
        """Return this folder's finished stage that had these inputs among others, and keep it in the run; None without one."""
        record, plain = read_record(self.path, name), plain_json(inputs)
        if record is None or any(record.inputs.get(key) != value for key, value in plain.items()):
            return None
        values = self._reusable_values(record, kind, named=True)
        if values is None or not record.holds_in(self.path):
            return None
        self._all_own = self._all_own and record.is_own(self._user_key)
        self.results[name] = StageResult(record, values, self.path, reused=True)
        return self.results[name]

    def stored(self, name: str, kind: type[Values]) -> StageResult[Values] | None:
        """Return a finished stage as this folder has it, whatever it was made from.

        kind: the type of its values. None where there is no such stage, its files changed or its values are anything else.
        """
        record = read_record(self.path, name)
        values = None if record is None else record.values_as(kind)
        if record is None or values is None or not record.holds_in(self.path):
            return None
        self._all_own = self._all_own and record.is_own(self._user_key)
        return StageResult(record, values, self.path, reused=True)

    def extend(self, finished: FinishedRun) -> Path:
        """Write the manifest of a finished run again, as it was, with the stages of this session added to it."""
        listed = {stage["stage"] for stage in finished.manifest["stages"]}
        costs = [result.cost.model_dump() for name, result in self.results.items() if name not in listed]
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

    def _reused(self, name: str, key: str, kind: type[Values]) -> StageResult[Values] | None:
        record = read_record(self.path, name)
        if record is None or record.key != key:
            return None
        values = self._reusable_values(record, kind, named=True)
        if values is None or not record.holds_in(self.path):
            return None
        return StageResult(record, values, self.path, reused=True)

    def _reusable_values(self, record: StageRecord, kind: type[Values], named: bool) -> Values | None:
        """Return the values of a stage that is the user's own, or data of a run that was named; its files may still not hold."""
        reusable = record.is_own(self._user_key) or (named and record.is_data)
        return record.values_as(kind) if reusable else None

    def _copied(self, name: str, key: str, kind: type[Values]) -> StageResult[Values] | None:
        """Copy the stage from the run that was named, or from one beside this one, if one has it whole under the same key."""
        beside = [(source, self._reuse_beside) for source in sorted(self.path.absolute().parent.glob("*/"))]
        for source, named in [*([] if self._reuse_from is None else [(self._reuse_from, True)]), *beside]:
            record = read_record(source, name)
            if record is None or record.key != key or source.samefile(self.path):
                continue
            values = self._reusable_values(record, kind, named)
            if values is None or not all(is_plain_file(source, file) for file in record.files):
                continue
            if self._copy(record, source):
                return StageResult(record, values, self.path, reused=True, copied_from=source)
        return None

    def _copy(self, record: StageRecord, source: Path) -> bool:
        """Copy a stage's files from the run `source`; False where they do not hold."""
        with temporary_folder(self.path, record.stage) as folder:
            for file in record.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(source / file, folder / file, follow_symlinks=False)
            # The other run may be at work on this very stage: only what was copied counts.
            if not record.holds_in(folder):
                return False
            self._commit(record, folder)
            return True

    def _made(
        self,
        name: str,
        key: str,
        inputs: dict[str, Any],
        make: Callable[[Path], Values | None],
        kind: type[Values],
    ) -> StageResult[Values]:
        with temporary_folder(self.path, name) as folder:
            give_back_free_memory()
            with CostMeter() as cost:
                made = make(folder)
            record = StageRecord(
                stage=name,
                key=key,
                inputs=inputs,
                files={file: tree_sha256(path) for file, path in tree_files(folder).items()},
                seconds=round(cost.seconds, 3),
                peak_mib=round(cost.peak_mib, 1),
                values={} if made is None else plain_json(made.model_dump()),
            )
            record = record.signed(self._user_key if self._all_own else None)
            self._commit(record, folder)
        return StageResult(record, kind.model_validate(record.values), self.path, reused=False)

    def _commit(self, record: StageRecord, folder: Path) -> None:
        self._refuse_shared_files(record)
        commit(self.path, record, folder)

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
            stored = {what: before.get(what) for what in ("model", "target")}
        except (RunDirectoryError, KeyError, TypeError, AttributeError):
            return
        for what, old in stored.items():
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


def _brief(value: object) -> str:
    if isinstance(value, dict) and "name" in value:
        return for_terminal(f"{value['name']}, sha256 {str(value.get('sha256'))[:12]}")[:200]
    return for_terminal(str(value))[:200]
