"""Run directories: finished stages are reused, killed ones leave nothing, and the disk's refusals are said plainly."""

from __future__ import annotations

import errno
import gc
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgeconvnext
from edgeconvnext.errors import CheckpointError, RunDirectoryError
from edgeconvnext.files import atomic_write, tree_sha256, tree_size
from edgeconvnext.run import stage_record as records
from edgeconvnext.run.directory import RunDirectory, StageResult, StageValues, default_run_path, run_key
from edgeconvnext.run.manifest import load_run

CONFIG = {"model": "tiny", "target": "onnx", "images": 256}


class Images(StageValues):
    """What the stages of these tests return, if anything."""

    images: tuple[int, ...] = ()


Make = Callable[[Path], Images | None]


class Writer:
    """A stage's work that writes one file and counts how often it was asked."""

    def __init__(self, text: str = "statistics") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> Images:
        self.calls += 1
        (folder / "statistics.bin").write_text(self.text)
        return Images(images=(1, 2))


def make_once(path: Path, make: Make, inputs: dict[str, Any] | None = None, **options: Any) -> StageResult[Images]:
    with RunDirectory.open(path, CONFIG, **options) as run:
        return run.stage("statistics", inputs or {"images": "abc"}, make, Images)


def visible(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {".lock"}


def test_a_finished_stage_is_reused_with_the_same_values_and_cost(tmp_path: Path) -> None:
    writer = Writer()
    first, second = make_once(tmp_path / "run", writer), make_once(tmp_path / "run", writer)
    assert writer.calls == 1
    assert (first.reused, second.reused) == (False, True)
    assert first.values == second.values == Images(images=(1, 2))
    assert first.record.values == {"images": [1, 2]}
    assert second.path("statistics.bin").read_text() == "statistics"
    assert second.cost == first.cost.model_copy(update={"reused": True})


def test_other_inputs_make_the_stage_again_and_drop_its_old_files(tmp_path: Path) -> None:
    make_once(tmp_path / "run", lambda folder: (folder / "old.bin").write_text("x") and None)
    make_once(tmp_path / "run", Writer(), {"images": "other"})
    assert visible(tmp_path / "run") == {"config.json", "stages/statistics.json", "statistics.bin"}


def test_other_code_makes_the_stage_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    make_once(tmp_path / "run", writer)
    monkeypatch.setattr("edgeconvnext.run.directory.code_version", lambda: "another version")
    make_once(tmp_path / "run", writer)
    assert writer.calls == 2


@pytest.mark.parametrize("harm", ["changed", "gone", "record cut off"])
def test_a_stage_whose_files_no_longer_hold_is_made_again(tmp_path: Path, harm: str) -> None:
    writer = Writer()
    file = make_once(tmp_path / "run", writer).path("statistics.bin")
    record = tmp_path / "run/stages/statistics.json"
    if harm == "changed":
        file.write_text("edited")
    elif harm == "gone":
        file.unlink()
    else:
        record.write_text(record.read_text()[:40])
    result = make_once(tmp_path / "run", writer)
    assert writer.calls == 2
    assert result.path("statistics.bin").read_text() == "statistics"


def test_a_stage_finished_in_a_run_beside_this_one_is_copied(tmp_path: Path) -> None:
    writer = Writer()
    make_once(tmp_path / "tiny-jetson", writer)
    result = make_once(tmp_path / "tiny-onnx", writer)
    assert writer.calls == 1
    assert (result.reused, result.copied_from) == (True, tmp_path / "tiny-jetson")
    result.path("statistics.bin").write_text("edited")
    assert (tmp_path / "tiny-jetson/statistics.bin").read_text() == "statistics"


def test_a_stage_of_the_run_that_was_named_is_copied_from_anywhere(tmp_path: Path) -> None:
    writer = Writer()
    make_once(tmp_path / "elsewhere/run", writer)
    result = make_once(tmp_path / "here/run", writer, reuse_from=tmp_path / "elsewhere/run")
    assert (writer.calls, result.copied_from) == (1, tmp_path / "elsewhere/run")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        make_once(tmp_path / "here/third", writer, reuse_from=tmp_path / "nowhere")


def test_a_record_that_points_outside_its_run_is_not_believed(tmp_path: Path) -> None:
    make_once(tmp_path / "a", Writer())
    (tmp_path / "secret").write_text("statistics")
    record = json.loads((tmp_path / "a/stages/statistics.json").read_text())
    record["files"] = {"../secret": tree_sha256(tmp_path / "secret")}
    (tmp_path / "a/stages/statistics.json").write_text(json.dumps(record))
    writer = Writer()
    make_once(tmp_path / "b", writer)
    assert writer.calls == 1


def test_a_folder_artifact_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    def package(name: str) -> Make:
        def make(folder: Path) -> None:
            (folder / "model.mlpackage/Data").mkdir(parents=True)
            (folder / "model.mlpackage/Data" / name).write_text(name)

        return make

    make_once(tmp_path / "run", package("old"))
    result = make_once(tmp_path / "run", package("new"), {"images": "other"})
    assert [file.name for file in result.path("model.mlpackage").rglob("*") if file.is_file()] == ["new"]


def test_two_stages_may_share_a_folder_but_not_a_file(tmp_path: Path) -> None:
    def into_device(name: str) -> Make:
        def make(folder: Path) -> None:
            (folder / "device").mkdir()
            (folder / "device" / name).write_text(name)

        return make

    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        run.stage("export", {}, into_device("build.py"))
        run.stage("vectors", {}, into_device("vectors.bin"))
        assert {file.name for file in (tmp_path / "run/device").iterdir()} == {"build.py", "vectors.bin"}
        with pytest.raises(ValueError, match=r"both write device/build\.py"):
            run.stage("again", {}, into_device("build.py"))


def test_a_failed_stage_leaves_nothing_and_keeps_what_was_finished(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.onnx").write_text("half")
        raise CheckpointError("no ConvNeXt")

    make_once(tmp_path / "run", Writer())
    before = visible(tmp_path / "run")
    with RunDirectory.open(tmp_path / "run", CONFIG) as run, pytest.raises(CheckpointError):
        run.stage("export", {}, fail)
    assert visible(tmp_path / "run") == before
    with pytest.raises(CheckpointError), RunDirectory.open(tmp_path / "second", CONFIG) as run:
        run.stage("export", {}, fail)
    assert not (tmp_path / "second").exists(), "a run that finished nothing leaves no folder"


SLOW_STAGE = """
    import sys, time
    from pathlib import Path
    from edgeconvnext.run.directory import RunDirectory

    def work(folder):
        (folder / "model.onnx").write_text("half")
        print("working", flush=True)
        time.sleep(60)

    try:
        with RunDirectory.open(Path(sys.argv[1]), {"model": "tiny", "target": "onnx", "images": 256}) as run:
            run.stage("statistics", {"images": "abc"}, lambda folder: (folder / "s.bin").write_text("s") and None)
            run.stage("export", {}, work)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process in the middle of the second stage of tmp_path/run."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_STAGE), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        yield path, process
        process.kill()


def test_a_second_process_is_refused_while_the_first_one_works(busy: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = busy
    with pytest.raises(RunDirectoryError, match=rf"in use by another process \(pid {process.pid}\)"):
        make_once(path, Writer())
    assert process.poll() is None


def test_ctrl_c_leaves_no_half_artifact_and_the_next_run_resumes(busy: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = busy
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert visible(path) == {"config.json", "s.bin", "stages/statistics.json"}
    writer = Writer()
    assert make_once(path, writer).reused
    assert writer.calls == 0


def test_what_a_killed_process_left_is_removed_by_the_next_one(busy: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = busy
    process.kill()
    process.wait(timeout=20)
    assert any(name.startswith(".tmp-export-") for name in visible(path))
    assert make_once(path, Writer()).reused
    assert visible(path) == {"config.json", "s.bin", "stages/statistics.json"}


def test_a_move_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    make_once(tmp_path / "run", Writer())
    (tmp_path / "run/stages/export.moving").write_text(json.dumps(["model.onnx", "device/build.py", "../outside"]))
    (tmp_path / "run/device").mkdir()
    for name in ("run/model.onnx", "run/device/build.py", "outside"):
        (tmp_path / name).write_text("one half")
    make_once(tmp_path / "run", Writer())
    assert visible(tmp_path / "run") == {"config.json", "stages/statistics.json", "statistics.bin"}
    assert not (tmp_path / "run/device").exists()
    assert (tmp_path / "outside").exists()


def test_a_file_in_the_way_and_a_strangers_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("mine")
    for path, reason in (("file", "is a file"), ("file/run", "file is a file"), ("photos", "are left alone")):
        with pytest.raises(RunDirectoryError, match=reason):
            make_once(tmp_path / path, Writer())
    assert visible(tmp_path) == {"file", "photos/cat.jpg"}


def test_a_run_of_another_model_or_target_is_not_written_over(tmp_path: Path) -> None:
    make_once(tmp_path / "run", Writer())
    other = RunDirectory.open(tmp_path / "run", {**CONFIG, "target": "jetson"})
    with pytest.raises(RunDirectoryError, match=r"another target \(onnx, now jetson\).*--output"), other:
        pass
    assert (tmp_path / "run/statistics.bin").exists()


def test_the_manifest_names_every_file_and_load_run_checks_them(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDirectory.open(path, CONFIG) as run:
        run.stage("statistics", {"images": "abc"}, Writer(), Images)
        run.finish({"seeds": {"bootstrap": 7}})
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == visible(path) - {"manifest.json"}
    assert manifest["files"]["statistics.bin"] == tree_sha256(path / "statistics.bin")
    assert manifest["seeds"] == {"bootstrap": 7}
    assert {"python", "edgeconvnext", "torch", "torchao"} <= set(manifest["versions"])
    assert load_run(path).config == CONFIG
    (path / "statistics.bin").write_text("edited")
    with pytest.raises(RunDirectoryError, match=r"statistics\.bin changed after the run was finished"):
        load_run(path)
    (path / "statistics.bin").unlink()
    with pytest.raises(RunDirectoryError, match=r"statistics\.bin are gone"):
        load_run(path)


def test_a_stage_made_anew_takes_the_finished_mark_off_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDirectory.open(path, CONFIG) as run:
        run.stage("statistics", {"images": "abc"}, Writer(), Images)
        run.finish()
    make_once(path, Writer(), {"images": "abc"})
    assert load_run(path).config == CONFIG, "a stage that was reused leaves the run finished"
    make_once(path, Writer("other"), {"images": "other"})
    with pytest.raises(RunDirectoryError, match="not finished"):
        load_run(path)


def test_load_run_says_what_the_folder_is_instead(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="There is no run directory"):
        load_run(tmp_path / "missing")
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="lies inside the run directory"):
        load_run(tmp_path / "manifest.json")
    with pytest.raises(RunDirectoryError, match="is not a manifest"):
        load_run(tmp_path)


def write_plain(file: Path, size: int) -> None:
    file.write_bytes(bytes(size))


def write_safetensors(file: Path, size: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(size, np.uint8)}, str(file))


def write_torch(file: Path, size: int) -> None:
    import torch

    torch.save(torch.zeros(size, dtype=torch.uint8), file)


@pytest.mark.parametrize("write", [write_plain, write_safetensors, write_torch])
def test_a_full_disk_is_said_plainly_and_finished_stages_stay(
    small_disk: Path, write: Callable[[Path, int], None]
) -> None:
    path = small_disk / "run"
    make_once(path, Writer())
    with (
        pytest.raises(RunDirectoryError, match=r"disk is full while writing .*run .*--output"),
        RunDirectory.open(path, CONFIG) as run,
    ):
        run.stage("export", {}, lambda folder: write(folder / "model.onnx", 4 << 20))
    assert visible(path) == {"config.json", "stages/statistics.json", "statistics.bin"}
    gc.collect()  # a writer of torch that failed closes its file, whose pages are still taken, when it is collected
    assert make_once(path, Writer()).reused


def test_a_read_only_disk_is_said_plainly(small_disk: Path) -> None:
    make_once(small_disk / "run", Writer())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk / "run", small_disk / "new/run"):
        with pytest.raises(RunDirectoryError, match=r"read-only.*--output"):
            make_once(path, Writer())


def test_a_refused_rename_is_said_plainly_and_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "statistics.bin":
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunDirectoryError, match="permission denied"):
        make_once(tmp_path / "run", Writer())
    assert not (tmp_path / "run").exists()


def test_an_unreadable_file_elsewhere_is_not_blamed_on_the_run(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/photos/cat.jpg")

    with pytest.raises(PermissionError):
        make_once(tmp_path / "run", read)


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "report.json", "old")

    def cut_off(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "report.json", "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"report.json": "old"}


def test_a_tree_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one").write_bytes(b"12345")
    (tmp_path / "a/two").write_bytes(b"123")
    assert tree_size(tmp_path / "a") == 8
    before = tree_sha256(tmp_path / "a")
    (tmp_path / "a/two").rename(tmp_path / "a/three")
    assert tree_sha256(tmp_path / "a") != before


def test_the_default_path_carries_eight_digits_of_the_configuration() -> None:
    key = run_key(CONFIG)
    assert key == run_key(dict(reversed(CONFIG.items())))
    assert key != run_key({**CONFIG, "images": 128})
    assert default_run_path(Path("runs"), "tiny", "onnx", key) == Path(f"runs/tiny-onnx-{key}")


def test_a_stage_knows_its_time_and_peak_memory_with_its_workers(tmp_path: Path) -> None:
    worker = "import time; held = bytearray(b'1' * (100 << 20)); time.sleep(1.2)"

    def work(folder: Path) -> None:
        held = bytearray(b"1" * (150 << 20))
        subprocess.run([sys.executable, "-c", worker], check=True)
        del held
        time.sleep(0.1)

    idle = make_once(tmp_path / "idle", lambda folder: time.sleep(0.1)).cost
    busy = make_once(tmp_path / "busy", work, {"other": 1}).cost
    assert 1.3 < busy.seconds < 30
    # Own 150 MiB always; the worker's 100 MiB where the system shows other processes' memory. 10 % for what else happened.
    expected = 250 if sys.platform == "linux" else 150
    assert busy.peak_mib - idle.peak_mib > 0.9 * expected


def test_the_key_covers_a_source_file_of_every_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that an older version of any part of the package made is not reused."""
    assert Path(edgeconvnext.__file__).parent == records.PACKAGE
    copy = tmp_path / "edgeconvnext"
    shutil.copytree(records.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    monkeypatch.setattr(records, "PACKAGE", copy)
    unchanged = records.code_version.__wrapped__()
    packages = [path.parent for path in copy.rglob("__init__.py")]
    assert {"run", "pipeline/stages", "quantization", "backends/coreml/mil", "model/convnext"} <= {
        package.relative_to(copy).as_posix() for package in packages
    }
    versions = {unchanged}
    for package in packages:
        source = max(package.glob("*.py"))
        text = source.read_text()
        source.write_text(text + "\n# edited\n")
        versions.add(records.code_version.__wrapped__())
        source.write_text(text)
    assert len(versions) == 1 + len(packages)
    assert records.code_version.__wrapped__() == unchanged
