"""Mutate modules and see whether their own tests notice: python tests/mutants/run.py [quantization/ranges ...].

Run in the root of a checkout. Results go to .mutants/results.jsonl; a mutant that has one is not judged again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TRITON_INTERPRET": "1",
}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})  # read when Python starts

from mutant_modules import MODULES  # noqa: E402
from mutant_page import print_summary, write_page  # noqa: E402
from mutant_session import Session, UnusableTestsError  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks, and return the exit status: 2 where the tests cannot judge."""
    options = _parser().parse_args(arguments)
    root = Path.cwd()
    if not (root / "edgeconvnext" / "__init__.py").is_file():
        print(f"{root} holds no edgeconvnext/: run this in the root of a checkout.", file=sys.stderr)
        return 2
    unknown = sorted(set(options.modules) - set(MODULES))
    if unknown:
        print(f"No such module: {', '.join(unknown)}. There are {', '.join(MODULES)}.", file=sys.stderr)
        return 2
    sys.path.insert(0, str(root))
    session = Session(root, options.modules or list(MODULES), options.seed, options.all, options.again)
    if options.list:
        for mutant in session.drawn():
            print(f"{mutant.module}:{mutant.line} {mutant.function or 'module'} [{mutant.operator}]")
            print(f"    {mutant.before}\n    {mutant.after}")
        return 0
    if options.show:
        print(session.difference(options.show))
        return 0
    try:
        session.judge_all(options.jobs)
    except UnusableTestsError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. What was judged is kept; the same command goes on.", file=sys.stderr)
        return 130
    return (options.page and write_page(session, root / "docs" / "mutants.md")) or print_summary(session)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="such as quantization/ranges or run/directory (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--all", action="store_true", help="judge every mutant in place of a draw")
    parser.add_argument("--again", action="store_true", help="judge again what has a result")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    parser.add_argument("--page", action="store_true", help="write docs/mutants.md as well; takes all modules")
    parser.add_argument(
        "--show", metavar="ID", help="print the difference of a mutant by its id, as survivors are listed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
