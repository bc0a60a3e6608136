"""A real daemon, while somebody who may write to its database, and has no key, exchanges what a model serves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from gridfs import GridFSBucket
from harness.commands import metric
from harness.daemons import eventually
from harness.torch_models import answered, stored
from harness.trainings import SERVICE, Site
from pymongo.database import Database

from daemon import connect
from daemon.store import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXT = """
[tables.rows]
fields = { x = "str" }
[models.m]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
LISTENED, MODELLED, LIVE = f"{SERVICE}/listener/m", f"{SERVICE}/model/m", f"{SERVICE}/m/2"


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Any:
    """A service whose version 2, which answers 20, went live by hand; another one is stored."""
    with Site(tmp_path / "site", mongo_uri, database, TEXT) as site:
        site.start()
        first = site.live("m")
        for answer in (20.0, 30.0):
            content, digest = stored(answer)
            site.versions("m").add(
                content, digest, signature=first.signature, source=first.source,
                object_signature=first.object_signature, origin="a test", parent=1, trained=True,
            )  # fmt: skip
        site.runs("promote", "m", "2")
        serves(site, "first")
        eventually("the leader has seen the promotion", lambda: pinned(site) == 2)
        yield site


def pinned(site: Site) -> Any:
    """The live version that the leader has seen last."""
    (service,) = json.loads((site.folder / ".predictd" / "trust.json").read_text()).values()
    return service["lives"].get("m", (0, 0))[1]


def serves(site: Site, key: str) -> None:
    """A row that comes now gets its output by version 2."""
    site.rows.insert_one({"_id": key, "x": key})
    found = {"_id": key, "_outputs.m.version": 2}
    row = eventually(f"row {key} has an output of version 2", lambda: site.rows.find_one(found))
    assert row["_outputs"]["m"]["value"] == answered(key, 20.0)


def live(site: Site) -> Any:
    """The number that the database names."""
    return (site.data[names.COMPONENTS].find_one({"_id": MODELLED}) or {})["live"]


def forged(site: Site, number: int) -> None:
    """Another version is said to be live, as a promotion says it, with its generation and its requests."""
    site.data[names.COMPONENTS].update_one({"_id": MODELLED}, {"$set": {"live": number}})
    site.data[names.COMPONENTS].update_one({"_id": LISTENED}, {"$inc": {"generation": 1}})
    site.data[names.REQUESTS].insert_one({"_id": {"service": SERVICE, "listener": "m", "reload": True, "n": number}})
    site.data[names.BELLS].update_one({"_id": SERVICE}, {"$inc": {"count": 1}})


def test_a_forged_promotion_is_undone(site: Site) -> None:
    """Of a version that was live, and of a candidate; the rows have outputs of version 2 all the while."""
    for number in (1, 3):
        forged(site, number)
        eventually("it is changed back", lambda: live(site) == 2)
        serves(site, f"after {number}")
    assert "the live version was changed without the key, and is changed back" in site.log
    eventually("all is well again", lambda: site.daemon and site.daemon.readyz().get("ready"))
    assert site.rows.count_documents({"_outputs.m.version": {"$ne": 2}}) == 0


def test_exchanged_weights_are_refused_and_shown(site: Site) -> None:
    """By the worker that runs, and by the next daemon: the outputs stay, and a person with the key decides."""
    assert site.daemon is not None
    content, digest = stored(99.0)
    file = GridFSBucket(site.data, bucket_name=names.WEIGHTS).upload_from_stream("w", content)
    about = {"weights": file, "sha256": hashlib.sha256(content).hexdigest(), "content_hash": digest}
    site.data[names.VERSIONS].update_one({"_id": LIVE}, {"$set": about})
    forged(site, 2)
    eventually("it is counted", lambda: metric(site.daemon, "predictd_refused") == 1.0)
    serves(site, "while it runs")
    assert "m version 2 is not signed" in site.tells("status")["refused"]["version/m"]
    site.stop()
    daemon = site.start(ready=False)
    daemon.until_reason("m version 2 is not signed with the service's key in this database")
    assert metric(daemon, "predictd_refused") == 1.0
    site.runs("promote", "m", "1")
    eventually("every row is of version 1", lambda: site.rows.count_documents({"_outputs.m.version": {"$ne": 1}}) == 0)
    eventually("nothing is refused", lambda: metric(daemon, "predictd_refused") == 0.0)


def test_who_has_no_key_promotes_nothing(site: Site, tmp_path: Path) -> None:
    """Neither by the command nor by the API; with the key both do."""
    key = site.folder / ".predictd" / "signing.key"
    away = key.rename(tmp_path / "away.key")
    for command in (("promote", "m", "3"), ("rollback", "m")):
        assert "signing key" in site.runs(*command, code=1)
    assert live(site) == 2
    away.rename(key)
    with connect(site.uri, service=SERVICE, database=site.data.name, signing_key_file=key) as db:
        db.promote("m", 3)
        assert db.rollback("m") == 2
