"""docs/crashes.md: what was disturbed at which moment, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SIGNALS = ("KILL", "TERM", "INT", "HUP", "disk full", "second writer")
_HEAD = """# Crashes

What happens when a command is killed, the disk is full, or two commands write the same folder: the next run gives the same files
as an undisturbed one. `make crashes` disturbs a command at an exact moment, runs it again undisturbed, and compares every file
with those of an undisturbed run. The comparison leaves out times, memory and dates.

| column | disturbance | what must hold |
|---|---|---|
| KILL | `kill -9` | the next run ends as if nothing had happened |
| TERM, INT, HUP | the signal | exit code 128 + n, no temporary file is left, the next run ends as if nothing had happened |
| disk full | a file system of a few hundred KiB | exit code 1, the message names the disk; with room, the next run ends well |
| second writer | the same command at the same time | one is refused with exit code 1, the other ends as if alone |

"""


def write_page(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the table of all results."""
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        table[row["command"], row["moment"]][row["signal"]] = row
    good = sum(not row["problems"] for row in rows)
    lines = [_HEAD + f"Last run on {datetime.now(UTC):%Y-%m-%d}: {len(rows)} cases, {good} as they should be.", ""]
    lines += ["| command | moment | " + " | ".join(_SIGNALS) + " |", "|---|---|" + "---|" * len(_SIGNALS)]
    for (command, moment), by_signal in table.items():
        cells = [_cell(by_signal.get(name)) for name in _SIGNALS]
        lines.append(f"| {command} | {moment} | {' | '.join(cells)} |")
    problems = [(row, problem) for row in rows for problem in row["problems"]]
    if problems:
        lines += ["", "## What failed", ""]
        lines += [f"- {row['command']}, {row['moment']}, {row['signal']}: {problem}" for row, problem in problems]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "failed" if row["problems"] else "same"
