"""The mutation tool: what it changes and leaves alone, what it draws, what it judges, and that it resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="make mutants installs cosmic-ray")

import mutant_page
import mutant_session
from cosmic_ray.mutating import mutate_code
from mutant_judge import Limits, collect, start
from mutant_modules import MODULES, MOST_MUTANTS, PER_MODULE, judging_files, source_path
from mutant_operators import OwnOperator
from mutant_page import Score
from mutant_session import Session, UnusableTestsError
from mutant_sites import Mutant, draw, mutants_of, operators_by_name

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''\
"""A docstring with 1 + 2."""
from typing import Literal
Kind = Literal[1, 2]
LIMIT: "int | None" = 127
def scale(low: float, high: float, /, *, name: str = "x", symmetric: bool = True) -> float:
    """Divide by 127."""
    if low > high and name:
        raise ValueError(f"{low + 1} > {high - 1}: " + "swap %d" % 2)
    span = max(-low, high) / LIMIT if symmetric else (high - low) / 255
    assert span >= 0
    span *= np.round(low)
    return span
def split(items: list[int]) -> tuple[list[int], bool]:
    kept = [item for item in items if item not in (3,) or ready(item)]
    for a, b in zip(items, kept, strict=True):
        if not a: break
    return kept, True
'''


def changes(source: str) -> set[tuple[str, str]]:
    return {(mutant.before, mutant.after) for mutant in mutants_of("run/directory", source)}


def afters(line: str) -> set[str]:
    """What becomes of a statement of a function with two parameters."""
    source = f"def f(a: float, b: float, folder: Path, text: str) -> float:\n    {line}\n"
    return {mutant.after for mutant in mutants_of("run/directory", source)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c = 3 - 1.5", {"c = 3 + 1.5", "c = 4 - 1.5", "c = 2 - 1.5", "c = 3 - 2.5", "c = 3 - 0.5"}),
        ("c = x / self.top", {"c = x * self.top", "c = x / (self.top + 1)"}),
        ("c -= x", {"c += x"}),
        ("c = x < y", {"c = x <= y", "c = x >= y"}),
        ("c = x is None", {"c = x is not None"}),
        ("c = x in y", {"c = x not in y"}),
        ("c = x and -y", {"c = x or -y", "c = x and y"}),
        ("c = not x", {"c = x"}),
        ("c = True", {"c = False"}),
        ("c = np.round(x)", {"c = np.floor(x)"}),
        ("c = np.clip(x, lo, hi)", {"c = np.clip(x, (lo + 1), hi)", "c = np.clip(x, lo, (hi + 1))"}),
        ("c = min(x, y)", {"c = max(x, y)"}),
        ("c = a", {"c = b"}),
        ("return x", {"return (x) + 1"}),
        ("while x: break", {"while not x: break", "while x: continue"}),
        ("c = [x for x in y if z]", {"c = [x for x in y if not (z)]"}),
    ],
)
def test_arithmetic_comparisons_constants_and_returned_values_are_changed(line: str, expected: set[str]) -> None:
    assert afters(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        '"""One + 1."""',
        "c = f'{x + 1} of {y}'",
        "raise ValueError(x - 1)",
        "assert x > 0",
        "c: Literal[1, 2] | None",
        "import a.b as c",
        "c = folder / 'a' / name",
        "c = text",
        "c = {**x, **y}",
        "c(*x, key=y)",
        "for x in zip(y, z, strict=True): pass",
        "warnings.warn(text, 2)",
    ],
)
def test_messages_annotations_and_what_is_no_arithmetic_are_left_alone(line: str) -> None:
    assert afters(line) == set()


def test_only_code_of_a_whole_source_is_changed() -> None:
    before = {old for old, _ in changes(SOURCE)}
    untouched = {line.strip() for line in SOURCE.splitlines()} - before
    assert untouched == {
        '"""A docstring with 1 + 2."""',
        "from typing import Literal",
        "Kind = Literal[1, 2]",
        '"""Divide by 127."""',
        'raise ValueError(f"{low + 1} > {high - 1}: " + "swap %d" % 2)',
        "assert span >= 0",
        "def split(items: list[int]) -> tuple[list[int], bool]:",
        "for a, b in zip(items, kept, strict=True):",
    }
    assert ('LIMIT: "int | None" = 127', 'LIMIT: "int | None" = 128') in changes(SOURCE)
    assert ("return kept, True", "return True, kept") in changes(SOURCE)


def test_each_mutant_is_cosmic_rays_own_and_another_program() -> None:
    mutants = mutants_of("run/directory", SOURCE)
    texts = {mutant.apply(SOURCE) for mutant in mutants}
    assert len(texts) == len(mutants) and SOURCE not in texts
    for mutant in mutants:
        theirs = mutate_code(SOURCE, operators_by_name[mutant.operator], mutant.occurrence)
        assert "".join(theirs.split()) == "".join(mutant.apply(SOURCE).split())
        compile(theirs, "mutant", "exec")


def test_functions_are_named_with_their_class() -> None:
    source = "A = 1\nclass C:\n    b = 2\n    def f(self) -> int:\n        return self.x + 3\n"
    assert {(mutant.function, mutant.line) for mutant in mutants_of("run/directory", source)} == {
        ("", 1),
        ("C", 3),
        ("C.f", 5),
    }


def test_the_draw_is_the_same_for_a_seed_and_for_functions_that_stay() -> None:
    mutants = mutants_of("run/directory", SOURCE)
    drawn = draw(mutants, 0, 20)
    assert drawn == draw(mutants, 0, 20) and len(drawn) == 20
    assert drawn != draw(mutants, 1, 20)
    ranked = {mutant.identity for mutant in draw(mutants_of("run/directory", f"import os\n\n\n{SOURCE}"), 0, 20)}
    assert ranked == {mutant.identity for mutant in drawn}


def test_every_module_has_forty_mutants_or_all_of_its_own() -> None:
    assert PER_MODULE >= 40 and PER_MODULE * len(MODULES) <= MOST_MUTANTS
    for session in (
        Session(ROOT, [name]) for name in ("quantization/biases", "evaluation/gates", "quantization/ranges")
    ):
        (module,) = session.modules
        assert len(module.drawn) == min(PER_MODULE, len(module.possible))
    assert all(source_path(ROOT, name).is_file() for name in MODULES)
    assert all((ROOT / name).is_file() for extra in MODULES.values() for name in extra)


def test_equivalent_mutants_count_as_survivors_in_the_plain_score() -> None:
    both = Score(possible=30, drawn=10, killed=6, survived=4, equivalent=2) + Score(10, 10, 9, 1, 0)
    assert (both.plain, both.without_equivalent) == (15 / 20, 15 / 18)


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("pass", "survived"),
        ("bytearray(8 << 30)", "killed"),
        pytest.param("while True: pass", "timeout", marks=pytest.mark.exhaustive),
        pytest.param("1 +", "killed", marks=pytest.mark.exhaustive),
    ],
)
def test_a_mutant_dies_by_a_failing_test_the_clock_or_the_memory_limit(tmp_path: Path, line: str, outcome: str) -> None:
    source, test = tmp_path / "judged_module.py", tmp_path / "test_it.py"
    source.write_text("raise SystemError('the file is read in place of the mutated source')\n")
    test.write_text(
        f"import inspect\nimport sys\n\nsys.path.append({str(tmp_path)!r})\n\n\ndef test_it():\n    import judged_module\n\n"
        "    assert 'judged' in inspect.getsource(judged_module)\n    judged_module.judged()\n"
    )
    mutated = f"def judged():\n    {line}\n"
    running = [start(tmp_path, "judged_module", source, mutated, [test], Limits(cpu_s=4, wall_s=100))]
    ended = []
    while running:
        ended += collect(running)
    assert [verdict.outcome for _, verdict in ended] == [outcome]
    assert ended[0][1].by.startswith("test_it.py::test_it: ") == (outcome == "killed")
    assert not ended[0][0].folder.exists()
    assert not [path for path in tmp_path.rglob("*.py?") if path.is_file()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a package whose `run.directory` is tested but for one bound."""
    (tmp_path / "edgeconvnext").mkdir()
    (tmp_path / "edgeconvnext" / "run").mkdir()
    for folder in ("edgeconvnext", "edgeconvnext/run"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "edgeconvnext" / "run" / "directory.py").write_text(
        "def clipped(x: int) -> int:\n    return min(x, 100)\n"
    )
    (tmp_path / "tests" / "test_runs.py").write_text(
        "from edgeconvnext.run.directory import clipped\n\n\ndef test_clipped():\n"
        "    assert clipped(5) == 5\n    assert clipped(1000) >= 100\n"
    )
    return tmp_path


def test_nothing_is_judged_on_a_full_disk(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutant_session, "LEAST_FREE_BYTES", 2**80)
    monkeypatch.setattr(mutant_session, "import_libraries", lambda: None)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(UnusableTestsError, match="MiB left"):
        Session(checkout, ["run/directory"]).judge_all(jobs=1)
    assert not (checkout / ".mutants" / "results.jsonl").exists()


def test_the_page_lists_survivors_with_the_reason_why_they_are_equivalent(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutant_page, "MODULES", {"run/directory": ("tests/test_runs.py",)})
    (checkout / "tests" / "mutants").mkdir()
    reason = checkout / "tests" / "mutants" / "equivalent.toml"
    entry = 'module = "run/directory"\nfunction = "clipped"\nbefore = "return min(x, 100)"\n'
    reason.write_text(f'[[equivalent]]\n{entry}after = "return min(x, 101)"\nreason = "nobody counts so far"\n')
    session, page = Session(checkout, ["run/directory"]), checkout / "mutants.md"
    (module,) = session.modules
    session.results = {module.key(None): {"outcome": "survived", "cpu_s": 3.2}}
    for mutant in module.drawn:
        outcome = "survived" if "101" in mutant.after or "max" in mutant.after else "killed"
        session.results[module.key(mutant)] = {"outcome": outcome}
    assert mutant_page.write_page(session, page) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert rows == [
        "| `run/directory` | 4 | 4 | 2 | 2 | 50.0% | 3 | 1 | 66.7% |",
        "| `clipped` | `return min(x, 100)` | `return max(x, 100)` |  |",
        "| `clipped` | `return min(x, 100)` | `return min(x, 101)` | nobody counts so far |",
    ]
    reason.write_text(f'[[equivalent]]\n{entry}after = "return min(x, 99)"\nreason = "wrong: it was killed"\n')
    assert mutant_page.write_page(session, page) == 2


def mutants(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "run/directory", *options]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.exhaustive
def test_survivors_are_listed(checkout: Path) -> None:
    done = mutants(checkout)
    # min(x, 101) passes "at least 100"; min(x, 99), max(x, 100) and a result one too high do not.
    assert [line.strip() for line in done.stdout.splitlines() if "      + " in line] == ["+ return min(x, 101)"]
    assert done.stdout.splitlines()[-1].split() == ["all", "4", "4", "3", "1", "75.0%", "75.0%"]
    assert done.returncode == 1  # 75 % is less than the goal


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_second_run_judges_only_what_has_no_result(checkout: Path) -> None:
    done = mutants(checkout)
    results = checkout / ".mutants" / "results.jsonl"
    text = results.read_text()
    assert mutants(checkout).stdout == done.stdout.split("\n", 1)[1]  # all but the line on the time of the tests
    assert results.read_text() == text
    results.write_text(text[:-30])  # as kill -9 may leave it
    again = mutants(checkout)
    assert again.stdout == done.stdout.split("\n", 1)[1]
    lines = results.read_text().splitlines()
    assert lines[: len(lines) - 2] == text.splitlines()[:-1]  # the cut line stays, and its mutant has a line again
    assert json.loads(lines[-1])["key"] == json.loads(text.splitlines()[-1])["key"]
    assert mutants(checkout).stdout == again.stdout
    assert not [path for path in checkout.rglob("__pycache__") if ".mutants" not in path.parts]

    (checkout / "tests" / "test_runs.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    done = mutants(checkout)
    assert done.returncode == 2
    assert "run/directory: its tests fail without a mutation: tests/test_runs.py::test_wrong" in done.stderr


def test_the_files_that_judge_a_module_are_named_after_it() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in judging_files(ROOT, "quantization/ranges")]
    assert names[:2] == ["tests/quantization/test_ranges_numbers.py", "tests/quantization/test_ranges.py"]
    assert all(name.startswith("tests/quantization/test_ranges") for name in names)


def test_own_operators_leave_the_source_tree_as_it_is() -> None:
    own = [operator for operator in operators_by_name.values() if isinstance(operator, OwnOperator)]
    assert len(own) == 7
    assert mutants_of("run/directory", SOURCE) == mutants_of("run/directory", SOURCE)
    assert all(isinstance(mutant, Mutant) for mutant in mutants_of("run/directory", SOURCE))
