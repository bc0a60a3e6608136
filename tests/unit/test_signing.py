"""The signing key: what it signs, and how it lies on the disk."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from components import DeclarationError, SigningKey, private_files
from daemon.config import bounded_read


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


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_key_is_written_0600_whatever_the_umask(tmp_path, umask):
    """Neither for more eyes than the owner's, nor for none."""
    before = os.umask(umask)
    try:
        SigningKey.fresh().write(tmp_path / "signing.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600


def link(path: Path) -> None:
    SigningKey.fresh().write(path.with_name("real.key"))
    path.symlink_to("real.key")


def hear(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (link, "is a symbolic link: name the file itself"),
        (lambda path: path.symlink_to("nowhere"), "is a symbolic link: name the file itself"),
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (hear, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    ],
    ids=["a link", "a link to nothing", "a FIFO", "a directory", "a socket", "a link to a device"],
)
def test_what_is_no_file_of_its_own_is_no_key(tmp_path, make: Callable[[Path], None], told):
    """And nothing is waited for: the FIFO has no writer."""
    path = tmp_path / "signing.key"
    make(path)
    with pytest.raises(DeclarationError, match=f"{path}: {told}"):
        SigningKey.read(path)


def test_a_device_is_no_key():
    with pytest.raises(DeclarationError, match="is not a regular file"):
        SigningKey.read(Path("/dev/zero"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_key_of_another_user_is_refused(tmp_path):
    """Whoever may run as root is not to run what any user has signed."""
    path = tmp_path / "signing.key"
    SigningKey.fresh().write(path)
    os.chown(path, 12345, -1)
    with pytest.raises(DeclarationError, match=r"belongs to another user \(uid 12345\); run this as that user"):
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


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o2773])
def test_a_key_in_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    """They could put another key of this user in its place; the remedy is named. /tmp protects its files by itself."""
    folder = tmp_path / "folder"
    folder.mkdir()
    SigningKey.fresh().write(folder / "signing.key")
    folder.chmod(mode)
    with pytest.raises(DeclarationError, match=f"exchange the files in it.* chmod go-w {folder}"):
        SigningKey.read(folder / "signing.key")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(DeclarationError, match="exchange the files in it"):
        SigningKey.read(tmp_path / "link" / "signing.key")
    folder.chmod(0o1777)
    SigningKey.read(folder / "signing.key")


def test_a_key_is_not_waited_for_if_its_file_system_is_silent(tmp_path, monkeypatch):
    """A dead server's."""
    path = tmp_path / "signing.key"
    SigningKey.fresh().write(path)
    assert isinstance(bounded_read.signing_key(path), SigningKey)
    released = threading.Event()
    monkeypatch.setattr(bounded_read, "SECONDS", 0.3)
    monkeypatch.setattr(private_files, "read", lambda *_: released.wait(60))
    try:
        with pytest.raises(TimeoutError, match="has not answered"):
            bounded_read.signing_key(path)
    finally:
        released.set()
