#!/usr/bin/env python3
# ruff: noqa: B905  (boards run Python 3.8, whose zip has no `strict`)
"""Check the INT8 network in this machine's onnxruntime against recorded answers, and time it against FP32.

Needs Python 3.8 or later with onnxruntime (and numpy, which it brings), and nothing else. Run it from anywhere:

    python3 check.py

Reads, beside this file: kit.json, model.onnx (INT8), model_fp32.onnx (the same network in FP32) and vectors.bin (images
and the answers they must give). Writes beside this file: device.json with every figure, and layers.json, which lists
what ran in which precision and how long it took.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed, 4 when onnxruntime is
not here.
"""

import argparse
import array
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

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
    ratio_db,
    require_version,
    run_script,
    write,
)
from edgeconvnext.evaluation.turns import quantile, speedup, summaries, time_in_turns

PROFILED_RUNS = 10
ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="batch to time (default: the smallest)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each network (default 3, as trtexec)")
    return run_script(check, parser.parse_args(arguments))


def check(options):
    kit = Kit()
    batch = kit.batch(options.batch)
    runtime = load_runtime()
    require_version("onnxruntime", runtime.__version__, kit.about["minimum"])
    print(f"Checking in onnxruntime {runtime.__version__}, {options.threads} thread(s).", flush=True)
    result = new_result(kit, "onnxruntime", runtime.__version__)
    result["machine"] = machine()
    networks = {
        name: Network(runtime, path, kit.shape, options.threads)
        for name, path in (("baseline", kit.baseline), ("artifact", kit.artifact))
    }
    measured = kit.answers(networks["artifact"].outputs, kit.low if kit.low == kit.high else 1)
    result["answers"] = packed(measured)
    result["check"] = compare(kit, measured)

    calls = {name: network.timed(kit.window(0, batch), batch) for name, network in networks.items()}
    result["clocks_before"] = clocks()
    blocks = time_in_turns(calls, options.seconds)
    result["clocks_after"] = clocks()
    result["latency"] = {
        "batch": batch,
        "threads": options.threads,
        "settings": {"timed": "one call, from host memory to host memory", "graph optimisations": "all"},
    }
    result["latency"].update({name: summaries(blocks[name], batch) for name in networks})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(calls, batch, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layers"] = {
        name: profile(runtime, path, kit, options.threads, batch)
        for name, path in (("artifact", kit.artifact), ("baseline", kit.baseline))
    }
    if kit.about["layers"]:
        result["layer_fidelity"] = layer_fidelity(runtime, kit, options.threads)
    else:
        result["layer_fidelity_absent"] = "the kit holds no outputs of single blocks"
    write(HERE / "layers.json", json.dumps(result["layers"], indent=1).encode("utf-8"))
    gates = judge(kit.about["gates"], result["check"], result["speedup"])
    return finish(result, gates, saved=["layers.json"])


def load_runtime():
    try:
        runtime = importlib.import_module("onnxruntime")
        importlib.import_module("numpy")
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"Python cannot import onnxruntime ({error}). Install it with: {sys.executable} -m pip install onnxruntime"
        ) from error
    return runtime


def session(runtime, path, threads, profile_prefix=None, added=None):
    """Open a file with all optimisations; threads do not spin when they wait, which would take cores from the other.

    added: bytes to put behind the file's own; protobuf merges what they hold into it.
    """
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    try:
        source = str(path) if added is None else path.read_bytes() + added
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        first = str(error).partition("\n")[0]
        raise InputProblem(f"onnxruntime {runtime.__version__} does not open {path.name}: {first}") from error


def as_file_takes(numpy, images, source):
    """Return images as the element type of an input; pixels are rounded to what an image file holds."""
    kind = ELEMENT_TYPES[source.type]
    whole = numpy.clip(numpy.rint(images), 0, 255) if kind == "uint8" else images
    return numpy.ascontiguousarray(whole, dtype=kind)


class Network:
    """One ONNX file in onnxruntime on the CPU."""

    def __init__(self, runtime, path, shape, threads, profile_prefix=None):
        self.numpy = importlib.import_module("numpy")
        self.session = session(runtime, path, threads, profile_prefix)
        self.input = self.session.get_inputs()[0]
        self.shape = shape
        if self.input.type not in ELEMENT_TYPES:
            raise InputProblem(f"{path.name} takes {self.input.type}; check vectors are float32, or pixels.")

    def images(self, values, batch):
        """Return array('f') values as the file takes them, (batch, C, H, W)."""
        pixels = self.numpy.frombuffer(values, dtype="float32").reshape((batch, *self.shape))
        return as_file_takes(self.numpy, pixels, self.input)

    def outputs(self, values):
        batch = len(values) // (self.shape[0] * self.shape[1] * self.shape[2])
        found = self.session.run(None, {self.input.name: self.images(values, batch)})
        return [array.array("f", output.astype("float32").tobytes()) for output in found]

    def timed(self, values, batch):
        """Return a call that runs the same images once and says how long that took."""
        feed = {self.input.name: self.images(values, batch)}

        def call():
            start = time.perf_counter()
            self.session.run(None, feed)
            return {"latency": 1000 * (time.perf_counter() - start)}

        return call


# -------------------------------------------------------------------------------------------------------------- Layers


def layer_fidelity(runtime, kit, threads):
    """Return the fidelity of each block's output to the simulation, in dB, on the first few images."""
    layers, images = kit.about["layers"], kit.about["layer_images"]
    expected = kit.numbers("layer_values.bin", images * sum(layer["samples"] for layer in layers))
    opened = session(runtime, kit.artifact, threads, added=kit.checked("added_outputs.pb").read_bytes())
    source, numpy = opened.get_inputs()[0], importlib.import_module("numpy")
    size = kit.low if kit.low == kit.high else 1
    found = {layer["name"]: array.array("f") for layer in layers}
    for first in range(0, images, size):
        batch = numpy.frombuffer(kit.window(first, size), dtype="float32").reshape((size, *kit.shape))
        feed = {source.name: as_file_takes(numpy, batch, source)}
        for layer, values in zip(layers, opened.run([layer["tensor"] for layer in layers], feed)):
            places = [index * layer["size"] // layer["samples"] for index in range(layer["samples"])]
            rows = values.reshape(size, -1)[: images - first, places].astype("float32")
            found[layer["name"]].frombytes(rows.tobytes())
    told, start = [], 0
    for layer in layers:
        end = start + images * layer["samples"]
        told.append({"layer": layer["name"], "sqnr_db": ratio_db(expected[start:end], found[layer["name"]])})
        start = end
    return told


def profile(runtime, path, kit, threads, batch):
    """Return each node that ran: name, kind, precision and median ms, from onnxruntime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        network = Network(runtime, path, kit.shape, threads, profile_prefix=str(Path(folder) / "run"))
        call = network.timed(kit.window(0, batch), batch)
        for _ in range(1 + PROFILED_RUNS):
            call()
        events = json.loads(Path(network.session.end_profiling()).read_text(encoding="utf-8"))
    layers, times = {}, {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        told, name = event["args"], event["name"][: -len("_kernel_time")]
        layers.setdefault(name, {"name": name, "kind": told["op_name"], "precision": precision(told)})
        times.setdefault(name, []).append(event["dur"] / 1e3)
    return [dict(layers[name], median_ms=quantile(sorted(times[name][1:] or times[name]), 0.5)) for name in layers]


def precision(told):
    """Say in which type a node computed: int8 where both operands are integers, else the type of its output."""
    inputs, outputs = (
        ["float32" if kind == "float" else kind for tensor in told.get(key, []) for kind in tensor]
        for key in ("input_type_shape", "output_type_shape")
    )
    if told["op_name"] in ("QuantizeLinear", "DequantizeLinear"):
        return "{} to {}".format(inputs[0] if inputs else "?", outputs[0] if outputs else "?")
    if sum(kind in ("int8", "uint8") for kind in inputs) >= 2:
        return "int8"
    return outputs[0] if outputs else "?"


if __name__ == "__main__":
    sys.exit(main())
