#!/usr/bin/env python3
"""Build the TensorRT engines on this machine, check the INT8 one against recorded answers, and time it against FP16.

Needs Python 3.8 or later, the `tensorrt` package that comes with the board's software, and nothing else. Run it from
anywhere:

    python3 build_and_check.py

Reads, beside this file: kit.json, model.onnx (FP16 + INT8) or model.engine, model_fp16.onnx (the same network in FP16)
and vectors.bin (images and the answers they must give). Writes beside this file: the engines, timing.cache, layers.json
(what ran in which precision and how long it took) and device.json with every figure.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed (the engines are kept),
4 when TensorRT, CUDA or the GPU is not here.
"""

import argparse
import array
import ctypes
import importlib
import json
import math
import re
import sys
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
    require_version,
    run_script,
    write,
)
from edgeconvnext.evaluation.turns import WARM_UP_SECONDS, quantile, speedup, summaries, time_in_turns

PROFILED_RUNS = 10
WEIGHTED = ("CONVOLUTION", "MATRIX_MULTIPLY")
# Layers that hand their input on unchanged, between a dequantize layer and the operator it feeds.
CARRIERS = ("SHUFFLE", "CONSTANT_SHUFFLE", "CAST", "IDENTITY")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="batch to time (default: the smallest)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each engine (default 3, as trtexec)")
    parser.add_argument("--build-only", action="store_true", help="build the engines, run nothing")
    parser.add_argument("--module", default=None, help="Python package to use (default: what the kit was made for)")
    return run_script(build_and_check, parser.parse_args(arguments))


def build_and_check(options):
    kit = Kit()
    batch = kit.batch(options.batch)
    module = options.module or kit.about["module"]
    trt = load_tensorrt(module)
    if module == kit.about["module"]:
        require_version(module, trt.__version__, kit.about["minimum"])
    cuda = None if options.build_only else Cuda()
    logger = make_logger(trt)
    result = new_result(kit, module, trt.__version__)
    result["machine"] = machine()
    print(f"Building with {module} {trt.__version__}; this takes minutes the first time.", flush=True)
    sources = {"artifact": kit.artifact, "baseline": kit.baseline}
    engines, parsed = {}, {}
    for name, source in sources.items():
        engines[name], parsed[name] = built(trt, logger, source, kit)
        told = (engines[name]["file"], engines[name]["size_bytes"] / 2**20, engines[name]["build_seconds"] or 0)
        print("{}: {:.1f} MiB, built in {:.0f} s".format(*told), flush=True)
    result["engines"], result["messages"] = engines, logger.lines
    saved = [engine["file"] for engine in engines.values()]
    if cuda is None:
        return finish(result, [], [*saved, save_layers(result, parsed)])
    result["machine"].update(cuda.describe())

    runtime = trt.Runtime(logger)
    one = Engine(trt, runtime, cuda, HERE / engines["artifact"]["file"], kit, kit.low)
    measured = kit.answers(one.outputs, kit.low)
    result["answers"] = packed(measured)
    result["check"] = compare(kit, measured)

    timed = {
        name: Engine(trt, runtime, cuda, HERE / engines[name]["file"], kit, batch) for name in ("baseline", "artifact")
    }
    graphs = {}
    for name, engine in timed.items():
        engine.load(kit.window(0, batch))
        graphs[name] = engine.capture()
    result["clocks_before"] = clocks()
    blocks = time_in_turns(timed, options.seconds)
    result["clocks_after"] = clocks()
    result["latency"] = {
        "batch": batch,
        "threads": 1,
        "settings": {
            "timed": "transfer in, engine, transfer out, by CUDA events; each also by itself",
            "warm-up": f"{1000 * WARM_UP_SECONDS:.0f} ms",
            "CUDA graph, artifact": graphs["artifact"] or "yes",
            "CUDA graph, baseline": graphs["baseline"] or "yes",
        },
    }
    result["latency"].update({name: summaries(blocks[name], batch) for name in timed})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(timed, batch, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layer_fidelity_absent"] = (
        "a block that becomes an output changes what TensorRT fuses, so only the network's own outputs were compared"
    )
    layers = {name: ran_layers(trt, engine) for name, engine in timed.items()}
    gates = judge(kit.about["gates"], result["check"], result["speedup"])
    return finish(result, gates, [*saved, save_layers(result, layers)])


def save_layers(result, layers):
    result["layers"] = layers
    write(HERE / "layers.json", json.dumps(layers, indent=1).encode("utf-8"))
    return "layers.json"


# ------------------------------------------------------------------------------------------------------------- Engines


def load_tensorrt(name):
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"Python cannot import {name} ({error}). On a Jetson it comes with JetPack: use the system's python3, or a "
            "virtual environment made with --system-site-packages."
        ) from error


def make_logger(trt):
    """Keep warnings and errors: they are printed where a build fails and written to device.json."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, message):
            kind = str(severity).rpartition(".")[2]
            if kind in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                self.lines.append(f"{kind}: {message}")

    return Logger()


def built(trt, logger, source, kit):
    """Return the engine of a file and its layers as parsed: built now from an ONNX file, else as it was exported."""
    if source.suffix == ".engine":
        return {"file": source.name, "size_bytes": source.stat().st_size, "build_seconds": None}, []
    return build(trt, logger, source, source.with_suffix(".engine"), kit)


def build(trt, logger, onnx_path, engine_path, kit):
    """Build a strongly typed engine: types come from the file, so FP16 and INT8 are where the file says."""
    builder = trt.Builder(logger)
    # 10.x needs the flag; from 11 on every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        told = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise InputProblem(f"TensorRT {trt.__version__} does not read {onnx_path.name}: {told or logger.lines[-3:]}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine then names its layers' types and tactics
    image = network.get_input(0)
    shape = tuple(image.shape)
    if -1 in shape:
        counts = (kit.low, kit.typical, kit.high) if shape[0] == -1 else (shape[0],) * 3
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *[(counts[i], shape[1], *kit.sizes[i]) for i in range(3)])
        config.add_optimization_profile(profile)
    cache = load_timing_cache(config)
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if engine is None:
        raise InputProblem(
            f"TensorRT {trt.__version__} built no engine from {onnx_path.name}: {logger.lines[-3:]}. If memory was "
            "short, close other programs, or lower the largest batch in the target file and export again."
        )
    write(engine_path, memoryview(engine))
    if cache is not None:
        write(HERE / "timing.cache", memoryview(config.get_timing_cache().serialize()))
    about = {"file": engine_path.name, "size_bytes": engine_path.stat().st_size, "build_seconds": round(seconds, 2)}
    return about, parsed_layers(network)


def load_timing_cache(config):
    """Reuse kernel timings of earlier builds; TensorRT itself refuses those of another version or GPU."""
    path = HERE / "timing.cache"
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


# -------------------------------------------------------------------------------------------------------------- Layers


def parsed_layers(network):
    """Return the layers as the parser understood them: what a build that is not run can say of precision."""
    found, makers = [], {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(place) for place in range(layer.num_inputs)]
        outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
        for output in outputs:
            makers[output.name] = layer
        kind = short(layer.type)
        weighted = [tensor for tensor in inputs if tensor is not None][:2]
        if kind in WEIGHTED and len(weighted) == 2:
            int8 = all(dequantized(makers, tensor) for tensor in weighted)
            precision = "int8" if int8 else type_name(weighted[0])
        else:
            precision = type_name(outputs[0]) if outputs else "?"
        found.append({"name": layer.name, "kind": kind, "precision": precision, "median_ms": None})
    return [layer for layer in found if layer["kind"] != "CONSTANT"]


def dequantized(makers, tensor):
    """Say whether a tensor comes from a DequantizeLinear, past layers that only move values."""
    maker = makers.get(tensor.name)
    while maker is not None and short(maker.type) in CARRIERS:
        maker = makers.get(maker.get_input(0).name)
    return maker is not None and short(maker.type) == "DEQUANTIZE"


def short(value):
    """'LayerType.CONVOLUTION' -> 'CONVOLUTION'."""
    return str(value).rpartition(".")[2]


def type_name(tensor):
    return {"FLOAT": "float32", "HALF": "float16", "INT8": "int8"}.get(short(tensor.dtype), short(tensor.dtype).lower())


def ran_layers(trt, engine):
    """Return the engine's own layers with the precision each runs in, its tactic and its median time."""
    text = engine.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    times = engine.layer_times()
    found = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):  # an engine built without details lists names only
            found.append({"name": str(layer), "kind": "?", "precision": "?", "median_ms": None})
            continue
        inputs = [precision_of(tensor) for tensor in layer.get("Inputs", [])]
        outputs = [precision_of(tensor) for tensor in layer.get("Outputs", [])]
        spent = times.get(layer.get("Name"))
        found.append(
            {
                "name": str(layer.get("Name")),
                "kind": str(layer.get("LayerType")),
                "precision": "int8" if "int8" in inputs else (outputs or inputs or ["?"])[0],
                "inputs": inputs,
                "outputs": outputs,
                "tactic": layer.get("TacticName"),
                "median_ms": None if spent is None else quantile(sorted(spent), 0.5),
            }
        )
    return found


def precision_of(tensor):
    """Read "Row major Int8 format", "Channel major FP16 format where channel % 8 == 0" and the like."""
    told = str(tensor.get("Format/Datatype", "?"))
    for word, precision in (("Int8", "int8"), ("FP16", "float16"), ("Half", "float16"), ("FP32", "float32")):
        if re.search(word, told, re.IGNORECASE):
            return precision
    return "float32" if "float" in told.lower() else told


# ---------------------------------------------------------------------------------------------------------------- CUDA


class Cuda:
    """The few CUDA runtime calls needed here, through ctypes. Every call raises on an error code."""

    HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
    CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
    CAPTURE_THREAD_LOCAL = 1

    def __init__(self):
        self.library = self._open()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int(0)
        if self.library.cudaGetDeviceCount(ctypes.byref(count)) or not count.value:
            raise RuntimeMissing(
                "CUDA finds no GPU on this machine; run this script on the board or PC with the NVIDIA GPU."
            )
        self.stream = self._new("cudaStreamCreate")

    @staticmethod
    def _open():
        names = ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
        names += sorted(map(str, Path("/usr/local").glob("cuda*/lib64/libcudart.so*")), reverse=True)
        for name in names:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise RuntimeMissing(
            "libcudart, the CUDA runtime, is not installed; it comes with the board's JetPack or the CUDA toolkit."
        )

    def _call(self, function, *arguments):
        # Where a release changed a function, its library may have the new one under this name only.
        found = getattr(self.library, function, None) or getattr(self.library, function + "_v2")
        code = found(*arguments)
        if code:
            raise RuntimeError(f"{function}: {self.library.cudaGetErrorString(code).decode()}")

    def _new(self, function):
        handle = ctypes.c_void_p()
        self._call(function, ctypes.byref(handle))
        return handle.value

    def allocate(self, size_bytes):
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        return pointer.value

    def allocate_host(self, size_bytes):
        """Page-locked host memory: copies from it run beside the GPU's work."""
        pointer = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        return pointer.value

    def copy(self, target, source, size_bytes, direction):
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size_bytes),
            ctypes.c_int(direction),
            ctypes.c_void_p(self.stream),
        )

    def synchronize(self):
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def event(self):
        return self._new("cudaEventCreate")

    def record(self, event):
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(self.stream))

    def elapsed_ms(self, start, end):
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return elapsed.value

    def captured(self, work):
        """Record what `work` puts on the stream as a CUDA graph, and return the graph, ready to launch."""
        stream, graph, executable = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamBeginCapture", stream, ctypes.c_int(self.CAPTURE_THREAD_LOCAL))
        try:
            work()
        finally:  # a stream that is left capturing takes no other work
            code = self.library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        if code:
            raise RuntimeError(f"cudaStreamEndCapture: {self.library.cudaGetErrorString(code).decode()}")
        # The plain cudaGraphInstantiate takes other arguments in CUDA 11 than in 12.
        self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        return executable.value

    def launch(self, graph):
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(self.stream))

    def describe(self):
        """Name, compute capability and CUDA version of the GPU."""
        properties = ctypes.create_string_buffer(16384)  # the name is the first field; the rest differs by version
        self._call("cudaGetDeviceProperties", properties, ctypes.c_int(0))
        version, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("cudaRuntimeGetVersion", ctypes.byref(version))
        self._call("cudaDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(self.CAPABILITY_MAJOR), ctypes.c_int(0))
        self._call("cudaDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(self.CAPABILITY_MINOR), ctypes.c_int(0))
        return {
            "gpu": properties.value.decode("utf-8", "replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "cuda_runtime": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }


class Engine:
    """One engine with its buffers for a fixed batch. images and outputs are C arrays in page-locked memory."""

    def __init__(self, trt, runtime, cuda, path, kit, batch):
        self.trt, self.cuda, self.batch, self.graph = trt, cuda, batch, None
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise InputProblem(
                f"{path.name} does not load in TensorRT {trt.__version__} on this GPU: an engine fits the release and "
                "the kind of GPU it was built for. Export again with the release that is installed on this machine."
            )
        self.context = self.engine.create_execution_context()
        self.pixels = short(self.engine.get_tensor_dtype("image")) == "UINT8"
        self.image_bytes = (1 if self.pixels else 4) * batch * kit.image_values
        self.context.set_input_shape("image", (batch, *kit.shape))
        self.device_images, self.host_images = cuda.allocate(self.image_bytes), cuda.allocate_host(self.image_bytes)
        self.context.set_tensor_address("image", self.device_images)
        self.results = []  # bytes, where the GPU writes, and where they are copied to, of each output
        for output in kit.outputs:
            size = 4 * batch * output["size"]
            self.results.append((size, cuda.allocate(size), cuda.allocate_host(size)))
            self.context.set_tensor_address(output["name"], self.results[-1][1])
        known = {"image", *(output["name"] for output in kit.outputs)}
        for name in map(self.engine.get_tensor_name, range(self.engine.num_io_tensors)):
            if name not in known:  # probabilities: an engine runs only where each of its outputs has a place
                size = 4 * math.prod(self.context.get_tensor_shape(name))
                self.context.set_tensor_address(name, cuda.allocate(size))
        self.events = [cuda.event() for _ in range(4)]

    def load(self, images):
        """Put images, (batch, C, H, W) as an array('f'), into the input buffer, in the engine's own type."""
        if self.pixels:
            images = array.array("B", (min(255, max(0, round(value))) for value in images))
        ctypes.memmove(self.host_images, images.buffer_info()[0], self.image_bytes)

    def execute(self):
        if not self.context.execute_async_v3(self.cuda.stream):
            raise RuntimeError("TensorRT did not run the engine")

    def capture(self):
        """Run the engine as a CUDA graph from now on; return None, or why that cannot be."""
        self()  # what is set up on the first run cannot be captured
        try:
            self.graph = self.cuda.captured(self.execute)
            self()
        except (RuntimeError, AttributeError) as error:
            self.graph = None
            return f"no: {error}"
        return None

    def __call__(self):
        """Copy in, run, copy out. Returns ms by name: "latency" is the sum of the three, as in trtexec."""
        cuda, (start, copied, ran, end) = self.cuda, self.events
        began = time.perf_counter()
        cuda.record(start)
        cuda.copy(self.device_images, self.host_images, self.image_bytes, cuda.HOST_TO_DEVICE)
        cuda.record(copied)
        if self.graph is None:
            self.execute()
        else:
            cuda.launch(self.graph)
        cuda.record(ran)
        for size, device, host_copy in self.results:
            cuda.copy(host_copy, device, size, cuda.DEVICE_TO_HOST)
        cuda.record(end)
        cuda.synchronize()
        host = 1000 * (time.perf_counter() - began)
        copy_in, gpu, copy_out = (
            cuda.elapsed_ms(start, copied),
            cuda.elapsed_ms(copied, ran),
            cuda.elapsed_ms(ran, end),
        )
        return {"latency": copy_in + gpu + copy_out, "gpu": gpu, "copy_in": copy_in, "copy_out": copy_out, "host": host}

    def outputs(self, images):
        self.load(images)
        self()
        found = []
        for size, _, host_copy in self.results:
            found.append(array.array("f", bytes(size)))
            ctypes.memmove(found[-1].buffer_info()[0], host_copy, size)
        return found

    def layer_times(self):
        """Return the times of each layer, ms by name, of a few runs without a graph."""
        times = {}

        class Profiler(self.trt.IProfiler):
            def report_layer_time(self, name, ms):
                times.setdefault(name, []).append(ms)

        self.graph, self.context.profiler = None, Profiler()
        for _ in range(PROFILED_RUNS):
            self()
        return times


if __name__ == "__main__":
    sys.exit(main())
