"""What a run shows: scores and survivors on the terminal, and docs/mutants.md."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from mutant_modules import MODULES
from mutant_session import Module, Session
from mutant_sites import Mutant

GOAL, GOAL_PER_MODULE = 0.9, 0.8
EQUIVALENT = Path("tests/mutants/equivalent.toml")
Change = tuple[str, str, str, str]


@dataclass(frozen=True)
class Score:
    """Counts of one module or of all. equivalent: survivors with a reason in equivalent.toml, which `survived` counts too."""

    possible: int = 0
    drawn: int = 0
    killed: int = 0
    survived: int = 0
    equivalent: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.possible + other.possible,
            self.drawn + other.drawn,
            self.killed + other.killed,
            self.survived + other.survived,
            self.equivalent + other.equivalent,
        )

    @property
    def plain(self) -> float:
        """killed / (killed + survived)"""
        return _share(self.killed, self.killed + self.survived)

    @property
    def without_equivalent(self) -> float:
        """killed / (killed + survived), equivalent mutants left out"""
        return _share(self.killed, self.killed + self.survived - self.equivalent)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def change(mutant: Mutant) -> Change:
    """Name a mutant as equivalent.toml does."""
    return mutant.module, mutant.function, mutant.before, mutant.after


def reasons(root: Path) -> dict[Change, str]:
    """Read equivalent.toml: why a change makes no difference that a test could see."""
    path = root / EQUIVALENT
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", []) if path.is_file() else []
    return {(entry["module"], entry["function"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def survivors(session: Session, module: Module) -> list[Mutant]:
    """Return the mutants of a module that its tests did not notice."""
    return [mutant for mutant in module.drawn if (session.result(module, mutant) or {}).get("outcome") == "survived"]


def score(session: Session, module: Module, known: dict[Change, str]) -> Score:
    """Count a module's mutants; one without a result is neither killed nor survived."""
    alive = survivors(session, module)
    judged = sum(session.result(module, mutant) is not None for mutant in module.drawn)
    equivalent = sum(change(mutant) in known for mutant in alive)
    return Score(len(module.possible), len(module.drawn), judged - len(alive), len(alive), equivalent)


def print_summary(session: Session) -> int:
    """Print scores and survivors; return 1 where a goal is missed."""
    known = reasons(session.root)
    scores = {module.name: score(session, module, known) for module in session.modules}
    for module in session.modules:
        alive = survivors(session, module)
        if alive:
            print(f"\n{module.name}: survivors")
        for mutant in alive:
            why = known.get(change(mutant))
            print(
                f"  {session.identifier(module, mutant)} line {mutant.line}, {mutant.function or 'module'} [{mutant.operator}]"
            )
            print(f"      - {mutant.before}\n      + {mutant.after}" + (f"\n      equivalent: {why}" if why else ""))
    print(
        f"\n{'module':24} {'possible':>8} {'drawn':>6} {'killed':>6} {'survived':>8} {'score':>8}  without equivalent"
    )
    total = sum(scores.values(), Score())
    for name, counts in [*scores.items(), ("all", total)]:
        print(
            f"{name:24} {counts.possible:8} {counts.drawn:6} {counts.killed:6} {counts.survived:8} "
            f"{counts.plain:8.1%}  {counts.without_equivalent:.1%}"
        )
    missed = total.plain < GOAL or any(counts.plain < GOAL_PER_MODULE for counts in scores.values())
    return int(missed)


def write_page(session: Session, path: Path) -> int:
    """Write docs/mutants.md; return 2, and write nothing, where modules are absent or a reason fits no survivor."""
    known = reasons(session.root)
    scores = {module.name: score(session, module, known) for module in session.modules}
    alive = {module.name: survivors(session, module) for module in session.modules}
    stale = set(known) - {change(mutant) for mutants in alive.values() for mutant in mutants}
    if set(scores) != set(MODULES):
        print("The page takes all modules: name none.", file=sys.stderr)
    for entry in sorted(stale):
        print(f"{EQUIVALENT} names no survivor of this run: {entry}", file=sys.stderr)
    if set(scores) != set(MODULES) or stale:
        return 2
    path.write_text("\n".join(_page(session, scores, alive, known)), encoding="utf-8")
    return 0


def _page(
    session: Session, scores: dict[str, Score], alive: dict[str, list[Mutant]], known: dict[Change, str]
) -> list[str]:
    total = sum(scores.values(), Score())
    page = [
        "# Mutants: changes that the tests must notice",
        "",
        "How many deliberate faults in the numeric modules the tests notice, and which ones they miss. A mutant is a copy of a",
        "module with one changed arithmetic operation, comparison, constant or returned value.",
        "",
        "- A mutant is killed if a test of its module fails, the import fails, or the time limit passes. Only the module's own",
        "  test files run.",
        "- Messages, annotations, `assert` and `zip`'s `strict` are not changed.",
        "- Score: killed / (killed + survived). Equivalent mutants count as survivors; the last column leaves them out.",
        f"- `make mutants` judges them and writes this page. The draw has seed {session.seed}.",
        "- Operators: those of [cosmic-ray](https://cosmic-ray.readthedocs.io), and in `tests/mutants/mutant_operators.py`",
        "  augmented assignment, `in`, operands and bounds off by one, paired functions (`round` and `floor`, `min` and `max`),",
        "  exchanged parameters of the same type, returned values, filters of comprehensions.",
        "",
        "| Module | Possible | Drawn | Killed | Survived | Score | Tests, CPU s | Equivalent | Score without |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for module in session.modules:
        seconds = (session.result(module) or {}).get("cpu_s", 0.0)
        page.append(_row(f"`{module.name}`", scores[module.name], f"{seconds:.0f}"))
    page.append(_row("**all**", total, ""))
    page += ["", "## Survivors", ""]
    for module in session.modules:
        if alive[module.name]:
            page += [
                f"### {module.name}",
                "",
                "| Function | Before | After | Equivalent, because |",
                "|---|---|---|---|",
            ]
        for mutant in alive[module.name]:
            place = f"`{mutant.function}`" if mutant.function else "module"
            why = known.get(change(mutant), "").replace("|", "\\|")
            page.append(f"| {place} | {_code(mutant.before)} | {_code(mutant.after)} | {why} |")
        if alive[module.name]:
            page.append("")
    return page


def _row(name: str, counts: Score, seconds: str) -> str:
    cells = (
        name,
        counts.possible,
        counts.drawn,
        counts.killed,
        counts.survived,
        f"{counts.plain:.1%}",
        seconds,
        counts.equivalent,
        f"{counts.without_equivalent:.1%}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _code(line: str) -> str:
    """Return a line as code in a cell of a table."""
    fence = "``" if "`" in line else "`"
    return f"{fence}{line}{fence}".replace("|", "\\|")
