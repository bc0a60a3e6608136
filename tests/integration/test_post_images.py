"""A small row that comes with its event is not read. It must be what a read at that time would find."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from bson import DBRef, Decimal128, ObjectId
from bson.binary import Binary
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from harness.corridors import LISTENER, TABLE, SteppedWorker, declare
from harness.listening import Listening
from pymongo.database import Database

from components.raw_value import RawValue, document, fields
from daemon.handlers.predict.records import Snapshot
from daemon.listeners import change_stream as stream
from daemon.listeners.subscription import SMALL_ROW
from daemon.store.rows.outputs import Outputs

PATHS = ("x", "m.n")
MANY = 1 << 30
PLAIN = {"x": "text", "m": {"n": 1}}
FIELD_TWICE = RawValue(b"\x03" + bytes.fromhex("13000000 10610001000000 10610002000000 00"))
FAR_DATE = RawValue(b"\x09" + struct.pack("<q", 1 << 60))
NOT_UTF8 = RawValue(b"\x02\x03\0\0\0\xff\xfe\0")
KINDS = [Decimal128("1.10"), ObjectId(), Timestamp(1, 2), 1.0, 1 << 40, True]

TOLD: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "null": {"x": None, "m": {"n": None}},
    "nested": {"x": {"a": [1, {"b": 2}], "c": {}}, "m": {"n": {"o": 1}, "p": 2}},
    "array": {"x": [1, [2]], "m": {"n": []}},
    "kinds": {"x": Binary(b"\x01" * 16, 4), "m": {"n": KINDS}},
    "reference": {"x": DBRef("rows", 1), "m": {"n": {"$ref": "rows", "$id": 2}}},
    "far date": {"x": FAR_DATE, "m": {"n": 1}},
    "a field twice within": {"x": FIELD_TWICE, "m": {"n": 1}},
    "largest": {**PLAIN, "filler": "f" * (SMALL_ROW - 100)},
}
READ: dict[str, dict[str, Any]] = {
    "large": {**PLAIN, "filler": "f" * SMALL_ROW},
    "with an output": {**PLAIN, "_outputs": {LISTENER: {"value": 1}}},
    "with another listener's output": {**PLAIN, "_outputs": {"other": {"value": 1}}},
    "without a key field": {"x": "text", "m": {}},
    "a key field in an array": {"x": "text", "m": [{"n": 1}, {"n": 2}]},
    "another field that cannot be decoded": {**PLAIN, "other": NOT_UTF8},
    "an odd key": {**PLAIN, "_id": {"a": 1}},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AWAIT_MS", 50)


def changed(database: Database[dict[str, Any]], act: Any) -> list[stream.Changed]:
    """What the stream tells of what `act` does to the rows."""
    listening = Listening(database)
    act(database["rows"])
    return [event for event in listening.heard() if isinstance(event, stream.Changed)]


def told_and_found(database: Database[dict[str, Any]], change: stream.Changed) -> tuple[Snapshot | None, Snapshot]:
    outputs = Outputs(database["rows"], LISTENER, PATHS, {})
    told = None if change.post_image is None else outputs.told(change.post_image, change.times[0])
    return told, outputs.read(change.keys, change.times[0], MANY)


def raw(row: dict[str, Any]) -> RawBSONDocument:
    return document({}, {"_id": 1, **row})


@pytest.mark.parametrize("how", ["insert", "replace"])
@pytest.mark.parametrize("row", TOLD.values(), ids=TOLD)
def test_what_an_event_tells_is_what_a_read_finds(database: Any, row: dict[str, Any], how: str) -> None:
    """The values, their hash, and that there is no output."""
    if how == "replace":
        database["rows"].insert_one({"_id": 1, "_outputs": {LISTENER: {"value": 1}}})
        replacement = [{"q": {"_id": 1}, "u": raw(row)}]  # the driver's own method would decode it
        (change,) = changed(database, lambda rows: rows.database.command("update", rows.name, updates=replacement))
    else:
        (change,) = changed(database, lambda rows: rows.insert_one(raw(row)))
    told, found = told_and_found(database, change)
    assert told is not None
    assert len(found.rows) == 1
    assert (told.rows, told.strays, told.unread) == (found.rows, found.strays, found.unread)
    assert told.at == change.times[0]


def test_a_field_that_is_stored_twice_is_told_as_it_is_read(database: Any) -> None:
    """The driver decodes the last one; whichever it is, it is the same."""
    both = raw({"x": 1, "y": 2, "m": {"n": 1}}).raw.replace(b"\x10y\0", b"\x10x\0")
    (change,) = changed(database, lambda rows: rows.insert_one(RawBSONDocument(both)))
    told, found = told_and_found(database, change)
    assert fields(both)["x"].value() == 1
    assert told is not None
    assert told.rows == found.rows


@pytest.mark.parametrize("row", READ.values(), ids=READ)
def test_a_row_that_only_mongodb_can_judge_is_read(database: Any, row: dict[str, Any]) -> None:
    """Its event comes, and tells nothing."""
    (change,) = changed(database, lambda rows: rows.insert_one(raw(row)))
    assert len(change.keys) == 1
    assert told_and_found(database, change)[0] is None


def test_a_listener_with_a_filter_reads_its_rows(database: Any) -> None:
    """MongoDB decides whether they match."""
    assert Outputs(database["rows"], LISTENER, PATHS, {"m.n": 1}).told({"_id": 1, **PLAIN}, Timestamp(1, 1)) is None


def test_an_update_tells_nothing_of_its_row(database: Any) -> None:
    """Its row would have to be looked up, and would be that of another time."""
    database["rows"].insert_one({"_id": 1, **PLAIN})
    (change,) = changed(database, lambda rows: rows.update_one({"_id": 1}, {"$set": {"x": "other"}}))
    assert change.post_image is None


def test_a_row_of_a_transaction_is_read(database: Any) -> None:
    """It may be updated in the same transaction, at the same time."""

    def act(rows: Any) -> None:
        rows.insert_one({"_id": 0})  # a collection is not made within one
        with database.client.start_session() as session, session.start_transaction():
            rows.insert_one({"_id": 1, **PLAIN}, session=session)

    assert [(change.keys[-1], change.post_image) for change in changed(database, act)][-1] == (1, None)


def test_only_an_event_that_comes_alone_tells_its_row() -> None:
    """A batch of several is read at one snapshot. The stream waits for none of two tables' rows that come by turns."""
    events = [
        {
            "_id": {"_data": str(n)},
            "operationType": "insert",
            "ns": {"coll": ("rows", "rows", "others")[n - 1]},
            "documentKey": {"_id": n},
            "clusterTime": Timestamp(n, 1),
            "fullDocument": {"_id": n},
        }
        for n in (1, 2, 3)
    ]

    def told(events: Any) -> list[Any]:
        subscription = stream.Subscription("s", ("rows", "others"))
        changes: Any = stream._told(events, subscription, Timestamp(1, 1), alone=len(events) == 1)
        return [(each.keys, each.alone, each.post_image) for each in changes]

    assert told(events[:1]) == [((1,), True, {"_id": 1})]
    assert told(events[:2]) == [((1, 2), False, None)]
    assert told(events[1:]) == [((2,), False, None), ((3,), False, None)]


# ---- in the corridor ------------------------------------------------------------------------------------------------


class Reads(Outputs):
    """Counts what is read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read_keys: list[Any] = []

    def read(self, keys: Any, after: Any, max_bytes: int) -> Snapshot:
        self.read_keys += keys
        return super().read(keys, after, max_bytes)


@pytest.fixture
def worker(database: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker of a listener without a filter."""
    monkeypatch.setattr("harness.corridors.WHERE", {})
    declare(database)
    return SteppedWorker(database, 1, Reads)


def values(database: Any) -> dict[Any, Any]:
    return {row["_id"]: row.get("_outputs", {}).get(LISTENER, {}).get("value") for row in database[TABLE].find()}


def test_a_lone_row_is_predicted_without_a_read(worker: Any, database: Any) -> None:
    """Its output is of the time of its event."""
    database[TABLE].insert_one({"_id": 1, "x": "A"})
    worker.hear()
    held = worker.read()
    worker.write(held)
    assert values(database) == {1: "f(A)"}
    assert worker.outputs.read_keys == []
    assert database[TABLE].find_one({"_id": 1})["_outputs"][LISTENER]["asof"] == held.judged.at
    assert worker.measures.totals["predicted"] == 1


def test_a_row_that_changed_again_is_read(worker: Any, database: Any) -> None:
    """The event that names it last does not tell what it is."""
    database[TABLE].insert_one({"_id": 1, "x": "A"})
    worker.hear()
    database[TABLE].update_one({"_id": 1}, {"$set": {"x": "B"}})
    worker.hear()
    worker.finish()
    assert values(database) == {1: "f(B)"}
    assert worker.outputs.read_keys == [1]


def test_a_row_from_before_the_last_write_is_read(worker: Any, database: Any) -> None:
    """R3b: no batch is of a time before this worker's own newest write."""
    database[TABLE].insert_one({"_id": 1, "x": "A"})
    worker.hear()
    held = worker.read()
    database[TABLE].insert_one({"_id": 2, "x": "B"})
    worker.write(held)
    worker.hear()
    worker.finish()
    assert values(database) == {1: "f(A)", 2: "f(B)"}
    assert worker.outputs.read_keys == [2]


def test_a_row_that_changed_before_its_write_gets_the_output_of_what_it_is(worker: Any, database: Any) -> None:
    """Replaced, deleted or taken by another worker, after its event was heard: the write lands nowhere wrong."""
    rows = database[TABLE]
    for key in (1, 2, 3):
        rows.insert_one({"_id": key, "x": "A"})
        worker.hear()
        held = worker.read()
        if key == 1:
            rows.replace_one({"_id": 1}, {"_id": 1, "x": "B"})
        elif key == 2:
            rows.delete_one({"_id": 2})
        else:
            rows.update_one({"_id": 3}, {"$set": {f"_outputs.{LISTENER}": {"value": "else", "asof": Timestamp(1, 1)}}})
        worker.write(held)
        worker.finish()
        if key < 3:
            worker.hear()
            worker.finish()
    assert values(database) == {1: "f(B)", 3: "f(A)"}


def test_an_update_in_the_transaction_of_the_insert_is_predicted(worker: Any, database: Any) -> None:
    """Both events have the same time."""
    rows = database[TABLE]
    rows.insert_one({"_id": 0, "x": "A"})
    worker.hear()
    worker.finish()
    with database.client.start_session() as session, session.start_transaction():
        rows.insert_one({"_id": 1, "x": "A"}, session=session)
        rows.update_one({"_id": 1}, {"$set": {"x": "B"}}, session=session)
    worker.hear()
    worker.finish()
    assert values(database) == {0: "f(A)", 1: "f(B)"}
