"""Content from outside: only regular files, only so many bytes, and one clear error for all that a parser may raise."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from edgeconvnext.errors import ConfigFileError, ImageSetError
from edgeconvnext.received import (
    MOST_NESTED,
    read_bytes,
    read_json,
    read_text,
    read_toml,
    reading,
    reason,
    require_regular_file,
)


def test_what_a_file_holds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}', encoding="utf-8-sig")
    assert read_text(path, ConfigFileError) == '{"a": [1]}'
    assert read_json(path, ConfigFileError) == {"a": [1]}
    assert read_bytes(path, ConfigFileError)[:3] == b"\xef\xbb\xbf"
    assert require_regular_file(path, ConfigFileError) == path.stat().st_size
    toml = tmp_path / "a.toml"
    toml.write_text("a = [1]\n")
    assert read_toml(toml, ConfigFileError) == {"a": [1]}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_device").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("to_device", "a device"), (".", "a folder")):
        with pytest.raises(ConfigFileError, match=f"is {kind}, not a regular file"):
            read_bytes(tmp_path / name, ConfigFileError)
        with pytest.raises(ConfigFileError, match=f"is {kind}, not a regular file"):
            require_regular_file(tmp_path / name, ConfigFileError)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"none\.json cannot be read: no such file or directory"):
        read_json(tmp_path / "none.json", ImageSetError)


def test_the_size_is_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConfigFileError, match="at most 100 are read"):
        read_bytes(path, ConfigFileError, most=100)
    with pytest.raises(ConfigFileError, match="at most 100 are read"):
        require_regular_file(path, ConfigFileError, most=100)
    path.write_bytes(b"x" * 100)
    assert len(read_bytes(path, ConfigFileError, most=100)) == 100
    with pytest.raises(ConfigFileError, match="at most 3 are read"):
        read_bytes(Path("/proc/self/status"), ConfigFileError, most=3)  # says 0 bytes, has more


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MOST_NESTED + 1) + b"]" * (MOST_NESTED + 1), "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (b'{"a": ["\\ud800"]}', "not UTF-8"),
        (b'{"\\ud800": 1}', "not UTF-8"),
        (b"{", "it is not valid JSON: Expecting property name"),
    ],
)
def test_json_that_no_parser_takes_is_one_error(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ConfigFileError, match=f"x.json cannot be read: .*{why}"):
        read_json(path, ConfigFileError)


def test_names_of_files_that_are_not_utf_8_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('["bad\\udcff.jpg"]')
    assert read_json(path, ConfigFileError) == [os.fsdecode(b"bad\xff.jpg")]


def test_json_may_be_nested_a_hundred_deep(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * MOST_NESTED + "]" * MOST_NESTED)
    read_json(path, ConfigFileError)


@pytest.mark.parametrize("content", [f"a = {'[' * 5000}", f"a = {'9' * 5000}", "a = ", "a.b = 1\na.b = 2"])
def test_toml_that_no_parser_takes_is_one_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(ConfigFileError, match=r"x\.toml cannot be read: "):
        read_toml(path, ConfigFileError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RecursionError("maximum"), "it is nested too deeply"),
        (MemoryError(), "it needs more memory than this process may use"),
        (struct.error("unpack requires"), "it ends too early or is damaged"),
        (AssertionError(), "it is damaged (AssertionError)"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (ValueError("first\nsecond"), "first"),
        (ValueError("\x1b[2J"), "\\x1b[2J"),
    ],
)
def test_every_failure_is_worded(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_a_users_error_passes_unchanged() -> None:
    with pytest.raises(ImageSetError, match=r"^as it is$"), reading("x", ConfigFileError):
        raise ImageSetError("as it is")
