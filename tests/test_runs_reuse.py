"""Whose stages a run uses again, and what a run of somebody else can make it do."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import tree_sha256
from edgeconvnext.run import directory as runs
from edgeconvnext.run.directory import RunDirectory, StageResult, StageValues, run_key
from edgeconvnext.run.manifest import load_run
from edgeconvnext.run.stage_record import read_record

CONFIG = {"model": "tiny", "target": "onnx"}
User = Callable[[str], None]


class Values(StageValues):
    count: int


class OtherValues(StageValues):
    count: str


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """Become the user of that name, with a key of one's own; "nobody" has none."""

    def become(name: str) -> None:
        home = tmp_path / "homes" / name
        home.parent.mkdir(exist_ok=True)
        if name == "nobody":
            home.write_text("no folder")
        monkeypatch.setenv("XDG_STATE_HOME", str(home))

    become("me")
    return become


def make(path: Path, *, name: str = "numbers.json", inputs: Any = 1, **options: Any) -> StageResult[Values]:
    """Open a run, make a stage that writes one file, and close it."""

    def work(folder: Path) -> Values:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
        return Values(count=3)

    with RunDirectory.open(path, CONFIG, **options) as run:
        return run.stage("first", {"inputs": inputs}, work, Values)


def test_a_stage_of_ones_own_is_copied_from_beside_without_asking(tmp_path: Path, user: User) -> None:
    made = make(tmp_path / "runs/a")
    copied = make(tmp_path / "runs/b")
    assert (made.reused, made.copied_from) == (False, None)
    assert (copied.reused, copied.copied_from) == (True, tmp_path / "runs/a")
    assert copied.record == made.record, "the copy is one's own, too"


@pytest.mark.parametrize("maker", ["somebody", "nobody"])
def test_a_folder_of_somebody_else_is_copied_from_only_when_asked(tmp_path: Path, user: User, maker: str) -> None:
    user(maker)
    make(tmp_path / "runs/theirs")
    user("me")
    assert not make(tmp_path / "runs/mine").reused
    asked = make(tmp_path / "asked/mine", reuse_from=tmp_path / "runs/theirs")
    assert asked.copied_from == tmp_path / "runs/theirs"
    (tmp_path / "runs/mine/numbers.json").unlink()  # of the two beside, theirs alone is whole
    beside = make(tmp_path / "runs/third", reuse_beside=True)
    assert beside.copied_from == tmp_path / "runs/theirs"


def test_without_a_key_nothing_beside_is_reused_and_the_same_folder_is(tmp_path: Path, user: User) -> None:
    user("nobody")
    first = make(tmp_path / "runs/a")
    assert first.record.code is None
    assert not make(tmp_path / "runs/b").reused
    assert make(tmp_path / "runs/a").reused


@pytest.mark.parametrize("field", ["values", "files", "inputs", "seconds"])
def test_a_record_that_was_edited_is_nobodys(tmp_path: Path, user: User, field: str) -> None:
    make(tmp_path / "runs/a")
    path = tmp_path / "runs/a/stages/first.json"
    record = json.loads(path.read_text())
    (tmp_path / "runs/a/numbers.json").write_text("edited")
    edits = {
        "values": {"count": 4},
        "files": {"numbers.json": tree_sha256(tmp_path / "runs/a/numbers.json")},
        "inputs": {"inputs": 2},
        "seconds": record["seconds"] + 1,
    }
    path.write_text(json.dumps(record | {field: edits[field]}))
    if field != "files":
        (tmp_path / "runs/a/numbers.json").write_text("content")
    assert not make(tmp_path / "runs/b").reused


@pytest.mark.parametrize("name", ["device/check.py", "report.html", "model.engine", "quantized.pt2"])
def test_what_runs_code_is_never_copied_from_somebody_else(tmp_path: Path, user: User, name: str) -> None:
    user("somebody")
    make(tmp_path / "runs/theirs", name=name)
    user("me")
    theirs = tmp_path / "runs/theirs"
    assert not make(tmp_path / "a/run", name=name, reuse_from=theirs).reused
    assert not make(tmp_path / "runs/mine", name=name, reuse_beside=True).reused
    assert make(theirs, name=name).copied_from == tmp_path / "runs/mine", (
        "also in their folder one's own takes its place"
    )
    assert make(theirs, name=name).copied_from is None, "and is one's own from then on"


def two_stages(path: Path, **options: Any) -> list[StageResult[StageValues]]:
    def work(name: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            (folder / f"{name}.json").write_text(name)

        return write

    with RunDirectory.open(path, CONFIG, **options) as run:
        return [run.stage(name, {}, work(name)) for name in ("first", "second")]


def test_what_is_made_from_a_stage_of_somebody_else_does_not_count_as_ones_own(tmp_path: Path, user: User) -> None:
    user("somebody")
    with RunDirectory.open(tmp_path / "theirs/run", CONFIG) as run:
        run.stage("first", {}, lambda folder: (folder / "first.json").write_text("poisoned") and None)
    user("me")
    first, second = two_stages(tmp_path / "runs/mixed", reuse_from=tmp_path / "theirs/run")
    assert (first.reused, second.reused) == (True, False)
    assert second.record.code is None
    assert [stage.reused for stage in two_stages(tmp_path / "runs/later")] == [False, False]
    again = two_stages(tmp_path / "runs/mixed")
    assert [stage.reused for stage in again] == [True, True], "in the same folder both are used again"


def test_what_is_made_from_a_stage_that_was_only_looked_at_does_not_count_either(tmp_path: Path, user: User) -> None:
    user("somebody")
    make(tmp_path / "run")
    user("me")
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        stored = run.stored("first", Values)
        assert stored is not None
        assert stored.reused
        assert stored.values.count == 3
        assert run.stage("second", {}, lambda folder: None).record.code is None
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        assert run.stored("absent", Values) is None
        assert run.stage("third", {}, lambda folder: None).record.code is not None


def test_inputs_that_a_run_of_others_states_give_no_stage_of_ones_own(tmp_path: Path, user: User) -> None:
    assert make(tmp_path / "a/run", own_inputs=False).record.code is None
    assert make(tmp_path / "b/run").record.code is not None


def test_values_of_another_form_are_made_again(tmp_path: Path, user: User) -> None:
    make(tmp_path / "run")
    path = tmp_path / "run/stages/first.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"values": {"count": "three"}}))
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        assert run.stored("first", Values) is None
        assert run.stored("first", StageValues) is None, "a stage that returns nothing has no values either"
        assert run.stored("first", OtherValues) is not None
    assert not make(tmp_path / "run").reused
    path.write_text(json.dumps(json.loads(path.read_text()) | {"values": {"count": "three"}}))
    assert not make(tmp_path / "other/run", reuse_from=tmp_path / "run").reused


@pytest.mark.parametrize("harm", ["link", "folder link", "pipe", "missing", "edited"])
def test_files_that_do_not_hold_are_not_copied(tmp_path: Path, user: User, harm: str) -> None:
    source = make(tmp_path / "runs/a", name="sub/numbers.json").path("sub/numbers.json")
    secret = tmp_path / "outside/numbers.json"
    secret.parent.mkdir()
    secret.write_text("content")
    source.unlink()
    if harm == "link":
        source.symlink_to(secret)
    elif harm == "folder link":
        source.parent.rmdir()
        source.parent.symlink_to(secret.parent)
    elif harm == "pipe":
        os.mkfifo(source)
    elif harm == "edited":
        source.write_text("other")
    result = make(tmp_path / "runs/b", name="sub/numbers.json")
    assert not result.reused
    assert not list((tmp_path / "runs/b").glob(".tmp-*"))


def test_the_run_that_was_named_comes_before_those_beside(tmp_path: Path, user: User) -> None:
    make(tmp_path / "runs/a")
    make(tmp_path / "elsewhere/run")
    assert make(tmp_path / "runs/b", reuse_from=tmp_path / "elsewhere/run").copied_from == tmp_path / "elsewhere/run"
    assert make(tmp_path / "runs/c").copied_from == tmp_path / "runs/a"


def test_a_file_that_changes_while_it_is_copied_is_not_believed(
    tmp_path: Path, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "runs/a").path("numbers.json")
    copy = runs.shutil.copyfile

    def late(origin: Path, target: Path, **options: Any) -> Any:
        source.write_text("at work")
        return copy(origin, target, **options)

    monkeypatch.setattr(runs.shutil, "copyfile", late)
    assert not make(tmp_path / "runs/b").reused
    (tmp_path / "runs/b/numbers.json").unlink()
    source.write_text("content")

    def gone(origin: Path, target: Path, **options: Any) -> Any:
        source.unlink()
        return copy(origin, target, **options)

    monkeypatch.setattr(runs.shutil, "copyfile", gone)
    assert not make(tmp_path / "runs/c").reused


def test_a_source_that_does_not_do_is_passed_over_for_the_next(tmp_path: Path, user: User) -> None:
    make(tmp_path / "runs/a", inputs=2)
    (tmp_path / "runs/b/stages").mkdir(parents=True)
    user("somebody")
    make(tmp_path / "c/run")
    (tmp_path / "c/run").rename(tmp_path / "runs/c")
    user("me")
    make(tmp_path / "d/run").path("numbers.json").unlink()
    (tmp_path / "d/run").rename(tmp_path / "runs/d")
    make(tmp_path / "e/run").path("numbers.json").write_text("edited")
    (tmp_path / "e/run").rename(tmp_path / "runs/e")
    make(tmp_path / "f/run")
    (tmp_path / "f/run").rename(tmp_path / "runs/f")
    assert make(tmp_path / "runs/b").copied_from == tmp_path / "runs/f"
    assert make(tmp_path / "elsewhere/run", reuse_from=tmp_path / "runs/b").copied_from == tmp_path / "runs/b"


def several_files(folder: Path) -> None:
    for name in ("a.json", "deep/er/b.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_all_files_of_a_stage_are_copied_from_folders_in_folders(tmp_path: Path, user: User) -> None:
    with RunDirectory.open(tmp_path / "runs/a", CONFIG) as run:
        run.stage("first", {}, several_files)
    with RunDirectory.open(tmp_path / "runs/b", CONFIG) as run:
        copied = run.stage("first", {}, several_files)
    assert copied.copied_from == tmp_path / "runs/a"
    assert copied.path("deep/er/b.json").read_text() == "deep/er/b.json"
    (tmp_path / "runs/b/a.json").unlink()
    (tmp_path / "runs/a/a.json").unlink()
    os.mkfifo(tmp_path / "runs/a/a.json")
    with RunDirectory.open(tmp_path / "runs/c", CONFIG) as run:
        assert not run.stage("first", {}, several_files).reused, "one file of two is no regular file"


def test_a_file_that_becomes_a_link_while_it_is_copied_is_not_believed(
    tmp_path: Path, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outside = make(tmp_path / "runs/a").path("numbers.json"), tmp_path / "outside"
    copy = runs.shutil.copyfile

    def swap(origin: Path, target: Path, **options: Any) -> Any:
        source.rename(outside)
        source.symlink_to(outside)
        return copy(origin, target, **options)

    monkeypatch.setattr(runs.shutil, "copyfile", swap)
    assert not make(tmp_path / "runs/b").reused


def test_what_is_made_behind_a_stage_of_ones_own_is_ones_own_whether_that_was_made_or_reused(
    tmp_path: Path, user: User
) -> None:
    make(tmp_path / "run")
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        assert run.stage("first", {"inputs": 1}, lambda folder: Values(count=3), Values).reused
        assert run.stage("second", {}, lambda folder: None).record.code is not None
        assert run.stage("third", {}, lambda folder: None).record.code is not None


@pytest.mark.parametrize("whole", [True, False])
def test_a_move_that_had_ended_but_for_its_list_keeps_the_stage_that_holds(
    tmp_path: Path, user: User, whole: bool
) -> None:
    file = make(tmp_path / "run").path("numbers.json")
    moving = tmp_path / "run/stages/first.moving"
    moving.write_text('["numbers.json"]')
    if not whole:
        file.write_text("one half")
    with RunDirectory.open(tmp_path / "run", CONFIG):
        assert file.exists() is whole
        assert (tmp_path / "run/stages/first.json").exists() is whole
        assert not moving.exists()


def test_after_a_link_in_the_list_of_a_move_the_other_files_are_still_removed(tmp_path: Path, user: User) -> None:
    (tmp_path / "photos").mkdir()
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "device").symlink_to(tmp_path / "photos")
    (run / "half.json").write_text("one half")
    (run / "stages/first.moving").write_text('["device/check.py", "half.json"]')
    make(run)
    assert not (run / "half.json").exists()


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ({"size": 1}, "{'size': 1}"),
        ("y" * 300, "y" * 200),
        ({"name": "z" * 300, "sha256": "0"}, "z" * 200),
        ({"name": "tiny", "sha256": "0123456789abcdef"}, "tiny, sha256 0123456789ab"),
    ],
)
def test_another_model_is_named_briefly(tmp_path: Path, user: User, model: object, shown: str) -> None:
    (tmp_path / "run/stages").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({"config": {"model": model, "target": "onnx"}}))
    with pytest.raises(RunDirectoryError) as caught:
        make(tmp_path / "run")
    assert f"a run of another model ({shown}, now tiny)" in str(caught.value)


def test_extending_a_run_returns_its_manifest(tmp_path: Path, user: User) -> None:
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        run.stage("first", {}, lambda folder: None)
        assert run.finish() == tmp_path / "run/manifest.json"
        assert run.extend(load_run(tmp_path / "run")) == tmp_path / "run/manifest.json"


# A folder of somebody else that a run is asked to write into


def test_links_in_a_folder_lead_no_file_out_of_it(tmp_path: Path, user: User) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "check.py").write_text("mine")
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "device").symlink_to(photos)
    (run / "stages/first.moving").write_text(json.dumps(["device/check.py"]))
    result = make(run, name="device/check.py")
    assert (photos / "check.py").read_text() == "mine"
    assert not (run / "device").is_symlink()
    assert result.path("device/check.py").read_text() == "content"


def test_a_link_deep_in_the_folder_is_replaced_not_followed(tmp_path: Path, user: User) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "package").mkdir()
    (run / "package/data").symlink_to(photos)
    make(run, name="package/data/weights.bin")
    assert not list(photos.iterdir())
    assert (run / "package/data/weights.bin").read_text() == "content"


def test_leftovers_that_are_links_are_removed_and_what_they_lead_to_stays(tmp_path: Path, user: User) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("mine")
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / ".tmp-first-1").symlink_to(photos)
    (run / "stages/.tmp-first.json-1").symlink_to(photos / "cat.jpg")
    make(run)
    assert (photos / "cat.jpg").read_text() == "mine"
    assert not (run / ".tmp-first-1").is_symlink()
    assert not (run / "stages/.tmp-first.json-1").is_symlink()


def test_records_and_locks_that_are_links_are_refused(tmp_path: Path, user: User) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/stages").symlink_to(tmp_path / "photos")
    with pytest.raises(RunDirectoryError, match=r"stages is a link to another folder.*--output"):
        make(tmp_path / "a")
    (tmp_path / "b/stages").mkdir(parents=True)
    (tmp_path / "b/.lock").symlink_to(tmp_path / "photos/cat.jpg")
    with pytest.raises(RunDirectoryError, match=r"\.lock cannot be written: it is a link"):
        make(tmp_path / "b")
    assert (tmp_path / "photos/cat.jpg").read_text() == "mine"


def test_a_lock_file_that_is_another_files_name_too_is_not_written(tmp_path: Path, user: User) -> None:
    (tmp_path / "diary").write_text("mine")
    (tmp_path / "run/stages").mkdir(parents=True)
    os.link(tmp_path / "diary", tmp_path / "run/.lock")
    make(tmp_path / "run")
    assert (tmp_path / "diary").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "null", "3", '{"a": 1}', '[1, null, "../x", "/etc/x", ".lock"]', "[" * 5000])
def test_a_list_of_a_move_that_is_junk_removes_nothing(tmp_path: Path, user: User, text: str) -> None:
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "stages/other.moving").write_text(text)
    (tmp_path / "x").write_text("mine")
    make(run)
    assert (tmp_path / "x").exists()
    assert (run / ".lock").exists()
    assert not (run / "stages/other.moving").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"config": null}', '{"config": []}', '{"config": 3}', "[" * 5000]
)
def test_a_configuration_that_is_junk_is_written_anew(tmp_path: Path, user: User, text: str) -> None:
    (tmp_path / "run/stages").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(text)
    make(tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text()) == {"format": 1, "config": CONFIG}


def test_a_message_about_another_run_shows_no_control_characters(tmp_path: Path, user: User) -> None:
    (tmp_path / "run/stages").mkdir(parents=True)
    model = {"name": "\x1b[2J" + "x" * 1000, "sha256": "0123456789abcdef"}
    (tmp_path / "run/config.json").write_text(json.dumps({"config": {"model": model, "target": "onnx"}}))
    with pytest.raises(RunDirectoryError, match=r"another model \(\\x1b\[2Jxxx") as caught:
        make(tmp_path / "run")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_record_that_claims_the_files_of_another_stage_is_an_error_of_that_folder(tmp_path: Path, user: User) -> None:
    make(tmp_path / "run")
    record = read_record(tmp_path / "run", "first")
    assert record is not None
    claim = record.model_copy(update={"stage": "claims"}).model_dump(mode="json")
    (tmp_path / "run/stages/claims.json").write_text(json.dumps(claim))
    with pytest.raises(
        RunDirectoryError, match=r"claims\.json claims files that the stage first writes: numbers\.json"
    ):
        make(tmp_path / "run", inputs=2)
    assert (tmp_path / "run/numbers.json").read_text() == "content"


def test_a_key_that_is_refused_leaves_no_folder(tmp_path: Path, user: User) -> None:
    make(tmp_path / "a")
    (tmp_path / "homes/me/edgeconvnext/key").chmod(0o644)
    with pytest.raises(RunDirectoryError, match="Remove it; a new one is made"):
        make(tmp_path / "new/run")
    assert not (tmp_path / "new").exists()


# Places that take no run


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /sys are Linux's")
@pytest.mark.parametrize(
    "place", ["/proc/x", "/proc/self/x/y", "/sys/x", "/proc", "/dev/null", "/dev/null/x", "/dev/full"]
)
def test_a_place_that_takes_no_folder_is_refused(place: str, user: User) -> None:
    with pytest.raises(RunDirectoryError, match="--output"):
        make(Path(place))


def test_a_name_that_is_too_long_and_links_in_a_circle_are_refused(tmp_path: Path, user: User) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path / ("x" * 300), tmp_path / "circle", tmp_path / "circle/run"):
        with pytest.raises(RunDirectoryError, match="--output"):
            make(path)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.run.directory import RunDirectory

resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

def work(folder):
    (folder / "small.bin").write_bytes(bytes(100))
    (folder / "sub").mkdir()
    (folder / "sub/large.bin").write_bytes(bytes(1 << 20))

try:
    with RunDirectory.open(Path(sys.argv[1]), {}) as run:
        run.stage("first", {}, work)
except RunDirectoryError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_names_the_file_that_went_over_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        f"{tmp_path / 'run/sub/large.bin'} cannot be written: it is larger than files may be here"
    )
    assert "ulimit -f" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EFBIG, "File too large"), RuntimeError("I/O error: File too large (os error 27)")],
    ids=["Python", "Rust"],
)
def test_without_a_file_at_the_limit_the_run_is_named(
    tmp_path: Path, user: User, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))

    def work(folder: Path) -> None:
        raise error

    with (
        pytest.raises(RunDirectoryError, match=rf"^{tmp_path / 'run'} cannot be written: it is larger"),
        RunDirectory.open(tmp_path / "run", CONFIG) as run,
    ):
        run.stage("first", {}, work)


# What a run is made of


def test_a_stage_name_is_a_plain_word(tmp_path: Path, user: User) -> None:
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        for name in ("", "A", "a b", "../x", "a.b", "a\n"):
            with pytest.raises(ValueError, match="stage name"):
                run.stage(name, {}, lambda folder: None)
        assert run.stage("a-b_9", {}, lambda folder: None).values == StageValues()


def test_the_key_of_a_stage_is_a_hash_of_name_format_code_and_inputs(
    tmp_path: Path, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hashlib import sha256

    monkeypatch.setattr(runs, "code_version", lambda: "version")
    text = '{"code": "version", "format": 1, "inputs": {"a": [1]}, "stage": "first"}'
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        assert run.stage("first", {"a": (1,)}, lambda folder: None).key == sha256(text.encode()).hexdigest()
    assert run_key({"a": 1}) == sha256(b'{"a": 1}').hexdigest()[:8]


def test_a_finished_run_can_be_extended(tmp_path: Path, user: User) -> None:
    path = tmp_path / "run"
    with RunDirectory.open(path, CONFIG) as run:
        run.stage("first", {}, lambda folder: (folder / "a.json").write_text("a") and None)
        run.finish({"seeds": {"x": 1}})
    finished = load_run(path)
    with RunDirectory.open(path, CONFIG) as run:
        run.stage("first", {}, lambda folder: None)
        run.stage("second", {}, lambda folder: (folder / "b.json").write_text("b") and None)
        assert not (path / "manifest.json").exists(), "a stage was added: the run is not finished until it is said so"
        run.extend(finished)
    again = load_run(path)
    assert set(again.files) == {"config.json", "a.json", "b.json", "stages/first.json", "stages/second.json"}
    assert list(again.files) == sorted(again.files)
    assert [stage["stage"] for stage in again.manifest["stages"]] == ["first", "second"]
    assert again.manifest["seeds"] == {"x": 1}


def test_a_stage_says_which_files_it_wrote(tmp_path: Path, user: User) -> None:
    result = make(tmp_path / "run", name="package/a.bin")
    assert result.path("package") == tmp_path / "run/package"
    assert result.path("package/a.bin").is_file()
    for name in ("pack", "package/a", "a.bin"):
        with pytest.raises(KeyError, match=r"first wrote no .*; it wrote package/a\.bin"):
            result.path(name)
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        empty = run.stage("empty", {}, lambda folder: None)
    with pytest.raises(KeyError, match="it wrote nothing"):
        empty.path("x")


@pytest.mark.parametrize("command", ["quantize", "export", "analyze"])
def test_reuse_reaches_the_request(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeconvnext.cli.application import app
    from edgeconvnext.pipeline import commands as pipeline

    asked: list[bool] = []

    def stop(request: Any) -> None:
        asked.append(request.reuse)
        raise RunDirectoryError("far enough")

    for name in ("quantize", "export", "analyze_model"):
        monkeypatch.setattr(pipeline, name, stop)
    arguments = {"quantize": [], "export": ["--target", "onnx"], "analyze": ["digits"]}[command]
    for given in ([], ["--reuse"]):
        with pytest.raises(RunDirectoryError):
            app([command, *arguments, "--calib", "digits", *given], standalone_mode=False)
    assert asked == [False, True]
