"""A change is made, and its answer is lost: the call that asked for it returns, and it is not made twice.

failCommand has the server do a command and then answer with a write concern error, or close the connection without
doing it: the caller cannot tell one from the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.jobs import MODEL, VALIDATION, training
from harness.keys import KEY, trust
from harness.processes import LISTENER, SERVICE, declared
from pymongo.database import Database

from components.errors import MongoRefuses
from daemon import connect
from daemon.api import Datalayer, waiter
from daemon.health.service_status import ServiceStatus
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Jobs
from daemon.store.service.leases import Holder, Lease
from daemon.store.service.status import StatusBoard

APP = "lost answers"
LOST: dict[str, dict[str, Any]] = {
    "done": {"writeConcernError": {"code": 64, "errmsg": "injected"}},
    "not done": {"closeConnection": True},
}
COMMANDS = ["update", "findAndModify", "insert", "delete", "commitTransaction"]


@dataclass
class Place:
    """A service with a listener, a trainer, a validation and three versions of a model, of which the last is live."""

    db: Datalayer
    data: Database[dict[str, Any]]

    def versions(self) -> Versions:
        return Versions(self.data, SERVICE, MODEL, trust(self.data, SERVICE))

    def live(self) -> int:
        live = self.versions().live()
        assert live is not None
        return live.number

    def generation(self) -> int:
        return Registry(self.data, SERVICE, 1, KEY).listener(LISTENER).generation

    def jobs(self, kind: str) -> int:
        return len(Jobs(self.data, SERVICE).listed(kind=kind))

    def fail(self, what: dict[str, Any], commands: list[str], times: int) -> None:
        data = {"failCommands": commands, "appName": APP, **what}
        self.data.client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


@pytest.fixture
def place(
    database: Database[dict[str, Any]], mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    data = open_database(database.client, database.name)
    whole = training()
    Registry(data, SERVICE, 1, KEY).publish({**whole, "listeners": declared()["listeners"]})
    KEY.write(tmp_path / "signing.key")
    epoch = Lease(database, SERVICE, Holder("i", "here", os.getpid()), ttl=600.0).acquire()
    StatusBoard(database, SERVICE).publish(epoch, ServiceStatus(state="active"))
    monkeypatch.setattr(waiter, "PATIENCE_SECONDS", 20.0)
    head, _, options = mongo_uri.partition("/?")
    with connect(f"{head}/{database.name}?{options}&appName={APP}", signing_key_file=tmp_path / "signing.key") as db:
        found = Place(db, data)
        signature = Registry(data, SERVICE, 1, KEY).read().models[MODEL].signature
        for n in range(3):
            about = {"signature": signature, "source": "", "object_signature": "", "origin": "a test", "trained": True}
            found.versions().add(f"weights {n}".encode(), f"hash {n}", **about)
            assert found.versions().promote(n + 1, reason="better")
        yield found
        data.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def letter(place: Place) -> None:
    """A dead row with its letter."""
    place.data[names.DEAD_LETTERS].insert_one(
        {"_id": {"service": SERVICE, "listener": LISTENER, "row": 5}, "table": "rows", "error": {"type": "E"}}
    )
    place.data["rows"].insert_one({"_id": 5, "_outputs": {LISTENER: {"error": {}}}})


CALLS: dict[str, tuple[Callable[[Place], Any], Callable[[Place], int], int]] = {
    # the call, what it changes, and by how much
    "train": (lambda at: at.db.train(MODEL, wait=False), lambda at: at.jobs("train"), 1),
    "validate": (lambda at: at.db.validate(VALIDATION, wait=False), lambda at: at.jobs("validate"), 1),
    "promote": (lambda at: at.db.promote(MODEL, 1, wait=False), Place.live, -2),
    "rollback": (lambda at: at.db.rollback(MODEL, wait=False), Place.live, -1),
    "resync": (lambda at: at.db.resync(LISTENER, wait=False), Place.generation, 1),
    "pause": (
        lambda at: at.db.pause(LISTENER),
        lambda at: Registry(at.data, SERVICE, 1, KEY).read().listeners[LISTENER].paused,
        1,
    ),
    "retry": (
        lambda at: at.db.retry(LISTENER),
        lambda at: at.data["rows"].count_documents({f"_outputs.{LISTENER}.error": {"$exists": True}}),
        -1,
    ),
    "discard": (
        lambda at: at.db.discard(LISTENER, 5),
        lambda at: at.data[names.DEAD_LETTERS].count_documents({}),
        -1,
    ),
}


@pytest.mark.parametrize(("how", "times"), [("done", 1), ("done", 3), ("not done", 2), ("not done", 4)])
@pytest.mark.parametrize("call", CALLS)
def test_a_change_whose_answer_is_lost_is_made_once(place: Place, call: str, how: str, times: int) -> None:
    """The driver repeats a write once; what fails more often is repeated by the call."""
    letter(place)
    make, counted, by = CALLS[call]
    before = counted(place)
    place.fail(LOST[how], COMMANDS, times)
    make(place)
    assert counted(place) == before + by


@pytest.mark.parametrize("how", LOST)
def test_a_cancelled_job_is_told_to_be_cancelled(place: Place, how: str) -> None:
    job = place.db.train(MODEL, wait=False)["_id"]
    place.fail(LOST[how], COMMANDS, 2)
    assert place.db.cancel(job)
    assert Jobs(place.data, SERVICE).get(job).state == "cancelled"  # type: ignore[union-attr]


def test_resumed_once(place: Place) -> None:
    place.db.pause(LISTENER)
    place.fail(LOST["done"], COMMANDS, 2)
    place.db.resume(LISTENER, wait=False)
    assert not Registry(place.data, SERVICE, 1, KEY).read().listeners[LISTENER].paused


def test_what_mongodb_refuses_for_good_is_told_at_once(place: Place) -> None:
    """To wait would not give the user the right."""
    place.fail({"errorCode": 13}, ["update"], 1)
    with pytest.raises(MongoRefuses, match="lacks a right"):
        place.db.train(MODEL, wait=False)
    assert place.jobs("train") == 0
