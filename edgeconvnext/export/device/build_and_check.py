#!/usr/bin/env python3
# ruff: noqa: B905  (boards run Python 3.8, whose zip has no `strict`)
"""Build the TensorRT engines on this board, check the INT8 one against recorded answers, and time it against FP16.

Needs Python 3.8 or later, the `tensorrt` package that comes with the board's software, and nothing else. Run it from
anywhere:

    python3 build_and_check.py

Reads, beside this file or one folder up: model.onnx (FP16 + INT8), model_fp16.onnx (the same network in FP16),
vectors.json and vectors.bin (images and the answers they must give). Writes beside this file: model.engine,
model_fp16.engine, timing.cache and device.json with every figure.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed (the engines are kept),
4 when TensorRT, CUDA or the GPU is not here.
"""

import argparse
import array
import ctypes
import importlib
import json
import math
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARM_UP_SECONDS = 0.2
LEAST_RUNS = 10
BLOCK_SECONDS = 0.1
RESAMPLES = 1000


class InputProblem(Exception):
    """A file of the kit is missing or does not hold."""


class RuntimeMissing(Exception):
    """TensorRT, CUDA or the GPU is not on this machine."""


# ---------------------------------------------------------------------------------------------------------------- CUDA


class Cuda:
    """The few CUDA runtime calls needed here, through ctypes. Every call raises on an error code."""

    HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
    CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76

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
            "libcudart, the CUDA runtime, is not here; it comes with the board's JetPack or the CUDA toolkit."
        )

    def _call(self, function, *arguments):
        code = getattr(self.library, function)(*arguments)
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

    def describe(self):
        """Name, compute capability and CUDA version of the GPU."""
        properties = ctypes.create_string_buffer(
            16384
        )  # the name is the first field; the rest differs between versions
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


# --------------------------------------------------------------------------------------------------------------- Files


def find(name):
    """Return the path of a file of the kit, beside this script or one folder up."""
    for folder in (HERE, HERE.parent):
        if (folder / name).is_file():
            return folder / name
    raise InputProblem(f"{name} is missing: it belongs beside {HERE} or one folder up. Copy the run directory whole.")


def read_vectors():
    """Return the description of the check vectors and the three arrays: images, FP32 logits, simulated logits."""
    try:
        about = json.loads(find("vectors.json").read_text(encoding="utf-8"))
        count, classes = about["count"], about["classes"]
        image_values = count * about["image_shape"][0] * about["image_shape"][1] * about["image_shape"][2]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputProblem(f"vectors.json does not hold ({error}). Copy it again from the run directory.") from error
    values = array.array("f")
    values.frombytes(find("vectors.bin").read_bytes())
    if sys.byteorder == "big":
        values.byteswap()
    expected = image_values + 2 * count * classes
    if len(values) != expected:
        raise InputProblem(f"vectors.bin has {len(values)} numbers and needs {expected}. Copy it again.")
    fp32 = values[image_values : image_values + count * classes]
    return about, values[:image_values], fp32, values[image_values + count * classes :]


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


def build(trt, logger, onnx_path, engine_path, batch):
    """Build a strongly typed engine: types come from the file, so FP16 and INT8 are where the file says."""
    builder = trt.Builder(logger)
    # 10.x needs the flag; from 11 on every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        told = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise InputProblem(f"TensorRT {trt.__version__} does not read {onnx_path.name}: {told or logger.lines}")
    config = builder.create_builder_config()
    image = network.get_input(0)
    shape = tuple(image.shape)
    if shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *[(size, *shape[1:]) for size in batch])
        config.add_optimization_profile(profile)
    cache = load_timing_cache(config)
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if engine is None:
        raise InputProblem(f"TensorRT {trt.__version__} built no engine from {onnx_path.name}: {logger.lines[-3:]}")
    write(engine_path, memoryview(engine))
    if cache is not None:
        write(HERE / "timing.cache", memoryview(config.get_timing_cache().serialize()))
    return {"file": engine_path.name, "size_bytes": engine_path.stat().st_size, "build_seconds": round(seconds, 2)}


def load_timing_cache(config):
    """Reuse kernel timings of earlier builds; TensorRT itself refuses those of another version or GPU."""
    path = HERE / "timing.cache"
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def write(path, data):
    """Write a file in one step, so that an interrupted build leaves no half engine."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


class Engine:
    """One engine with its buffers for a fixed batch. images and logits are C arrays in page-locked memory."""

    def __init__(self, trt, runtime, cuda, path, image_shape, classes, batch):
        self.cuda, self.batch = cuda, batch
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise InputProblem(f"{path.name} does not load on this GPU; delete it and run this script again.")
        self.context = self.engine.create_execution_context()
        self.image_values = image_shape[0] * image_shape[1] * image_shape[2]
        self.classes = classes
        self.image_bytes, self.logit_bytes = 4 * batch * self.image_values, 4 * batch * classes
        self.context.set_input_shape("image", (batch, *image_shape))
        self.device_images, self.device_logits = cuda.allocate(self.image_bytes), cuda.allocate(self.logit_bytes)
        self.host_images, self.host_logits = cuda.allocate_host(self.image_bytes), cuda.allocate_host(self.logit_bytes)
        self.context.set_tensor_address("image", self.device_images)
        self.context.set_tensor_address("logits", self.device_logits)
        self.before, self.after = cuda.event(), cuda.event()

    def load(self, images):
        """Put float32 images, (batch, C, H, W) as an array('f'), into the input buffer."""
        ctypes.memmove(self.host_images, images.buffer_info()[0], self.image_bytes)

    def run(self):
        """Copy in, run, copy out. Returns (latency_ms, gpu_ms): host time of all three, GPU time of the run alone."""
        cuda = self.cuda
        start = time.perf_counter()
        cuda.copy(self.device_images, self.host_images, self.image_bytes, cuda.HOST_TO_DEVICE)
        cuda.record(self.before)
        if not self.context.execute_async_v3(cuda.stream):
            raise RuntimeError("TensorRT did not run the engine")
        cuda.record(self.after)
        cuda.copy(self.host_logits, self.device_logits, self.logit_bytes, cuda.DEVICE_TO_HOST)
        cuda.synchronize()
        return 1000 * (time.perf_counter() - start), cuda.elapsed_ms(self.before, self.after)

    def logits(self):
        values = array.array("f", bytes(self.logit_bytes))
        ctypes.memmove(values.buffer_info()[0], self.host_logits, self.logit_bytes)
        return values


# ---------------------------------------------------------------------------------------------------------- Comparison


def window(images, start, length):
    """`length` values from `start` on, beginning again where the images end."""
    values = images[start : start + length]
    while len(values) < length:
        values.extend(images[: length - len(values)])
    return values


def answers(engine, images, count):
    """Return the logits of `count` images, one batch after the other."""
    result = array.array("f")
    for index in range(0, count, engine.batch):
        engine.load(window(images, index * engine.image_values, engine.batch * engine.image_values))
        engine.run()
        result.extend(engine.logits())
    return result[: count * engine.classes]


def ratio_db(reference, other):
    """10 log10(sum reference^2 / sum (reference - other)^2); 200 where equal, None where `other` is not finite."""
    if not all(map(math.isfinite, other)):
        return None
    noise = sum((a - b) ** 2 for a, b in zip(reference, other))
    signal = sum(a * a for a in reference)
    return 200.0 if noise == 0 else 10 * math.log10(max(signal, 1e-30) / noise)


def top1(logits, classes):
    rows = [logits[start : start + classes] for start in range(0, len(logits), classes)]
    return [max(range(classes), key=row.__getitem__) for row in rows]


def compare(about, measured, fp32, simulated):
    """Accuracy figures of the engine's answers on the check vectors."""
    classes, labels = about["classes"], about.get("labels")
    chosen, expected = top1(measured, classes), top1(fp32, classes)
    count = len(chosen)
    result = {
        "images": count,
        "fidelity_db": ratio_db(simulated, measured),
        "sqnr_db": ratio_db(fp32, measured),
        "agreement": 100.0 * sum(a == b for a, b in zip(chosen, expected)) / count,
    }
    if labels:
        result["top1"] = 100.0 * sum(a == b for a, b in zip(chosen, labels)) / count
        result["top1_fp32"] = 100.0 * sum(a == b for a, b in zip(expected, labels)) / count
    return result


# ------------------------------------------------------------------------------------------------------------- Latency


def time_pair(engines, seconds):
    """Time engines in turns of short blocks, at least `seconds` and LEAST_RUNS each, after a warm-up of 200 ms.

    Returns {name: list of blocks}, each block a list of (latency_ms, gpu_ms). Clocks and temperature drift; turns share
    that drift.
    """
    for engine in engines.values():
        end = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < end:
            engine.run()
    blocks = {name: [] for name in engines}
    spent = dict.fromkeys(engines, 0.0)

    def unfinished(name):
        return spent[name] < seconds or sum(map(len, blocks[name])) < LEAST_RUNS

    while any(map(unfinished, engines)):
        for name, engine in engines.items():
            start, block = time.perf_counter(), []
            while not block or time.perf_counter() - start < BLOCK_SECONDS:
                block.append(engine.run())
            spent[name] += time.perf_counter() - start
            blocks[name].append(block)
    return blocks


def quantile(ordered, share):
    """Linear interpolation between the two nearest of the sorted samples."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(samples, batch):
    """trtexec's figures for one list of times, milliseconds."""
    ordered = sorted(samples)
    mean = sum(ordered) / len(ordered)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in ordered) / len(ordered))
    return {
        "median_ms": quantile(ordered, 0.5),
        "mean_ms": mean,
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
        "p90_ms": quantile(ordered, 0.90),
        "p95_ms": quantile(ordered, 0.95),
        "p99_ms": quantile(ordered, 0.99),
        "throughput": 1000.0 * batch / mean,
        "cv": deviation / mean,
        "runs": len(ordered),
    }


def speedup(fp16_blocks, int8_blocks):
    """Ratio of the medians, FP16 over INT8, with a 95 % interval from resampling pairs of blocks."""
    pairs = list(zip(fp16_blocks, int8_blocks))
    medians = [[quantile(sorted(run[0] for run in block), 0.5) for block in pair] for pair in pairs]

    def ratio(chosen):
        return quantile(sorted(pair[0] for pair in chosen), 0.5) / quantile(sorted(pair[1] for pair in chosen), 0.5)

    draw = random.Random(0)
    resampled = sorted(ratio([draw.choice(medians) for _ in medians]) for _ in range(RESAMPLES))
    return {"value": ratio(medians), "low": quantile(resampled, 0.025), "high": quantile(resampled, 0.975)}


def judge(gates, check, gain):
    """Return the gates with what was measured; the speed gate fails only where its whole interval lies below."""
    judged = []
    if gates.get("min_fidelity_db") is not None:
        fidelity = check["fidelity_db"]
        limit = gates["min_fidelity_db"]
        judged.append(
            {
                "name": "min_fidelity_db",
                "limit": limit,
                "measured": fidelity,
                "passed": fidelity is not None and fidelity >= limit,
            }
        )
    if gates.get("min_speedup") is not None:
        limit = gates["min_speedup"]
        judged.append(
            {"name": "min_speedup", "limit": limit, "measured": gain["value"], "passed": gain["high"] >= limit}
        )
    return judged


def board():
    """What the machine says of itself: a time means nothing without its power mode."""
    about = {"machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version()}
    for key, path in (("board", "/proc/device-tree/model"), ("l4t", "/etc/nv_tegra_release")):
        try:
            about[key] = Path(path).read_text(errors="replace").strip("\0\n ").splitlines()[0]
        except (OSError, IndexError):
            about[key] = None
    try:
        told = subprocess.run(
            ["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=False
        )
        about["power_mode"] = " ".join(told.stdout.decode(errors="replace").split()) or None
    except (OSError, subprocess.SubprocessError):
        about["power_mode"] = None
    return about


# ---------------------------------------------------------------------------------------------------------------- Main


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="batch to time (default: the smallest)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each engine (default 3, as trtexec)")
    parser.add_argument("--build-only", action="store_true", help="build the engines, run nothing")
    parser.add_argument("--module", default="tensorrt", help="Python package to use (default tensorrt)")
    options = parser.parse_args(arguments)
    try:
        return build_and_check(options)
    except InputProblem as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    except RuntimeMissing as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 4


def build_and_check(options):
    about, images, fp32, simulated = read_vectors()
    low, typical, high = about["batch"]
    batch = low if options.batch is None else options.batch
    if not low <= batch <= high:
        raise InputProblem(f"--batch {batch} is outside the engine's batches, {low} to {high}.")
    trt = load_tensorrt(options.module)
    cuda = None if options.build_only else Cuda()
    logger = make_logger(trt)
    result = {
        "format": 1,
        "model": about["model"],
        "tensorrt": trt.__version__,
        "module": options.module,
        "device": board(),
    }
    print(f"Building with {options.module} {trt.__version__}; this takes minutes the first time.", flush=True)
    result["engines"] = {
        name: build(trt, logger, find(onnx), HERE / engine, (low, typical, high))
        for name, onnx, engine in (
            ("int8", "model.onnx", "model.engine"),
            ("fp16", "model_fp16.onnx", "model_fp16.engine"),
        )
    }
    result["messages"] = logger.lines
    if cuda is None:
        return finish(result, [])
    result["device"].update(cuda.describe())

    runtime = trt.Runtime(logger)
    shape, classes = about["image_shape"], about["classes"]

    def engine(name, size):
        return Engine(trt, runtime, cuda, HERE / result["engines"][name]["file"], shape, classes, size)

    result["check"] = compare(about, answers(engine("int8", low), images, about["count"]), fp32, simulated)
    timed = {name: engine(name, batch) for name in ("fp16", "int8")}
    for one in timed.values():
        one.load(window(images, 0, batch * one.image_values))
    blocks = time_pair(timed, options.seconds)
    result["latency"] = {
        "batch": batch,
        "warm_up_ms": 1000 * WARM_UP_SECONDS,
        "transfers": "included",
        "cuda_graph": False,
    }
    for name in timed:
        runs = [run for block in blocks[name] for run in block]
        result["latency"][name] = summary([run[0] for run in runs], batch)
        result["latency"][name]["gpu"] = summary([run[1] for run in runs], batch)
    result["speedup"] = speedup(blocks["fp16"], blocks["int8"])
    return finish(result, judge(about.get("gates", {}), result["check"], result["speedup"]))


def finish(result, gates):
    """Write device.json, print the short of it and return the exit code. passed is None where nothing was judged."""
    result["gates"] = gates
    result["passed"] = all(gate["passed"] for gate in gates) if gates else None
    write(HERE / "device.json", json.dumps(result, indent=2).encode("utf-8"))
    for name, engine in result["engines"].items():
        print(f"{name} engine: {engine['size_bytes'] / 2**20:.1f} MiB, built in {engine['build_seconds']:.0f} s")
    if "check" in result:
        check, gain, latency = result["check"], result["speedup"], result["latency"]
        fidelity = "not finite" if check["fidelity_db"] is None else f"{check['fidelity_db']:.1f} dB"
        print(f"agreement with FP32 {check['agreement']:.1f} % of {check['images']} images, fidelity {fidelity}")
        print(
            f"median {latency['int8']['median_ms']:.3f} ms INT8, {latency['fp16']['median_ms']:.3f} ms FP16: "
            f"{gain['value']:.2f}x (95 % {gain['low']:.2f} to {gain['high']:.2f})"
        )
    for gate in gates:
        word = "met" if gate["passed"] else "MISSED"
        print(f"{word} {gate['name']}: measured {gate['measured']}, limit {gate['limit']}")
    print(f"Wrote {HERE / 'device.json'}")
    return 3 if result["passed"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
