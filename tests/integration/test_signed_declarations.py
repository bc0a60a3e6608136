"""What a signature covers, and what a daemon believes: somebody who may write to the database, and has no key, puts
there what the key has signed, elsewhere or earlier.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness.allocations import at_most
from harness.daemons import Daemon, eventually
from pymongo.database import Database

from components import ObjectModel
from components.declarations import KINDS
from components.errors import ArtifactRefused, ConfigurationError, SignatureRefused
from components.signing_key import SigningKey, VerifyKey
from daemon import connect
from daemon.config import uri_variables
from daemon.store import names
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import LARGEST, REFUSED_SHOWN
from daemon.store.registry.registry import Registry
from daemon.store.registry.signed_anew import lead
from daemon.store.registry.trust import Pins, Trust, pinned, trust_of
from daemon.store.rows.scans import Mark, Scans
from daemon.store.service import notify

S = "s"
MODEL = f"{S}/model/m"
FILE = """
[service]
name = "s"
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
signing_key_file = "{key}"
{more}
"""


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.fresh()


class Leader:
    """A daemon's part: it leads, publishes, looks, and keeps what it has seen in its state directory."""

    def __init__(self, data: Database[dict[str, Any]], folder: Path, key: SigningKey, *former: SigningKey) -> None:
        folder.mkdir(exist_ok=True)
        self.data, self.path = data, folder / "trust.json"
        self.pins = Pins(self.path, key, former)
        lead(data, S, self.pins)

    @property
    def registry(self) -> Registry:
        return Registry(self.data, S, 1, self.pins.trust)

    def look(self) -> dict[str, str]:
        """What is refused."""
        known = self.registry.read()
        believed = {f"{each.kind}/{each.name}": each.revision for kind in KINDS for each in known.of(kind).values()}
        self.pins.learn(believed, known.there)
        return dict(known.refused)

    def worker(self) -> dict[str, str]:
        """What a worker that is started now refuses, which gets no more than its assignment says."""
        trust = Trust.decoded(json.loads(json.dumps(self.pins.trust.encoded())))
        return dict(Registry(self.data, S, 1, trust).read().refused)


@pytest.fixture
def other(database: Database[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    data = database.client[f"test_{uuid4().hex[:16]}"]
    yield data
    data.client.drop_database(data.name)


def apply(data: Database[dict[str, Any]], key: SigningKey, path: str = "a:b", **options: Any) -> list[str]:
    """As a program with the key does."""
    return Registry(data, S, 0, trust_of(data, S, key)).apply([("model", "m", {"object": path})], **options)


def stored(data: Database[dict[str, Any]]) -> dict[str, Any]:
    return data[names.COMPONENTS].find_one({"_id": MODEL}) or {}


def put_back(data: Database[dict[str, Any]], document: dict[str, Any]) -> None:
    data[names.COMPONENTS].replace_one({"_id": document["_id"]}, document, upsert=True)


# ---- the database -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_identity", [False, True], ids=["alone", "with the identity of its database"])
def test_a_declaration_of_another_database_is_refused(database, other, tmp_path, key, with_identity):
    """Of the same service's name and key, as of a test and a production that share both."""
    there, here = Leader(other, tmp_path / "there", key), Leader(database, tmp_path / "here", key)
    apply(other, key)
    assert there.look() == {}
    put_back(database, stored(other))
    if with_identity:
        database[names.SERVICES].replace_one({"_id": S}, other[names.SERVICES].find_one({"_id": S}))
    again = Leader(database, tmp_path / "here", key)
    for each in (here, again):
        assert "moved here from another database" in each.look()["model/m"]
        assert "model/m" in each.worker()
    assert database[names.SERVICES].find_one({"_id": S})["identity"] == again.pins.trust.identity
    assert apply(database, key) == ["model/m"]
    assert again.look() == {}


@pytest.mark.parametrize("garbage", [None, 5, "x", "A" * 32, {"a": 1}, "f" * 31 + "\n", "x" * 1_000_000])
def test_an_identity_that_is_none_is_replaced(database, tmp_path, key, garbage):
    database[names.SERVICES].insert_one({"_id": S, "identity": garbage})
    leader = Leader(database, tmp_path / "here", key)
    assert apply(database, key) == ["model/m"]
    database[names.SERVICES].replace_one({"_id": S}, {"identity": garbage})
    assert leader.look() == {}
    assert Leader(database, tmp_path / "here", key).look() == {}
    assert database[names.SERVICES].find_one({"_id": S})["identity"] == leader.pins.trust.identity


def test_a_second_machine_believes_the_identity_that_it_finds(database, tmp_path, key):
    """At its first start; from then on its own state directory counts."""
    Leader(database, tmp_path / "one", key)
    apply(database, key)
    assert Leader(database, tmp_path / "two", key).look() == {}
    database[names.SERVICES].delete_many({})
    assert Leader(database, tmp_path / "two", key).look() == {}


# ---- what was signed before ---------------------------------------------------------------------------------------


def test_an_older_declaration_that_is_put_back_is_refused(database, tmp_path, key):
    """By the daemon, by the next one, by a worker, and by a program beside it."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key, "a:old")
    old = stored(database)
    apply(database, key, "a:new")
    assert leader.look() == {}
    put_back(database, old)
    for each in (leader, Leader(database, tmp_path / "here", key)):
        assert "older than what was applied" in each.look()["model/m"]
        assert "model/m" in each.worker()
    program = Registry(database, S, 0, trust_of(database, S, key, leader.path))
    assert "older than what was applied" in program.read().refused["model/m"]
    assert program.apply([("model", "m", {"object": "a:old"})]) == ["model/m"]
    assert leader.look() == leader.worker() == {}


@pytest.mark.parametrize("how", ["put back", "deleted"])
def test_the_rows_of_a_listener_that_a_worker_passes_over_will_be_scanned(database, tmp_path, key, how):
    """Its model is refused, or its declaration gone: the worker goes on with other listeners, past its rows."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key, "a:old")
    old = stored(database)
    apply(database, key, "a:new")
    program = Registry(database, S, 0, trust_of(database, S, key, leader.path))
    listener = {"table": "rows", "key": "x", "model": "m", "worker": "w"}
    program.apply([("table", "rows", {"fields": {"x": "str"}}), ("listener", "L", listener)])
    assert leader.look() == {}
    scans, mark = Scans(database, S, "L", 1), Mark(1, "scope")
    run = scans.due(mark, "oldest")
    assert run is not None
    assert scans.finish(run, 0)
    worker = Registry(database, S, 1, Trust.decoded(json.loads(json.dumps(leader.pins.trust.encoded()))))
    assert worker.worker("w").keys() == {"L"}
    assert scans.due(mark, "oldest") is None
    if how == "put back":
        put_back(database, old)
    else:
        database[names.COMPONENTS].delete_one({"_id": f"{S}/listener/L"})
    assert worker.worker("w") == {}
    assert scans.due(mark, "oldest") is not None


def test_junk_does_not_hide_what_else_is_refused(database, tmp_path, key):
    """Only so many refusals are kept; those of what was believed before are among them."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key)
    assert leader.look() == {}
    many = 2 * REFUSED_SHOWN
    junk = [{"_id": n, "service": S, "state": "applied", "kind": "index", "name": f"n{n}"} for n in range(many)]
    database[names.COMPONENTS].insert_many(junk)
    database[names.COMPONENTS].update_one({"_id": MODEL}, {"$set": {"revision": 1000}})
    refused = leader.look()
    assert len(refused) == REFUSED_SHOWN
    assert "model/m" in refused


@pytest.mark.parametrize("how", ["marked", "deleted"])
def test_a_removed_declaration_that_is_put_back_is_refused(database, tmp_path, key, how):
    """Until it is applied again."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key)
    old = stored(database)
    assert leader.look() == {}
    if how == "marked":
        Registry(database, S, 0, trust_of(database, S, key)).remove("model", "m")
    else:
        database[names.COMPONENTS].delete_one({"_id": MODEL})
    assert leader.look() == leader.look() == {}
    put_back(database, old)
    assert "was removed" in leader.look()["model/m"]
    assert "was removed" in Leader(database, tmp_path / "here", key).look()["model/m"]
    assert "model/m" in leader.worker()
    assert apply(database, key, force=True) == ["model/m"]  # a program elsewhere does not know
    assert leader.look() == {}


def test_removed_and_applied_again_is_newer(database, tmp_path, key):
    """Though it is the same text, and nobody has looked meanwhile."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key)
    assert leader.look() == {}
    old = stored(database)
    Registry(database, S, 0, trust_of(database, S, key)).remove("model", "m")
    assert leader.look() == {}
    apply(database, key)
    assert stored(database)["revision"] > old["revision"]
    assert leader.look() == {}


def test_an_altered_declaration_does_not_count_as_removed(database, tmp_path, key):
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key)
    assert leader.look() == {}
    good = stored(database)
    put_back(database, {**good, "mac": "00"})
    assert "model/m" in leader.look()
    put_back(database, good)
    assert leader.look() == {}


def test_what_service_toml_declares_comes_back_by_itself(database, tmp_path, key):
    """Whatever number was put there."""
    leader = Leader(database, tmp_path / "here", key)
    for path in ("a:old", "a:new"):
        leader.registry.publish({"models": {"m": {"object": path}}})
        assert leader.look() == {}
        if path == "a:old":
            old = stored(database)
    for back in (old, {**old, "revision": 2**62}, {**old, "revision": -1}, {**old, "revision": "x"}):
        put_back(database, back)
        assert "model/m" in leader.look()
        leader.registry.publish({"models": {"m": {"object": "a:new"}}})
        assert leader.look() == leader.worker() == {}


@pytest.mark.parametrize("content", ["", "x", "{}x", '{"a": 5}', '{"a": {}}', "[" * 100_000])
def test_a_damaged_memory_is_said(tmp_path, key, content):
    """Rather than forgotten."""
    path = tmp_path / "trust.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"trust\.json: is damaged; restore it"):
        Pins(path, key)
    assert pinned(path, "d", S) is None


def test_one_state_directory_may_serve_several_databases(database, other, tmp_path, key):
    """One after the other."""
    one = Leader(database, tmp_path / "here", key)
    two = Leader(other, tmp_path / "here", key)
    assert one.pins.trust.identity != two.pins.trust.identity
    assert Leader(database, tmp_path / "here", key).pins.trust.identity == one.pins.trust.identity


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_two_keys_are_accepted_while_they_are_exchanged(database, tmp_path):
    """What the former has signed is signed anew; then the former is one of others."""
    former, new = SigningKey.fresh(), SigningKey.fresh()
    Leader(database, tmp_path / "here", former)
    apply(database, former)
    before = stored(database)
    assert "model/m" in Leader(database, tmp_path / "elsewhere", new).look()
    both = Leader(database, tmp_path / "here", new, former)
    assert both.look() == both.worker() == {}
    assert {**stored(database), "mac": None} == {**before, "mac": None}
    only = Leader(database, tmp_path / "here", new)
    assert only.look() == {}
    put_back(database, before)
    assert "model/m" in only.look()


def test_a_worker_gets_nothing_that_can_sign(database, tmp_path, key):
    leader = Leader(database, tmp_path / "here", key)
    given = leader.pins.trust.encoded()
    assert key.hex() not in json.dumps(given)
    assert given["keys"] == [key.public.hex()]
    assert not hasattr(VerifyKey, "sign")
    trust = Trust.decoded(given)
    with pytest.raises(AssertionError, match="verifies only"):
        trust.sign("x")
    assert trust.verifies(leader.pins.trust.sign("x"), "x")


def test_the_variables_of_the_uri_are_known(tmp_path):
    """What a worker's environment must not hold."""
    file = tmp_path / "service.toml"
    text = '[mongo]\nuri = "mongodb://${USER}:${PASS}@h/?x=$${NOT}"\ndatabase = "${D}"\n[log]\nlevel = "${LEVEL}"\n'
    file.write_text(text)
    environ = {"USER": "u", "PASS": "p", "D": "d", "LEVEL": "info"}
    assert uri_variables(file, environ) == {"USER", "PASS", "PREDICTD_MONGO__URI"}


def test_a_variable_that_an_object_is_built_with_stays(tmp_path):
    """Though the URI names it as well."""
    file = tmp_path / "service.toml"
    file.write_text('[mongo]\nuri = "${BOTH}${URI}"\n[models.m.arguments]\ntoken = "${BOTH}"\n')
    assert uri_variables(file, {"BOTH": "b", "URI": "u"}) == {"URI", "PREDICTD_MONGO__URI"}


# ---- an older release ---------------------------------------------------------------------------------------------


def as_before(data: Database[dict[str, Any]], key: SigningKey) -> None:
    """Turns the stored declaration into one of a release that signed by HMAC."""
    found = stored(data)
    parts = ("declaration", S, "model", "m", found["source"], str(found["revision"]), found["declaration"])
    framed = b"".join(len(part).to_bytes(8, "big") + part.encode() for part in parts)
    mac = hmac.digest(bytes.fromhex(key.hex()), framed, hashlib.sha256).hex()
    data[names.COMPONENTS].update_one({"_id": MODEL}, {"$set": {"mac": mac}, "$unset": {"sizes": ""}})
    data[names.SERVICES].drop()


def test_declarations_of_an_older_release_are_signed_anew_once(database, other, tmp_path, key):
    """At the first start on that database; later, and elsewhere, they are refused."""
    Leader(database, tmp_path / "before", key)
    apply(database, key)
    as_before(database, key)
    old = stored(database)
    leader = Leader(database, tmp_path / "here", key)
    assert leader.look() == leader.worker() == {}
    assert stored(database)["revision"] == old["revision"]
    put_back(database, old)
    assert "model/m" in leader.look()
    assert "model/m" in Leader(database, tmp_path / "here", key).look()
    assert "model/m" in Leader(database, tmp_path / "elsewhere", key).look()
    Leader(other, tmp_path / "other", key)
    put_back(other, old)
    assert "model/m" in Leader(other, tmp_path / "other", key).look()


def killed(*_: object) -> str:
    raise KeyboardInterrupt


def test_a_takeover_that_is_killed_is_done_again(database, tmp_path, key, monkeypatch):
    """Nothing of it is seen before all of it is."""
    Leader(database, tmp_path / "before", key)
    apply(database, key)
    as_before(database, key)
    old = stored(database)
    with monkeypatch.context() as patch:
        patch.setattr(Trust, "sign", killed)
        with pytest.raises(KeyboardInterrupt):
            Leader(database, tmp_path / "here", key)
    assert stored(database) == old
    assert database[names.SERVICES].find_one() is None
    assert Leader(database, tmp_path / "here", key).look() == {}


def test_an_hmac_of_another_key_is_not_taken_over(database, tmp_path, key):
    Leader(database, tmp_path / "before", key)
    apply(database, key)
    as_before(database, SigningKey.fresh())
    assert "model/m" in Leader(database, tmp_path / "here", key).look()


def test_a_program_waits_for_a_daemon_of_this_release(database, tmp_path, key):
    """If there are declarations, which it cannot believe; on an empty database it need not."""
    assert apply(database, key) == ["model/m"]
    assert Leader(database, tmp_path / "here", key).look() == {}
    as_before(database, key)
    with pytest.raises(SignatureRefused, match="of an older release"):
        apply(database, key)


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [15_500_000, LARGEST - 1000])
def test_unsigned_declarations_are_not_held(database, tmp_path, key, size):
    """Neither the very large, which are not read, nor many that are."""
    leader = Leader(database, tmp_path / "here", key)
    apply(database, key)
    good = stored(database)
    for n in range(15):
        name = f"n{n}"
        large = {**good, "_id": f"{S}/model/{name}", "name": name, "declaration": "x" * size}
        database[names.COMPONENTS].insert_one(large)
    with at_most(50):
        refused = leader.look()
    assert set(refused) == {f"model/n{n}" for n in range(15)}
    assert set(leader.registry.read().models) == {"m"}


def blob_of(data: Database[dict[str, Any]], digest: str, parts: int, size: int = 15_000_000) -> None:
    """A blob that is small on the disk."""
    file = (
        data[f"{names.ARTIFACTS}.files"].insert_one({"filename": digest, "uploadDate": None, "length": 1}).inserted_id
    )
    for n in range(parts):
        data[f"{names.ARTIFACTS}.chunks"].insert_one({"files_id": file, "n": n, "data": bytes(size)})


@pytest.mark.parametrize("size", [1000, None], ids=["of signed size", "of an older release"])
def test_a_blob_that_unpacks_to_more_is_not_held(database, size):
    blob_of(database, "ab" * 32, 12)
    with at_most(70), pytest.raises(ArtifactRefused, match="was altered in the database"):
        Artifacts(database).blob("ab" * 32, size)


@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [{"n": 0}],
        [{"n": 0, "data": 5}],
        [{"n": "x", "data": b"hell"}, {"n": 0, "data": b"o"}],
        [{"n": 0, "data": b"hell"}],
        [{"n": 0, "data": b"hello!"}],
        [{"n": 0, "data": b"jello"}],
    ],
)
def test_odd_chunks_are_no_blob(database, chunks, size):
    digest = hashlib.sha256(b"hello").hexdigest()
    artifacts = Artifacts(database)
    artifacts.put([(digest, b"hello")])
    assert artifacts.blob(digest, size) == b"hello"
    file = database[f"{names.ARTIFACTS}.files"].find_one_and_update(
        {"filename": digest}, {"$set": {"length": "x", "chunkSize": 0}}
    )
    assert artifacts.blob(digest, size) == b"hello"  # what the document says of it is not asked
    database[f"{names.ARTIFACTS}.chunks"].delete_many({})
    for chunk in chunks:
        database[f"{names.ARTIFACTS}.chunks"].insert_one({"files_id": file["_id"], **chunk})
    with pytest.raises(ArtifactRefused, match="apply the component again"):
        artifacts.blob(digest, size)
    artifacts.put([(digest, b"hello")])
    assert artifacts.blob(digest, size) == b"hello"


# ---- daemons and programs -----------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_daemon_refuses_what_is_moved_and_what_is_put_back(mongo_uri, database, other, tmp_path):
    """And says so in its status; the sizes of what a program applies are signed."""
    SigningKey.fresh().write(tmp_path / "key")
    daemons = []
    try:
        for data in (database, other):
            folder = tmp_path / data.name
            folder.mkdir()
            text = FILE.format(uri=mongo_uri, database=data.name, key=tmp_path / "key", more="")
            (folder / "service.toml").write_text(text)
            daemons.append(Daemon(folder))
        for daemon in daemons:
            daemon.until_ready()

        def refused(data: Database[dict[str, Any]]) -> dict[str, str]:
            return (data[names.STATUS].find_one({"_id": S}) or {}).get("refused") or {}

        uri = mongo_uri.replace("/?", f"/{other.name}?")
        with connect(uri) as db:
            db.apply(ObjectModel("m", lambda x: [x]), wait=False)
            old = stored(other)
            assert sum(json.loads(old["sizes"]).values()) > 10
            db.apply(ObjectModel("m", lambda x: x), wait=False)
            eventually("the daemon has looked", lambda: "model/m" in (daemons[1].state_dir / "trust.json").read_text())
            seen = stored(other)["revision"]
            eventually("at this", lambda: str(seen) in (daemons[1].state_dir / "trust.json").read_text())
            put_back(database, stored(other))
            put_back(other, old)
            for data in (database, other):  # else it looks every 30 s
                notify.ring(data, S)
            with pytest.raises(SignatureRefused, match="older than what was applied"):
                db.load("Model", "m")
            for data, told in ((database, "moved here from another database"), (other, "older than what was applied")):
                eventually(told, lambda data=data, told=told: told in refused(data).get("model/m", ""))
            db.apply(ObjectModel("m", len), wait=False)
            eventually("it is mended", lambda: not refused(other))
            assert db.load("Model", "m").predict("four") == 4
        for daemon in daemons:
            assert daemon.stop() == 0
    finally:
        for daemon in daemons:
            daemon.__exit__()
