"""Options: each is declared once, and the command line, the Python functions and requests have it from there."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import edgeconvnext
from edgeconvnext import api
from edgeconvnext.cli import main
from edgeconvnext.cli.application import app
from edgeconvnext.errors import OptionError, RunDirectoryError
from edgeconvnext.options import commands as options
from edgeconvnext.options.declaration import Options, declared_options
from edgeconvnext.options.groups import Method
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request, resolve
from edgeconvnext.pipeline.stages.quantization import METHOD
from edgeconvnext.quantization.candidates import ReconstructionOptions

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS: dict[str, tuple[Callable[..., Any], type[Options]]] = {
    "quantize": (api.quantize, options.Quantize),
    "export": (api.export, options.Export),
    "validate": (api.validate, options.Validate),
    "analyze": (api.analyze, options.Analyze),
    "search": (api.search, options.Search),
    "prune": (api.prune, options.Prune),
    "compress": (api.compress, options.Compress),
}
COMMANDS: dict[str, type[Options]] = {
    "quantize": options.Quantize,
    "export": options.Export,
    "validate": options.Validate,
    "analyze": options.Analyze,
    "search": options.Search,
    "prune": options.PruneAndRecover,
    "fold": options.Fold,
    "bench": options.Bench,
    "remote": options.Remote,
    "roadmap": options.Roadmap,
}


def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_that_are_declared(name: str) -> None:
    function, declared = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    for known in declared_options(declared).values():
        assert (parameters[known.name].default == inspect.Parameter.empty) == known.required
        assert known.required or parameters[known.name].default == known.field.default
        assert f"{known.name}: {known.about.help}" in (function.__doc__ or "")
    assert len(parameters) - len(declared_options(declared)) == (name not in ("quantize", "export"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_that_are_declared(name: str) -> None:
    parameters = {parameter.name: parameter for parameter in commands()[name].params}
    for known in declared_options(COMMANDS[name]).values():
        parameter = parameters[known.name]
        assert (parameter.opts[0], parameter.help) == (known.flag, known.about.help)
        assert parameter.rich_help_panel == known.panel
        assert parameter.required == known.required
        assert known.required or (parameter.default or None) == (known.field.default or None)


def test_every_option_of_a_run_reaches_the_request() -> None:
    names = set(declared_options(Request))
    assert set(declared_options(options.Quantize)) | set(declared_options(options.Export)) == names
    request = Request.from_options(options.Quantize.of(given={"smoothing": "none", "mean": "0.1,0.2,0.3"}))
    assert (request.smoothing, request.mean, request.given) == ("none", (0.1, 0.2, 0.3), {"smoothing", "mean"})


def test_defaults_of_the_engines_are_those_of_the_options() -> None:
    assert Request().reconstruction_options == ReconstructionOptions()


ADDED = '    throwaway: int = option(7, "An option of a test.")\n'
PROBE = """
import dataclasses, inspect
import edgeconvnext
from edgeconvnext.options import commands as options
from edgeconvnext.pipeline.job import Request
from edgeconvnext.pipeline.stages.quantization import METHOD
from edgeconvnext.pipeline.stored_config import _StoredMethod

assert "throwaway" in inspect.getfile(edgeconvnext)
for function in (edgeconvnext.quantize, edgeconvnext.export):
    assert inspect.signature(function).parameters["throwaway"].default == 7
request = Request.from_options(options.Export.of(given={"target": "onnx", "throwaway": 9}))
assert request.throwaway == 9 and Request().throwaway == 7
assert "throwaway" in METHOD and "throwaway" in _StoredMethod.model_fields
"""


@pytest.mark.slow
def test_a_new_option_is_one_edit(tmp_path: Path) -> None:
    """One line in a copy of the package gives the option to everything that has options."""
    package = tmp_path / "throwaway" / "edgeconvnext"
    shutil.copytree(ROOT / "edgeconvnext", package, ignore=shutil.ignore_patterns("__pycache__"))
    groups = package / "options" / "groups.py"
    text = groups.read_text()
    assert text.count("    rounding: Rounding = ") == 1
    groups.write_text(text.replace("    rounding: Rounding = ", f"{ADDED}    rounding: Rounding = "))
    search_path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search_path, "COLUMNS": "100"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-c", PROBE)
    for command in ("quantize", "export"):
        helped = python("-m", "edgeconvnext", command, "--help")
        assert re.search(r"--throwaway +<int> +An option of a test\.", helped)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits whose options are none of the defaults."""
    output = tmp_path_factory.mktemp("quick") / "run"
    return api.quantize(
        "digits",
        calib="digits",
        num_images=12,
        effort="quick",
        calibrator="minmax",
        bias_correction=False,
        output=output,
    ).path


def resolved(**given: Any) -> Request:
    return resolve(Request.from_options(options.Export.of(given={"target": "onnx", **given}))).request


def test_an_option_at_its_default_overrides_the_run_and_one_that_is_not_given_does_not(quick_run: Path) -> None:
    kept = resolved(from_run=quick_run)
    assert (kept.effort, kept.calibrator, kept.num_images, kept.bias_correction) == ("quick", "minmax", 12, False)
    asked = resolved(from_run=quick_run, effort="default", calibrator="auto", num_images=256, bias_correction=True)
    assert (asked.effort, asked.calibrator, asked.num_images, asked.bias_correction) == ("default", "auto", 256, True)
    assert asked.head == "classifier" and resolved(from_run=quick_run, head="classifier").head == "classifier"


def test_both_front_doors_tell_what_was_given(quick_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []

    def stop(request: Request) -> None:
        requests.append(request)
        raise RunDirectoryError("far enough")

    monkeypatch.setattr(pipeline, "export", stop)
    run = str(quick_run)
    for given in ((), ("--effort", "default", "--bias-correction", "--num-images", "256")):
        with pytest.raises(RunDirectoryError):
            app(["export", "--target", "onnx", "--from", run, *given], standalone_mode=False)
    for keywords in ({}, {"effort": "default", "bias_correction": True, "num_images": 256}):
        with pytest.raises(RunDirectoryError):
            edgeconvnext.export(target="onnx", from_run=run, **keywords)  # type: ignore[arg-type]
    alone = {"target", "from_run"}
    assert [set(request.given) - alone for request in requests] == [
        set(), {"effort", "bias_correction", "num_images"}, set(), {"effort", "bias_correction", "num_images"},
    ]  # fmt: skip
    assert requests[0] == requests[2] and requests[1] == requests[3]


def test_a_run_that_stored_its_options_under_other_names_is_refused(quick_run: Path, tmp_path: Path) -> None:
    """As one of a version that said "preparation", beside the others; read with defaults, it would be another run."""
    for place in ("beside", "inside"):
        copy = shutil.copytree(quick_run, tmp_path / place / "run")
        manifest = json.loads((copy / "manifest.json").read_text())
        method = manifest["config"]["method"]
        assert set(method) == set(METHOD) == set(declared_options(Method))
        method["preparation"] = method.pop("smoothing")
        if place == "beside":
            manifest["config"] |= manifest["config"].pop("method")
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RunDirectoryError, match=r"what this version needs .*(method|smoothing): Field required"):
            resolved(from_run=copy)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"prepare": "none"}, "no option prepare any more; use smoothing"),
        ({"effort": "fast"}, "effort takes quick, default or best; it is fast"),
        ({"weights": 5}, "weights takes 4 or 8; it is 5"),
        ({"prune_macs": float("nan")}, "prune_macs takes finite numbers; it is nan"),
        ({"norms": "blocks", "norm_drop": 0.5}, "norms and norm_drop mean nothing without replace_norm"),
        ({"epochs": 10}, "epochs means nothing without recover"),
        ({"recover": True}, "recover makes up for prune_macs or replace_norm"),
        ({"mean": "a,b"}, "mean takes numbers separated by commas"),
    ],
)
def test_values_that_an_option_does_not_take_are_refused_in_python(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        edgeconvnext.quantize("digits", calib="digits", **keywords)


def test_arguments_that_do_not_fit_are_type_errors() -> None:
    with pytest.raises(TypeError, match=r"quantize\(\): .*unexpected keyword argument 'efort'"):
        edgeconvnext.quantize("digits", efort="quick")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"export\(\): missing a required .*'target'"):
        edgeconvnext.export("digits")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many positional"):
        edgeconvnext.quantize("digits", "digits")  # type: ignore[call-arg]


def run_main(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["edgeconvnext", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quantize", "--prepare", "none"), "no option --prepare any more; use --smoothing"),
        (("export", "--target", "onnx", "--prepare", "auto"), "use --smoothing"),
        (("quantize", "--weights", "5"), "--weights takes 4 or 8; it is 5"),
        (("bench", "run", "--threads", "0"), "--threads takes numbers from 1 on; it is 0"),
        (("export", "--target", "onnx", "--from", "x", "--model", "y"), "--from names a run and its model; leave out"),
        (("validate", "x", "--device", "d.json", "--data", "digits"), "leave out --data"),
        (("validate", "x", "--device", "d.json", "--again"), "leave out --again"),
        (("prune", "digits", "--calib", "x", "--output", "y", "--recover"), "give --macs"),
    ],
)
def test_the_command_line_says_the_same_in_its_spelling_and_ends_with_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = run_main(capsys, monkeypatch, *arguments)
    assert code == 2 and words in printed


def test_a_run_is_analysed_without_options_and_the_refusal_is_spelled_for_the_command_line(
    quick_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its default, too: only what was given counts."""
    code, printed = run_main(capsys, monkeypatch, "analyze", str(quick_run), "--num-images", "256")
    assert code == 1 and "leave out --num-images" in printed
    with pytest.raises(OptionError, match="leave out num_images"):
        edgeconvnext.analyze(quick_run, num_images=256)


@pytest.mark.parametrize("name", [*COMMANDS, "inspect", "train", "fine-tune"])
def test_help_has_two_examples_that_the_command_takes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = commands()[name]
    examples = re.findall(r"^ *edgeconvnext (.+)$", command.epilog, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert len(f" edgeconvnext {example} ") <= 80
        first, *arguments = example.split()
        assert first == name
        command.make_context(name, arguments)  # raises for an option that there is not
    code, printed = run_main(capsys, monkeypatch, name, "--help")
    assert code == 0
    assert all(f"edgeconvnext {example}" in printed for example in examples)
    assert "…" not in printed, "an option's name is cut at 80 columns"


def test_help_of_export_is_in_groups(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, printed = run_main(capsys, monkeypatch, "export", "--help")
    panels = re.findall(r"╭─ ([A-Z][a-z ]+) ─", printed)
    assert panels == ["Input", "Quantization", "Pruning and norms", "Measuring", "Output"]
    assert "prepare" not in printed


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "edgeconvnext", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(r"edgeconvnext \d+\.\d+\.\d+\n", done.stdout)


def test_groups_are_frozen_dataclasses() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.Quantize().effort = "best"  # type: ignore[misc]
