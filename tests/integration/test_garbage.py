"""Somebody who may write to the database, and has no key, writes garbage into predictd's own collections: a running
daemon serves on, and so does the next.

What he may do on purpose (docs/security.md) is not looked at here: only that what is no document of ours does not bring
the service down.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, Regex
from harness.daemons import eventually
from harness.models import digest
from harness.processes import LISTENER, SERVICE, TABLE, Service, declarations
from pymongo.database import Database

from daemon.store import names

MODEL = "f"
TEXT = declarations(
    {TABLE: {"x": "str"}},
    {MODEL: {"object": "harness.models:digest"}},
    {LISTENER: {"table": TABLE, "key": "x", "model": MODEL, "worker": "w"}},
)
LISTENED = f"{SERVICE}/listener/{LISTENER}"
OF_SERVICE = {"service": SERVICE}

Garbage = tuple[str, Mapping[str, Any]]
"""A collection, and a document; with an `_id` of ours it goes over what is there."""

BESIDE: dict[str, Garbage] = {
    "a component without kind and name": (names.COMPONENTS, {**OF_SERVICE, "state": "applied", "epoch": 0}),
    "a component whose name is no text": (
        names.COMPONENTS,
        {**OF_SERVICE, "state": "applied", "kind": "model", "name": 5},
    ),
    "a component with a name that no status can hold": (
        names.COMPONENTS,
        {**OF_SERVICE, "state": "applied", "kind": "model", "name": "a\0b"},
    ),
    "a component with an endless name": (
        names.COMPONENTS,
        {**OF_SERVICE, "state": "applied", "kind": "model", "name": "a" * 9_000_000},
    ),
    "a nameless listener of a model": (
        names.COMPONENTS,
        {
            **OF_SERVICE,
            "state": "applied",
            "kind": "listener",
            "model": MODEL,
            "generation": 1,
            "declaration": '"model": "f"',
        },
    ),
    "a job without anything": (
        names.JOBS,
        {**OF_SERVICE, "state": "queued", "epoch": 0, "model": MODEL, "created_at": None},
    ),
    "a job that cannot be counted": (
        names.JOBS,
        {
            "_id": "j",
            **OF_SERVICE,
            "kind": "train",
            "target": MODEL,
            "model": MODEL,
            "state": "queued",
            "epoch": 0,
            "attempts": "x",
        },
    ),
    "an untidy job": (names.JOBS, {**OF_SERVICE, "untidy": True}),
    "a schedule": (names.SCHEDULES, {"_id": f"{SERVICE}/train/f/every", **OF_SERVICE}),
    "a dead letter without a row": (names.DEAD_LETTERS, {"_id": {**OF_SERVICE, "listener": LISTENER}, "table": TABLE}),
    "a dead letter without an input": (
        names.DEAD_LETTERS,
        {"_id": {**OF_SERVICE, "listener": LISTENER, "row": 77}, "table": TABLE, "unwritable": True},
    ),
    "a request for a row that cannot be": (
        names.REQUESTS,
        {"_id": {**OF_SERVICE, "listener": LISTENER, "row": Regex("("), "nonce": ObjectId()}},
    ),
    "a version that is none": (
        names.VERSIONS,
        {"_id": f"{SERVICE}/{MODEL}/2", **OF_SERVICE, "model": MODEL, "number": "zz"},
    ),
}

OVER: dict[str, tuple[str, Any, Mapping[str, Any]]] = {
    "no signature beside the text": (names.COMPONENTS, LISTENED, {"$unset": {"signature": ""}}),
    "a generation that is none": (names.COMPONENTS, LISTENED, {"$set": {"generation": "x"}}),
    "an epoch that is none": (names.COMPONENTS, LISTENED, {"$set": {"epoch": "x", "revision": "1"}}),
    "a removal without its time": (
        names.COMPONENTS,
        f"{SERVICE}/model/other",
        {"$set": {"state": "removed", "service": SERVICE}},
    ),
    "a bell that is no number": (names.BELLS, SERVICE, {"$set": {"count": "x"}}),
    "a position without a token": (names.POSITIONS, f"{SERVICE}/w", {"$unset": {"token": ""}}),
    "a position of no epoch": (names.POSITIONS, f"{SERVICE}/w", {"$set": {"epoch": "x"}}),
    "a position of no time": (names.POSITIONS, f"{SERVICE}/w", {"$set": {"cluster_time": 5}}),
    "a scan of no state": (names.SCANS, f"{SERVICE}/{LISTENER}", {"$unset": {"state": "", "done": ""}}),
    "a scan of no epoch": (names.SCANS, f"{SERVICE}/{LISTENER}", {"$set": {"epoch": "x"}}),
    "a live version without a signature": (names.VERSIONS, f"{SERVICE}/{MODEL}/1", {"$unset": {"signature": ""}}),
    "a lease of no epoch": (names.LEASES, SERVICE, {"$set": {"epoch": "x"}}),
    "a lease of nobody": (names.LEASES, SERVICE, {"$unset": {"owner": "", "host": "", "pid": ""}}),
}


@pytest.fixture
def daemon(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Service]:
    with Service(tmp_path, mongo_uri, database.name, TEXT) as daemon:
        daemon.until_ready()
        yield daemon


def serves(database: Database[dict[str, Any]], key: Any) -> None:
    """A row that comes now gets its output."""
    database[TABLE].insert_one({"_id": key, "x": f"x{key}"})
    row = eventually(
        f"row {key!r} has its output", lambda: database[TABLE].find_one({"_id": key, "_outputs.L": {"$exists": 1}})
    )
    assert row["_outputs"][LISTENER]["value"] == digest(f"x{key}")


def test_garbage_beside_what_is_ours_brings_nobody_down(
    daemon: Service, tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """All of it at once: the daemon that runs, its workers when they are started anew, and the next daemon."""
    serves(database, 1)
    for collection, document in BESIDE.values():
        database[collection].insert_one(dict(document))
    database[names.BELLS].update_one({"_id": SERVICE}, {"$inc": {"count": 1}}, upsert=True)
    serves(database, 2)
    for pid in daemon.worker_pids():
        os.kill(pid, signal.SIGKILL)
    serves(database, 3)
    assert daemon.process.poll() is None, daemon.log.read_text()
    assert daemon.stop() == 0
    with Service(tmp_path, mongo_uri, database.name, TEXT) as again:
        again.until_ready()
        serves(database, 4)
        assert again.stop() == 0


def rounds() -> list[dict[tuple[str, Any], Mapping[str, Any]]]:
    """What goes over what is there, one thing for each document in a round."""
    found: list[dict[tuple[str, Any], Mapping[str, Any]]] = []
    for collection, key, update in OVER.values():
        free = next((each for each in found if (collection, key) not in each), None)
        if free is None:
            found.append(free := {})
        free[collection, key] = update
    return found


@pytest.mark.slow
def test_garbage_in_what_is_ours_is_made_good(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """By the next daemon, which serves rows that came while nobody ran."""
    with Service(tmp_path, mongo_uri, database.name, TEXT) as daemon:
        daemon.until_ready()
        serves(database, 0)
        assert daemon.stop() == 0
    for number, garbage in enumerate(rounds(), 1):
        for (collection, key), update in garbage.items():
            database[collection].update_one({"_id": key}, update, upsert=True)
        with Service(tmp_path, mongo_uri, database.name, TEXT) as daemon:
            serves(database, number)
            daemon.until_ready()
            assert daemon.stop() == 0
