"""The two commands: `record` runs the cases, `compare` says what differs between two recordings and then ends with 1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __doc__ as usage
from .cases import CASES
from .comparison import Row, compare_recordings
from .recording import record_case


def main() -> int:
    options = _parser().parse_args()
    names = options.only or list(CASES)
    if options.command == "record":
        return _record(options.folder.resolve(), names)
    return _compare(options.first, options.second, names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "reference_outputs", description=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="run the cases that the folder does not hold yet")
    record.add_argument("folder", type=Path)
    compare = commands.add_parser("compare", help="compare two recordings")
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)
    for command in (record, compare):
        command.add_argument("--only", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    return parser


def _record(folder: Path, names: list[str]) -> int:
    failed = [name for name in names if not record_case(CASES[name], folder, _say)]
    if failed:
        _say(f"not recorded: {', '.join(failed)}")
    return int(bool(failed))


def _compare(first: Path, second: Path, names: list[str]) -> int:
    rows = compare_recordings(first, second, names)
    _say(_table(rows))
    different = sum(bool(row.differences) for row in rows)
    _say(f"\n{different} of {len(rows)} differ" if different else f"\nall {len(rows)} are equal")
    return int(bool(different))


def _table(rows: list[Row]) -> str:
    header = ("case", "what", "result")
    cells = [header, *((row.case, row.what, row.result) for row in rows)]
    case_width, what_width = (max(len(line[column]) for line in cells) for column in (0, 1))
    return "\n".join(f"{case:<{case_width}}  {what:<{what_width}}  {result}" for case, what, result in cells)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
