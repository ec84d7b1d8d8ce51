"""What a board shows of clocks, temperatures and power, read from trees and texts as boards have them."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import pytest

from edgeconvnext.backends import backend
from edgeconvnext.backends.kit.write import assemble_script

# Jetson Orin Nano, as in NVIDIA's developer guide ("tegrastats" and the INA3221 channels).
TEGRASTATS = """\
01-02-2026 10:00:00 RAM 2448/7620MB CPU [1%@1510,0%@1510] GR3D_FREQ 0% cpu@48C VDD_IN 4000mW/4000mW VDD_SOC 1000mW/1000mW
01-02-2026 10:00:01 RAM 2448/7620MB CPU [9%@1510,0%@1510] GR3D_FREQ 99% cpu@49C VDD_IN 6000mW/5000mW VDD_SOC 2000mW/1500mW
"""
# Raspberry Pi 5, the form that vcgencmd pmic_read_adc prints.
PMIC = """\
   VDD_CORE_A current(7)=2.00000000A
   3V3_SYS_A current(1)=0.50000000A
   VDD_CORE_V volt(15)=0.75000000V
   3V3_SYS_V volt(9)=3.30000000V
   EXT5V_V volt(24)=5.10000000V
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of a kit, with an empty /sys, /proc and /etc and no program to ask."""
    (tmp_path / "script.py").write_text(assemble_script(backend("onnx").kit_script()))
    spec = importlib.util.spec_from_file_location("script", tmp_path / "script.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("SYS", "PROC", "ETC"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    (tmp_path / "programs").mkdir()
    return module


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    (folder / name).chmod(0o755)


def call() -> None:
    time.sleep(0.002)


def test_a_machine_that_shows_nothing_says_so(board: ModuleType) -> None:
    assert board.clocks() == {}
    power, absent = board.measure_power({"artifact": call, "baseline": call}, 1, 0.05)
    assert power is None and "shows no power sensor" in absent
    assert "power_mode" not in board.machine() and "memory" not in board.machine()


def test_a_board_names_itself(board: ModuleType) -> None:
    put(board.PROC / "device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    put(board.PROC / "meminfo", "MemTotal:        7802880 kB")
    put(board.ETC / "nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    program(Path(board.SYS.parent / "programs"), "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    about = board.machine()
    assert about["name"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert about["memory"] == "7.4 GiB"
    assert about["l4t"] == "# R36 (release), REVISION: 4.3, GCID: 1"
    assert about["power_mode"] == "NV Power Mode: 15W 0"


def test_clocks_and_temperatures_are_read_in_megahertz_and_degrees(board: ModuleType) -> None:
    policy = board.SYS / "devices/system/cpu/cpufreq/policy0"
    put(policy / "scaling_cur_freq", "1500000")
    put(policy / "cpuinfo_max_freq", "2400000")
    put(policy / "scaling_governor", "ondemand")
    put(board.SYS / "class/devfreq/17000000.gpu/cur_freq", "624750000")
    put(board.SYS / "class/thermal/thermal_zone0/type", "cpu-thermal")
    put(board.SYS / "class/thermal/thermal_zone0/temp", "48625")
    assert board.clocks() == {
        "cpu policy0": {"mhz": 1500.0, "max_mhz": 2400.0, "governor": "ondemand"},
        "17000000.gpu": {"mhz": 624.75, "max_mhz": None},
        "temperature cpu-thermal": {"celsius": 48.625},
    }


def test_the_rails_of_an_ina3221_give_watts_and_its_input_rail_is_the_total(board: ModuleType) -> None:
    chip = board.SYS / "class/hwmon/hwmon1"
    put(chip / "name", "ina3221")
    for number, label, millivolts, milliamperes in (
        (1, "VDD_IN", 5000, 1200),
        (2, "VDD_CPU_GPU_CV", 5000, 400),
        (4, "NC", 1, 1),
    ):
        put(chip / f"in{number}_label", label)
        put(chip / f"in{number}_input", str(millivolts))
        put(chip / f"curr{number}_input", str(milliamperes))
    power, absent = board.measure_power({"baseline": call, "artifact": call}, 4, 0.05)
    assert absent is None
    assert (power["source"], power["total"]) == ("ina3221", "VDD_IN")
    assert power["artifact_w"] == pytest.approx(6.0) and power["idle_w"] == pytest.approx(6.0)
    assert set(power["rails"]) == {"VDD_IN", "VDD_CPU_GPU_CV"}
    # A call takes 2 ms and more, for four images: 6 W * 2 ms / 4 = 3 mJ at least.
    assert 3.0 <= power["artifact_mj_per_image"] < 60


def test_a_sensor_that_counts_energy_gives_the_difference_over_time(board: ModuleType) -> None:
    zone = board.SYS / "class/powercap/intel-rapl:0"
    put(zone / "name", "package-0")
    put(zone / "energy_uj", "1000000")
    start = time.perf_counter()

    def busy() -> None:
        call()
        put(zone / "energy_uj", str(round(1e6 + 3e6 * (time.perf_counter() - start))))

    power, absent = board.measure_power({"baseline": busy, "artifact": busy}, 1, 0.2)
    assert absent is None and power["source"] == "rapl"
    # Three joules a second were counted; the counter is read just before and after the window.
    assert power["artifact_w"] == pytest.approx(3.0, rel=0.2)
    assert power["idle_w"] == 0.0


def test_tegrastats_is_read_where_the_kernel_shows_no_rails(board: ModuleType) -> None:
    program(
        Path(board.SYS.parent / "programs"), "tegrastats", f"cat <<'END'\n{TEGRASTATS}END\nwhile :; do sleep 0.1; done"
    )
    power, absent = board.measure_power({"baseline": call, "artifact": call}, 1, 0.5)
    assert absent is None
    assert (power["source"], power["total"]) == ("tegrastats", "VDD_IN")
    assert power["artifact_w"] == pytest.approx(5.0)


def test_readings_of_each_program_are_understood(board: ModuleType) -> None:
    assert board.watts_of("tegrastats", TEGRASTATS) == {"VDD_IN": 5.0, "VDD_SOC": 1.5}
    assert board.watts_of("nvidia-smi", "61.20\n63.20\n") == {"GPU board": pytest.approx(62.2)}
    assert board.watts_of("nvidia-smi", "[N/A]\n") == {}
    # 2 A * 0.75 V + 0.5 A * 3.3 V; a voltage without its current is no power.
    assert board.watts_of("vcgencmd pmic_read_adc", PMIC + "\n" + PMIC) == {
        "sum of the PMIC's rails": pytest.approx(3.15)
    }
    assert board.watts_of("vcgencmd pmic_read_adc", "error=2\n") == {}
