"""Kill commands at every stage and run them again: nothing half-written counts, and the result is that of an undisturbed run.

    python tests/crashes/run.py            all that has no result yet, then the page docs/crashes.md
    python tests/crashes/run.py --page     the page alone

A case is a command, a moment and a signal. The moment is met exactly: the signal is sent from within the function that is running.
The command then runs again undisturbed, and every file has to be the one of a run that nothing disturbed, times aside. Results
lie in .crashes/results.jsonl; a case whose code has changed runs again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

from crash_cases import COMMANDS, SIGNALS, Command, at_moment, moments_of, send_at  # noqa: E402
from crash_checks import differences, leftovers  # noqa: E402
from crash_page import write_page  # noqa: E402
from short_turns import DURATIONS_S  # noqa: E402

FOLDER = CHECKOUT / ".crashes"
RESULTS = FOLDER / "results.jsonl"
PAGE = CHECKOUT / "docs" / "crashes.md"
_SECONDS = 600
_IMPORTED_ONCE = (
    "torch",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "torchao.quantization.pt2e.quantize_pt2e",
    "onnxscript",
    "onnxruntime",
    "edgeconvnext.api",
    "edgeconvnext.quantization.program",
    "edgeconvnext.backends.onnx.write",
    "edgeconvnext.backends.onnxruntime.backend",
    "edgeconvnext.train.training",
    "edgeconvnext.report.write",
)


def in_a_process(
    folder: Path, command: Command, prepare: Callable[[], None] = lambda: None, output: Path | None = None
) -> int:
    """Run a command as `start` does; returns its exit code, negative for the signal that ended it."""
    return ended(start(folder, command, prepare, output))


def start(
    folder: Path, command: Command, prepare: Callable[[], None] = lambda: None, output: Path | None = None
) -> ForkProcess:
    """Start a command in a forked process in `folder`.

    prepare: called in that process first. output: the file for what it prints; None: output.txt in `folder`.
    """

    def child() -> None:
        from edgeconvnext.evaluation import timing

        os.setsid()
        os.chdir(folder)
        os.environ["XDG_STATE_HOME"] = str(FOLDER / "state")
        os.environ["HOME"] = str(FOLDER / "home")
        with (output or folder / "output.txt").open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored
        for name, seconds in DURATIONS_S.items():  # how fast a network is does not matter here
            setattr(timing, name, seconds)
        prepare()
        sys.argv = ["edgeconvnext", *command.arguments]
        from edgeconvnext.cli import main

        main()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def ended(process: ForkProcess) -> int:
    """Wait for a process; returns its exit code, negative for the signal that ended it, -1000 for one that hangs."""
    process.join(_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return -1000
    return int(process.exitcode or 0)


def reference(command: Command) -> Path:
    """Run a command undisturbed, once; returns its folder."""
    folder = FOLDER / "undisturbed" / command.name
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        code = in_a_process(folder, command)
        if code not in (0, 3):
            raise SystemExit(f"{command.name} ends with {code}: {(folder / 'output.txt').read_text()}")
        (folder / "done").touch()
    return folder


def run_case(command: Command, moment: str, name: str) -> dict[str, Any]:
    """Kill a command at a moment, run it again, and compare."""
    expected = reference(command)
    folder = FOLDER / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number = getattr(signal, f"SIG{name}")
    killed = in_a_process(folder, command, lambda: send_at(command, moment, number))
    left = [] if name == "KILL" else leftovers(folder / command.output)
    again = in_a_process(folder, command)
    problems = [f"left behind: {', '.join(left)}"] if left else []
    wanted = -number if name == "KILL" else 128 + number
    # Training saves at SIGTERM and Ctrl-C alike and ends as at Ctrl-C.
    if killed not in (wanted, *([130] if command.saves_itself and name != "KILL" else [])):
        problems.append(f"ended with {killed} in place of {wanted}")
    if again not in (0, 3):
        problems.append(f"the next run ended with {again}: {(folder / 'output.txt').read_text()[-500:]}")
    problems += differences(expected / command.output, folder / command.output)
    problems += [f"after the next run: {name}" for name in leftovers(folder / command.output)]
    return {"command": command.name, "moment": moment, "signal": name, "code": killed, "problems": problems}


def full_disk(command: Command, kib: int) -> dict[str, Any]:
    """Run a command on a file system of `kib` KiB, then again with room."""
    expected = reference(command)
    folder = FOLDER / "disk"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    row: dict[str, Any] = {
        "command": command.name,
        "moment": f"{kib} KiB of disk",
        "signal": "disk full",
        "problems": [],
    }
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        return row | {"code": None, "skipped": "mounting a small file system needs root"}
    try:
        row["code"] = in_a_process(folder, command, output=FOLDER / "disk.txt")
        said = (FOLDER / "disk.txt").read_text()
        if row["code"] != 1 or "disk is full" not in said.lower():
            row["problems"].append(f"ended with {row['code']}: {said[-300:]}")
        row["problems"] += [f"left behind: {name}" for name in leftovers(folder / command.output)]
        subprocess.run([*mount[:4], "remount,size=1g", "tmpfs", str(folder)], check=True)
        again = in_a_process(folder, command, output=FOLDER / "disk.txt")
        if again not in (0, 3):
            row["problems"].append(f"with room it ended with {again}: {(FOLDER / 'disk.txt').read_text()[-300:]}")
        row["problems"] += differences(expected / command.output, folder / command.output)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    return row


def second_writer(command: Command) -> dict[str, Any]:
    """Start a command while the same one is at work in the same folder: the second is refused, the first ends as if alone."""
    expected = reference(command)
    folder = FOLDER / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    moment = moments_of(command, expected)[0]

    def wait() -> None:
        (folder / "first_is_there").touch()
        end = time.monotonic() + _SECONDS
        while not (folder / "second_is_done").exists() and time.monotonic() < end:
            time.sleep(0.05)

    # Both are forked here: a process whose torch has computed cannot be forked again.
    process = start(folder, command, lambda: at_moment(command, moment, wait))
    while not (folder / "first_is_there").exists() and process.is_alive():
        time.sleep(0.05)
    second = in_a_process(folder, command, output=folder / "second.txt")
    (folder / "second_is_done").touch()
    first, said = ended(process), (folder / "second.txt").read_text()
    problems = [] if first in (0, 3) else [f"the first ended with {first}"]
    if second != 1 or "in use" not in said:
        problems.append(f"the second ended with {second}: {said[-300:]}")
    problems += differences(expected / command.output, folder / command.output)
    return {"command": command.name, "moment": moment, "signal": "second writer", "code": first, "problems": problems}


def known() -> dict[tuple[str, str, str], dict[str, Any]]:
    from edgeconvnext.run.stage_record import code_version

    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {(r["command"], r["moment"], r["signal"]): r for r in rows if r["code_version"] == code_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    parser.add_argument("--only", help="one command, by its name")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    from edgeconvnext.run.stage_record import code_version

    # Imported once, before every fork. No operation of torch may run in this process: its threads do not survive a fork.
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)

    results = known()
    version = code_version()

    def note(key: tuple[str, str, str], make: Callable[[], dict[str, Any]]) -> None:
        if key in results:
            return
        results[key] = row = make() | {"code_version": version}
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        sys.stdout.write(f"{' / '.join(key)}: {'; '.join(row['problems']) or 'as it should be'}\n")
        sys.stdout.flush()

    for command in [] if options.page else COMMANDS:
        if options.only not in (None, command.name):
            continue
        for moment in moments_of(command, reference(command)):
            for name in SIGNALS:
                note((command.name, moment, name), partial(run_case, command, moment, name))
        for kib in command.disks_kib:
            note((command.name, f"{kib} KiB of disk", "disk full"), partial(full_disk, command, kib))
        if command.locks:
            note(
                (command.name, moments_of(command, reference(command))[0], "second writer"),
                partial(second_writer, command),
            )
    write_page(list(results.values()), PAGE)
    return int(any(row["problems"] for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
