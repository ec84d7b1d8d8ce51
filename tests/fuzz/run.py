"""Fuzz every loader in process: whatever a file holds, it is read or refused by a user's error, in bounded memory and time.

    python tests/fuzz/run.py --seconds 600
    python tests/fuzz/run.py --cases 100000
    python tests/fuzz/run.py --only "device.json" --case 1234      one case again, with its traceback

Cases are numbered and follow from the seed. A fault's input is kept in .fuzz/faults and named with its number. The cases run in
a process of their own, so that one that kills its process is a fault like any other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.sharedctypes import Synchronized

from fuzz_cases import run_case
from loaders import CHECKOUT, case, loaders, make_base

FOLDER = CHECKOUT / ".fuzz"
MEMORY_BYTES = 3 * 2**30
# Cases of one loader in a row: a slow loader does not hold up the others.
BATCH = 50


def work(options: argparse.Namespace, start: int, at: Synchronized[int]) -> None:
    """Run the next cases of every loader; `at` holds the case that is running, for the parent."""
    import warnings

    warnings.simplefilter("ignore")
    folder = FOLDER / f"work-{os.getppid()}"
    every = loaders(FOLDER / "base", folder)
    (FOLDER / "names.json").write_text(json.dumps([loader.name for loader in every]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index, loader in enumerate(every):
        if options.only not in (None, loader.name):
            continue
        began = time.process_time()
        for number in range(start, start + options.batch):
            at.value = index * 10**9 + number
            content = case(loader, options.seed, number)
            fault = run_case(loader, content)
            if fault is not None:
                keep(loader.name, number, content, fault)
        if options.times:
            spent = 1000 * (time.process_time() - began) / options.batch
            sys.stdout.write(f"{loader.name}: {spent:.1f} ms a case\n")
            sys.stdout.flush()


def keep_case(seed: int, at: int, fault: str) -> None:
    """Keep the input of a case that killed its process."""
    index, number = divmod(at, 10**9)
    loader = loaders(FOLDER / "base", FOLDER / "one")[index]
    keep(loader.name, number, case(loader, seed, number), fault)


def keep(name: str, number: int, content: bytes, fault: str) -> None:
    faults = FOLDER / "faults"
    faults.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('/', '_').replace(' ', '_').replace(',', '')}-{number}"
    (faults / f"{stem}.bin").write_bytes(content)
    (faults / f"{stem}.txt").write_text(fault, errors="backslashreplace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="end after this time")
    parser.add_argument("--cases", type=int, help="end after this many cases over all loaders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", help="one loader, by its name")
    parser.add_argument("--batch", type=int, default=BATCH, help="cases of one loader in a row")
    parser.add_argument("--times", action="store_true", help="print the time of each loader")
    parser.add_argument("--case", type=int, help="one case again, with --only")
    options = parser.parse_args()
    sys.path.insert(0, str(CHECKOUT))
    os.environ["XDG_STATE_HOME"] = str(FOLDER / "state")
    make_base(FOLDER / "base")
    if options.case is not None:
        return one(options.only, options.seed, options.case)
    end = time.monotonic() + (options.seconds or 10**9)
    done, number = 0, options.first
    faults = FOLDER / "faults"
    # torch's threads do not survive a fork, so this process must never import it.
    context = multiprocessing.get_context("fork")
    while time.monotonic() < end and (options.cases is None or done < options.cases):
        at = context.Value("q", -1)
        process = context.Process(target=work, args=(options, number, at))
        process.start()
        process.join()
        if process.exitcode:  # the process died in the midst of a case: that one is a fault, and the rest is skipped
            died = context.Process(target=keep_case, args=(options.seed, at.value, f"exit {process.exitcode}"))
            died.start()
            died.join()
        names = json.loads((FOLDER / "names.json").read_text())
        chosen = [name for name in names if options.only in (None, name)]
        if not chosen:
            parser.error(f"no loader is called {options.only!r}; there are {', '.join(names)}")
        done, number = done + options.batch * len(chosen), number + options.batch
        kept = sorted(path.stem for path in faults.glob("*.txt")) if faults.is_dir() else []
        result = {"cases": done, "seed": options.seed, "first": options.first, "loaders": len(chosen), "faults": kept}
        (FOLDER / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        sys.stdout.write(f"{done} cases, {len(kept)} faults\n")
        sys.stdout.flush()
    return int(bool(kept))


def one(name: str, seed: int, number: int) -> int:
    loader = next(loader for loader in loaders(FOLDER / "base", FOLDER / "one") if loader.name == name)
    content = case(loader, seed, number)
    sys.stdout.write(f"{content[:2000]!r}\n{run_case(loader, content) or 'as it should be'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
