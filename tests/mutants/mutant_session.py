"""A run over modules: which mutants, their stored results, and the processes that judge the others."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mutant_judge import Limits, Running, Verdict, collect, import_libraries, remove_leftovers, start, stop
from mutant_modules import PER_MODULE, files_read, import_name, judging_files, sha256_of, source_path
from mutant_sites import Mutant, draw, mutants_of

RESULTS = Path(".mutants/results.jsonl")
LONGEST_TESTS_S = 60.0
LEAST_FREE_BYTES = 2**30  # tests that fail because the disk is full say nothing about a mutant


class UnusableTestsError(Exception):
    """Tests are absent, fail or take too long without a mutation, changed meanwhile, or have no room on the disk."""


@dataclass(frozen=True)
class Module:
    """A module with its mutants. files: what its tests are made of; tests: their hash."""

    name: str
    source: str
    files: list[Path]
    tests: str
    possible: list[Mutant]
    drawn: list[Mutant]

    def key(self, mutant: Mutant | None) -> str:
        """Name a result by all that it depends on; None: the tests without a mutation."""
        change = (mutant.operator, mutant.occurrence) if mutant is not None else None
        return hashlib.sha256(json.dumps([self.source, change, self.tests]).encode()).hexdigest()


class Session:
    """The mutants of some modules, and their results in .mutants/results.jsonl under `root`.

    whole: every mutant in place of a draw. again: results stored earlier do not count.
    """

    def __init__(self, root: Path, modules: list[str], seed: int = 0, whole: bool = False, again: bool = False) -> None:
        self.root = root
        self._names, self.seed, self._whole = modules, seed, whole
        self.results = {} if again else self._stored()

    @cached_property
    def modules(self) -> list[Module]:
        return [self._module(name) for name in self._names]

    def _module(self, name: str) -> Module:
        source = source_path(self.root, name).read_text(encoding="utf-8")
        possible = mutants_of(name, source)
        drawn = possible if self._whole else draw(possible, self.seed, PER_MODULE)
        files = files_read(self.root, name)
        return Module(name, source, files, sha256_of(self.root, files), possible, drawn)

    def drawn(self) -> list[Mutant]:
        """Return the mutants of all modules that are to be judged."""
        return [mutant for module in self.modules for mutant in module.drawn]

    def result(self, module: Module, mutant: Mutant | None = None) -> dict[str, Any] | None:
        """Return the stored result of a mutant, or of the tests without one."""
        return self.results.get(module.key(mutant))

    def identifier(self, module: Module, mutant: Mutant) -> str:
        """Return the short name of a mutant that `--show` takes."""
        return hashlib.sha256(json.dumps([module.name, mutant.identity]).encode()).hexdigest()[:8]

    def difference(self, identifier: str) -> str:
        """Return the unified difference of the mutant with this short name."""
        for module in self.modules:
            for mutant in module.possible:
                if self.identifier(module, mutant) == identifier:
                    path = source_path(self.root, module.name).relative_to(self.root)
                    old, new = module.source.splitlines(), mutant.apply(module.source).splitlines()
                    by = (self.result(module, mutant) or {}).get("outcome", "not judged")
                    lines = difflib.unified_diff(old, new, str(path), f"{mutant.operator}: {by}", lineterm="")
                    return "\n".join(lines)
        return f"No mutant {identifier} in {', '.join(self._names)}."

    def judge_all(self, jobs: int) -> None:
        """Judge the drawn mutants that have no result; each result is stored when its process ends."""
        modules = [module for module in self.modules if self._waiting(module)]
        if not modules:
            return
        self._end_last_line()
        remove_leftovers()
        import_libraries()
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(self.root / RESULTS.parent / "bytecode")
        running: list[Running] = []
        try:
            usable = self._unmutated(modules, jobs, running)
            work = deque(
                (module, mutant) for module in usable for mutant in self._waiting(module) if mutant is not None
            )
            total, done = len(work), 0
            again: set[Mutant] = set()
            while work or running:
                while work and len(running) < jobs:
                    module, mutant = work.popleft()
                    plain = self.results[module.key(None)]
                    limits = Limits.of(plain["cpu_s"], plain["wall_s"])
                    running.append(self._start(module, mutant, limits))
                for process, verdict in collect(running):
                    module, mutant = process.what
                    if "No space left on device" in verdict.by and mutant not in again:  # not the mutant's doing
                        again.add(mutant)
                        work.append((module, mutant))
                        continue
                    self._store(module, mutant, verdict)
                    done += 1
                    if sys.stderr.isatty():
                        print(f"{done}/{total} {module.name}: {verdict.outcome:20}", end="\r", file=sys.stderr)
        finally:
            stop(running)
        unusable = [module.name for module in modules if module not in usable]
        if unusable:
            raise UnusableTestsError(f"No verdict on {', '.join(unusable)}: see above.")

    def _waiting(self, module: Module) -> list[Mutant | None]:
        """Return what of a module has no result: None stands for its tests without a mutation, which come first."""
        plain = self.results.get(module.key(None))
        first: list[Mutant | None] = [] if plain and plain["outcome"] == "survived" else [None]
        return first + [mutant for mutant in module.drawn if module.key(mutant) not in self.results]

    def _unmutated(self, modules: list[Module], jobs: int, running: list[Running]) -> list[Module]:
        """Return the modules whose tests pass, in time, in this very runner without a mutation."""
        waiting = deque(module for module in modules if self._waiting(module)[0:1] == [None])
        faults: dict[str, str] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                module = waiting.popleft()
                if not judging_files(self.root, module.name):
                    faults[module.name] = f"no test file tests/{_test_name(module.name)}*.py"
                else:
                    running.append(self._start(module, None, Limits()))
            for process, verdict in collect(running):
                module, _ = process.what
                print(
                    f"{module.name}: tests take {verdict.cpu_s:.1f} s of processor time ({verdict.wall_s:.1f} s)",
                    flush=True,
                )
                if verdict.outcome != "survived":
                    faults[module.name] = f"its tests fail without a mutation: {verdict.by}"
                elif verdict.cpu_s > LONGEST_TESTS_S:
                    faults[module.name] = f"its tests take {verdict.cpu_s:.0f} s; at most {LONGEST_TESTS_S:.0f} s"
                else:
                    self._store(module, None, verdict)
        for name, fault in faults.items():
            print(f"{name}: {fault}", file=sys.stderr)
        return [module for module in modules if module.name not in faults]

    def _start(self, module: Module, mutant: Mutant | None, limits: Limits) -> Running:
        _refuse_full_disk()
        source = module.source if mutant is None else mutant.apply(module.source)
        file, tests = source_path(self.root, module.name), judging_files(self.root, module.name)
        return start(self.root, import_name(module.name), file, source, tests, limits, (module, mutant))

    def _stored(self) -> dict[str, dict[str, Any]]:
        path = self.root / RESULTS
        results: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                result = json.loads(line)
                results[result["key"]] = result
            except (ValueError, KeyError, TypeError):  # a line that kill -9 cut off
                continue
        return results

    def _end_last_line(self) -> None:
        """End a line that kill -9 cut off, so that the next result has its own."""
        path = self.root / RESULTS
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def _store(self, module: Module, mutant: Mutant | None, verdict: Verdict) -> None:
        _refuse_full_disk()
        if sha256_of(self.root, module.files) != module.tests:
            raise UnusableTestsError(f"{module.name}: its tests changed while they judged; run the same command again.")
        result = {
            "key": module.key(mutant),
            "module": module.name,
            "mutant": describe(mutant) if mutant is not None else "",
            "outcome": verdict.outcome,
            "by": verdict.by,
            "cpu_s": round(verdict.cpu_s, 2),
            "wall_s": round(verdict.wall_s, 2),
        }
        self.results[result["key"]] = result
        path = self.root / RESULTS
        path.parent.mkdir(exist_ok=True)
        (path.parent / ".gitignore").write_text("*\n")
        with path.open("ab", buffering=0) as file:  # one write: two processes may append to the same file
            file.write((json.dumps(result) + "\n").encode())
            os.fsync(file.fileno())


def _refuse_full_disk() -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise UnusableTestsError(
            f"{folder} has {free / 2**20:.0f} MiB left, too few for the tests: free some, then go on."
        )


def describe(mutant: Mutant) -> str:
    """Say on one line where a mutant is and what it changes."""
    return f"{mutant.module}:{mutant.line} {mutant.function or 'module'}: {mutant.before}  ->  {mutant.after}"


def _test_name(module: str) -> str:
    package, _, name = module.rpartition("/")
    return f"{package}/test_{name}" if package else f"test_{name}"
