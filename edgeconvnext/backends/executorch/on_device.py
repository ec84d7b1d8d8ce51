#!/usr/bin/env python3
"""Check the INT8 network in this machine's ExecuTorch against recorded answers, and time it against FP32.

Needs Python 3.10 or later with executorch and torch, and nothing else. Run it from anywhere:

    python3 check.py                    one thread
    python3 check.py --threads 4        four threads

Reads, beside this file: kit.json, model.pte (INT8), model_fp32.pte (the same network in FP32) and vectors.bin (images and the
answers they must give). Writes beside this file: device.json with every figure.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed, 4 when ExecuTorch is missing.
"""

import argparse
import array
import importlib
import importlib.metadata
import sys
import time
from pathlib import Path

from edgeconvnext.backends.device.board import clocks, machine, measure_power
from edgeconvnext.backends.device.kit import (
    InputProblem,
    Kit,
    RuntimeMissing,
    compare,
    finish,
    judge,
    new_result,
    packed,
    require_version,
    run_script,
)
from edgeconvnext.evaluation.turns import speedup, summaries, time_in_turns


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="batch to time: the file's own, which is 1")
    parser.add_argument("--threads", type=int, default=1, help="threads of ExecuTorch's pool (default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each network (default 3, as trtexec)")
    return run_script(check, parser.parse_args(arguments))


def check(options):
    kit = Kit()
    batch = kit.batch(options.batch)
    runtime, version = load_runtime(options.threads)
    require_version("ExecuTorch", version, kit.about["minimum"])
    print(f"Checking in ExecuTorch {version}, {options.threads} thread(s).", flush=True)
    result = new_result(kit, "executorch", version)
    result["machine"] = machine()
    networks = {
        name: Network(runtime, path, kit.shape)
        for name, path in (("baseline", kit.baseline), ("artifact", kit.artifact))
    }
    measured = kit.answers(networks["artifact"].outputs, 1)
    result["answers"] = packed(measured)
    result["check"] = compare(kit, measured)

    calls = {name: network.timed(kit.window(0, batch), batch) for name, network in networks.items()}
    result["clocks_before"] = clocks()
    blocks = time_in_turns(calls, options.seconds)
    result["clocks_after"] = clocks()
    result["latency"] = {
        "batch": batch,
        "threads": options.threads,
        "settings": {"delegate": "XNNPACK", "timed": "one call, from host memory to host memory"},
    }
    result["latency"].update({name: summaries(blocks[name], batch) for name in networks})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(calls, batch, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layers_absent"] = "ExecuTorch's wheel does not list what its delegate ran"
    result["layer_fidelity_absent"] = "ExecuTorch is not asked for outputs of single blocks"
    return finish(result, judge(kit.about["gates"], result["check"], result["speedup"]), saved=[])


def load_runtime(threads):
    try:
        runtime = importlib.import_module("executorch.runtime")
        importlib.import_module("torch")
        importlib.import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        return runtime, importlib.metadata.version("executorch")
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"Python cannot import executorch ({error}). Install it with: {sys.executable} -m pip install executorch"
        ) from error


class Network:
    """One .pte file in ExecuTorch."""

    def __init__(self, runtime, path, shape):
        self.torch, self.shape = importlib.import_module("torch"), shape
        try:
            program = runtime.Runtime.get().load_program(
                Path(path), verification=runtime.Verification.InternalConsistency
            )
            self.method = program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise InputProblem(f"ExecuTorch does not read {path.name}: {first}") from error

    def images(self, values, batch):
        """Return array('f') values as the file takes them, (batch, C, H, W)."""
        return self.torch.frombuffer(values, dtype=self.torch.float32).reshape([batch, *self.shape]).clone()

    def outputs(self, values):
        batch = len(values) // (self.shape[0] * self.shape[1] * self.shape[2])
        results = self.method.execute([self.images(values, batch)])
        return [array.array("f", result.contiguous().numpy().tobytes()) for result in results]

    def timed(self, values, batch):
        """Return a call that runs the same images once and says how long that took."""
        inputs = [self.images(values, batch)]

        def call():
            start = time.perf_counter()
            self.method.execute(inputs)
            return {"latency": 1000 * (time.perf_counter() - start)}

        return call


if __name__ == "__main__":
    sys.exit(main())
