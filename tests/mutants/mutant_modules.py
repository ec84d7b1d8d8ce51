"""Which modules are mutated, and the test files that judge each."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

# Test files beside tests/<package>/test_<module>*.py (of a top-level module: tests/test_<module>*.py).
MODULES: dict[str, tuple[str, ...]] = {
    "quantization/ranges": (),
    "quantization/histogram": (),
    "quantization/rounding": (),
    "quantization/weights": (),
    "quantization/biases": (),
    "quantization/adaround": (),
    "quantization/plan": (),
    "quantization/fake": (),
    "quantization/simulate": (),
    "rewrite/exact": (),
    "rewrite/least_squares": (),
    "rewrite/moments": (),
    "rewrite/patches": (),
    "rewrite/prune_channels": (),
    "rewrite/ridge": (),
    "rewrite/two_of_four": (),
    "model/two_of_four": ("tests/rewrite/test_two_of_four.py",),
    "sqnr": ("tests/evaluation/test_accuracy_numbers.py",),
    "evaluation/accuracy": (),
    "evaluation/gates": (),
    "backends/onnxruntime/saturation": (
        "tests/evaluation/test_fidelity.py",
        "tests/evaluation/test_fidelity_numbers.py",
    ),
    "backends/kit/record": ("tests/evaluation/test_on_device.py",),
    "backends/kit/figures": ("tests/evaluation/test_on_device_figures.py",),
    "backends/kit/results": ("tests/evaluation/test_on_device_results.py",),
    "run/directory": ("tests/test_runs.py", "tests/test_runs_reuse.py"),
    "run/stage_files": ("tests/test_runs.py", "tests/test_runs_reuse.py"),
    "run/stage_record": ("tests/test_records.py", "tests/test_runs.py"),
}
MOST_MUTANTS = 1500
PER_MODULE = MOST_MUTANTS // len(MODULES)  # of each module alike, so that a draw does not depend on the other modules


def source_path(root: Path, module: str) -> Path:
    """Return the file of a module such as "quantization/ranges"."""
    return root / "edgeconvnext" / f"{module}.py"


def import_name(module: str) -> str:
    """Return "edgeconvnext.quantization.ranges"."""
    return f"edgeconvnext.{module.replace('/', '.')}"


def judging_files(root: Path, module: str) -> list[Path]:
    """Return the test files that judge a module; those of numbers first, which are the fastest to fail."""
    package, _, name = module.rpartition("/")
    own = sorted((root / "tests" / package).glob(f"test_{name}*.py"), key=_fastest_first)
    extra = [root / name for name in MODULES[module]]
    return own + [path for path in extra if path.is_file() and path not in own]


def _fastest_first(path: Path) -> tuple[bool, int, str]:
    return not path.stem.endswith("_numbers"), len(path.name), path.name


def files_read(root: Path, module: str) -> list[Path]:
    """Return the module's test files, the conftest files above them, and the files of tests/ that any of these imports."""
    return sorted(_read_by(root, judging_files(root, module)))


def sha256_of(root: Path, files: list[Path]) -> str:
    """Hash names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _read_by(root: Path, files: list[Path]) -> set[Path]:
    tests = root / "tests"
    beside = _by_stem(tests)
    waiting = [*files, *(folder / "conftest.py" for folder in {tests, *(file.parent for file in files)})]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [beside[alias.name] for alias in node.names if alias.name in beside]
            elif isinstance(node, ast.ImportFrom) and node.module in beside:
                waiting.append(beside[node.module])
    return seen


@cache
def _by_stem(tests: Path) -> dict[str, Path]:
    """Return the modules that tests share, by the name they are imported under."""
    return {path.stem: path for path in tests.rglob("*.py") if path.stem != "conftest"}
