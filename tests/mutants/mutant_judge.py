"""Judge one mutant: a forked process in which the module is the mutated one runs the module's test files.

The parent has imported torch and the other libraries, but nothing of edgeconvnext; a fork takes milliseconds in place of
the seconds that these imports take. No file of the checkout is written.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import linecache
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not onnxruntime: it starts a thread when it is imported, and a forked process would lack that thread.
# fmt: off
LIBRARIES = (
    "numpy", "scipy.stats", "scipy.special", "PIL.Image", "torch", "torch.fx", "torch.export",
    "torch._dynamo", "torch._inductor.config", "torchao", "torchao.quantization.pt2e", "onnx", "onnx_ir", "onnxscript",
    "safetensors.torch", "huggingface_hub", "pydantic.main", "pydantic.functional_validators", "annotated_types",
    "rich", "jinja2", "typer", "hypothesis", "pytest", "pdb", "tomllib",
)
# fmt: on
MEMORY_BYTES = 4 * 2**30
_NOT_RUN = "not data and not gpu and not macos and not slow"
_FOLDER = "mutants-"
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Limits:
    """cpu_s: processor time of the process; wall_s: elapsed time."""

    cpu_s: float = 300.0
    wall_s: float = 900.0

    @classmethod
    def of(cls, cpu_s: float, wall_s: float) -> Limits:
        """Return the limits of a mutant whose module's tests take this long without it."""
        return cls(max(20.0, 5 * cpu_s), max(60.0, 10 * wall_s))


@dataclass(frozen=True)
class Verdict:
    """outcome: "survived", "killed" or "timeout"; by: the first test that failed, or what ended the process."""

    outcome: str
    by: str
    cpu_s: float
    wall_s: float


@dataclass
class Running:
    """A process that judges a mutant. what: whatever the caller wants back with the verdict."""

    pid: int
    pipe: int
    folder: Path
    begin: float
    limits: Limits
    what: Any


def import_libraries() -> None:
    """Import what every test file imports; processes forked later share it. Names that are not installed are skipped."""
    for name in (
        "torchao",
        "torch.utils._pytree",
    ):  # as edgeconvnext.quantization does: remarks on GPU kernels of other builds
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch
    from _pytest.config import default_plugins
    from hypothesis import Phase, settings

    for name in default_plugins:
        importlib.import_module(f"_pytest.{name}")
    torch.set_num_threads(1)
    # A failing example is enough, it need not be the shortest.
    settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")
    loaded = [name for name in sys.modules if name.split(".")[0] == "edgeconvnext"]
    tasks = Path("/proc/self/task")  # Linux lists threads that Python did not start as well
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    if loaded or threads > 1:
        raise RuntimeError(f"a fork needs one thread and no module of edgeconvnext; {threads} threads, {loaded[:3]}")
    gc.freeze()  # a collection in a forked process leaves alone what it shares with this one


def start(
    root: Path, name: str, file: Path, source: str, tests: Sequence[Path], limits: Limits, what: Any = None
) -> Running:
    """Fork a process that runs `tests` with `source` in place of the module `name`, whose file is `file`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
    reading, writing = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(parent, root, name, file, source, tests, limits, folder, writing)
    os.close(writing)
    return Running(pid, reading, folder, time.monotonic(), limits, what)


def collect(running: list[Running]) -> list[tuple[Running, Verdict]]:
    """Wait a moment, and return the processes that have ended; they are taken off the list."""
    ended = []
    for process in list(running):
        late = time.monotonic() - process.begin > process.limits.wall_s
        if late:
            _kill(process.pid)
        pid, status, usage = os.wait4(process.pid, 0 if late else os.WNOHANG)
        if pid:
            running.remove(process)
            ended.append((process, _verdict(process, status, usage, late)))
    if not ended:
        time.sleep(0.02)
    return ended


def stop(running: list[Running]) -> None:
    """Kill every process and wait for it."""
    for process in running:
        _kill(process.pid)
        os.waitpid(process.pid, 0)
        os.close(process.pipe)
        _remove(process.folder)
    running.clear()


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def remove_leftovers() -> None:
    """Remove the folders of processes whose parent was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        parent = folder.name.split("-")[1]
        try:
            os.kill(int(parent), 0)
        except ProcessLookupError:
            _remove(folder)
        except (ValueError, PermissionError):  # not ours
            continue


def _remove(folder: Path) -> None:
    """Remove a process's files; a test that was killed leaves the small file system that it mounted."""
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.is_file() else ():
        if (place := line.split()[1]).startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a test of nested folders
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def _verdict(process: Running, status: int, usage: resource.struct_rusage, late: bool) -> Verdict:
    with os.fdopen(process.pipe, "rb") as pipe:
        os.set_blocking(pipe.fileno(), False)  # a process that a test started may hold the other end
        lines = (pipe.read() or b"").decode().splitlines()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what its tests started and left
    _remove(process.folder)
    cpu_s, wall_s = usage.ru_utime + usage.ru_stime, time.monotonic() - process.begin
    code = os.waitstatus_to_exitcode(status)
    if late or -code in {signal.SIGXCPU, signal.SIGALRM}:
        return Verdict("timeout", f"{wall_s:.0f} s, {cpu_s:.0f} s of processor time", cpu_s, wall_s)
    first = json.loads(lines[0]) if lines else f"signal {-code}" if code < 0 else f"pytest's exit code {code}"
    return Verdict("killed" if code else "survived", first if code else "", cpu_s, wall_s)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the given source in place of the file's; inspect and tracebacks show it as well."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source

    def get_code(self, fullname: str) -> types.CodeType:
        linecache.cache[self.path] = (len(self._source), None, self._source.splitlines(keepends=True), self.path)
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, file: Path, source: str) -> None:
        self._name, self._file, self._source = name, file, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Loader(fullname, str(self._file), self._source)
        return importlib.util.spec_from_file_location(fullname, self._file, loader=loader)


class _FirstFailure:
    """A plugin of pytest: sends the first test or file that fails through the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def _send(self, name: str) -> None:
        os.write(self._pipe, (json.dumps(name[:300]) + "\n").encode())

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self._send(f"{report.nodeid}: {str(crash.message).splitlines()[0] if crash else report.when}")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._send(f"{report.nodeid} cannot be imported")


def _child(
    parent: int,
    root: Path,
    name: str,
    file: Path,
    source: str,
    tests: Sequence[Path],
    limits: Limits,
    folder: Path,
    pipe: int,
) -> None:
    """Run the tests and end the process; nothing of the caller's goes on in it."""
    code = 70
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(71)
        with (folder / "output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        cpu_s = int(limits.cpu_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.meta_path.insert(0, _Finder(name, file, source))
        os.chdir(root)
        import pytest

        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        plugins = ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
        options = ["-x", "-q", "--no-header", "-m", _NOT_RUN, *plugins]
        where = [f"--rootdir={root}", f"--basetemp={folder / 'tmp'}"]
        code = int(pytest.main([*options, *where, *map(str, tests)], plugins=[_FirstFailure(pipe)]))
    except BaseException as error:
        with suppress(OSError):
            os.write(pipe, (json.dumps(f"{type(error).__name__}: {error}"[:300]) + "\n").encode())
    finally:
        os._exit(code)
