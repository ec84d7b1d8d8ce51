"""The command line as a user runs it: output, exit codes, and errors of one paragraph without a traceback."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import fails, run_command
from PIL import Image
from short_turns import EDGECONVNEXT

from edgeconvnext.cli import app

COMMANDS = (
    "quantize", "export", "validate", "analyze", "bench", "inspect", "fold", "prune", "roadmap", "search", "train",
    "fine-tune",
    "targets", "doctor", "data",
)  # fmt: skip


LISTS = ("targets", "doctor")


@pytest.mark.parametrize(
    "command", [*(name for name in COMMANDS if name not in (*LISTS, "data")), "data get", "predict"]
)
def test_every_command_that_takes_time_can_be_quiet(command: str) -> None:
    assert "--quiet" in run_command(*command.split(), "--help").stdout


@pytest.fixture(scope="module")
def exported(micro: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("cli")
    result = run_command(
        "export", "--target", "onnx", "--model", micro, "--calib", "digits", "--eval", "digits_test",
        "--num-images", "90", "--no-latency", "--output", "run", "--json", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "run", json.loads(result.stdout)


def test_help_names_every_command_and_loads_no_framework() -> None:
    result = run_command("--help")
    assert all(command in result.stdout for command in COMMANDS)
    code = "import sys, edgeconvnext.cli; print([m for m in ('torch', 'onnx', 'numpy', 'coremltools') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_json_on_standard_output_is_the_report(exported: tuple[Path, dict]) -> None:
    path, printed = exported
    assert printed == json.loads((path / "report.json").read_text())
    assert printed["accuracy"]["artifact"]["n"] == 599


def test_validate_prints_a_summary_and_ends_0(exported: tuple[Path, dict]) -> None:
    result = run_command("validate", str(exported[0]), "--no-latency")
    assert result.returncode == 0, result.stderr
    assert "top-1" in result.stdout
    assert "report.html" in result.stdout


def test_bench_times_the_artifact_of_a_run(exported: tuple[Path, dict]) -> None:
    result = run_command("bench", str(exported[0]), "--seconds", "0.2", "--profile", "--json")
    assert result.returncode == 0, result.stderr
    times = json.loads(result.stdout)
    floating, artifact = times["profiles"]["model_fp32.onnx"], times["profiles"]["model.onnx"]
    assert all(share["ms"] > 0 for share in floating["shares"] + artifact["shares"])
    linears = {share["kind"]: share["operators"] for share in artifact["shares"]}["linears"]
    assert list(linears) == ["QGemm"] and artifact["fell_back"] == []
    assert times["latency"]["artifact"]["median_ms"] > 0
    assert times["latency"]["fp32"]["runs"] >= 10
    assert times["speedup"]["low"] <= times["speedup"]["value"] <= times["speedup"]["high"]


def test_bench_says_what_cannot_run_here(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    fails(run_command("bench", str(engine)), 4, "NVIDIA GPU")
    fails(run_command("bench", str(tmp_path / "none.onnx")), 1, "There is no artifact")


def test_inspect_describes_the_model() -> None:
    result = run_command("inspect", "digits", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["parameters"] == 270_298
    assert "LayerNorms" in run_command("inspect", "digits").stdout


def test_fold_and_prune_write_checkpoints_that_load(tmp_path: Path) -> None:
    folded = run_command("fold", "digits", "--calib", "digits", "--output", str(tmp_path / "folded.safetensors"))
    assert folded.returncode == 0, folded.stderr
    assert "layer_scale" in folded.stdout
    pruned = run_command(
        "prune", "digits", "--macs", "0.8", "--calib", "digits", "--output", str(tmp_path / "pruned.safetensors")
    )
    assert pruned.returncode == 0, pruned.stderr
    description = json.loads(run_command("inspect", str(tmp_path / "pruned.safetensors"), "--json").stdout)
    assert description["parameters"] < 270_298
    fails(
        run_command(
            "prune", "digits", "--macs", "1.5", "--calib", "digits", "--output", str(tmp_path / "x.safetensors")
        ),
        1,
    )


def test_targets_and_doctor_list_what_is_there() -> None:
    names = [target["name"] for target in json.loads(run_command("targets", "--json").stdout)]
    assert {"onnx", "jetson", "rtx", "gpu", "coreml"} <= set(names)
    checks = {check["name"]: check for check in json.loads(run_command("doctor", "--json").stdout)}
    assert checks["torch"]["found"]
    assert checks["digits"]["found"]
    assert "digits" in run_command("data", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export", "--target", "jetsn", "--model", "digits", "--calib", "digits"), 1, ("jetson",)),
        (("export", "--target", "onnx", "--model", "convnext_tinny", "--calib", "digits"), 1, ("convnext_tiny",)),
        (("quantize", "--model", "digits", "--calib", "imagenete"), 1, ("imagenette",)),
        (("quantize", "--model", "digits"), 1, ("--calib",)),
        (("quantize", "--model", "digits", "--calib", "digits", "--resolution", "40"), 1, ("multiples of 32", "32")),
        (("quantize", "--model", "digits", "--calib", "digits", "--mean", "a,b"), 2, ("--mean",)),
        (("validate", "nowhere"), 1, ("no run directory",)),
        (("export", "--model", "digits"), 2, ("--target",)),
        (("inspect", "nothing.pth"), 1, ("nothing.pth",)),
        (("data", "get", "imagenet_1k_subset"), 1, ("image-net.org",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_input_gets_one_paragraph(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    fails(run_command(*arguments, cwd=tmp_path), code, *words)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_without_model_and_hub_the_shipped_network_is_taken_and_named_first(tmp_path: Path) -> None:
    """Nothing listens on port 9 of this machine."""
    for number in range(12):
        folder = tmp_path / "photos" / f"kind{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 90, 250 - 20 * number)).save(folder / f"{number}.png")
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "EDGECONVNEXT_MODEL": ""}
    result = subprocess.run(
        [*EDGECONVNEXT, "quantize", "--calib", "photos", "--effort", "quick"],
        cwd=tmp_path,
        env=os.environ | environment,  # the hub's library reads them when it is imported
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    first = result.stderr.splitlines()[0]
    assert "the shipped atto_imagenette is used" in first and "Name another model with --model" in first
    agreement = next(part for part in result.stdout.split("\n\n") if "agreement" in part.lower())
    assert re.match(r"Agreement .* of images.*logit SQNR .* dB", agreement)
    assert "edgeconvnext quantize --calib photos --eval imagenette_val" in " ".join(agreement.split())


def test_ctrl_c_leaves_no_half_artifact_and_a_second_run_resumes(micro: str, tmp_path: Path) -> None:
    import signal

    command = [
        "export", "--target", "onnx", "--model", micro,
        "--calib", "digits", "--eval", "digits_test", "--num-images", "60", "--no-latency", "--output", "run",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*EDGECONVNEXT, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "stages" / "fold.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        130,
        "interrupted; run the same command again to go on where it stopped\n",
    )
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert not list((tmp_path / "run").glob(".tmp-*"))
    again = run_command(*command, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    stages = {stage["stage"]: stage["reused"] for stage in json.loads(again.stdout)["stages"]}
    assert stages["fold"]


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the script of --install-completion asks for at each press of the tab key."""
    for name, value in (
        ("_EDGECONVNEXT_COMPLETE", "complete_bash"),
        ("COMP_WORDS", "edgeconvnext qu"),
        ("COMP_CWORD", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        app(prog_name="edgeconvnext")
    assert capsys.readouterr().out.split() == ["quantize"]
