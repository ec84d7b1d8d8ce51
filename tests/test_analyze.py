"""edgeconvnext analyze, as a user runs it: on a run, on a model, and on what is neither."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgeconvnext
from edgeconvnext.cli import main
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.run.manifest import load_run

QUICK = ("--calib", "digits", "--num-images", "48", "--effort", "quick")
REQUEST = Request(model="digits", calib="digits", num_images=48, effort="quick", latency=False)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command as the console script does, in this process and in a folder of its own; return code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeconvnext", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def made(micro: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of quantize with reconstructed layers."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    pipeline.quantize(replace(REQUEST, model=micro, effort="default", output=path))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def refused(ended: tuple[int, str, str], *words: str) -> None:
    code, _, errors = ended
    assert code == 1, ended
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    for word in words:
        assert word in errors, errors


def test_a_run_is_analysed_and_stays_a_whole_run(command: Command, run: Path) -> None:
    before = load_run(run)
    code, printed, errors = command("analyze", run)
    assert (code, errors) == (0, "")
    assert "KL" in printed and "head" in printed and str(run / "analysis.html") in printed.replace("\n", "")
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines() if "analysis.html" not in line)
    after = load_run(run)
    added = {"analysis.html", "analysis.json", "stages/analysis.json"}
    assert after.files == before.files | {name: after.files[name] for name in added}
    assert [stage["stage"] for stage in after.manifest["stages"]][-1] == "analysis"
    assert after.manifest["versions"] == before.manifest["versions"]
    assert after.manifest["calibration_list"] == before.manifest["calibration_list"]
    stored = json.loads((run / "analysis.json").read_text())
    assert stored["setting"]["effort"] == "default"
    assert stored["setting"]["sensitivity_images"] == stored["setting"]["held_out_images"] == 16
    assert all(layer["block_sqnr_db"] > 20 for layer in stored["layers"])


def test_a_second_time_reads_back_what_was_found(command: Command, run: Path) -> None:
    _, first, _ = command("analyze", run, "--json")
    written = (run / "analysis.json").stat().st_mtime_ns
    _, second, _ = command("analyze", run, "--json")
    assert first == second
    assert json.loads(first) == json.loads((run / "analysis.json").read_text())
    assert (run / "analysis.json").stat().st_mtime_ns == written
    assert len(load_run(run).manifest["stages"]) == len({stage["stage"] for stage in load_run(run).manifest["stages"]})


def test_a_model_gets_a_run_of_its_own(command: Command, tmp_path: Path) -> None:
    code, printed, errors = command("analyze", "digits", *QUICK, "--target", "jetson")
    assert (code, errors) == (0, "")
    assert "lie on one side of a symmetric grid" in " ".join(printed.split())
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.startswith("digits-jetson-")
    assert {"analysis.html", "plan.toml", "folded.safetensors"} <= set(load_run(path).files)
    assert command("analyze", path)[0] == 0


def test_the_function_does_what_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"calib": "digits", "num_images": 48, "effort": "quick"}
    found = edgeconvnext.analyze("digits", **options)
    assert found.analysis.setting.target == "onnx"
    assert found.path.parent == Path("runs")
    assert edgeconvnext.analyze(found.path).analysis == found.analysis
    wide = edgeconvnext.analyze("digits", **options, weights=4, activations=16).analysis
    assert {(layer.weights.bits, layer.input.bits) for layer in wide.layers} == {(4, 16)}  # type: ignore[union-attr]


def test_nothing_quantised_is_said(command: Command, tmp_path: Path) -> None:
    layers = weighted_layers(edgeconvnext.load_model("digits").module)
    text = "".join(f'[layers."{layer}"]\nfloat = true\n' for layer in layers)
    (tmp_path / "float.toml").write_text(text)
    code, printed, errors = command("analyze", "digits", *QUICK, "--plan", "float.toml")
    assert (code, errors) == (0, "")
    assert "nothing to analyse" in printed
    (path,) = (tmp_path / "runs").iterdir()
    assert "Nothing to analyse" in (path / "analysis.html").read_text()


def test_what_is_neither_model_nor_run_is_refused(command: Command, run: Path, tmp_path: Path) -> None:
    refused(command("analyze", "nowhere", *QUICK), "nowhere", "It is no run directory either")
    (tmp_path / "folder").mkdir()
    refused(command("analyze", "folder", *QUICK), "holds no weights", "no run directory")
    refused(command("analyze", "digits"), "--calib")
    refused(command("analyze", run / "stages", *QUICK), "no run directory")
    assert command("analyze", "digits", "--calib", "digits", "--weights", "5")[0] == 2
    assert command("analyze")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_options_of_a_model_are_refused_with_a_run(command: Command, run: Path) -> None:
    refused(command("analyze", run, "--calib", "digits", "--num-images", "9"), "--calib and --num-images", "leave out")


def test_a_plan_file_for_another_network_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[layers."stages.3.9.pwconv1"]\nfloat = true\n')
    refused(command("analyze", "digits", *QUICK, "--plan", "other.toml"), "stages.3.9.pwconv1", "does not have")


def test_a_run_that_is_not_whole_is_refused(command: Command, run: Path) -> None:
    (run / "plan_statistics.safetensors").write_bytes(b"other")
    refused(command("analyze", run), "plan_statistics.safetensors", "changed")
    (run / "manifest.json").unlink()
    refused(command("analyze", run), "was not finished")


def rewritten(run: Path, change: Callable[[dict], None]) -> None:
    """Change a manifest, as a hand or another version would have written it."""
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_without_plan_is_refused(command: Command, run: Path) -> None:
    def forget(manifest: dict) -> None:
        for name in ("plan.safetensors", "plan_statistics.safetensors", "plan.toml", "stages/plan.json"):
            (run / name).unlink()
            del manifest["files"][name]

    rewritten(run, forget)
    refused(command("analyze", run), "holds no plan")


def test_the_plan_of_another_network_is_refused(command: Command, run: Path) -> None:
    """The folded network beside the plan has fewer blocks, and manifest and record say so."""
    import torch

    from edgeconvnext.files import tree_sha256
    from edgeconvnext.model.checkpoint import save_checkpoint
    from edgeconvnext.model.convnext.network import ConvNeXt
    from edgeconvnext.model.load import load_model

    folded = load_model(run / "folded.safetensors")
    config = replace(folded.config, depths=(1, *folded.config.depths[1:-1], 2), hidden=None)
    torch.manual_seed(0)
    (run / "folded.safetensors").unlink()
    (run / "folded.json").unlink()
    other = replace(config, dims=tuple(2 * dim for dim in config.dims))
    save_checkpoint(replace(folded, module=ConvNeXt(other).eval(), config=other), run / "folded.safetensors")
    changed = {name: tree_sha256(run / name) for name in ("folded.safetensors", "folded.json")}
    record = json.loads((run / "stages/fold.json").read_text())
    record["files"] |= changed
    (run / "stages/fold.json").write_text(json.dumps(record))
    changed["stages/fold.json"] = tree_sha256(run / "stages/fold.json")
    rewritten(run, lambda manifest: manifest["files"].update(changed))
    refused(command("analyze", run), "plan of another network")
    assert load_run(run)


def test_other_calibration_images_are_refused(command: Command, run: Path) -> None:
    rewritten(run, lambda manifest: manifest["config"]["calibration"].update(list_sha256="0" * 64))
    refused(command("analyze", run), "calibration images", "Make the run again")
