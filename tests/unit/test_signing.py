"""The signing key: what it signs, and how it lies on the disk."""

from __future__ import annotations

import copy
import pickle
import stat

import pytest

from components import DeclarationError, SigningKey


def test_a_signature_holds_for_these_texts_and_this_key_only():
    """Neither for others, nor for the same run together otherwise, nor under another key."""
    key = SigningKey.fresh()
    mac = key.sign("mnist", "model", "lenet", "3")
    assert key.verify(mac, "mnist", "model", "lenet", "3")
    assert not key.verify(mac, "mnist", "model", "lenet", "4")
    assert not key.verify(mac, "mnist", "model", "lenet3", "")
    assert not key.verify(mac, "mnistmodel", "lenet", "3")
    assert not SigningKey.fresh().verify(mac, "mnist", "model", "lenet", "3")
    assert not key.verify(mac[:-1] + ("0" if mac[-1] != "0" else "1"), "mnist", "model", "lenet", "3")
    for nonsense in ("", "é", None):
        assert not key.verify(nonsense, "mnist", "model", "lenet", "3")


def test_a_key_is_written_for_its_owner_only_and_read_back(tmp_path):
    """0600, and never over another key."""
    path = tmp_path / "signing.key"
    key = SigningKey.fresh()
    key.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.read(path).sign("x") == key.sign("x")
    with pytest.raises(FileExistsError):
        SigningKey.fresh().write(path)
    with pytest.raises(FileNotFoundError):
        SigningKey.read(tmp_path / "other.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    """With the command that mends it."""
    path = tmp_path / "signing.key"
    SigningKey.fresh().write(path)
    path.chmod(mode)
    with pytest.raises(DeclarationError, match=f"chmod 600 {path}"):
        SigningKey.read(path)


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33, "é" * 64])
def test_a_file_that_holds_no_key_is_refused_without_its_content(tmp_path, content):
    """It may be another secret."""
    path = tmp_path / "signing.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(DeclarationError, match="holds no signing key") as caught:
        SigningKey.read(path)
    assert not content or content not in str(caught.value).replace("hexadecimal digits", "").replace(str(path), "")


def test_a_key_shows_itself_nowhere():
    """Neither in a log line nor in a pickle."""
    key = SigningKey.fresh()
    assert key.hex() not in f"{key} {key!r} {[key]}"
    assert not hasattr(key, "__dict__")
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.deepcopy(key)
