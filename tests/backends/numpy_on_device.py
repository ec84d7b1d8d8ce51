"""Check a network in numpy against recorded answers, and time it against FP32.

What a runtime of its own has for a device: joined with the shared parts to one script, and imported by the host's runner, which
computes the same. Needs numpy and onnx.
"""

import argparse
import array
import importlib
import json
import math
import sys
import time

from edgeconvnext.backends.device.board import clocks, machine, measure_power
from edgeconvnext.backends.device.kit import (
    HERE,
    Kit,
    compare,
    finish,
    judge,
    new_result,
    packed,
    require_version,
    run_script,
    write,
)
from edgeconvnext.evaluation.turns import speedup, summaries, time_in_turns


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each network")
    return run_script(check, parser.parse_args(arguments))


def check(options):
    kit, numpy = Kit(), importlib.import_module("numpy")
    require_version("numpy", numpy.__version__, kit.about["minimum"])
    result = new_result(kit, "numpy", numpy.__version__)
    result["machine"] = machine()
    networks = {name: Evaluator(path) for name, path in (("baseline", kit.baseline), ("artifact", kit.artifact))}

    def images(values):
        return numpy.frombuffer(values, dtype="float32").reshape((-1, *kit.shape))

    def outputs(values):
        return [array.array("f", output.tobytes()) for output in networks["artifact"].run(images(values))]

    def timed(network):
        def call():
            start = time.perf_counter()
            network.run(images(kit.window(0, 1)))
            return {"latency": 1000 * (time.perf_counter() - start)}

        return call

    measured = kit.answers(outputs, 1)
    result["answers"], result["check"] = packed(measured), compare(kit, measured)
    calls = {name: timed(network) for name, network in networks.items()}
    result["clocks_before"] = clocks()
    blocks = time_in_turns(calls, options.seconds)
    result["clocks_after"] = clocks()
    result["latency"] = {"batch": 1, "threads": 1, "settings": {"timed": "one evaluation in numpy"}}
    result["latency"].update({name: summaries(blocks[name], 1) for name in networks})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(calls, 1, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layers"] = {name: network.layers() for name, network in networks.items()}
    result["layer_fidelity_absent"] = "numpy was asked for the network's own outputs only"
    write(HERE / "layers.json", json.dumps(result["layers"]).encode("utf-8"))
    return finish(result, judge(kit.about["gates"], result["check"], result["speedup"]), saved=["layers.json"])


class Evaluator:
    """An ONNX file computed node by node in numpy: the operators of a ConvNeXt V1, float and with Q/DQ."""

    def __init__(self, path):
        onnx = importlib.import_module("onnx")
        to_array = importlib.import_module("onnx.numpy_helper").to_array
        proto = onnx.load(str(path))
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self.input = proto.graph.input[0].name
        self.results = [output.name for output in proto.graph.output]
        self.constants = {tensor.name: to_array(tensor) for tensor in proto.graph.initializer}
        self.nodes = [
            (node.op_type, list(node.input), node.output[0], attributes(onnx, node)) for node in proto.graph.node
        ]

    def run(self, images):
        """Return the outputs for images, (N, C, H, W) float32 as the file takes them."""
        values = dict(self.constants)
        values[self.input] = images
        for operator, names, result, options in self.nodes:
            values[result] = OPERATORS[operator]([values[name] for name in names], options)
        return [values[name].astype("float32") for name in self.results]

    def layers(self):
        """Return each node as a kit lists it; numpy computes in float what Q/DQ pairs enclose."""
        return [
            {"name": result, "kind": operator, "precision": "float32", "median_ms": None}
            for operator, _, result, _ in self.nodes
        ]


def attributes(onnx, node):
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def along(values, axis, rank):
    """Return one value per channel so that it broadcasts along `axis` of a tensor; single values as they are."""
    return values.reshape([-1 if place == axis % rank else 1 for place in range(rank)]) if values.size > 1 else values


def quantize(inputs, options):
    numpy = importlib.import_module("numpy")
    values, scale, zero = inputs[0], inputs[1], inputs[2]
    limits = numpy.iinfo(zero.dtype)
    axis, rank = options.get("axis", 1), values.ndim
    codes = numpy.rint(values / along(scale, axis, rank)) + along(zero.astype("int32"), axis, rank)
    return numpy.clip(codes, limits.min, limits.max).astype(zero.dtype)


def dequantize(inputs, options):
    codes, scale, axis = inputs[0].astype("int32"), inputs[1], options.get("axis", 1)
    if len(inputs) > 2:
        codes = codes - along(inputs[2].astype("int32"), axis, codes.ndim)
    return codes.astype("float32") * along(scale, axis, codes.ndim)


def conv(inputs, options):
    """images (N, C, H, W), weight (O, C / groups, kh, kw)."""
    numpy = importlib.import_module("numpy")
    images, weight = inputs[0], inputs[1]
    groups, stride, pads = options["group"], options["strides"], options["pads"]
    images = numpy.pad(images, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = numpy.lib.stride_tricks.sliding_window_view(images, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    count, channels, height, width = windows.shape[:4]
    parted = windows.reshape(count, groups, channels // groups, height, width, *weight.shape[2:])
    kernels = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    result = numpy.einsum("ngchwij,gocij->ngohw", parted, kernels, optimize=True)
    return result.reshape(count, weight.shape[0], height, width) + inputs[2].reshape(1, -1, 1, 1)


def layer_norm(inputs, options):
    values, scale, shift = inputs
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / (variance + options["epsilon"]) ** 0.5 * scale + shift


def gelu(inputs, _options):
    numpy = importlib.import_module("numpy")
    erf = numpy.frompyfunc(math.erf, 1, 1)(inputs[0] / math.sqrt(2)).astype("float32")
    return inputs[0] * (1 + erf) / 2


def gemm(inputs, options):
    weight = inputs[1].T if options.get("transB") else inputs[1]
    return inputs[0] @ weight + inputs[2]


OPERATORS = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Conv": conv,
    "DequantizeLinear": dequantize,
    "Gelu": gelu,
    "Gemm": gemm,
    "LayerNormalization": layer_norm,
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "QuantizeLinear": quantize,
    "ReduceMean": lambda inputs, options: inputs[0].mean(tuple(inputs[1]), keepdims=bool(options["keepdims"])),
    "Transpose": lambda inputs, options: inputs[0].transpose(options["perm"]),
}


if __name__ == "__main__":
    sys.exit(main())
