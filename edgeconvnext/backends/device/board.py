"""The part of every kit's script that asks the machine what it is, how fast it is clocked and what it draws.

Everything here only reads, and says None where the machine does not tell.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")
ETC = Path("/etc")
IDLE_SECONDS = 1.0
SAMPLE_SECONDS = 0.05
# Rails that carry all of a board's input.
TOTAL_RAILS = ("VDD_IN", "VIN", "VIN_SYS_5V0", "SYS_5V0")


def machine():
    """Return what the machine says of itself, as texts: a time means nothing without its clocks and power mode."""
    about = {
        "name": read(PROC / "device-tree/model") or processor(),
        "architecture": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "l4t": (read(ETC / "nv_tegra_release") or "").partition("\n")[0] or None,
        "power_mode": told(["nvpmodel", "-q"]),
        "throttled": told(["vcgencmd", "get_throttled"]),
    }
    return {key: value for key, value in about.items() if value}


def processor():
    for line in (read(PROC / "cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return told(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor() or platform.machine()


def memory():
    found = re.search(r"MemTotal:\s+(\d+) kB", read(PROC / "meminfo") or "")
    return None if found is None else f"{int(found.group(1)) / 2**20:.1f} GiB"


def clocks():
    """Return clocks in MHz and temperatures in degrees Celsius, by name, as they are right now."""
    found = {}
    for path in sorted((SYS / "devices/system/cpu/cpufreq").glob("policy*")):
        hertz, top = number(path / "scaling_cur_freq"), number(path / "cpuinfo_max_freq")
        if hertz is not None:
            found[f"cpu {path.name}"] = {"mhz": hertz / 1e3, "max_mhz": None if top is None else top / 1e3}
            governor = read(path / "scaling_governor")
            if governor:
                found[f"cpu {path.name}"]["governor"] = governor
    for path in sorted((SYS / "class/devfreq").glob("*")):
        hertz, top = number(path / "cur_freq"), number(path / "max_freq")
        if hertz is not None:
            found[path.name] = {"mhz": hertz / 1e6, "max_mhz": None if top is None else top / 1e6}
    for path in sorted((SYS / "class/thermal").glob("thermal_zone*")):
        degrees, name = number(path / "temp"), read(path / "type")
        if degrees is not None and name:
            found[f"temperature {name}"] = {"celsius": degrees / 1e3}
    return found


# --------------------------------------------------------------------------------------------------------------- Power


class Rails:
    """Sensors that the kernel shows: hwmon (Jetson's ina3221, Thor's ina238 and others), in watts by rail."""

    def __init__(self):
        self.source = None
        self.readers = {}
        for folder in sorted((SYS / "class/hwmon").glob("hwmon*")):
            chip = read(folder / "name") or folder.name
            before = len(self.readers)
            for power in sorted(folder.glob("power*_input")):
                label = read(folder / power.name.replace("_input", "_label")) or f"{chip} {power.name[:-6]}"
                self.readers[label] = lambda power=power: scaled(number(power), 1e-6)
            for volt in sorted(folder.glob("in*_input")):
                current = folder / volt.name.replace("in", "curr", 1)
                label = read(folder / volt.name.replace("_input", "_label"))
                if current.is_file() and label and label != "NC":
                    self.readers[label] = lambda volt=volt, current=current: product(number(volt), number(current))
            if len(self.readers) > before:
                self.source = chip if self.source is None else f"{self.source}, {chip}"
        self.readers = {label: reader for label, reader in self.readers.items() if reader() is not None}

    def sample(self):
        return {label: reader() for label, reader in self.readers.items()}


class EnergyCounters:
    """Intel's and AMD's RAPL: energy since start in microjoules; watts are the difference over time."""

    source = "rapl"

    def __init__(self):
        self.paths = {}
        for path in sorted((SYS / "class/powercap").glob("intel-rapl:?")):
            if number(path / "energy_uj") is not None:  # readable by root only on most systems
                self.paths[read(path / "name") or path.name] = path / "energy_uj"
        self.readers = self.paths

    def sample(self):
        return {label: number(path) for label, path in self.paths.items()}


class Reporter:
    """A program of the board that prints its readings: tegrastats, nvidia-smi or vcgencmd, run beside the network."""

    COMMANDS = (
        ("tegrastats", ["tegrastats", "--interval", "100"]),
        (
            "nvidia-smi",
            ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", "0", "-lms", "100"],
        ),
        ("vcgencmd pmic_read_adc", ["sh", "-c", "while :; do vcgencmd pmic_read_adc; echo; sleep 0.2; done"]),
    )

    def __init__(self):
        self.source, self.command = None, None
        for source, command in self.COMMANDS:
            if shutil.which(source.split()[0]):
                self.source, self.command = source, command
                with self.window() as texts:
                    time.sleep(0.7)
                if watts_of(self.source, texts()):
                    return
        self.source = None

    def window(self):
        return ReporterWindow(self.command)


class ReporterWindow:
    """Run a command while the block lasts; calling what it gives returns the text printed."""

    def __init__(self, command):
        self.command = command

    def __enter__(self):
        self.file = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdout=self.file, stderr=subprocess.DEVNULL)
        return self.text

    def __exit__(self, *problem):
        self.process.terminate()
        self.process.wait()
        self.file.seek(0)
        self.printed = self.file.read().decode("utf-8", "replace")
        self.file.close()

    def text(self):
        return self.printed


def watts_of(source, text):
    """Return the mean watts by rail of what a reporter printed; {} where it printed no power."""
    readings = {}
    if source == "tegrastats":  # "... VDD_IN 4960mW/4960mW VDD_CPU_GPU_CV 600mW/600mW ..."
        for label, milliwatts in re.findall(r"(\w+) (\d+)mW", text):
            readings.setdefault(label, []).append(int(milliwatts) / 1e3)
    elif source == "nvidia-smi":  # one number a line, "[N/A]" where the GPU does not tell
        values = [float(value) for value in re.findall(r"^\s*(\d+(?:\.\d+)?)\s*$", text, re.MULTILINE)]
        if values:
            readings["GPU board"] = values
    else:  # blocks of "VDD_CORE_A current(7)=1.2A" and "VDD_CORE_V volt(15)=0.7V"
        for block in text.split("\n\n"):
            amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", block))
            volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", block))
            shared = sorted(set(amperes) & set(volts))
            if shared:
                watts = sum(float(amperes[rail]) * float(volts[rail]) for rail in shared)
                readings.setdefault("sum of the PMIC's rails", []).append(watts)
    return {label: sum(values) / len(values) for label, values in readings.items()}


def measure_power(networks, batch, seconds):
    """Return (power, None) or (None, the reason there is none): idle, then `seconds` of each network back to back."""
    meter = next((one for one in (Rails(), EnergyCounters()) if one.readers), None)
    if meter is None:
        meter = Reporter()
        if meter.source is None:
            return None, "this machine shows no power sensor (hwmon, rapl, tegrastats, nvidia-smi, vcgencmd)"
    windows = {"idle": power_window(meter, lambda: time.sleep(SAMPLE_SECONDS), IDLE_SECONDS)}
    for name, network in networks.items():
        network()
        windows[name] = power_window(meter, network, seconds)
    rails = [rail for rail in windows["idle"][0] if all(rail in watts for watts, _ in windows.values())]
    if not rails:
        return None, f"{meter.source} gave no readings while the networks ran"
    totals = [rail for rail in rails if rail in TOTAL_RAILS[:2]] or rails
    result = {
        "source": meter.source,
        "total": totals[0] if len(totals) == 1 else "sum of " + ", ".join(totals),
        "summed": totals,
        "seconds_per_image": {name: each / batch for name, (_, each) in windows.items() if name != "idle"},
        "rails": {rail: {name: watts[rail] for name, (watts, _) in windows.items()} for rail in rails},
    }
    for name, (watts, _) in windows.items():
        result[name + "_w"] = sum(watts[rail] for rail in totals)
        if name != "idle":
            result[name + "_mj_per_image"] = 1e3 * result[name + "_w"] * result["seconds_per_image"][name]
    return result, None


def power_window(meter, call, seconds):
    """Call `call` for `seconds`; return the mean watts by rail and the seconds of one call."""
    if isinstance(meter, Reporter):
        with meter.window() as texts:
            calls, took, _ = repeat(call, seconds, None)
        return watts_of(meter.source, texts()), took / calls
    first = meter.sample()
    calls, took, samples = repeat(call, seconds, meter.sample)
    if isinstance(meter, EnergyCounters):
        last = meter.sample()
        # The counter begins again at its end, once in minutes to hours: such a window is left out.
        watts = {rail: (last[rail] - first[rail]) / 1e6 / took for rail in first if last[rail] >= first[rail]}
        return watts, took / calls
    rails = {rail: [one[rail] for one in samples if one[rail] is not None] for rail in first}
    return {rail: sum(values) / len(values) for rail, values in rails.items() if values}, took / calls


def repeat(call, seconds, sample):
    """Call again and again for `seconds`, sampling in between; return the number of calls, their time and the samples."""
    start = time.perf_counter()
    calls, samples, due, sampling = 0, [], start, 0.0
    while not calls or time.perf_counter() - start < seconds:
        call()
        calls += 1
        now = time.perf_counter()
        if sample is not None and now >= due:
            samples.append(sample())
            due = time.perf_counter() + SAMPLE_SECONDS
            sampling += time.perf_counter() - now
    return calls, time.perf_counter() - start - sampling, samples


# ------------------------------------------------------------------------------------------------------------- Reading


def read(path):
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except (OSError, ValueError):
        return None


def number(path):
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def scaled(value, factor):
    return None if value is None else value * factor


def product(millivolts, milliamperes):
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def told(command):
    """Return what a program prints, on one line; None where it is not here or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(done.stdout.decode("utf-8", "replace").split()) or None
