#!/usr/bin/env python3
"""Check the INT8 network in this machine's OpenVINO against recorded answers, and time it against FP32.

Needs Python 3.8 or later with openvino (and numpy, which it brings), and nothing else. Run it from anywhere:

    python3 check.py                    the processor
    python3 check.py --device GPU       an Intel GPU; NPU: a neural processor

Reads, beside this file: kit.json, model.openvino (INT8), model_fp32.openvino (the same network in FP32) and vectors.bin
(images and the answers they must give). Writes beside this file: device.json with every figure, and layers.json, which
lists what ran in which precision and how long it took.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed, 4 when OpenVINO or the
device is missing.
"""

import argparse
import array
import importlib
import json
import sys
import time

from edgeconvnext.backends.device.board import clocks, machine, measure_power
from edgeconvnext.backends.device.kit import (
    HERE,
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
    write,
)
from edgeconvnext.evaluation.turns import quantile, speedup, summaries, time_in_turns

PROFILED_RUNS = 10
GRAPH = "model.xml"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="batch to time (default: the smallest)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor (default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each network (default 3, as trtexec)")
    parser.add_argument("--device", default="CPU", help="CPU (default), GPU, NPU, as OpenVINO names them")
    return run_script(check, parser.parse_args(arguments))


def check(options):
    kit = Kit()
    batch = kit.batch(options.batch)
    runtime = load_runtime()
    version = runtime.__version__.partition("-")[0]
    require_version("OpenVINO", version, kit.about["minimum"])
    core = runtime.Core()
    if options.device.partition(".")[0] not in [name.partition(".")[0] for name in core.available_devices]:
        raise RuntimeMissing(
            f"OpenVINO sees no device {options.device} on this machine; it sees {', '.join(core.available_devices)}."
        )
    print(f"Checking in OpenVINO {version} on {options.device}, {options.threads} thread(s).", flush=True)
    result = new_result(kit, "openvino", version)
    result["machine"] = machine()
    settings = settings_for(options.device, options.threads)
    networks = {
        name: Network(core, path, kit.shape, options.device, settings)
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
        "settings": dict(settings, device=options.device, timed="one call, from host memory to host memory"),
    }
    result["latency"].update({name: summaries(blocks[name], batch) for name in networks})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(calls, batch, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layers"] = {
        name: profile(core, path, kit, options.device, settings, batch)
        for name, path in (("artifact", kit.artifact), ("baseline", kit.baseline))
    }
    result["layer_fidelity_absent"] = "OpenVINO is not asked for outputs of single blocks"
    write(HERE / "layers.json", json.dumps(result["layers"], indent=1).encode("utf-8"))
    gates = judge(kit.about["gates"], result["check"], result["speedup"])
    return finish(result, gates, saved=["layers.json"])


def load_runtime():
    try:
        runtime = importlib.import_module("openvino")
        importlib.import_module("numpy")
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"Python cannot import openvino ({error}). Install it with: {sys.executable} -m pip install openvino"
        ) from error
    return runtime


def settings_for(device, threads):
    """One image at a time, floats in float32; other devices choose their own float type."""
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        settings.update(NUM_STREAMS="1", INFERENCE_PRECISION_HINT="f32", INFERENCE_NUM_THREADS=str(threads))
    return settings


class Network:
    """One IR file in OpenVINO, compiled for each batch that it is given."""

    def __init__(self, core, path, shape, device, settings):
        self.numpy = importlib.import_module("numpy")
        self.core, self.name, self.shape, self.device, self.settings = core, path.name, shape, device, settings
        self.requests = {}
        try:
            self.model = core.read_model(str(path / GRAPH))
        except RuntimeError as error:
            raise InputProblem(f"OpenVINO does not read {path.name}: {first_line(error)}") from error

    def request(self, batch):
        if batch not in self.requests:
            model = self.model.clone()
            try:
                model.reshape([batch, *self.shape])
                self.requests[batch] = self.core.compile_model(model, self.device, self.settings).create_infer_request()
            except RuntimeError as error:
                raise InputProblem(f"{self.device} does not take {self.name}: {first_line(error)}") from error
        return self.requests[batch]

    def images(self, values, batch):
        """Return array('f') values as the file takes them, (batch, C, H, W)."""
        images = self.numpy.frombuffer(values, dtype="float32").reshape([batch, *self.shape])
        if self.model.inputs[0].element_type.get_type_name() == "u8":
            return self.numpy.clip(self.numpy.rint(images), 0, 255).astype("uint8")
        return images.copy()

    def outputs(self, values):
        batch = len(values) // (self.shape[0] * self.shape[1] * self.shape[2])
        results = self.request(batch).infer([self.images(values, batch)])
        return [array.array("f", results[index].astype("float32").tobytes()) for index in range(len(results))]

    def timed(self, values, batch):
        """Return a call that runs the same images once and says how long that took."""
        request, inputs = self.request(batch), [self.images(values, batch)]

        def call():
            start = time.perf_counter()
            request.infer(inputs)
            return {"latency": 1000 * (time.perf_counter() - start)}

        return call


def profile(core, path, kit, device, settings, batch):
    """Return each node that ran: name, kind, precision and median ms, from OpenVINO's own counters."""
    network = Network(core, path, kit.shape, device, dict(settings, PERF_COUNT="YES"))
    request, inputs = network.request(batch), [network.images(kit.window(0, batch), batch)]
    layers, times = {}, {}
    for run in range(1 + PROFILED_RUNS):
        request.infer(inputs)
        for node in request.profiling_info if run else ():
            precision = node.exec_type.rpartition("_")[2].lower()
            layers.setdefault(node.node_name, {"name": node.node_name, "kind": node.node_type, "precision": precision})
            times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e3)
    rows = [dict(layers[name], median_ms=quantile(sorted(times[name]), 0.5)) for name in layers]
    return [row for row in rows if row["median_ms"] > 0]


def first_line(error):
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
