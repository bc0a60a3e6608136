"""Garbage at each place of each of predictd's own documents: no command and no process ends with a traceback.

Who may write to the database writes what they like. What is ours to make good is made good; anything else is passed
over, or said in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.keys import KEY
from harness.own_documents import EPOCH, HOLDER, MODEL, ODD, Stocked
from harness.processes import LISTENER, SERVICE, declared
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from daemon.cli import screens
from daemon.store import names
from daemon.store.documents import change_one, decoded
from daemon.store.registry.registry import Registry
from daemon.store.rows.scans import Mark, Scans
from daemon.store.service.leases import Lease
from daemon.store.service.status import StatusBoard

COLLECTIONS = sorted(
    {
        *(names.COMPONENTS, names.VERSIONS, names.JOBS, names.SCHEDULES, names.SCANS, names.POSITIONS),
        *(names.DEAD_LETTERS, names.LEASES, names.BELLS, names.STATUS, names.SERVICES, names.SEARCHES),
        *(f"{bucket}.{part}" for bucket in (names.WEIGHTS, names.ARTIFACTS) for part in ("files", "chunks")),
    }
)


@pytest.fixture
def stocked(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Stocked]:
    stocked = Stocked(mongo_uri, database.name, tmp_path)
    yield stocked
    stocked.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize(
    "each", [pytest.param(12, marks=pytest.mark.slow, id="some"), pytest.param(1, marks=pytest.mark.soak, id="all")]
)
def test_no_value_at_any_place_brings_a_reader_down(stocked: Stocked, collection: str, each: int) -> None:
    """Each field at each depth, with odd values, read by all that reads it; by turns each twelfth value, or all."""
    places = [place for place in stocked.places() if place[0] == collection]
    assert places
    wrong = []
    for number, where in enumerate(places):
        for name, value in list(ODD.items())[number % each :: each]:
            stocked.spoil(*where, value)
            try:
                stocked.read(collection)
            except Exception as error:
                wrong.append(f"{where} {name}: {type(error).__name__}: {str(error)[:200]}")
            stocked.restore(collection)
    assert not wrong, "\n".join(wrong)


CASES = {
    "an epoch that no daemon had, in a component": (names.COMPONENTS, f"{SERVICE}/model/{MODEL}", "epoch", "2^62"),
    "the same in a scan": (names.SCANS, f"{SERVICE}/{LISTENER}", "epoch", "2^62"),
    "the same in the status": (names.STATUS, SERVICE, "epoch", "2^62"),
    "a lease of a pid that is none": (names.LEASES, SERVICE, "pid", "NaN"),
    "a bell that is infinite": (names.BELLS, SERVICE, "count", "infinite"),
    "a version without a time": (names.VERSIONS, f"{SERVICE}/{MODEL}/1", "created_at", "a date after all"),
    "a version whose data are no document": (names.VERSIONS, f"{SERVICE}/{MODEL}/1", "data", "null"),
    "a listener without its service": (names.COMPONENTS, f"{SERVICE}/listener/{LISTENER}", "service", "missing"),
    "a schedule of the last day": (names.SCHEDULES, f"{SERVICE}/train/f/every", "last", "a date after all"),
}


@pytest.mark.parametrize("name", CASES)
def test_garbage_is_made_good_or_passed_over(stocked: Stocked, name: str) -> None:
    """The known cases, quickly; the whole table is in the acceptance tests."""
    collection, identifier, path, value = CASES[name]
    stocked.spoil(collection, identifier, path, ODD[value])
    stocked.read(collection)


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, 1 << 62])
@pytest.mark.parametrize("field", ["length", "chunkSize"])
def test_a_damaged_file_is_said_in_a_sentence(stocked: Stocked, field: str, value: Any) -> None:
    """Weights and artifacts whose GridFS document says something impossible."""
    for bucket in (names.WEIGHTS, names.ARTIFACTS):
        stocked.raw[f"{bucket}.files"].update_many({}, {"$set": {field: value}})
        stocked.read(f"{bucket}.files")


def test_epochs_that_no_daemon_had_are_corrected(stocked: Stocked) -> None:
    """The leader publishes, scans and reports as if they had been its own."""
    for collection in (names.COMPONENTS, names.SCANS, names.STATUS):
        stocked.raw[collection].update_many({}, {"$set": {"epoch": ODD["2^62"]}})
    epoch = Lease(stocked.database, SERVICE, HOLDER).acquire()
    Registry(stocked.database, SERVICE, epoch, KEY).publish(declared())
    Scans(stocked.database, SERVICE, LISTENER, epoch).begin(Mark(1, "x"), "r", "oldest")
    board = StatusBoard(stocked.database, SERVICE)
    status = board.read()
    assert status is not None
    assert board.publish(epoch, status)
    for collection in (names.COMPONENTS, names.SCANS, names.STATUS):
        found = stocked.raw[collection].find({"epoch": {"$exists": True}}, {"epoch": 1})
        assert {each["epoch"] for each in found} == {epoch}, collection
    assert epoch > EPOCH


def test_the_status_of_a_dead_daemon_cannot_be_forged_into_a_good_one(stocked: Stocked) -> None:
    """Neither by a time in the future, nor by the present one while no daemon holds the lease of its epoch."""
    stocked.raw[names.STATUS].update_one({"_id": SERVICE}, [{"$set": {"at": {"$add": ["$$NOW", 10**12]}}}])
    status = StatusBoard(stocked.database, SERVICE).read()
    assert status is not None
    assert not screens.is_well(status)
    stocked.raw[names.STATUS].update_one({"_id": SERVICE}, {"$currentDate": {"at": True}})
    assert stocked.command("status") == 0
    stocked.raw[names.LEASES].update_one({"_id": SERVICE}, [{"$set": {"expires": "$$NOW"}}])
    assert stocked.command("status") == 1


def test_a_write_concern_error_at_a_step_down_is_one_of_the_connection(
    mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """The driver raises AttributeError, because it cannot read the error's labels from an undecoded reply."""
    database.own.insert_one({"_id": 1, "n": 0})
    failing = {
        "failCommands": ["findAndModify"],
        "namespace": f"{database.name}.own",
        "writeConcernError": {"code": 11602, "errmsg": "operation was interrupted"},
        "errorLabels": ["RetryableWriteError"],
    }
    with MongoClient[dict[str, Any]](mongo_uri, retryWrites=False) as client:
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
        try:
            with pytest.raises(AutoReconnect, match="has not confirmed a write"):
                change_one(client[database.name].own, {"_id": 1}, {"$inc": {"n": 1}})
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        changed = change_one(client[database.name].own, {"_id": 1}, {"$inc": {"n": 1}})
    assert changed is not None
    assert decoded(changed, database.codec_options)["n"] == 1
