"""What somebody without the key writes into the database is refused by a running daemon, before any of it runs, and
`status` says so.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfs import GridFSBucket
from harness.daemons import eventually
from harness.learning import Treacherous
from harness.trainings import SERVICE, Site
from pymongo.database import Database

from components import Listener, ObjectModel
from components.errors import ArtifactRefused
from components.signing_key import SigningKey
from daemon import connect
from daemon.store import names
from daemon.store.registry.components import canonical, signed
from daemon.store.service import notify as bells

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLAIN = """
[tables.rows]
fields = { x = "str", y = "str" }

[models.sure]
type = "object"
object = "harness.models:digest"

[listeners.sure]
table = "rows"
key = "x"
model = "sure"
worker = "sure"
"""
OTHER_KEY = SigningKey.fresh()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that comes into being where code of somebody's has run; and at the end it is not there."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], canary: Path) -> Iterator[Site]:
    """A service with a model that was applied as it should be, by value; its rows hold a command for whoever would run
    them.
    """
    with Site(tmp_path / "site", mongo_uri, database, PLAIN) as site:
        site.start()
        site.rows.insert_one({"_id": 0, "x": f"touch '{canary}'"})
        apply_good(site)
        yield site


def apply_good(site: Site) -> None:
    offset, factor = 1, 2
    with connect(site.uri, service=SERVICE, database=site.data.name) as db:
        db.apply(ObjectModel("good", lambda x: len(x) + offset, postprocess=lambda n: factor * n))
        db.apply(Listener("good", table="rows", key="x", model="good"))


class Forger:
    """Somebody who may write to the database, and has no key."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._components = site.data[names.COMPONENTS]
        self.good = self._components.find_one({"_id": f"{SERVICE}/model/good"}) or {}
        self.body = site.registry.read().models["good"].declaration.dump()
        self.listener = site.registry.read().listeners["good"].declaration.dump()

    def writes(self, kind: str, name: str, body: Any, sign: Callable[..., str] | None = None) -> None:
        text = canonical(body)
        document = {**self.good, "_id": f"{SERVICE}/{kind}/{name}", "kind": kind, "name": name, "declaration": text}
        parts = signed(SERVICE, kind, name, "api", document["revision"], text, document["sizes"])
        document["mac"] = sign(self._site.registry.trust.identity, *parts) if sign else "0" * 128
        self._components.insert_one(document | {"live": None})

    def copies(self, to: str, **changes: Any) -> None:
        """The good manifest, signature and all, under another name."""
        self._components.insert_one({**self.good, "_id": f"{SERVICE}/{changes.get('kind', 'model')}/{to}", **changes})

    def listens(self, model: str) -> None:
        """A listener that would make the daemon run the model on every row."""
        self.writes("listener", model, {**self.listener, "model": model, "worker": model})

    def stores(self, data: bytes) -> str:
        """A blob of his own, under its true hash."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs.upload_from_stream(digest, data)
        return digest

    @property
    def blobs(self) -> GridFSBucket:
        return GridFSBucket(self._site.data, bucket_name=names.ARTIFACTS)

    def replaces(self, digest: str, data: bytes) -> None:
        """Other bytes under the same name."""
        for file in list(self._site.data[f"{names.ARTIFACTS}.files"].find({"filename": digest})):
            self.blobs.delete(file["_id"])
        self.blobs.upload_from_stream(digest, data)

    def rings(self) -> None:
        """Makes the daemon look."""
        bells.ring(self._site.data, SERVICE)


def refused(site: Site) -> dict[str, str]:
    found: dict[str, str] = site.tells("status").get("refused") or {}
    return found


def test_declarations_of_others_are_refused_and_never_run(site: Site, canary: Path) -> None:
    forger, code = Forger(site), {"type": "object", "arguments": {}}
    evil = forger.stores(pickle.dumps(Treacherous(str(canary))))
    slot = {**forger.body["object"], "$artifact": evil}
    forger.writes("model", "system", {**forger.body, **code, "object": "os:system"})
    forger.copies("bare", name="bare", declaration=canonical({**forger.body, **code, "object": "os:system"}), mac=None)

    forger.writes("model", "foreign", {**forger.body, **code, "object": "os:system"}, OTHER_KEY.sign)
    forger.writes("model", "pickled", {**forger.body, "object": slot}, OTHER_KEY.sign)
    forger.copies("copied", name="copied")
    forger.copies("posing")  # its own name, elsewhere
    forger.copies("edited", name="edited", declaration=canonical({**forger.body, "object": "os:system"}))
    forger.writes("trainer", "good", {"model": "good", "objective": "os:system", "when": [{"every": 1}]})
    forger.writes(
        "validation", "peek", {"model": "good", "metrics": {}, "datasets": {}, "when": [{"every": 1}]}, OTHER_KEY.sign
    )
    evils = ["system", "bare", "foreign", "pickled", "copied", "edited"]
    for name in evils:
        forger.listens(name)
    forger.copies("rubbish", kind="listener", name="rubbish", declaration=5)
    forger.copies("nothing", kind="listener", name="nothing", declaration=None)
    forger.rings()

    wanted = {f"{kind}/{name}" for kind in ("model", "listener") for name in evils} | {
        "trainer/good",
        "validation/peek",
    }
    told = eventually("status says what is refused", lambda: wanted <= refused(site).keys() and refused(site))
    assert all("not run" in told[name] for name in wanted)
    assert "signature" in told["model/system"]
    assert "copied" in told["model/copied"]
    assert told["model/good"], "what poses as the good model is told of under that name"
    assert "model/system is refused: it" in site.runs("status")
    job = site.ended(site.asked("train", "good"), "failed")
    assert "signature" in job["error"]["message"]

    site.rows.insert_one({"_id": 1, "x": f"touch '{canary}'"})
    serves(site, 1)
    for process in site.processes("daemon.worker"):  # new processes believe no more than the old ones
        process.kill()
    site.rows.insert_one({"_id": 2, "x": f"touch '{canary}'"})
    serves(site, 2)
    assert site.versions("good").promote(1, reason="again")  # what says nothing is in nobody's way
    site.runs("models")
    site.runs("tables")
    row = site.rows.find_one({"_id": 2})
    assert set(row["_outputs"]) == {"good", "sure"}
    assert not canary.exists()


def test_blobs_that_are_not_what_the_manifest_names_are_not_deserialized(site: Site, canary: Path) -> None:
    """A byte of one flipped, two exchanged, one replaced by another pickle: each time the workers are started anew, to
    load them.
    """
    forger = Forger(site)
    first, second = (forger.body[part]["$artifact"] for part in ("object", "postprocess"))
    whole = {each: bytes(forger.blobs.open_download_stream_by_name(each).read()) for each in (first, second)}
    flipped = bytes([whole[first][0], whole[first][1] ^ 1, *whole[first][2:]])
    damages = {
        "a byte is flipped": {first: flipped},
        "two are exchanged": {first: whole[second], second: whole[first]},
        "one is another": {first: whole[first], second: pickle.dumps(Treacherous(str(canary)))},
    }
    for key, (what, blobs) in enumerate(damages.items(), 10):
        for digest, data in blobs.items():
            forger.replaces(digest, data)
        for process in site.processes("daemon.worker"):
            process.kill()
        site.rows.insert_one({"_id": key, "x": what})
        assert site.daemon is not None
        site.daemon.reload()  # one that waits, because it could not be built, is started as well
        altered = next(digest for digest, data in blobs.items() if data != whole[digest])
        eventually(f"status says so: {what}", lambda d=altered: f"blob {d[:12]} was altered" in reason(site))
        eventually(
            "the other model serves on", lambda k=key: site.rows.find_one({"_id": k, "_outputs.sure": {"$exists": 1}})
        )
        with (
            connect(site.uri, service=SERVICE, database=site.data.name) as db,
            pytest.raises(ArtifactRefused, match="was altered"),
        ):
            db.load("ObjectModel", "good")
    assert not site.rows.count_documents({"_id": {"$gte": 10}, "_outputs.good": {"$exists": 1}})
    assert not canary.exists()

    apply_good(site)  # as the message says
    site.daemon.reload()
    serves(site, 10)
    serves(site, 12)
    site.stop()


def reason(site: Site) -> str:
    """Why the good model's worker does not run, as the status tells it."""
    workers = site.tells("status")["workers"].values()
    return " ".join(str(each.get("reason")) for each in workers)


def serves(site: Site, key: int) -> None:
    """What was applied with the key works on."""
    row = eventually(
        "the good listeners serve",
        lambda: site.rows.find_one({"_id": key, "_outputs.good": {"$exists": 1}, "_outputs.sure": {"$exists": 1}}),
    )
    assert row["_outputs"]["good"]["value"] == 2 * (len(row["x"]) + 1)
