#!/usr/bin/env python3
"""Check the Core ML package on this Mac against recorded answers, and time it against the same network in float16.

Needs macOS 14 or later and Python 3.8 or later with coremltools and pillow, and nothing else. Run it from anywhere:

    python3 check.py

Reads, beside this file: kit.json, model.mlpackage, model_fp16.mlpackage (the same network in float16) and vectors.bin
(images and the answers they must give). Writes beside this file: device.json with every figure, and layers.json, which
lists where Core ML plans to run each operation.

Ends with 0 when every gate is met, 1 when a file is missing or broken, 3 when a gate is missed, 4 where Core ML or
coremltools is not here.
"""

import argparse
import array
import importlib
import json
import platform
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
from edgeconvnext.evaluation.turns import speedup, summaries, time_in_turns

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", choices=UNITS, default="ALL", help="compute units Core ML may use (default ALL)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each package (default 3, as trtexec)")
    return run_script(check, parser.parse_args(arguments))


def check(options):
    kit = Kit()
    tools = load_runtime()
    require_version("coremltools", tools.__version__, kit.about["minimum"])
    version = f"{platform.mac_ver()[0] or '?'}, coremltools {tools.__version__}"
    print(f"Checking in Core ML of macOS {version}, compute units {options.units}.", flush=True)
    result = new_result(kit, "Core ML of macOS", version)
    result["machine"] = machine()
    result["machine"]["compute_units"] = options.units
    packages = {
        name: Package(tools, path, kit, options.units)
        for name, path in (("baseline", kit.baseline), ("artifact", kit.artifact))
    }
    measured = kit.answers(packages["artifact"].outputs, 1)
    result["answers"] = packed(measured)
    result["check"] = compare(kit, measured)

    calls = {name: package.timed(kit.window(0, 1)) for name, package in packages.items()}
    result["clocks_before"] = clocks()
    blocks = time_in_turns(calls, options.seconds)
    result["clocks_after"] = clocks()
    result["latency"] = {
        "batch": 1,
        "threads": 1,
        "settings": {"timed": "one predict call of coremltools, image to outputs", "compute units": options.units},
    }
    result["latency"].update({name: summaries(blocks[name], 1) for name in packages})
    result["speedup"] = speedup(blocks["baseline"], blocks["artifact"])
    result["power"], absent = measure_power(calls, 1, options.seconds)
    if absent:
        result["power_absent"] = absent
    result["layer_fidelity_absent"] = (
        "a block that becomes an output changes what Core ML fuses, so only the network's own outputs were compared"
    )
    result["layers"] = {name: package.layers() for name, package in packages.items()}
    write(HERE / "layers.json", json.dumps(result["layers"], indent=1).encode("utf-8"))
    gates = judge(kit.about["gates"], result["check"], result["speedup"])
    return finish(result, gates, saved=["layers.json"])


def load_runtime():
    if platform.system() != "Darwin":
        raise RuntimeMissing(
            f"Core ML is a part of macOS; this machine runs {platform.system()}. Copy the folder to a Mac."
        )
    try:
        importlib.import_module("PIL.Image")
        return importlib.import_module("coremltools")
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"Python cannot import what it needs ({error}). Install it with: {sys.executable} -m pip install coremltools pillow"
        ) from error


class Package:
    """One .mlpackage in Core ML: takes one image of whole pixel values."""

    def __init__(self, tools, path, kit, units):
        self.tools, self.shape, self.names = tools, kit.shape, [output["name"] for output in kit.outputs]
        self.units = getattr(tools.ComputeUnit, units)
        try:
            self.model = tools.models.MLModel(str(path), compute_units=self.units)
        except Exception as error:  # Core ML's errors arrive as RuntimeError and others
            raise InputProblem(f"Core ML does not load {path.name}: {error}") from error

    def feed(self, values):
        """Return the input for one image, array('f') of (C, H, W) pixel values."""
        numpy, images = importlib.import_module("numpy"), importlib.import_module("PIL.Image")
        pixels = numpy.frombuffer(values, dtype="float32").reshape(self.shape)
        pixels = numpy.clip(numpy.rint(pixels), 0, 255).astype("uint8")
        picture = pixels[0] if self.shape[0] == 1 else pixels.transpose(1, 2, 0)
        return {"image": images.fromarray(numpy.ascontiguousarray(picture))}

    def outputs(self, values):
        numpy = importlib.import_module("numpy")
        found = self.model.predict(self.feed(values))
        return [array.array("f", numpy.asarray(found[name], dtype="float32").tobytes()) for name in self.names]

    def timed(self, values):
        """Return a call that runs the same image once and says how long that took."""
        feed = self.feed(values)

        def call():
            start = time.perf_counter()
            self.model.predict(feed)
            return {"latency": 1000 * (time.perf_counter() - start)}

        return call

    def layers(self):
        """Return each operation with the unit that Core ML prefers for it; [] where it gives no plan.

        Core ML tells the unit, not the precision it multiplies in there.
        """
        try:
            plans = importlib.import_module("coremltools.models.compute_plan")
            plan = plans.MLComputePlan.load_from_path(self.model.get_compiled_model_path(), compute_units=self.units)
            operations = plan.model_structure.program.functions["main"].block.operations
        except Exception as error:  # macOS before 14.4 has no plans
            print(f"no compute plan: {error}")
            return []
        found = []
        for operation in operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:  # constants run nowhere
                name = operation.outputs[0].name if operation.outputs else operation.operator_name
                unit = type(usage.preferred_compute_device).__name__
                found.append(
                    {
                        "name": name,
                        "kind": operation.operator_name,
                        "precision": "planned for " + unit.replace("ML", "", 1).replace("ComputeDevice", ""),
                        "median_ms": None,
                    }
                )
        return found


if __name__ == "__main__":
    sys.exit(main())
