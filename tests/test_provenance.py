"""The user's key: made once, private, and nothing but that user's own records pass with it."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.run import provenance
from edgeconvnext.run.provenance import code_of, is_code_of, key_file, user_key


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/edgeconvnext"


def test_the_key_is_made_once_and_only_its_owner_can_read_it(state: Path) -> None:
    key = user_key()
    assert key is not None
    assert len(key) == 32
    assert user_key() == key == (state / "key").read_bytes()
    assert stat.S_IMODE((state / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert [file.name for file in state.iterdir()] == ["key"], "no temporary file stays"


def test_two_users_have_two_keys(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = user_key()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert user_key() != first


def test_of_two_processes_that_make_a_key_both_read_the_same(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = provenance._create

    def late(path: Path) -> None:
        create(path)
        create(path)

    monkeypatch.setattr(provenance, "_create", late)
    assert user_key() == (state / "key").read_bytes()
    assert [file.name for file in state.iterdir()] == ["key"]


def test_without_the_variable_the_key_lies_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert key_file() == tmp_path / ".local/state/edgeconvnext/key"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert key_file() == tmp_path / ".local/state/edgeconvnext/key"


def test_without_a_home_there_is_no_key_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert key_file() is None
    assert user_key() is None


def test_a_home_that_takes_no_file_gives_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert user_key() is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_or_write_is_refused(state: Path, mode: int) -> None:
    user_key()
    (state / "key").chmod(mode)
    with pytest.raises(RunDirectoryError, match=rf"key says which runs.*mode {mode:04o}.*Remove it"):
        user_key()


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_key_of_somebody_else_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_key()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(RunDirectoryError, match="others can read or own it"):
        user_key()


def test_a_link_a_folder_and_a_short_file_are_no_keys(state: Path, tmp_path: Path) -> None:
    key = user_key()
    assert key is not None
    file = state / "key"
    (tmp_path / "elsewhere").write_bytes(key)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="is a link"):
        user_key()
    file.unlink()
    file.write_bytes(key[:31])
    file.chmod(0o600)
    with pytest.raises(RunDirectoryError, match="not a key"):
        user_key()
    file.unlink()
    file.mkdir()
    with pytest.raises(RunDirectoryError, match="not a key"):
        user_key()


def test_a_file_system_without_permissions_keeps_no_key(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_is_private", lambda status: False)
    assert user_key() is None
    assert not (state / "key").exists()


def test_the_code_is_hmac_sha256_over_purpose_and_content() -> None:
    expected = hmac.new(b"k" * 32, b"edgeconvnext stage record 1\0content", hashlib.sha256).hexdigest()
    assert code_of(b"content", b"k" * 32) == expected
    assert is_code_of(expected, b"content", b"k" * 32)
    assert not is_code_of(expected, b"contents", b"k" * 32)
    assert not is_code_of(expected, b"content", b"l" * 32)
    assert not is_code_of(expected[:-1] + "g", b"content", b"k" * 32)
    assert not is_code_of("\u00e9", b"content", b"k" * 32), "a code that is not ASCII is a wrong code, not an error"
    assert not is_code_of(None, b"content", b"k" * 32)
    assert not is_code_of(expected, b"content", None)


@pytest.mark.parametrize("code", ["", "\ud800", "\udcff", "é", "0" * 64])
def test_text_that_is_no_code_is_another_code(code: str) -> None:
    assert not is_code_of(code, b"content", b"k" * 32)
