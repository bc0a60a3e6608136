"""A database that the release at commit 01392bf wrote is opened, served and trained on. tests/fixtures says how it was
made.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import bson
import pytest
from harness import commands
from harness.daemons import Daemon, eventually
from pymongo.database import Database

from components.artifacts import fits
from components.signing_key import SigningKey
from daemon import connect
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.service.jobs import Jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STORED = Path(__file__).parents[1] / "fixtures" / "database_01392bf"
LISTENERS = ("line", "sent", "total")
KEPT = ("_id", "declaration", "revision", "signature", "generation", "applied_at", "live", "state")


class Stored:
    """The stored database, restored, with its service.toml, its key and its checkpoints in a folder."""

    def __init__(self, folder: Path, uri: str, database: Database[dict[str, Any]]) -> None:
        shutil.copytree(STORED, folder, ignore=shutil.ignore_patterns("*.bson", "make.py", "checkpoints"))
        shutil.copytree(STORED / "checkpoints", folder / ".predictd" / "checkpoints")
        (folder / "signing.key").chmod(0o600)
        self.folder, self.uri, self.data = folder, uri, open_database(database.client, database.name)
        for file in STORED.glob("*.bson"):
            database[file.stem].insert_many(bson.decode_all(file.read_bytes()))
        self.jobs = Jobs(self.data, "s")
        self.registry = Registry(self.data, "s", 0, SigningKey.read(folder / "signing.key"))
        [self.interrupted] = [job.id for job in self.jobs.listed(0) if job.state == "running"]

    def start(self) -> Daemon:
        environ = {"STORED_URI": self.uri, "STORED_DATABASE": self.data.name}
        return commands.start(self.folder, environ=environ)

    def components(self) -> list[dict[str, Any]]:
        return [{key: each.get(key) for key in KEPT} for each in self.data[names.COMPONENTS].find(sort=[("_id", 1)])]

    def versions(self) -> list[Any]:
        return [(each["model"], each["number"]) for each in self.data[names.VERSIONS].find(sort=[("_id", 1)])]

    def outputs(self) -> list[dict[str, Any]]:
        """What each listener wrote into each row; `asof` alone may move."""
        return [
            {name: {key: value for key, value in output.items() if key != "asof"} for name, output in found.items()}
            for found in (row.get("_outputs", {}) for row in self.data["points"].find(sort=[("_id", 1)]))
        ]

    def settled(self) -> bool:
        """Whether each listener has judged all rows in a scan of this daemon's."""
        scans = {scan["_id"].partition("/")[2]: scan for scan in self.data[names.SCANS].find()}
        return all(scans[name]["state"] == "done" and scans[name]["epoch"] > 2 for name in LISTENERS)


@pytest.fixture
def stored(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Stored:
    found = Stored(tmp_path / "site", mongo_uri, database)
    sent = json.loads(database[names.COMPONENTS].find_one({"_id": "s/model/sent"})["declaration"])
    if not fits(sent["object"]):
        reason = f"the stored artifact was made with another Python or torch: {sent['object']}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return found


def test_a_stored_database_is_served_as_it_is(stored):
    """No declaration, version or output changes, and nothing is predicted anew; a new row is.

    The signatures, which were HMACs, are replaced by the first daemon that leads.
    """
    macs = {each["_id"]: each["mac"] for each in stored.data[names.COMPONENTS].find()}
    stored.data[names.JOBS].update_one({"_id": stored.interrupted}, {"$set": {"state": "cancelled"}})
    before = stored.components(), stored.versions(), stored.outputs()
    assert len(before[0]) == 11
    with stored.start() as daemon:
        daemon.until_ready()
        eventually("all listeners have scanned", stored.settled)
        assert stored.registry.read().refused == {}
        assert all(each["mac"] != macs[each["_id"]] for each in stored.data[names.COMPONENTS].find())
        assert (stored.components(), stored.versions(), stored.outputs()) == before
        for name in LISTENERS:
            assert not commands.metric(daemon, f'predictd_rows_total{{listener="{name}",result="predicted"}}')
        row = stored.data["points"].find_one({}, {"_id": 0, "_outputs": 0})
        stored.data["points"].insert_one({**row, "_id": "new"})

        def values(**row: Any) -> dict[str, Any]:
            found = stored.data["points"].find_one(row)["_outputs"]
            return {name: output["value"] for name, output in found.items()}

        eventually("the new row is predicted", lambda: "_outputs" in stored.data["points"].find_one({"_id": "new"}))
        eventually("by all", lambda: values(_id="new") == values(_id={"$ne": "new"}, x=row["x"]))
        assert daemon.stop() == 0


def test_what_is_loaded_from_a_stored_database_and_applied_again_is_no_change(stored):
    """Its declarations, artifacts among them, come back as components that declare the same."""
    stored.data[names.JOBS].update_one({"_id": stored.interrupted}, {"$set": {"state": "cancelled"}})
    before = stored.components(), stored.versions()
    with stored.start() as daemon:
        daemon.until_ready()
        key = stored.folder / "signing.key"
        with connect(stored.uri, service="s", database=stored.data.name, signing_key_file=key) as db:
            assert db.load("TorchTrainer", "sent_trainer").max_iterations == 20
            for type_, name in (("Listener", "sent"), ("Listener", "total"), ("Model", "total"), ("Model", "sent")):
                db.apply(db.load(type_, name))
        assert (stored.components(), stored.versions()) == before
        assert daemon.stop() == 0


def test_an_interrupted_training_of_a_stored_database_goes_on_at_its_checkpoint(stored):
    """The job that ran when that release was killed ends in a version, which is served."""
    with stored.start() as daemon:
        daemon.until_ready()

        def ended() -> Any:
            job = stored.jobs.get(stored.interrupted)
            return job.state in ("done", "failed") and job

        job = eventually("the training ends", ended, 120)
        assert job.state == "done", job
        assert any("goes on after step" in line for line in job.log), job.log
        number = job.result["version"]
        eventually("it is served", lambda: {row["line"]["version"] for row in stored.outputs()} == {number})
        assert daemon.stop() == 0
