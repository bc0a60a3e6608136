"""Outputs that are written in transactions: what is a conflict, what the stream does not hear of them, and what an
error, a lost answer or a kill within one leaves behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from bson.timestamp import Timestamp
from harness.daemons import eventually
from pymongo import MongoClient
from pymongo.errors import ExecutionTimeout, OperationFailure, PyMongoError

from components.raw_value import identity
from daemon.handlers.predict.records import Snapshot, Write, Written
from daemon.listeners import change_stream as stream
from daemon.store.connection import open_database
from daemon.store.rows.outputs import GUARDED_ROWS, ROWS, Outputs
from daemon.store.rows.positions import Position, Positions, cluster_time
from daemon.store.rows.transactions import SESSIONS, Aborted, ConflictShare, Transactions

APP = f"transactions test {uuid4().hex[:8]}"
MANY = 100


@pytest.fixture
def own(mongo_uri: str, database: Any) -> Iterator[Any]:
    """The database through a worker's client, whose commands alone can be made to fail."""
    with MongoClient[dict[str, Any]](mongo_uri, appname=APP, retryWrites=False, heartbeatFrequencyMS=500) as client:
        yield open_database(client, database.name)
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.fixture
def rows(database: Any) -> Any:
    """As a client writes them: rows 0 to 99, x = "a"."""
    database["rows"].insert_many({"_id": n, "x": "a", "m": True} for n in range(MANY))
    return database["rows"]


def of(own: Any) -> Outputs:
    return Outputs(own["rows"], "L", ("x",), {"m": True})


def fail(own: Any, command: str, times: int = 1, **how: Any) -> None:
    """The next so many such commands of the worker's client fail."""
    data = {"failCommands": [command], "appName": APP, **how}
    own.client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


def read(outputs: Outputs, keys: Any = range(MANY)) -> Snapshot:
    return outputs.read(list(keys), None, 1 << 30)


def writes(snapshot: Snapshot, value: str = "f") -> list[Write]:
    """As a corridor makes them of these rows."""
    return [
        Write(row.key, row.seen, "set", snapshot.at, 1, output(f"{value}({row.values[0]})", snapshot.at))
        for row in snapshot.rows
    ]


def output(value: Any, asof: Timestamp) -> dict[str, Any]:
    return {"value": value, "model": "f", "version": 1, "generation": 1, "asof": asof, "input": b"hash"}


def value(rows: Any, key: Any) -> Any:
    return ((rows.find_one({"_id": key}) or {}).get("_outputs") or {}).get("L", {}).get("value")


def committed(own: Any) -> int:
    count: int = own.client.admin.command("serverStatus")["transactions"]["totalCommitted"]
    return count


# ---- conflicts ------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_transaction_if_nothing_has_changed(own: Any, rows: Any) -> None:
    """No guard, no read, and every output stands."""
    outputs = of(own)
    snapshot, before = read(outputs), committed(own)
    written = outputs.write(writes(snapshot))
    assert (written.missed, written.refused) == (frozenset(), {})
    assert written.time is not None
    assert written.time > snapshot.at
    assert committed(own) == before + 1
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY


@pytest.mark.parametrize("number", [3, MANY], ids=["few", "many"])
def test_a_row_in_a_clients_open_transaction_holds_up_no_other(
    own: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It may be open for a minute. The row is judged again, others have their outputs; one that refuses says so."""
    monkeypatch.setattr("daemon.store.rows.outputs.BULK_MS", 50)
    outputs = of(own)
    snapshot = read(outputs, range(number))
    rows.update_one({"_id": 2}, {"$set": {"_outputs": "refuses"}})
    with rows.database.client.start_session() as session, session.start_transaction():
        rows.update_one({"_id": 0}, {"$set": {"other": 1}}, session=session)
        written = outputs.write(writes(snapshot))
        assert written.missed == {identity(0)}
        assert list(written.refused) == [identity(2)]
        assert rows.count_documents({"_outputs.L.value": "f(a)"}) == number - 2
    assert outputs.write(writes(read(outputs, [0]))).missed == frozenset()
    assert value(rows, 0) == "f(a)"


def test_a_majority_that_is_late_is_waited_for(own: Any, rows: Any) -> None:
    """The writes have landed: nobody else's transaction holds them, and no row is missed."""
    outputs = of(own)
    batch = writes(read(outputs, range(3)))
    fail(own, "update", writeConcernError={"code": 50, "errmsg": "operation exceeded time limit"})
    written = outputs.write(batch)
    assert (written.missed, written.refused) == (frozenset(), {})
    assert [value(rows, key) for key in range(3)] == ["f(a)"] * 3


def test_a_row_that_cannot_be_encoded_and_is_held_is_missed(
    own: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be sent by a bulk and by a transaction, one after the other, for as long as it is held."""
    monkeypatch.setattr("daemon.store.rows.outputs.BULK_MS", 50)

    def unable(*_: Any) -> None:
        raise Aborted("forced", row=True)

    monkeypatch.setattr(Transactions, "after", unable)
    outputs = of(own)
    batch = writes(read(outputs, range(2)))
    with rows.database.client.start_session() as session, session.start_transaction():
        rows.update_one({"_id": 0}, {"$set": {"other": 1}}, session=session)
        assert outputs.write(batch).missed == {identity(0)}
    assert value(rows, 1) == "f(a)"


def test_a_table_that_cannot_be_written_is_waited_out(own: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is missed, or all would be predicted again and again while a backup holds the lock of the server."""

    def late(*_: Any, **__: Any) -> None:
        raise ExecutionTimeout("operation exceeded time limit", 50)

    monkeypatch.setattr("daemon.store.rows.raw_updates.send", late)
    outputs = of(own)
    batch = writes(read(outputs, range(3)))
    fail(own, "find", errorCode=24)
    with pytest.raises(OperationFailure) as raised:
        outputs.write(batch)
    assert raised.value.code == 24


def test_a_row_that_changes_all_the_time_costs_the_others_no_second_transaction(
    own: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It got an output a moment ago, and changes again before the next one is written: that of the others is at the
    snapshot all the same.
    """
    monkeypatch.setattr("daemon.store.rows.outputs.RESTLESS_SECONDS", 600)  # on a machine that is busy
    outputs = of(own)
    assert outputs.write(writes(read(outputs, range(50)))).missed == frozenset()
    restless, others = list(range(20)), list(range(50, MANY))
    rows.update_many({"_id": {"$in": restless}}, {"$set": {"x": "b"}})
    snapshot = read(outputs, restless + others)
    rows.update_many({"_id": {"$in": restless}}, {"$set": {"x": "c"}})
    before = committed(own)
    assert outputs.write(writes(snapshot)).missed == frozenset()
    assert outputs._at_snapshot._share == 0
    assert committed(own) == before + 2
    assert rows.count_documents({"_id": {"$in": restless}, "_outputs.L.value": "f(b)"}) == len(restless)
    assert rows.count_documents({"_id": {"$in": others}, "_outputs.L.value": "f(a)"}) == len(others)


def test_sets_touches_and_unsets_land_together(own: Any, rows: Any) -> None:
    """By each of both kinds of transaction."""
    outputs = of(own)
    for round_ in range(2):
        assert outputs.write(writes(read(outputs))).missed == frozenset()
        rows.update_many({"_id": {"$lt": 10}}, {"$set": {"m": False}})
        snapshot = read(outputs)
        assert len(snapshot.strays) == 10
        mixed = [Write(key, seen, "unset", snapshot.at, 1) for key, seen in snapshot.strays]
        mixed += [Write(row.key, row.seen, "touch", snapshot.at, 1) for row in snapshot.rows]
        if round_:
            rows.update_one({"_id": 0}, {"$set": {"other": 1}})  # the transaction at the snapshot conflicts
        assert outputs.write(mixed) == Written(frozenset(), {}, outputs._transactions._ring[-1].used)
        assert rows.count_documents({"_outputs.L": {"$exists": True}}) == MANY - 10
        assert rows.count_documents({"_outputs.L.asof": snapshot.at, "_outputs.L.value": "f(a)"}) == MANY - 10
        rows.update_many({}, {"$set": {"m": True}})


def delete_and_insert(rows: Any) -> None:
    rows.delete_one({"_id": 5})
    rows.insert_one({"_id": 5, "x": "b", "m": True})


CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "update": (lambda rows: rows.update_one({"_id": 5}, {"$set": {"x": "b"}}), True),
    "another field": (lambda rows: rows.update_one({"_id": 5}, {"$set": {"other": 1}}), True),
    "replace": (lambda rows: rows.replace_one({"_id": 5}, {"x": "b", "m": True}), True),
    "delete": (lambda rows: rows.delete_one({"_id": 5}), False),
    "delete and insert": (delete_and_insert, True),
    "stops matching": (lambda rows: rows.update_one({"_id": 5}, {"$set": {"m": False}}), False),
    "loses its key field": (lambda rows: rows.update_one({"_id": 5}, {"$unset": {"x": ""}}), False),
    "a foreign output": (
        lambda rows: rows.update_one({"_id": 5}, {"$set": {"_outputs.L": output("theirs", Timestamp(9, 9))}}),
        False,
    ),
    "all rows": (lambda rows: rows.update_many({}, {"$set": {"other": 1}}), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_row_after_the_snapshot_is_a_conflict(own: Any, rows: Any, change: str) -> None:
    """Nothing lands at the snapshot; then the guard of each row alone decides, and all others land."""
    outputs = of(own)
    batch = writes(read(outputs))
    make, lands = CHANGES[change]
    make(rows)
    before = rows.find_one({"_id": 5})
    written = outputs.write(batch)
    assert outputs._at_snapshot._share > 0
    assert outputs._with_guards._share == 0
    assert written.missed == (frozenset() if lands else {identity(5)})
    assert written.refused == {}
    if not lands:
        assert rows.find_one({"_id": 5}) == before
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY - (not lands)


def test_a_row_that_changes_within_a_transaction_sends_its_rows_alone_to_the_bulk(
    own: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rows of the batch have transactions of their own."""
    outputs = of(own)
    batch = writes(read(outputs))
    compared, bulks = Outputs._compared, []

    def late(self: Outputs, part: Any, session: Any) -> Any:
        found = compared(self, part, session)
        rows.update_one({"_id": 5}, {"$set": {"x": "b", "m": False}})
        return found

    def bulk(self: Outputs, part: Any) -> Any:
        bulks.append(len(part))
        return original(self, part)

    original = Outputs._bulk
    monkeypatch.setattr(Outputs, "_compared", late)
    monkeypatch.setattr(Outputs, "_bulk", bulk)
    rows.update_one({"_id": 5}, {"$set": {"other": 1}})
    assert outputs.write(batch).missed == {identity(5)}
    assert bulks == [GUARDED_ROWS]
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY - 1


def test_one_row_that_refuses_its_write_costs_its_batch_one_more_try(own: Any, rows: Any) -> None:
    """A transaction cannot leave it out; the bulk says which row it was."""
    rows.update_one({"_id": 5}, {"$set": {"_outputs": 5}})
    outputs = of(own)
    before = committed(own)
    written = outputs.write(writes(read(outputs)))
    assert set(written.refused) == {identity(5)}
    assert written.missed == frozenset()
    assert committed(own) == before
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY - 1


def test_batches_in_flight_do_not_conflict_with_one_another(own: Any, rows: Any) -> None:
    """Each is read before the transactions of those before it: their sessions are newer, so others are taken."""
    outputs = of(own)
    for _ in range(5):
        held = [read(outputs, range(start, start + 10)) for start in range(0, MANY, 10)]
        for snapshot in held:
            assert outputs.write(writes(snapshot)).missed == frozenset()
    assert outputs._at_snapshot._share == 0


def test_more_batches_in_flight_than_sessions_are_written_all_the_same(own: Any, rows: Any) -> None:
    """If every session is newer than the snapshot, the guards are read."""
    outputs = of(own)
    held = [read(outputs, range(start, start + 10)) for start in range(0, MANY, 10)] * 5
    for snapshot in held[: MANY // 10]:
        assert outputs.write(writes(snapshot)).missed == frozenset()
    for snapshot in held[MANY // 10 :]:
        assert outputs.write(writes(snapshot)).missed == frozenset()  # it has landed: its answer was lost, say
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY


def test_a_large_batch_is_several_transactions(own: Any, rows: Any) -> None:
    """Each holds up other writers of its rows only."""
    rows.insert_many({"_id": n, "x": "a", "m": True} for n in range(MANY, 2 * ROWS + 20))
    outputs = of(own)
    snapshot, before = read(outputs, range(2 * ROWS + 20)), committed(own)
    assert outputs.write(writes(snapshot)).missed == frozenset()
    assert committed(own) == before + 3
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == 2 * ROWS + 20


def test_outputs_that_no_command_could_hold_land_too(own: Any, rows: Any) -> None:
    """A transaction is one command, and that takes 16 MB; the bulk is divided."""
    outputs = of(own)
    batch = writes(read(outputs), "x" * 300_000)
    assert outputs.write(batch).missed == frozenset()
    assert rows.count_documents({"_outputs.L": {"$exists": True}}) == MANY


def test_the_choice_follows_the_share_of_conflicts() -> None:
    """After some in a row a transaction is left out, mostly; after a while without any it is the rule again."""
    share = ConflictShare()
    tried = 0
    for _ in range(100):
        if share.worth_trying():
            tried += 1
            share.note(conflict=True)
    assert 3 <= tried <= 30
    for _ in range(100):
        if share.worth_trying():
            share.note(conflict=False)
    assert all(share.worth_trying() for _ in range(10))


# ---- errors and kills -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["update", "commitTransaction"])
@pytest.mark.parametrize("code", [20, 50, 72, 112, 225, 239, 246, 251, 263, 290])
def test_an_error_of_a_transaction_is_answered_by_the_next_way(own: Any, rows: Any, command: str, code: int) -> None:
    """A snapshot that is too old, no such transaction, a transaction that the server refuses: all outputs stand."""
    outputs = of(own)
    batch = writes(read(outputs))
    labels = ["TransientTransactionError"] if code in {112, 246, 251} else []
    fail(own, command, errorCode=code, errorLabels=labels)
    written = outputs.write(batch)
    assert (written.missed, written.refused) == (frozenset(), {})
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY


@pytest.mark.parametrize("command", ["find", "update", "commitTransaction"])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(
    "how",
    [{"closeConnection": True}, {"errorCode": 10107}, {"errorCode": 91}],
    ids=str,
)
def test_a_lost_connection_or_a_step_down_is_answered_by_a_repetition(
    own: Any, rows: Any, command: str, times: int, how: Any
) -> None:
    """Also within a transaction that reads guards, and if the commit's answer was lost: nothing is done twice, and no
    row waits for a transaction that was left open.
    """
    outputs = of(own)
    batch = writes(read(outputs))
    if command == "find":
        rows.update_one({"_id": 5}, {"$set": {"other": 1}})
    fail(own, command, times, **how)

    def lands() -> bool:
        try:
            written = outputs.write(batch)
        except PyMongoError:
            return False
        return (written.missed, written.refused) == (frozenset(), {})

    eventually("the batch has landed", lands, 20)
    assert rows.count_documents({"_outputs.L.value": "f(a)"}) == MANY
    rows.update_many({}, {"$set": {"x": "b"}})  # nobody holds the rows


def test_a_commit_that_landed_without_an_answer_is_recognized(own: Any, rows: Any) -> None:
    """The rows hold what was to be written, so that none is judged again."""
    outputs = of(own)
    batch = writes(read(outputs))
    assert outputs.write(batch).missed == frozenset()
    rows.update_one({"_id": 7}, {"$set": {"x": "b"}})
    assert outputs.write(batch).missed == frozenset()
    rows.update_one({"_id": 8}, {"$set": {"_outputs.L.asof": Timestamp(9, 9)}})
    assert outputs.write(batch).missed == {identity(8)}


def leave_open(own: Any, sessions: Any) -> Any:
    """A transaction that has written the rows, and whose process was killed before it committed."""
    session = own.client.start_session(causal_consistency=False)
    session.start_transaction()
    own["rows"].update_many({}, {"$set": {"_outputs.L.value": "open"}}, session=session)
    Positions(own, "s", "w", 1).claim("hash", [session.session_id["id"], *sessions])
    return session


def test_a_successor_ends_the_transactions_of_a_killed_worker(own: Any, rows: Any) -> None:
    """Or their rows could not be written for a minute or more, by anybody."""
    outputs = of(own)
    session = leave_open(own, outputs.sessions)
    Positions(own, "s", "w", 2).claim("hash", of(own).sessions)
    assert outputs.write(writes(read(outputs))).missed == frozenset()
    rows.update_many({}, {"$set": {"x": "b"}})
    with pytest.raises(PyMongoError):
        session.commit_transaction()
    assert rows.count_documents({"_outputs.L.value": "open"}) == 0


@pytest.mark.parametrize("garbage", [None, 5, "x", [1, None, "x", b"bytes", {"id": 1}], {"a": 1}], ids=repr)
def test_garbage_in_the_place_of_sessions_is_passed_over(own: Any, garbage: Any) -> None:
    """A client wrote it."""
    positions = Positions(own, "s", "w", 1)
    positions.claim("hash")
    own["_predictd.positions"].update_many({}, {"$set": {"sessions": garbage}})
    positions.claim("hash", of(own).sessions)
    assert len(own["_predictd.positions"].find_one()["sessions"]) == SESSIONS


# ---- the stream -----------------------------------------------------------------------------------------------------


class Listening:
    """A stream that drops the sessions of these outputs, read as far as asked."""

    def __init__(self, own: Any, outputs: Outputs, position: Position | None = None, **more: Any) -> None:
        self._own = own
        now = cluster_time(own)
        self.position = position or Position(Timestamp(now.time, now.inc + 1))
        subscription = stream.Subscription("s", ("rows",), dropped=outputs.sessions, **more)
        self._stop = threading.Event()
        self._events = stream.watch(own, subscription, self.position, self._stop)

    def changed(self) -> list[Any]:
        """The keys of the rows that changed until now."""
        end, heard = cluster_time(self._own), []
        for event in self._events:
            if isinstance(event, stream.Changed):
                heard += event.keys
            assert not isinstance(event, (stream.Interrupted, stream.HistoryLost)), event
            if isinstance(event, stream.Reached):
                self.position = event.position
                if event.position.cluster_time >= end:
                    break
        return heard

    def close(self) -> None:
        self._stop.set()
        list(self._events)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AWAIT_MS", 50)


@pytest.mark.usefixtures("hurried")
def test_own_transactions_bring_no_event_and_the_position_moves_past_them(own: Any, rows: Any) -> None:
    """Though nothing at all comes, the stream does not stay where it was: its place would leave the oplog."""
    outputs = of(own)
    listening = Listening(own, outputs)
    for _ in range(3):
        written = outputs.write(writes(read(outputs)))
        assert written.time is not None
        assert listening.changed() == []
        assert listening.position.cluster_time >= written.time
    rows.update_one({"_id": 1}, {"$set": {"x": "b"}})
    assert listening.changed() == [1]


@pytest.mark.usefixtures("hurried")
def test_every_foreign_change_comes_between_own_transactions(own: Any, rows: Any) -> None:
    """Plain, retryable, in a session, in a transaction, before and after the same row's own write and within it."""
    outputs = of(own)
    listening = Listening(own, outputs)
    client = rows.database.client
    with client.start_session() as session:
        for n in range(10):
            batch = writes(read(outputs))
            rows.update_one({"_id": n}, {"$set": {"x": f"{n}"}})
            outputs.write(batch)
            rows.update_one({"_id": 10 + n}, {"$set": {"x": f"{n}"}}, session=session)
            with session.start_transaction():
                rows.update_one({"_id": 20 + n}, {"$set": {"x": f"{n}"}}, session=session)
                rows.insert_one({"_id": 1000 + n, "x": "new"}, session=session)
            outputs.write(writes(read(outputs)))
            own["rows"].update_one({"_id": 30 + n}, {"$set": {"x": f"{n}"}})
    assert sorted(listening.changed()) == [*range(40), *range(1000, 1010)]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("after", ["own", "foreign"])
def test_a_position_holds_for_a_successor_with_other_sessions(own: Any, rows: Any, after: str) -> None:
    """Whatever the last event was that the stream passed; and a successor passes over its predecessor's writes."""
    first, second = of(own), of(own)
    listening = Listening(own, first)
    first.write(writes(read(first)))
    if after == "foreign":
        rows.update_one({"_id": 1}, {"$set": {"x": "b"}})
    listening.changed()
    position = listening.position
    listening.close()
    second.write(writes(read(second, range(50))))
    first.write(writes(read(first, range(50, MANY))))
    rows.update_one({"_id": 2}, {"$set": {"x": "b"}})
    assert Listening(own, second, position).changed() == [2]


def test_the_commands_of_the_driver_never_use_an_own_session(own: Any, rows: Any) -> None:
    """The driver's pool hands out sessions again; these are never returned to it."""
    outputs = of(own)
    sessions = set(outputs.sessions)
    for _ in range(3):
        outputs.write(writes(read(outputs)))
        with own.client.start_session() as session:
            own["rows"].find_one({}, session=session)
            assert session.session_id["id"] not in sessions
    assert set(outputs.sessions) == sessions
    assert len(sessions) == SESSIONS
