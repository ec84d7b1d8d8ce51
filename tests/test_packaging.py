"""What a user installs is whole, the pinned versions fit the declared ranges, and the Makefile does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line) for line in lines if line and not line.startswith("#"))
    return {normalised(match[1]): match[2] for match in found if match}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] and citation["title"] == PROJECT["name"]


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.stem
)
def test_issue_forms_ask_for_something(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem != "config":
        assert content["name"] and content["description"]
        asked_for = [part["attributes"]["label"] for part in content["body"] if part["type"] != "markdown"]
        assert asked_for and len(set(asked_for)) == len(asked_for)


def test_every_line_of_the_constraints_is_a_pin() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins()) == len(lines)


@pytest.mark.parametrize("requirement", declared("demo", "dev", "docs"), ids=lambda requirement: requirement.name)
def test_what_the_makefile_installs_is_pinned_inside_the_declared_range(requirement: Requirement) -> None:
    assert pins()[normalised(requirement.name)] in requirement.specifier


def test_the_demo_extra_is_the_runtimes_of_any_machine_together() -> None:
    assert {requirement.name for requirement in declared("demo")} == {
        requirement.name for requirement in declared("coreml", "openvino", "rtx")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0 and re.search(
        r"No matching distribution found for hatchling|ConnectionError", built.stderr
    ):
        pytest.skip("building a wheel needs hatchling from the package index, and it cannot be had here")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_carries_sets_targets_templates_device_script_and_weights(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"edgeconvnext/_{kind}/{file.name}" for kind in ("calib", "targets") for file in (ROOT / kind).glob("*")
    }
    expected |= {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "edgeconvnext").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert not expected - inside
    for kind in ("_calib/digits.toml", "_targets/jetson.toml"):
        assert f"edgeconvnext/{kind}" in inside
    suffixes = {Path(name).suffix for name in inside if not name.startswith("edgeconvnext/_")}
    assert {".py", ".safetensors", ".npz"} <= suffixes
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_an_installed_wheel_finds_its_targets_and_sets_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    (site,) = environment.glob("lib/python*/site-packages")
    # Dependencies come from the environment of this test; its own .pth files, and with them the checkout, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)

    def run(*command: str) -> str:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(python), "-c", "import edgeconvnext; print(edgeconvnext.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    listed = run(str(environment / "bin/edgeconvnext"), "targets")
    for file in (ROOT / "targets").glob("*.toml"):
        assert file.stem in listed
    sets = run(str(python), "-c", "from edgeconvnext.data.sets import resolve_image_set as r; print(len(r('digits')))")
    assert int(sets) > 0


FAKE_PYTHON = """#!/bin/sh
# Stands for python and for the programs in .venv/bin: notes what it was asked.
case "$*" in
    *"sys.version_info"*) exit ${FAKE_TOO_OLD:-0} ;;
    "-m venv "*) mkdir -p "$3/bin"; for name in python edgeconvnext ruff mypy; do cp "$0" "$3/bin/$name"; done ;;
esac
echo "$(basename "$0") $*" >> asked.txt
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and a stand-in for python, at a path with a space in it."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python3").write_text(FAKE_PYTHON)
    (folder / "python3").chmod(0o755)
    return folder


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", *arguments, "PYTHON=./python3"]
    # MAKEFLAGS and the variables of a make around this test would otherwise reach the one inside it.
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(command, capture_output=True, text=True, cwd=clone, env=kept | environment)


def asked(clone: Path) -> list[str]:
    file = clone / "asked.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_make_alone_lists_every_goal(clone: Path) -> None:
    listed = make(clone).stdout
    for goal in (
        "setup",
        "export",
        "test",
        "test-all",
        "test-zoo",
        "test-fast",
        "check",
        "bench",
        "docs",
        "clean",
        "help",
    ):
        assert re.search(rf"^  make {goal} ", listed, re.MULTILINE)
    assert asked(clone) == []


def test_setup_installs_once_and_again_only_when_the_versions_change(clone: Path) -> None:
    assert make(clone, "setup").returncode == 0
    install = "python -m pip install --quiet --constraint constraints.txt --editable .[demo,dev]"
    assert asked(clone) == ["python3 -m venv .venv", install]
    assert make(clone, "setup").returncode == 0
    assert len(asked(clone)) == 2
    newer = (clone / ".venv/installed").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (newer, newer))
    assert make(clone, "setup").returncode == 0
    assert asked(clone)[2:] == ["python3 -m venv .venv", install]


def test_the_zoo_has_an_environment_of_its_own_with_pinned_libraries(clone: Path) -> None:
    assert make(clone, "test-zoo").returncode == 0
    assert make(clone, "test-zoo").returncode == 0
    assert asked(clone)[0] == "python3 -m venv .venv-zoo"
    install, first, second = asked(clone)[1:]
    assert (
        first
        == second
        == (
            "python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "
            "tests/zoo tests/model/test_modules.py"
        )
    )
    assert install == (
        "python -m pip install --quiet --constraint .venv-zoo/constraints.txt --editable .[dev] "
        "torchvision==0.29.1 timm==1.0.31 transformers==5.24.0"
    )
    pins = (clone / ".venv-zoo/constraints.txt").read_text().splitlines()
    assert "torch==2.14.1" in pins
    assert not any(pin.startswith("triton==") for pin in pins)


def test_another_python_or_torch_has_an_environment_of_its_own(clone: Path) -> None:
    shutil.copy(clone / "python3", clone / "python3.13")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "setup", "PYTHON=./python3.13", "TORCH=2.14.1"]
    subprocess.run(command, check=True, capture_output=True, cwd=clone, env=environment)
    folder = ".venv-python3.13-torch2.14.1"
    assert asked(clone) == [
        f"python3.13 -m venv {folder}",
        f"python -m pip install --quiet --constraint {folder}/constraints.txt --editable .[demo,dev]",
    ]
    shipped, own = (set((file / "constraints.txt").read_text().splitlines()) for file in (clone, clone / folder))
    assert own - shipped == {"torch==2.14.1"}
    # Each torch names the Triton that it needs.
    assert {line.partition("==")[0] for line in shipped - own} == {"torch", "triton"}


def test_an_old_python_is_refused_with_the_way_out(clone: Path) -> None:
    refused = make(clone, "setup", FAKE_TOO_OLD="1")
    assert refused.returncode != 0
    assert "needs Python 3.11 or later" in refused.stderr
    assert "PYTHON=python3.12" in refused.stderr
    assert asked(clone) == []


def test_export_without_a_model_takes_the_embedded_one_with_its_own_images(clone: Path) -> None:
    assert make(clone, "export", "TARGET=jetson").returncode == 0
    command = "edgeconvnext export --target jetson --model digits --calib digits --eval digits_test"
    assert asked(clone)[-1] == command


def test_export_of_ones_own_model_names_only_what_was_given(clone: Path) -> None:
    assert make(clone, "export", "TARGET=onnx", "MODEL=my weights.pth", "CALIB=imagenette").returncode == 0
    assert asked(clone)[-1] == "edgeconvnext export --target onnx --model my weights.pth --calib imagenette"


def test_export_without_a_target_says_so_before_anything_is_installed(clone: Path) -> None:
    refused = make(clone, "export")
    assert refused.returncode != 0
    assert "make export TARGET=jetson" in refused.stderr
    assert asked(clone) == []


def test_clean_keeps_the_runs(clone: Path) -> None:
    make(clone, "setup")
    for folder in ("runs/a", "edgeconvnext/__pycache__", "tests", "benchmarks", "build"):
        (clone / folder).mkdir(parents=True)
    assert make(clone, "clean").returncode == 0
    assert (clone / "runs/a").exists()
    assert not [name for name in (".venv", "build", "edgeconvnext/__pycache__") if (clone / name).exists()]


def test_ci_runs_the_two_commands_of_the_readme_and_the_checks() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith(("make ", "{ make "))]
    assert [" ".join(command.strip("{ ").split()[:3]) for command in commands] == [
        *("make setup", "make check &&", "make export TARGET=jetson", "make test"),
    ]
    assert 'wait "$check"' in script.read_text(), "a failed check fails the whole"
    readme = (ROOT / "README.md").read_text()
    for command in ("make export TARGET=jetson", "make test"):
        assert command in readme
