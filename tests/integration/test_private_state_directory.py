"""Who may write the state directory decides what the daemon runs and signs: others cannot, or it is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from bson.timestamp import Timestamp
from harness.daemons import Daemon
from harness.silent_mount import silent_mount

from components import private_files
from components.errors import ConfigurationError, DeclarationError, MongoUnavailable, PredictdError
from components.signing_key import SigningKey
from components.torch.checkpoints import Checkpoints
from daemon.cli import command
from daemon.config import bounded_read
from daemon.embedded import server
from daemon.embedded.server import ensure
from daemon.handlers.predict.suspects import Suspects
from daemon.job import pins
from daemon.store.service import keyring, state_directory
from daemon.store.service.keyring import Keyring
from daemon.store.service.state_directory import StateDirectory, make_private

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
FILE = """
[service]
name = "s"
[mongo]
uri = "{uri}"
database = "d"
[http]
listen = "127.0.0.1:0"
"""


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def opened(folder: Path) -> dict[str, str]:
    """What others than its owner have rights to, in a folder and below."""
    there = {path: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*")) if not path.is_symlink()}
    return {str(path.relative_to(folder)): f"{mode:04o}" for path, mode in there.items() if mode & 0o077}


def used(folder: Path) -> None:
    with StateDirectory(folder) as directory:
        directory.signing_key()
        directory.instance()
        directory.announce("127.0.0.1:1")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o757, 0o1777, 0o722, 0o702])
def test_a_directory_that_others_can_change_is_refused(tmp_path, mode):
    """With the command that mends it; after that command it is used."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"service.state_dir.*mode {mode:04o}.*run: chmod 700 {state}"):
        used(state)
    with pytest.raises(DeclarationError, match="run: chmod 700"):
        make_private(state)
    with pytest.raises(MongoUnavailable, match="run: chmod 700"):
        ensure(state)
    assert list(state.iterdir()) == []
    state.chmod(0o700)
    used(state)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o701])
def test_a_directory_that_others_can_only_read_is_closed(tmp_path, mode):
    """As systemd makes it without StateDirectoryMode, with files of an older release in it."""
    state = tmp_path / "state"
    (state / "checkpoints" / "a").mkdir(parents=True)
    (state / "checkpoints" / "a" / "pins.bson").touch()
    (state / "checkpoints").chmod(0o777)
    (state / "checkpoints" / "a" / "pins.bson").chmod(0o666)
    (state / "data").symlink_to(tmp_path)
    tmp_path.chmod(0o755)
    state.chmod(mode)
    used(state)
    assert opened(state) == {}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755  # no link is followed


def test_a_link_to_the_directory_is_followed(tmp_path):
    """As /var/lib/predictd is one, under DynamicUser."""
    (tmp_path / "private").mkdir(mode=0o755)
    (tmp_path / "state").symlink_to("private")
    used(tmp_path / "state")
    assert opened(tmp_path / "private") == {}


@AS_ROOT
@pytest.mark.parametrize("place", ["link", "link/state"])
def test_a_link_of_another_user_is_not_followed(tmp_path, place):
    """It could lead to any folder of this user, which would be closed and written to."""
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.lchown(tmp_path / "link", 4343, -1)
    with pytest.raises(ConfigurationError, match=r"link: is a link of another user \(uid 4343\)"):
        used(tmp_path / place)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755
    assert not list((tmp_path / "mine").iterdir())


def test_a_key_that_others_could_read_is_not_closed_but_refused(tmp_path):
    """They may have read it."""
    used(tmp_path / "state")
    (tmp_path / "state" / "signing.key").chmod(0o644)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"signing\.key: others than its owner can read"):
            used(tmp_path / "state")


@AS_ROOT
def test_a_directory_of_another_user_is_refused(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 12345, -1)
    with pytest.raises(ConfigurationError, match=r"belongs to another user \(uid 12345\); run this as that user"):
        used(state)
    assert list(state.iterdir()) == []


@AS_ROOT
@pytest.mark.parametrize("name", ["signing.key", "mongod/data", "checkpoints", "instance", "lock", "anything"])
def test_what_another_user_has_put_there_is_refused(tmp_path, name):
    """Before anything is read, made or signed, though the directory is closed by now."""
    state = tmp_path / "state"
    path = state / name
    path.parent.mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    if name == "signing.key":
        SigningKey.fresh().write(path)
    else:
        path.touch()
    os.chown(path, 12345, -1)
    before = sorted(state.rglob("*"))
    with pytest.raises(ConfigurationError, match=rf"{path}: belongs to another user.*chown -h 0 {path}"):
        used(state)
    assert sorted(state.rglob("*")) == before


@pytest.mark.usefixtures("open_umask")
def test_what_is_made_is_for_this_user_alone(tmp_path):
    """Whatever the umask: the directory with its parents, keys, checkpoints, pins, suspects."""
    state = tmp_path / "above" / "state"
    used(state)
    Checkpoints(state / "checkpoints" / "a").save({"step": 1})
    pinned = pins.Pins("d", 1, [1], None, {}, Timestamp(1, 1))
    pins.save(state / "checkpoints" / "a", pinned)
    Suspects(state / "rows_at_work", "l", "", 10)
    assert pins.load(state / "checkpoints" / "a", "d") == pinned
    assert opened(tmp_path / "above") == {}


@pytest.mark.usefixtures("open_umask")
def test_what_a_daemon_and_its_mongodb_make_is_for_this_user_alone(tmp_path, mongod):
    """Whatever the umask: locks, logs, data, notes."""
    (tmp_path / "service.toml").write_text(FILE.format(uri="embedded"))
    with Daemon(tmp_path) as daemon:
        daemon.until_ready()
        assert opened(daemon.state_dir) == {}
        assert (daemon.state_dir / "mongod" / "mongod.log").exists()
        assert daemon.stop() == 0
    assert opened(tmp_path / ".predictd") == {}


# ---- key files ----------------------------------------------------------------------------------------------------


@AS_ROOT
@pytest.mark.parametrize("folder", [0o500, 0o550, 0o700, 0o750])
def test_a_credential_of_systemd_is_a_key(tmp_path, folder):
    """Root's, 0440, in a folder that is closed to others: LoadCredential."""
    (tmp_path / "credentials").mkdir()
    key, path = SigningKey.fresh(), tmp_path / "credentials" / "signing"
    key.write(path)
    path.chmod(0o440)
    path.parent.chmod(folder)
    assert SigningKey.read(path).hex() == key.hex()


@AS_ROOT
@pytest.mark.parametrize(
    ("folder", "mode", "owner"),
    [(0o755, 0o440, 0), (0o770, 0o440, 0), (0o551, 0o440, 0), (0o700, 0o444, 0), (0o700, 0o460, 0), (0o700, 0o640, 0)],
)
def test_what_others_may_read_is_no_credential(tmp_path, folder, mode, owner):
    (tmp_path / "credentials").mkdir()
    path = tmp_path / "credentials" / "signing"
    SigningKey.fresh().write(path)
    path.chmod(mode)
    path.parent.chmod(folder)
    remedy = f"chmod go-w {path.parent}" if folder & 0o022 else f"chmod 600 {path}"
    with pytest.raises(DeclarationError, match=remedy):
        SigningKey.read(path)


@AS_ROOT
def test_a_credential_in_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "credentials").mkdir(mode=0o700)
    path = tmp_path / "credentials" / "signing"
    SigningKey.fresh().write(path)
    path.chmod(0o440)
    os.chown(path.parent, 12345, -1)
    with pytest.raises(DeclarationError, match=f"chmod 600 {path}"):
        SigningKey.read(path)


def test_a_draft_that_is_a_link_is_not_written_through(tmp_path):
    """A file is replaced, whoever has guessed the name of its draft."""
    (tmp_path / f".file.{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    private_files.write(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("below", [".", "mongod", "checkpoints/one"])
def test_a_directory_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, below):
    """All of it, or a folder in it, is on the file system of a server that is gone: a daemon, an embedded MongoDB and
    the commands say so.
    """
    for module in (state_directory, server, bounded_read):
        monkeypatch.setattr(module, "SECONDS", 0.5)
    state = tmp_path / ".predictd"
    (state / below).mkdir(parents=True)
    state.chmod(0o700)
    (tmp_path / "service.toml").write_text(FILE.format(uri="embedded"))
    silence = "its file system has not answered"
    with silent_mount(state / below):
        with pytest.raises(ConfigurationError, match=f"{state} cannot be used .{silence}"):
            used(state)
        with pytest.raises(MongoUnavailable, match=f"{state}: {silence}"):
            ensure(state)
        if below != "checkpoints/one":  # no command reads that
            with pytest.raises(PredictdError, match=f"service.state_dir: {state} cannot be read: {silence}"):
                command.located(tmp_path / "service.toml")
    used(state)


def test_a_key_that_is_noted_and_does_not_answer_hinders_no_other_daemon(tmp_path, monkeypatch):
    """The notes of this user name the keys of all of their daemons."""
    monkeypatch.setattr(keyring, "SECONDS", 0.5)
    gone, here, notes = tmp_path / "gone", tmp_path / "here.key", Keyring(tmp_path / "keys")
    gone.mkdir()
    here.touch()
    notes.note("a" * 32, gone / "signing.key")
    with silent_mount(gone):
        notes.note("b" * 32, here)
        assert notes.key_file("b" * 32) == here
        assert notes.key_file("a" * 32) == gone / "signing.key"
