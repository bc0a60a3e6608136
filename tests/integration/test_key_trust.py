"""Which key a program trusts: somebody who may write to the database, and has no key, tries to have it trust his own.

His declaration is well made and signed, with his key; its pickle leaves a file behind, the canary, wherever it is
loaded. A lease stands in for the daemon except where it matters what a daemon does.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import Daemon
from harness.learning import Treacherous
from pymongo import MongoClient
from pymongo.database import Database

from components import ObjectModel, Table
from components.errors import ConfigurationError, DeclarationError, SignatureRefused
from components.serialization import declare
from components.signing_key import SigningKey
from daemon import connect
from daemon.api import Datalayer
from daemon.api.component_loader import ComponentLoader
from daemon.config import keyring_folder
from daemon.embedded.server import attach
from daemon.store import names
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.registry import Registry
from daemon.store.service.keyring import Keyring
from daemon.store.service.leases import Holder, Lease
from daemon.store.service.state_directory import StateDirectory, instance_of

pytestmark = pytest.mark.timeout(180)

SERVICE = "s"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
FILE = """
[service]
name = "s"
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
{security}
"""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that comes into being if the attacker's code has run."""
    return tmp_path / "canary"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the notes of this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = keyring_folder(os.environ)
    assert folder is not None
    return folder


@pytest.fixture
def uri(mongo_uri: str, database: Database[dict[str, Any]]) -> str:
    head, _, options = mongo_uri.partition("/?")
    return f"{head}/{database.name}?{options}"


@dataclass
class Attacker:
    """Somebody who may write to the database and to a folder of his own."""

    database: Database[dict[str, Any]]
    service: str
    folder: Path
    canary: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.key_file = self.folder / "his.key"
        SigningKey.fresh().write(self.key_file)

    def declares(self) -> None:
        """A model whose pickle is his, and everything else a model may have, signed with his key."""
        model = declare(ObjectModel("evil", lambda x: x))
        data = pickle.dumps(Treacherous(str(self.canary)))
        Artifacts(self.database).put([(hashlib.sha256(data).hexdigest(), data)])
        slot = {**model.declaration.object, "$artifact": hashlib.sha256(data).hexdigest()}
        evil = model.declaration.model_copy(update={"object": slot})
        table = declare(Table("rows", fields={"x": "str"}))
        registry = Registry(self.database, self.service, 0, SigningKey.read(self.key_file))
        registry.apply([(table.kind, table.name, table.declaration), ("model", "evil", evil)])

    def leads(self, instance: str) -> None:
        """A lease in the name of that instance, and a status that tells of his key in every place that anybody may
        read.
        """
        epoch = Lease(self.database, self.service, Holder(instance, "here", os.getpid()), ttl=60.0).acquire()
        self.tells(self.key_file, epoch)

    def tells(self, path: Path, epoch: int = 1 << 40) -> None:
        named = {"signing_key": str(path), "signing_key_file": str(path), "key_file": str(path), "state": "active"}
        named |= {"state_dir": str(self.folder), "owner": {"host": "here", "pid": 1, **named}}
        status = {"$set": {**named, "epoch": epoch}, "$currentDate": {"at": True}}
        self.database[names.STATUS].update_one({"_id": self.service}, status, upsert=True)
        self.database["_predictd.leases"].update_many({}, {"$set": {"signing_key": str(path), "key_file": str(path)}})


@pytest.fixture
def attacker(database: Database[dict[str, Any]], tmp_path: Path, canary: Path, home: Path) -> Attacker:
    return Attacker(database, SERVICE, tmp_path / "his", canary)


def in_time(call: Callable[[], Any]) -> Any:
    """What the call returns or raises; it must not hang."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert ended, "it hangs"
    result, error = ended[0]
    if error is not None:
        raise error
    return result


EVERYTHING: dict[str, Callable[[Datalayer], Any]] = {
    "load": lambda db: db.load("Model", "evil"),
    "load by class": lambda db: db.load(ObjectModel, "evil"),
    "show": lambda db: db.show(),
    "show one": lambda db: db.show("Model", "evil"),
    "apply": lambda db: db.apply(Table("more", fields={"x": "str"})),
    "apply a model": lambda db: db.apply(ObjectModel("evil", lambda x: [x])),
    "refresh": lambda db: ComponentLoader(db._at).refresh(ObjectModel("evil", lambda x: x)),
    "remove": lambda db: db.remove("Model", "evil"),
    "catalog": lambda db: db._at.catalog(),
    "versions": lambda db: db.versions("evil"),
}


def refuses_all(db: Datalayer, canary: Path, told: str) -> None:
    """Whatever it is asked for that needs a declaration: each is refused in time, and nothing runs."""
    for what, ask in EVERYTHING.items():
        with pytest.raises(SignatureRefused, match=told):
            pytest.fail(f"{what}: {in_time(lambda ask=ask: ask(db))!r}")
    db["rows"].insert({"x": "rows need no key"})
    assert db["rows"].count() >= 1
    assert db.jobs() == []
    assert not canary.exists()


# ---- by a URI -----------------------------------------------------------------------------------------------------


def test_the_trap_is_armed(uri: str, attacker: Attacker, canary: Path) -> None:
    """Whoever trusts his key runs his code: that is what the other tests are about."""
    attacker.declares()
    attacker.leads(uuid.uuid4().hex)
    with connect(uri, signing_key_file=attacker.key_file) as db, pytest.raises(DeclarationError):
        db.load("Model", "evil")  # what os.system returns is no model, but it has run
    assert canary.exists()


@pytest.mark.parametrize("what", ["his key", "a FIFO", "nothing"])
def test_a_path_that_the_database_tells_is_not_even_looked_at(
    uri: str, attacker: Attacker, canary: Path, what: str
) -> None:
    attacker.declares()
    attacker.leads(uuid.uuid4().hex)
    if what != "his key":
        attacker.key_file.unlink()
        attacker.tells(attacker.key_file)
    if what == "a FIFO":
        os.mkfifo(attacker.key_file)
    with connect(uri) as db:
        refuses_all(db, canary, r"no daemon of this user has noted it.*signing_key_file=")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/key", "a\0b", b"key", 5])
@pytest.mark.parametrize("name", ["signing_key_file", "folder"])
def test_a_path_that_is_none_is_told(name: str, path: Any) -> None:
    with pytest.raises(DeclarationError, match=f"connect: {name}: expected a path, got "):
        connect("embedded", **{name: path})


@pytest.mark.parametrize(
    "instance", ["../../x", "/x", "..", ".", "", "x", "a" * 31, "a" * 33, "A" * 32, "a" * 32 + "\n", "\uff11" * 32]
)
def test_an_instance_that_is_none_leads_nowhere(
    uri: str, attacker: Attacker, canary: Path, home: Path, instance: str
) -> None:
    """Though a note with his path lies wherever such a name could lead."""
    attacker.declares()
    attacker.leads(instance)
    home.mkdir(parents=True, mode=0o700)
    for place in (home, home.parent, home.parent.parent, home.parent.parent.parent):
        for name in ("x", instance.strip("./") or "x"):
            (place / name).write_text(f"{attacker.key_file}\n")
            (place / name).chmod(0o600)
    assert Keyring(home).key_file(instance) is None
    with connect(uri) as db:
        refuses_all(db, canary, r"no daemon of this user has noted it")


def test_a_forged_instance_chooses_among_keys_of_this_user_only(
    uri: str, attacker: Attacker, canary: Path, home: Path, tmp_path: Path
) -> None:
    """The id of another daemon of the same user brings that one's key, which has not signed the attacker's declaration
    either.
    """
    SigningKey.fresh().write(tmp_path / "other.key")
    other = uuid.uuid4().hex
    Keyring(home).note(other, tmp_path / "other.key")
    attacker.declares()
    attacker.leads(other)
    with connect(uri) as db:
        with pytest.raises(SignatureRefused, match="is it another service's"):
            db.load("Model", "evil")
        with pytest.raises(SignatureRefused):
            db.show()
    assert not canary.exists()


def test_a_key_that_is_named_but_unfit_is_refused_in_time(uri: str, attacker: Attacker, tmp_path: Path) -> None:
    """A link, and a FIFO that nobody writes to."""
    attacker.leads(uuid.uuid4().hex)
    (tmp_path / "link").symlink_to(attacker.key_file)
    os.mkfifo(tmp_path / "fifo")
    for name, told in (("link", "symbolic link: name the file itself"), ("fifo", "not a regular file")):
        with connect(uri, signing_key_file=tmp_path / name) as db, pytest.raises(SignatureRefused, match=told):
            in_time(lambda db=db: db.load("Model", "evil"))


# ---- what this user's daemons have noted --------------------------------------------------------------------------


@pytest.fixture
def noted(home: Path, tmp_path: Path) -> Iterator[str]:
    """A daemon whose key is noted; its instance id. What a test has done to it is beyond use at the end."""
    SigningKey.fresh().write(tmp_path / "signing.key")
    instance = uuid.uuid4().hex
    Keyring(home).note(instance, tmp_path / "signing.key")
    assert Keyring(home).key_file(instance) == tmp_path / "signing.key"
    yield instance
    assert Keyring(home).key_file(instance) is None


def moved(path: Path) -> Path:
    return path.rename(path.with_name("moved"))


def test_notes_that_others_may_write_do_not_count(home: Path, noted: str) -> None:
    """Nor is anything noted among them."""
    for mode in (0o770, 0o707, 0o777):
        home.chmod(mode)
        assert Keyring(home).key_file(noted) is None
        with pytest.raises(DeclarationError, match=f"run: chmod 700 {home}"):
            Keyring(home).note(uuid.uuid4().hex, home / noted)
    assert list(home.iterdir()) == [home / noted]


def test_a_folder_that_is_a_link_does_not_count(home: Path, noted: str) -> None:
    home.symlink_to(moved(home))
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        Keyring(home).note(noted, home)


def test_a_note_that_is_a_link_does_not_count(home: Path, noted: str) -> None:
    (home / noted).symlink_to(moved(home / noted))


def test_a_note_that_is_a_fifo_is_not_waited_for(home: Path, noted: str) -> None:
    (home / noted).unlink()
    os.mkfifo(home / noted)
    assert in_time(lambda: Keyring(home).key_file(noted)) is None


def test_a_note_that_others_may_write_does_not_count(home: Path, noted: str) -> None:
    (home / noted).chmod(0o606)


@pytest.mark.parametrize("text", ["", "relative/key\n", "{key}", "{key}\0\n", "/" + "x" * 5000 + "\n", "\n"])
def test_a_note_that_is_no_path_does_not_count(home: Path, noted: str, tmp_path: Path, text: str) -> None:
    (home / noted).write_text(text.format(key=tmp_path / "signing.key"))


def test_a_note_of_a_key_that_is_gone_does_not_count_and_is_forgotten(home: Path, noted: str, tmp_path: Path) -> None:
    """By the next daemon that notes its own."""
    (tmp_path / "signing.key").unlink()
    SigningKey.fresh().write(tmp_path / "new.key")
    other = uuid.uuid4().hex
    Keyring(home).note(other, tmp_path / "new.key")
    assert list(home.iterdir()) == [home / other]


@AS_ROOT
def test_notes_of_another_user_do_not_count(home: Path, noted: str) -> None:
    os.chown(home / noted, 12345, -1)
    assert Keyring(home).key_file(noted) is None
    os.chown(home / noted, 0, -1)
    os.chown(home, 12345, -1)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_notes_are_for_this_user_alone_whatever_the_umask(home: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Keyring(home).note("a" * 32, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / ("a" * 32)).stat().st_mode) == 0o600
    for each in (home, home.parent, home.parent.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_the_place_of_the_notes_is_the_user_s() -> None:
    """A relative XDG_STATE_HOME counts as none, as its specification asks; without a home there is no place."""
    assert keyring_folder({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/predictd/keys")
    assert keyring_folder({"XDG_STATE_HOME": "s", "HOME": "/h"}) == Path("/h/.local/state/predictd/keys")
    assert keyring_folder({"HOME": ""}) is None
    assert Keyring(None).key_file("a" * 32) is None
    Keyring(None).note("a" * 32, Path("/k"))


# ---- daemons ------------------------------------------------------------------------------------------------------

Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon on a folder of its own."""
    daemons: list[Daemon] = []

    def one(uri: str, database: str, security: str = "", **environ: str) -> Daemon:
        folder = tmp_path / "service"
        folder.mkdir()
        (folder / "service.toml").write_text(FILE.format(uri=uri, database=database, security=security))
        daemons.append(Daemon(folder, environ=environ))
        daemons[-1].until_ready()
        return daemons[-1]

    yield one
    for daemon in daemons:
        daemon.__exit__()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the state directory", "where service.toml says"])
def test_a_program_finds_the_key_of_this_user_s_daemon(
    mongo_uri: str, uri: str, database: Database[dict[str, Any]], attacker: Attacker, start: Start, elsewhere: bool
) -> None:
    """By the daemon's note, whatever the status says; one of another user has to be given the key."""
    key_file = attacker.folder.parent / "elsewhere.key"
    SigningKey.fresh().write(key_file)
    daemon = start(mongo_uri, database.name, f'signing_key_file = "{key_file}"' if elsewhere else "")
    status = database[names.STATUS].find_one({"_id": SERVICE}) or {}
    assert "key" not in repr(sorted(status))
    attacker.tells(attacker.key_file)
    with connect(uri) as db:
        db.apply(Table("rows", fields={"x": "str"}))
        db.apply(ObjectModel("mine", len), wait=False)
        assert db.load("Model", "mine").predict("four") == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(attacker.folder / "none"))
        with connect(uri) as db, pytest.raises(SignatureRefused, match="signing_key_file="):
            db.load("Model", "mine")
        with connect(uri, signing_key_file=key_file if elsewhere else daemon.state_dir / "signing.key") as db:
            assert db.load("Model", "mine").predict("four") == 4
    assert daemon.stop() == 0


def test_a_daemon_without_a_place_for_its_note_runs_all_the_same(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, start: Start
) -> None:
    """As under systemd's ProtectHome: its log says that programs have to name the key."""
    (tmp_path / "file").touch()
    daemon = start(mongo_uri, database.name, XDG_STATE_HOME=str(tmp_path / "file" / "below"))
    assert "have to name the signing key themselves" in daemon.log.read_text()
    assert daemon.stop() == 0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the folder", "where service.toml says"])
def test_an_embedded_daemon_is_trusted_by_its_folder(
    mongod: Path, home: Path, tmp_path: Path, canary: Path, start: Start, elsewhere: bool
) -> None:
    """It is another process's, and any local user may write to its database: status, lease and declarations are
    forged.
    """
    key_file = tmp_path / "elsewhere.key"
    SigningKey.fresh().write(key_file)
    daemon = start("embedded", "mine", f'signing_key_file = "{key_file}"' if elsewhere else "")
    folder = daemon.state_dir
    with connect("embedded", folder=folder) as db:
        db.apply(ObjectModel("mine", len), wait=False)
    running = attach(folder)
    assert running is not None
    with MongoClient[dict[str, Any]](running.uri) as client:
        attacker = Attacker(client["mine"], SERVICE, tmp_path / "his", canary)
        attacker.declares()
        attacker.tells(attacker.key_file)
        with connect("embedded", folder=folder) as db:
            assert db.load("Model", "mine").predict("four") == 4
            with pytest.raises(SignatureRefused, match="its signature is not this service's"):
                in_time(lambda: db.load("Model", "evil"))
            assert db.show("Model") == ["mine"]
        if not elsewhere:  # without a note the folder's own counts
            (home / str(instance_of(folder))).unlink()
            with connect("embedded", folder=folder) as db:
                assert db.load("Model", "mine").predict("four") == 4
    assert not canary.exists()
    assert daemon.stop() == 0


# ---- the state directory's own key --------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["to a key", "to nothing"])
def test_the_key_of_a_state_directory_is_never_a_link(tmp_path: Path, there: bool) -> None:
    """Neither read through one nor written through one."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if there:
        SigningKey.fresh().write(tmp_path / "his.key")
    (state / "signing.key").symlink_to(tmp_path / "his.key")
    with StateDirectory(state) as directory, pytest.raises(ConfigurationError, match="is a symbolic link"):
        directory.signing_key()
    assert (tmp_path / "his.key").exists() == there


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_first_key_of_a_state_directory_is_for_its_owner(tmp_path: Path, umask: int) -> None:
    """Though a link waits under the name that it is first written under."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / f".signing.key.{os.getpid()}").symlink_to(tmp_path / "his.key")
    before = os.umask(umask)
    try:
        with StateDirectory(state) as directory:
            key = directory.signing_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE((state / "signing.key").lstat().st_mode) == 0o600
    assert SigningKey.read(state / "signing.key").hex() == key.hex()
    assert not (tmp_path / "his.key").exists()
