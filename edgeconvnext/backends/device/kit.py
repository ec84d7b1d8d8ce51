# ruff: noqa: B905  (boards run Python 3.8, whose zip has no `strict`)
"""The part of every kit's script that reads the kit, compares answers and writes device.json."""

import array
import base64
import hashlib
import json
import math
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KIT_FORMAT = 3
RESULT_FORMAT = 4
MOST_KIT_BYTES = 64 * 2**20
# What a runtime says may be of any length; in device.json a text ends there, and so do its lists of them.
MOST_TEXT = 4000
MOST_MESSAGES = 200
MOST_LAYERS = 5000


class InputProblem(Exception):
    """A file of the kit is missing or does not hold."""


class RuntimeMissing(Exception):
    """The runtime or the hardware it needs is not on this machine."""


class Kit:
    """kit.json and the check vectors: images, and the answers of FP32 and of the simulation as flat float32 arrays.

    outputs: name, size and samples of each output; of a feature map a part is compared, spread evenly. answer_values: compared
    values of an image, all outputs one after the other. sizes: smallest, typical and largest input where
    height and width are free, else three times the one. classes: of a classifier, whose only output are its logits; else 0.
    sha256: of kit.json, which lists the sha256 of every other file; it ties what is measured here to one export.
    """

    def __init__(self):
        described = read_small(find("kit.json"))
        self.sha256 = hashlib.sha256(described).hexdigest()
        try:
            self.about = json.loads(described.decode("utf-8"))
            if self.about["format"] != KIT_FORMAT:
                raise InputProblem(f"kit.json is of format {self.about['format']}, not {KIT_FORMAT}. Export again.")
            self.files = dict(self.about["files"])
            self.count, self.classes = self.about["count"], self.about["classes"]
            self.shape = tuple(self.about["image_shape"])
            self.image_values = self.shape[0] * self.shape[1] * self.shape[2]
            self.low, self.typical, self.high = self.about["batch"]
            self.sizes = self.about["sizes"]
            self.labels = self.about["labels"]
            self.outputs = self.about["outputs"]
            self.answer_values = sum(output["samples"] for output in self.outputs)
            answers = self.count * self.answer_values
            split = self.count * self.image_values
            if not 0 < self.count <= split or not 0 < self.low <= self.typical <= self.high or answers < self.count:
                raise ValueError("its numbers do not fit together")
            require_tables(self.about)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise InputProblem(f"kit.json does not hold ({error}). Copy the folder again.") from error
        for name, expected in self.files.items():
            if hash_file(find(name)) != expected:
                raise InputProblem(f"{name} is not the file that was exported. Copy the folder again.")
        self.artifact, self.baseline = self.checked(self.about["artifact"]), self.checked(self.about["baseline"])
        values = self.numbers("vectors.bin", split + 2 * answers)
        self.images = values[:split]
        self.fp32, self.simulated = values[split : split + answers], values[split + answers :]

    def checked(self, name):
        """Return the path of a file or package that kit.json lists the sha256 of, every file in it."""
        path = find(name)
        inside = [name]
        if path.is_dir():
            inside = [name + "/" + file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()]
            inside = [file for file in inside if not file.endswith("/.DS_Store")]  # the Finder's
        for file in inside:
            if file not in self.files:
                raise InputProblem(f"{file} is not listed in kit.json: it was not exported. Copy the folder again.")
        return path

    def numbers(self, name, count):
        """Return the `count` float32 values of a checked file, whatever the byte order of this machine."""
        path, values = self.checked(name), array.array("f")
        if path.stat().st_size != 4 * count:
            raise InputProblem(f"{name} has {path.stat().st_size} bytes, not {4 * count}. Copy the folder again.")
        values.frombytes(path.read_bytes())
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def batch(self, asked):
        """Return the batch to time: what was asked, else the smallest of the artifact's."""
        size = self.low if asked is None else asked
        if not self.low <= size <= self.high:
            raise InputProblem(f"--batch {size} is outside the artifact's batches, {self.low} to {self.high}.")
        return size

    def window(self, first, batch):
        """Return `batch` images from image `first` on, beginning again where the images end."""
        values = self.images[first * self.image_values : (first + batch) * self.image_values]
        while len(values) < batch * self.image_values:
            values.extend(self.images[: batch * self.image_values - len(values)])
        return values

    def answers(self, network, batch):
        """Return the compared values of all images, `batch` at a time.

        network: takes images as array('f'), returns its outputs, each an array('f') of (batch, size) values.
        """
        result = array.array("f")
        for first in range(0, self.count, batch):
            found = network(self.window(first, batch))
            for row in range(batch):
                for output, values in zip(self.outputs, found):
                    start, size, samples = row * output["size"], output["size"], output["samples"]
                    result.extend(values[start + index * size // samples] for index in range(samples))
        return result[: self.count * self.answer_values]

    def answers_of(self, values, name):
        """Return what `values`, compared values of all images, hold of one output."""
        found, start = array.array("f"), 0
        for output in self.outputs:
            if output["name"] == name:
                for first in range(start, len(values), self.answer_values):
                    found.extend(values[first : first + output["samples"]])
            start += output["samples"]
        return found


def require_tables(about):
    """Raise ValueError, TypeError or KeyError where an entry of kit.json that is read later is not what it should be."""
    for part in about["outputs"] + about["layers"]:
        if not isinstance(part["name"], str) or not 0 < part["samples"] <= part["size"]:
            raise ValueError("an output has no name, or more samples than values")
    texts = [
        about[key] for key in ("model", "target", "artifact", "baseline", "artifact_form", "baseline_form", "minimum")
    ]
    texts += list(about["files"]) + [layer["tensor"] for layer in about["layers"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    if about["labels"] is not None and len(about["labels"]) != about["count"]:
        raise ValueError("there are not as many labels as images")
    numbers = [abs(limit) for limit in about["gates"].values() if limit is not None]
    numbers += [about["layer_images"], about["classes"], *about["sizes"][0], *about["sizes"][1], *about["sizes"][2]]
    if not all(0 <= number < 2**31 for number in numbers) or about["layer_images"] > about["count"]:
        raise ValueError("a number is out of range")
    if about["classes"] not in (0, about["outputs"][0]["samples"]):
        raise ValueError("there are not as many logits as classes")


def find(name):
    """Return the path of a file or package of the kit, beside this script; never of anything outside of its folder."""
    path = HERE / name
    try:
        resolved = path.resolve()
        there = path.is_file() or path.is_dir()
    except (OSError, ValueError, RuntimeError):  # a name that is too long or holds a NUL, links in a circle
        there = False
    if not there:
        raise InputProblem(f"{name} is missing: it belongs beside this script. Copy the folder {HERE} whole.")
    if Path(name).is_absolute() or ".." in Path(name).parts or HERE not in resolved.parents:
        raise InputProblem(f"{name} is not inside of {HERE}: this kit is not as it was exported.")
    return path


def read_small(path):
    """Read a file of which nothing is known yet, if it is no larger than any kit.json."""
    if not path.is_file() or path.stat().st_size > MOST_KIT_BYTES:
        raise InputProblem(f"{path.name} has more than {MOST_KIT_BYTES} bytes. Copy the folder again.")
    return path.read_bytes()


def shortened(value):
    """Return texts, and lists and dicts of them, with no text longer than MOST_TEXT."""
    if isinstance(value, str):
        return value if len(value) <= MOST_TEXT else value[: MOST_TEXT - 3] + "..."
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(inner) for inner in value]
    return value


def hash_file(path):
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def write(path, data):
    """Write a file in one step, so that an interrupted run leaves no half file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def require_version(name, version, minimum):
    """Raise RuntimeMissing where `version` is older than `minimum`, both as in "10.3.0"."""
    have, need = ([int(part) for part in re.findall(r"\d+", text)[:3]] for text in (version, minimum))
    if have < need:
        raise RuntimeMissing(f"{name} {version} is too old: the target needs {minimum} or later.")


# ---------------------------------------------------------------------------------------------------------- Comparison


def ratio_db(reference, other):
    """10 log10(sum reference^2 / sum (reference - other)^2); 200 where equal, None where `other` is not finite."""
    if not all(map(math.isfinite, other)):
        return None
    noise = sum((a - b) ** 2 for a, b in zip(reference, other))
    signal = sum(a * a for a in reference)
    return 200.0 if noise == 0 else 10 * math.log10(max(signal, 1e-30) / noise)


def decisions(logits, classes, task):
    """What the logits say: the class of each image; the sign of its one logit; of task multi-label, the sign of every logit."""
    if classes == 1 or task == "multi-label":
        return [int(logit > 0) for logit in logits]
    rows = [logits[start : start + classes] for start in range(0, len(logits), classes)]
    return [max(range(classes), key=row.__getitem__) for row in rows]


def compare(kit, measured):
    """Accuracy figures of the artifact's answers on the check vectors: of the worst output, where there are several."""
    outputs = []
    for output in kit.outputs:
        simulated, fp32, found = (
            kit.answers_of(values, output["name"]) for values in (kit.simulated, kit.fp32, measured)
        )
        fidelity, sqnr = ratio_db(simulated, found), ratio_db(fp32, found)
        outputs.append({"name": output["name"], "fidelity_db": fidelity, "sqnr_db": sqnr})
    result = {"images": kit.count, "outputs": outputs}
    for figure in ("fidelity_db", "sqnr_db"):
        told = [output[figure] for output in outputs]
        result[figure] = None if None in told else min(told)
    if not kit.classes:
        return result
    task = kit.about.get("task")
    chosen, expected = (decisions(values, kit.classes, task) for values in (measured, kit.fp32))
    count = result["answers"] = len(chosen)
    result["agreement"] = 100.0 * sum(a == b for a, b in zip(chosen, expected)) / count
    if kit.labels and task != "multi-label":  # whose mean average precision is computed where the results are read
        result["score"] = 100.0 * sum(a == b for a, b in zip(chosen, kit.labels)) / count
        result["score_fp32"] = 100.0 * sum(a == b for a, b in zip(expected, kit.labels)) / count
    return result


def packed(values):
    """Return float32 values as base64 of their little-endian bytes: every bit of them, in one line of JSON."""
    copy = array.array("f", values)
    if sys.byteorder == "big":
        copy.byteswap()
    return base64.b64encode(copy.tobytes()).decode("ascii")


def judge(gates, check, gain):
    """Return the gates with what was measured; the speed gate fails only where its whole interval lies below."""
    judged = []
    for name, figure in (("min_feature_sqnr_db", "sqnr_db"), ("min_fidelity_db", "fidelity_db")):
        limit = gates.get(name)
        if limit is not None and check is not None:
            found = check[figure]
            met = found is not None and found >= limit
            judged.append({"name": name, "limit": limit, "measured": found, "passed": met})
    limit = gates.get("min_speedup")
    if limit is not None and gain is not None:
        met = gain["high"] >= limit
        judged.append({"name": "min_speedup", "limit": limit, "measured": gain["value"], "passed": met})
    return judged


# -------------------------------------------------------------------------------------------------------------- Result


def new_result(kit, runtime, version):
    """Begin device.json: which export it is about, and on what it was measured."""
    return {
        "format": RESULT_FORMAT,
        "kit": kit.sha256,
        "model": kit.about["model"],
        "target": kit.about["target"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runtime": {"name": runtime, "version": version},
        "forms": {"artifact": kit.about["artifact_form"], "baseline": kit.about["baseline_form"]},
    }


def finish(result, gates, saved=()):
    """Write device.json, print the short of it and return the exit code. passed is None where nothing was judged.

    saved: other files that were written beside it.
    """
    result["gates"] = gates
    result["passed"] = all(gate["passed"] for gate in gates) if gates else None
    result["saved"] = sorted(saved)
    result["messages"] = result.get("messages", [])[:MOST_MESSAGES]
    for layers in result.get("layers", {}).values():
        del layers[MOST_LAYERS:]
    for key in ("machine", "messages", "layers", "power_absent", "clocks_before", "clocks_after"):
        if key in result:
            result[key] = shortened(result[key])
    if "latency" in result:
        result["latency"]["settings"] = shortened(result["latency"]["settings"])
    write(HERE / "device.json", json.dumps(result, indent=1).encode("utf-8"))
    forms = result["forms"]
    check, latency, power = result.get("check"), result.get("latency"), result.get("power")
    if check is not None:
        fidelity = "not finite" if check["fidelity_db"] is None else "{:.1f} dB".format(check["fidelity_db"])
        if "agreement" in check:
            answers = f"{check['images']} images"
            if check["answers"] != check["images"]:
                answers = f"{check['answers']} decisions on {answers}"
            print(f"agreement with FP32 {check['agreement']:.1f} % of {answers}", end=", ")
        print(f"fidelity to the simulation {fidelity}")
    if latency is not None:
        times = (
            latency["artifact"]["median_ms"],
            forms["artifact"],
            latency["baseline"]["median_ms"],
            forms["baseline"],
        )
        print("median {:.3f} ms {}, {:.3f} ms {}".format(*times), end=": ")
        gain = result["speedup"]
        print("{:.2f}x (95 % {:.2f} to {:.2f})".format(gain["value"], gain["low"], gain["high"]))
    if power is not None:
        watts = (power["source"], power["idle_w"], power["artifact_w"], forms["artifact"], power["baseline_w"])
        print("power ({}): {:.2f} W idle, {:.2f} W {}, {:.2f} W".format(*watts), forms["baseline"])
    elif "power_absent" in result:
        print("power not measured: {}".format(result["power_absent"]))
    for gate in gates:
        word = "met" if gate["passed"] else "MISSED"
        print("{} {}: measured {}, limit {}".format(word, gate["name"], gate["measured"], gate["limit"]))
    print(f"Wrote {HERE / 'device.json'}")
    return 3 if result["passed"] is False else 0


def run_script(work, options):
    """Call `work(options)` and turn the two expected problems into a sentence and an exit code."""
    try:
        return work(options)
    except InputProblem as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    except RuntimeMissing as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 4
