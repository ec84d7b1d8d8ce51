"""One file in one process: `processes.py` starts this module, tells it when to run, and reads the times.

    python -m edgeconvnext.backends.timed_process '{"backend": "onnx", "path": "a.onnx", "threads": 1, "batch": 1, "cores": [0]}'

Messages are lines of JSON. The process says once what opening the file took; then each line on its standard input, the seconds of
a turn, is answered by that turn's times. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

MIB = 2.0**20


@dataclass(frozen=True)
class Opened:
    """What opening a file and running it once took.

    load_ms: until the first answer was there. memory_mib: resident memory of the process above what it held before. cores: that
    the process is pinned to; None where the system cannot.
    """

    runtime: str
    load_ms: float
    memory_mib: float
    cores: list[int] | None


def main(arguments: list[str]) -> None:
    """Open the file, and time it until the standard input ends."""
    # What a runtime prints goes to the standard error: the standard output belongs to the messages.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(arguments[0])
    cores = _pin(asked["cores"])
    try:
        call, opened = _open(asked, cores)
    except Exception as error:
        _send(answers, {"error": str(error) or type(error).__name__})
        return
    _send(answers, asdict(opened))
    for line in sys.stdin:
        _send(answers, {"times_ms": turn(call, float(line))})


def turn(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return the times of runs in `seconds`, milliseconds, one at least; a first run, on cold caches, is not counted."""
    call()
    times: list[float] = []
    start = clock()
    while not times or clock() - start < seconds:
        begin = clock()
        call()
        times.append(1000 * (clock() - begin))
    return times


def _open(asked: dict[str, Any], cores: list[int] | None) -> tuple[Callable[[], object], Opened]:
    from edgeconvnext.backends import backend
    from edgeconvnext.evaluation.timing import grey_ramp
    from edgeconvnext.memory import resident_mib

    path, known = Path(asked["path"]), backend(asked["backend"])
    shape = known.input_of(path)
    images = grey_ramp(shape.size, shape.channels).repeat(asked["batch"], axis=0)
    before, start = resident_mib(), time.perf_counter()
    runner = known.timed_runner(path, asked["threads"])
    if runner.batch not in (None, len(images)):
        raise ValueError(f"the file takes {runner.batch} images at once, and {len(images)} were to be timed")
    inputs = runner.prepare(images)
    runner.run(inputs)
    load_ms = 1000 * (time.perf_counter() - start)
    return lambda: runner.run(inputs), Opened(runner.runtime, load_ms, resident_mib() - before, cores)


def _pin(cores: list[int]) -> list[int] | None:
    """Keep this process on these cores, before a runtime counts them; None where the system cannot."""
    import psutil

    if not hasattr(psutil.Process, "cpu_affinity"):
        return None
    psutil.Process().cpu_affinity(cores)
    return cores


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
