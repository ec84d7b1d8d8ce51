"""Folders, labels files and set files from somebody else: names stay below their folder, and every fault is one clear error."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeconvnext.data.folders import list_folder
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.loader import SkippedImage, check_broken
from edgeconvnext.data.sets import data_roots, resolve_image_set
from edgeconvnext.errors import ConfigFileError, EdgeConvNextError, ImageSetError, LabelMismatchError


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder of two images."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../../etc/passwd", "leads outside its folder"),
        ("/etc/passwd", "leads outside its folder"),
        ("a/../../x.png", "leads outside its folder"),
        ("..\\..\\x.png", "holds a backslash"),
        ("\\\\server\\share\\x.png", "holds a backslash"),
        ("a\x00.png", "holds control characters"),
        ("a\x1b[2J.png", "holds control characters"),
        ("a\x7f.png", "holds control characters"),
        ("x" * 256, "is too long"),
        ("x/" * 2100, "is too long"),
        (".", "is empty"),
    ],
)
@pytest.mark.parametrize("line", [1, 2])
def test_names_in_a_labels_file_lead_nowhere_else(flat: Path, name: str, fault: str, line: int) -> None:
    """On the first line too, where a line that names no image may be a header."""
    (flat / "labels.csv").write_text("a.png,tench\n" * (line - 1) + f"{name},tench\n")
    with pytest.raises(ImageSetError, match=rf"labels\.csv, line {line}: the file name .* {fault}") as error:
        resolve_image_set(flat)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a.png," + b"x" * 131_073 + b"\n", "line 1 cannot be read: field larger than field limit"),
        (b"a.png" + b"," * 1_000_000 + b"\n", "line 1: expected 'file,class'"),
        (b"a.png \xff\xfe\n", "labels.csv cannot be read: it is not UTF-8 text"),
        ("a.png,tench\n".encode("utf-16"), "labels.csv cannot be read: it is not UTF-8 text"),
        (b"\x00" * 1000, "line 1: expected 'file,class'"),
        (b'"' * 1001, "line 1: expected 'file,class'"),
        (b"a.png," + b"y" * 5000 + b"\na.png,z\n", "line 2: a.png is 'z' here and 'yyy"),
        (b"\n" * 1000, "names no images"),
        (b"a.png,tench\n" + b"x" * 250 + b".png,tench\n", "1 of them are missing"),
    ],
)
def test_a_labels_file_that_is_none_is_one_error(flat: Path, content: bytes, said: str) -> None:
    (flat / "labels.csv").write_bytes(content)
    with pytest.raises(ImageSetError, match=said) as error:
        resolve_image_set(flat)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_labels_file_of_absurd_size_is_not_read(flat: Path) -> None:
    with (flat / "labels.csv").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageSetError, match=r"labels\.csv has 1,099,511,627,776 bytes or more"):
        resolve_image_set(flat)


def test_a_labels_file_that_is_no_file_is_none(flat: Path) -> None:
    os.mkfifo(flat / "labels.csv")
    (flat / "labels.txt").symlink_to("/dev/zero")
    assert resolve_image_set(flat).labels is None


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=60), st.text(st.sampled_from('a.png,"\\/ \n\t\x00\u2028b'), max_size=30).map(str.encode)
    )
)
def test_whatever_a_labels_file_holds_is_labels_or_a_users_error(flat: Path, content: bytes) -> None:
    (flat / "labels.csv").write_bytes(content)
    try:
        assert set(resolve_image_set(flat).ids) <= {"a.png", "b.png"}
    except ImageSetError as error:
        assert str(error).isprintable()


def test_folders_in_one_another_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")  # noqa: PTH102  the whole path is longer than the system takes
        os.chdir("d")
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(ImageSetError, match=r"too deep in one another|holds no images"):
            list_folder(tmp_path)
    finally:
        subprocess.run(
            ["rm", "-rf", "d"], check=True
        )  # Python 3.11's rmtree, and so pytest's, ends in a RecursionError


def test_names_with_control_characters_are_shown_as_escapes(tmp_path: Path) -> None:
    name = "x\x1b[2J\n\u202e"
    (tmp_path / name).mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
        (tmp_path / name / f"{number}\r.txt").touch()
    found = resolve_image_set(tmp_path / name)
    assert all(note.isprintable() for note in found.notes) and len(found.notes) == 2
    with pytest.raises(ImageSetError) as broken:
        check_broken(found, [SkippedImage(f"{number}\x1b.png", "it is gone") for number in range(3)])
    with pytest.raises(LabelMismatchError) as mismatch:
        match_labels(resolve_image_set(tmp_path), Labels(("a\n", "b"), ("a\n", "b")), 2)
    with pytest.raises(ImageSetError) as empty:
        resolve_image_set(tmp_path / name / "0\r.txt")
    for error in (broken, mismatch, empty):
        assert str(error.value).isprintable()
        assert "\\x1b[2J\\n\\u202e" in str(error.value)


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    """A byte that is no UTF-8 is allowed in a file name; it must not end in an error when the list is hashed or shown."""
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)  # noqa: PTH102
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", folder + b"/\xfe.png")  # noqa: PTH104
    (tmp_path / os.fsdecode(folder) / os.fsdecode(b"\xfd.txt")).touch()
    found = resolve_image_set(tmp_path)
    assert found.read(0).size == (8, 8) and len(found.fingerprint) == 64
    assert all(note.isprintable() for note in found.notes)


# Set files


def set_file(folder: Path, **values: str) -> Path:
    path = folder / "mine.toml"
    given = {"name": '"mine"', "description": '"x"', "folders": '["images"]'} | values
    path.write_text("".join(f"{key} = {value}\n" for key, value in given.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"folders": '["*", "imag*", "**/*"]'}, r"not on this machine: .* for \*, imag\*"),
        ({"folders": '["~nosuchuser/images"]'}, "~nosuchuser/images begins with the home folder"),
        ({"folders": f'["{"x" * 5000}"]'}, "not on this machine"),
        ({"folders": '["a\\u0000b"]'}, r"a\\x00b"),
        ({"folders": '["\\u001b[2J"]'}, r"\\x1b\[2J"),
        ({"folders": "[" + '"no", ' * 1000 + "]"}, "no, no, .* and 990 more"),
        ({"folders": "[" + '"no", ' * 1001 + "]"}, "folders"),
        ({"images_per_class": "10000000000000000"}, "images_per_class"),
        ({"images_per_class": "-1"}, "images_per_class"),
        ({"images_per_class": "nan"}, "images_per_class"),
        ({"expected": "{ images = 1000000000000000000 }"}, r"expected\.images"),
        ({"name": '"a\\nb\\u001b"', "folders": '["no"]'}, r"The image set a\\nb\\x1b is not"),
        ({"how_to_get": '"a\\nb\\u001b"', "folders": '["no"]'}, r"a\\nb\\x1b"),
    ],
)
def test_a_set_file_that_means_harm_is_one_error(tmp_path: Path, values: dict[str, str], said: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    with pytest.raises(EdgeConvNextError, match=said) as error:
        resolve_image_set(set_file(tmp_path, **values))
    assert str(error.value).isprintable()


def test_set_files_are_small_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    set_file(tmp_path, description=f'"{"x" * 2**20}"')
    for name, said in (
        ("pipe", "a named pipe"),
        ("zero", "a device"),
        ("folder", "a folder"),
        ("mine", "at most 1,048,576"),
    ):
        with pytest.raises(ConfigFileError, match=said):
            resolve_image_set(tmp_path / f"{name}.toml")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 300 + "/y", "a\0b", "a\nb", "~nosuchuser/x", "~nosuchuser/x.toml", "x" * 5000 + ".toml"]
)
def test_names_that_no_system_takes_are_no_sets(name: str) -> None:
    with pytest.raises(ImageSetError) as error:
        resolve_image_set(name)
    assert str(error.value).isprintable()


def test_a_data_folder_of_nobody_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECONVNEXT_DATA", "~nosuchuser/data")
    with pytest.raises(ImageSetError, match="~nosuchuser/data begins with the home folder"):
        data_roots()
