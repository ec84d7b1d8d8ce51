"""What importing the package needs: nothing that only POSIX has, no library of the tests, and no time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EVERY_MODULE = """
import importlib, os, sys, warnings
from pathlib import Path

import psutil  # has a version of its own for every system

BLOCKED = {"fcntl", "resource", "pwd", "grp", "termios"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in BLOCKED:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocker())
del os.getuid, os.geteuid
warnings.simplefilter("ignore")  # filelock tells that it has no fcntl

root = Path(sys.argv[1])
for file in sorted((root / "edgeconvnext").rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    if parts[-1] == "__main__":
        continue
    try:
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        if error.name != "triton":  # the kernels are written in it
            raise
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_where_fcntl_resource_pwd_and_user_ids_are_absent() -> None:
    python(EVERY_MODULE, str(ROOT))


def test_importing_every_module_loads_no_library_that_only_tests_and_benchmarks_use() -> None:
    loaded = python(f"{EVERY_MODULE}\nprint(*{{name.partition('.')[0] for name in sys.modules}})", str(ROOT)).split()
    assert "edgeconvnext" in loaded
    assert not {"matplotlib", "sklearn", "pytest", "hypothesis", "grimp"} & set(loaded)


def test_importing_the_package_loads_no_heavy_library() -> None:
    loaded = python("import edgeconvnext, edgeconvnext.model, sys; print(*sys.modules)").split()
    assert "edgeconvnext.model" in loaded
    assert not {"torch", "numpy", "onnx", "onnxruntime", "pydantic", "PIL", "typer"} & set(loaded)
