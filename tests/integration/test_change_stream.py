"""The change stream against a real mongod: what is heard, what never leaves the server, and how it goes on after
everything that ends a stream.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp
from faults import server_faults
from harness.listening import Listening, just_after
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from components.raw_value import RawValue, identity
from daemon.handlers.predict.records import MISSING, Seen, Write
from daemon.listeners import change_stream as stream
from daemon.store.connection import open_database
from daemon.store.rows import dead_letters
from daemon.store.rows.oplog_window import headroom
from daemon.store.rows.outputs import Outputs
from daemon.store.rows.positions import Position, cluster_time

APP = f"stream test {uuid4().hex[:8]}"
LARGE = {"filler": "x" * 2000}  # on a small document an update by pipeline comes as a replace


@pytest.fixture
def own(mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The database through a client whose commands alone can be made to fail. After a code of a step-down the driver
    waits until its monitor has heard from the server: here for half a second, else for up to ten.
    """
    monkeypatch.setattr(stream, "AWAIT_MS", 50)
    with MongoClient[dict[str, Any]](mongo_uri, appname=APP, heartbeatFrequencyMS=500) as client:
        yield open_database(client, database.name)
        server_faults.mend(client)


def fail(database: Database[dict[str, Any]], command: str, code: int, times: int = 1) -> None:
    """The next so many such commands of this test's own client fail, without a label."""
    what = {"failCommands": [command], "errorCode": code, "errorLabels": []}
    server_faults.fail(database.client, what, times, APP)


@pytest.fixture
def rows(database: Database[dict[str, Any]]) -> Collection[dict[str, Any]]:
    return database["rows"]


# ---- what is heard --------------------------------------------------------------------------------------------------


def test_every_change_of_a_row_is_heard_as_its_key(own: Any, rows: Any) -> None:
    """Insert, update, replace, delete, upsert; with a cluster time each, and of the subscribed tables only."""
    rows.database["others"].insert_one({"_id": 0})
    listening = Listening(own)
    rows.insert_one({"_id": 1, "x": "a"})
    rows.update_one({"_id": 1}, {"$set": {"x": "b"}})
    rows.replace_one({"_id": 1}, {"x": "c"})
    rows.update_one({"_id": 2}, {"$set": {"x": "d"}}, upsert=True)
    rows.database["others"].update_one({"_id": 0}, {"$set": {"x": "a"}})
    rows.delete_one({"_id": 1})
    heard = [event for event in listening.heard() if isinstance(event, stream.Changed)]
    times = [time for event in heard for time in event.times]
    assert [key for event in heard for key in event.keys] == [1, 1, 1, 2, 1]
    assert {event.table for event in heard} == {"rows"}
    assert times == sorted(times)
    assert len(set(times)) == 5


@pytest.mark.parametrize(
    "key",
    [
        {"a": 1, "b": {"c": 2}},
        1.5,
        True,
        None,
        b"bytes",
        DatetimeMS(10**15),
        Timestamp(1, 1),
        "a.b$c",
        {"b": 1, "a": 2},
    ],
    ids=repr,
)
def test_a_key_comes_as_it_is_stored(own: Any, rows: Any, key: Any) -> None:
    """Whatever its type, so that the row can be found by it."""
    listening = Listening(own)
    rows.insert_one({"_id": key})
    assert [identity(each) for each in listening.changed()] == [identity(key)]


@pytest.mark.parametrize(
    "update",
    [
        {"$set": {"x": 2}},
        {"$unset": {"x": ""}},
        {"$inc": {"n": 1}},
        {"$push": {"tags": "new"}},
        {"$rename": {"x": "y"}},
        {"$set": {"_outputs2.L": 1}},
        {"$set": {"_outputsx": 1}},
        {"$unset": {"_outputs2": ""}},
        {"$set": {"_output": 1}},
        {"$set": {"deep._outputs.L": 1}},
        {"$set": {"_outputs.L.value": "changed", "x": 2}},
        {"$unset": {"_outputs.L": "", "x": ""}},
        {"$unset": {"_outputs": ""}},
        {"$set": {"_outputs": {}}},
        {"$set": {"_outputs": None}},
        {"$set": {"_outputs": 5}},
        [{"$set": {"tags": {"$slice": ["$tags", 1]}}}],
        [{"$set": {"tags": {"$slice": ["$tags", 1]}, "_outputs.L.value": 3}}],
    ],
    ids=repr,
)
def test_an_update_of_anything_outside_outputs_is_heard(own: Any, rows: Any, update: Any) -> None:
    """Paths are compared part by part; one path outside is enough. So is one that takes all outputs away: we never do
    that.
    """
    rows.insert_one(
        {
            "_id": 1,
            "x": 1,
            "n": 1,
            "tags": ["a", "b", "c"],
            "_outputs": {"L": {"value": 1}},
            "_outputs2": {"L": 0},
            **LARGE,
        }
    )
    listening = Listening(own)
    rows.update_one({"_id": 1}, update)
    assert listening.changed() == [1]


@pytest.mark.parametrize(
    "update",
    [
        {"$set": {"_outputs.M": {"value": 1}}},
        {"$set": {"_outputs.L.value": 2}},
        {"$unset": {"_outputs.L": ""}},
        {"$push": {"_outputs.L.list": 4}},
        [{"$set": {"_outputs.L.list": {"$slice": ["$_outputs.L.list", 1]}}}],
        {"$set": {"x": 1}},
    ],
    ids=repr,
)
def test_an_update_of_outputs_alone_never_leaves_the_server(own: Any, rows: Any, update: Any) -> None:
    """Whoever makes it; nor does one that changes nothing."""
    rows.insert_one({"_id": 1, "x": 1, "_outputs": {"L": {"value": 1, "list": [1, 2, 3]}}, **LARGE})
    listening = Listening(own)
    rows.update_one({"_id": 1}, update)
    assert listening.changed() == []


def test_the_daemons_own_writes_bring_no_events(own: Any, rows: Any) -> None:
    """Every shape of them, on rows with and without earlier outputs, of this listener and of others."""
    time = Timestamp(7, 7)
    output = {"value": {"a": [1, 2]}, "model": "f", "version": 1, "generation": 1, "asof": time, "input": b"h"}
    older = {**output, "asof": Timestamp(3, 3), "value": {"a": [1, 2, 3]}}
    before = {
        0: {},
        1: {"_outputs": {}},
        2: {"_outputs": {"M": older}},
        3: {"_outputs": {"L": older}},
        4: {"_outputs": {"L": older, "M": older}},
        5: {"_outputs": {"L": 5}},
    }
    rows.insert_many({"_id": f"{kind}{n}", "x": n, **more} for kind in "sed" for n, more in before.items())
    rows.insert_many(
        {"_id": f"{kind}{n}", "x": n, **more} for kind in "tu" for n, more in before.items() if n in {3, 4}
    )
    listening = Listening(own)
    outputs = Outputs(rows, "L", ("x",), {})
    writes = []
    for row in rows.find():
        has = isinstance(row.get("_outputs", {}).get("L"), dict)
        seen = Seen(older["asof"], 1, b"h", present=True) if has else Seen(MISSING)
        kind = {"s": "set", "e": "set", "d": "set", "t": "touch", "u": "unset"}[row["_id"][0]]
        new: Any = {
            "s": output,
            "e": {**output, "value": None, "error": {"type": "E"}},
            "d": {**output, "value": [[0.5] * 100] * 10},
        }.get(row["_id"][0])
        writes.append(Write(row["_id"], seen, kind, time, 1, new))  # type: ignore[arg-type]
    written = outputs.write(writes)
    assert (written.missed, written.refused) == (frozenset(), {})
    assert len(writes) == 22
    assert listening.changed() == []


OUTPUT = {"value": 1, "model": "f", "version": 1, "generation": 1, "asof": Timestamp(3, 3), "input": b"h"}


@pytest.mark.parametrize(
    ("update", "heard"),
    [
        ({"$unset": {"_outputs.L": ""}}, True),
        ({"$unset": {"_outputs.L.value": ""}}, True),
        ({"$rename": {"_outputs.L.value": "_outputs.L.was"}}, True),
        ({"$set": {"_outputs.L.error": None}}, True),
        ({"$set": {"_outputs.L.error.type": "E"}}, True),
        ({"$set": {"_outputs.L": {**OUTPUT, "error": {"type": "E"}}}}, True),
        ({"$set": {"_outputs.L": {"generation": 1, "input": b"h"}}}, True),
        ({"$set": {"_outputs.L": {}}}, True),
        ({"$set": {"_outputs.L": [OUTPUT]}}, True),
        ({"$set": {"_outputs.L": None}}, True),
        ({"$set": {"_outputs": {"L": {"input": b"h"}}}}, True),
        ({"$set": {"_outputs": {"L": 5}}}, True),
        ({"$set": {"_outputs.L.input": b"another"}}, True),
        ({"$inc": {"_outputs.L.generation": -1}}, True),
        ({"$set": {"_outputs.L": OUTPUT}}, False),
        ({"$set": {"_outputs": {"L": OUTPUT}}}, False),
        ({"$set": {"_outputs.L.asof": Timestamp(4, 4)}}, False),
        ({"$set": {"_outputs.L2.error": 1}}, False),
        ({"$set": {"_outputs.M": {"error": {"type": "E"}}}}, False),
        ({"$unset": {"_outputs.M": ""}}, False),
        ({"$unset": {"_outputs.L.error": ""}}, False),
    ],
    ids=repr,
)
def test_an_output_that_is_taken_away_is_heard(own: Any, rows: Any, update: Any, heard: bool) -> None:
    """By the worker that keeps it, whatever takes it away; what the daemon writes is not."""
    rows.insert_one({"_id": 1, "x": 1, "_outputs": {"L": OUTPUT, "M": OUTPUT}, **LARGE})
    listening = Listening(own, outputs=(("rows", "L"), ("others", "M")))
    rows.update_one({"_id": 1}, update)
    assert listening.changed() == [1] * heard


CHAINED = ("_outputs.embed.value",)


@pytest.mark.parametrize(
    ("update", "heard"),
    [
        ({"$set": {"_outputs.embed": {"value": 2, "asof": 2}}}, True),
        ({"$set": {"_outputs.embed.value": 2}}, True),
        ({"$set": {"_outputs.embed.value.part": 2}}, True),
        ({"$unset": {"_outputs.embed": ""}}, True),
        ({"$unset": {"_outputs.embed.value": ""}}, True),
        ({"$unset": {"_outputs": ""}}, True),
        ({"$set": {"_outputs": {}}}, True),
        ({"$set": {"_outputs.embed.asof": 2}}, False),
        ({"$set": {"_outputs.embed.values": 2}}, False),
        ({"$set": {"_outputs.embed2": {"value": 2}}}, False),
        ({"$set": {"_outputs.chain": {"value": 2}}}, False),
        ({"$unset": {"_outputs.chain": ""}}, False),
    ],
    ids=repr,
)
def test_a_chained_key_is_heard_and_its_neighbours_are_not(own: Any, rows: Any, update: Any, heard: bool) -> None:
    """The path itself, what lies under it, and what it lies under."""
    rows.insert_one({"_id": 1, "_outputs": {"embed": {"value": {"part": 1}, "asof": 1}, "chain": {"value": 1}}})
    listening = Listening(own, chained=CHAINED)
    rows.update_one({"_id": 1}, update)
    assert listening.changed() == [1] * heard


def test_a_chained_key_hears_the_first_output_of_a_row(own: Any, rows: Any) -> None:
    """Which comes under the path `_outputs`."""
    rows.insert_one({"_id": 1})
    listening = Listening(own, chained=CHAINED)
    rows.update_one({"_id": 1}, {"$set": {"_outputs.embed": {"value": 1}}})
    assert listening.changed() == [1]


def test_a_request_is_heard_as_such(own: Any, rows: Any) -> None:
    """The command line's way to a worker: all of it is in the event; another service's is not ours."""
    listening = Listening(own)
    rows.insert_one({"_id": {"a": 1}, "x": 1})
    for service in ("s", "other"):
        letter = {"_id": {"service": service, "listener": "L", "row": {"a": 1}}, "table": "rows"}
        dead_letters.retry(rows.database, letter)
    rows.database["_predictd.dead_letters"].insert_one({"_id": "d"})
    requests = [event for event in listening.heard() if isinstance(event, stream.Requested)]
    assert [(event.listener, event.key) for event in requests] == [("L", RawValue.of({"a": 1}))]


# ---- places ---------------------------------------------------------------------------------------------------------


def test_reading_goes_on_from_every_place_without_a_gap(own: Any, rows: Any) -> None:
    """What came before a Reached is not told again, what came after is."""
    events = stream.watch(own, stream.Subscription("s", ("rows",)), Position(cluster_time(own)), threading.Event())
    rows.insert_many({"_id": n} for n in range(300))
    places: list[tuple[int, Position]] = []
    heard = 0
    for event in events:
        heard += len(event.keys) if isinstance(event, stream.Changed) else 0
        if isinstance(event, stream.Reached):
            places.append((heard, event.position))
            if heard == 300:
                break
    assert len(places) >= 4
    for done, position in places:
        assert Listening(own, position=position).changed() == list(range(done, 300))
        by_time = Listening(own, position=Position(position.cluster_time)).changed()
        assert by_time[-(300 - done) :] == list(range(done, 300)) if done < 300 else by_time in ([], [299])


def test_the_place_of_an_idle_stream_moves_on(own: Any, rows: Any) -> None:
    """With what the rest of the server does, so that it does not die with the oplog."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    before = listening.position
    rows.database["noise"].insert_many({} for _ in range(100))
    assert listening.heard() == []
    assert listening.position.cluster_time > before.cluster_time
    assert listening.position.token != before.token
    rows.insert_one({"_id": 2})
    assert Listening(own, position=listening.position).changed() == [2]


# ---- tables that go and come ----------------------------------------------------------------------------------------


def test_a_dropped_table_is_told_and_heard_again_when_it_is_back(own: Any, rows: Any) -> None:
    """The stream does not end."""
    rows.insert_one({"_id": 1})
    listening = Listening(own)
    rows.drop()
    rows.insert_one({"_id": 2})
    assert listening.heard()[1:] == [stream.TableGone("rows"), stream.Changed("rows", (2,), (_any(),))]


def test_a_table_that_is_renamed_away_is_gone(own: Any, rows: Any) -> None:
    """What happens under the new name is not ours."""
    rows.insert_one({"_id": 1})
    listening = Listening(own)
    rows.rename("elsewhere")
    rows.database["elsewhere"].insert_one({"_id": 2})
    heard = [event for event in listening.heard() if not isinstance(event, stream.Opened)]
    assert heard == [stream.TableGone("rows"), stream.TableCame("elsewhere")]


@pytest.mark.parametrize("over", [False, True], ids=["into the place", "over another"])
def test_a_table_that_another_was_renamed_to_has_come(own: Any, rows: Any, over: bool) -> None:
    """Its rows brought no events."""
    rows.database["import"].insert_one({"_id": 1})
    if over:
        rows.insert_one({"_id": 0})
    listening = Listening(own)
    rows.database["import"].rename("rows", dropTarget=over)
    rows.insert_one({"_id": 2})
    heard = listening.heard()
    assert stream.TableCame("rows") in heard
    assert heard.index(stream.TableCame("rows")) < heard.index(stream.Changed("rows", (2,), (_any(),)))


def test_a_dropped_database_is_told_and_the_stream_goes_on_behind_it(own: Any, rows: Any) -> None:
    """It ends with an `invalidate`; nothing that comes after is missed."""
    rows.insert_one({"_id": 1})
    listening = Listening(own)
    own.client.drop_database(own.name)
    rows.insert_one({"_id": 2})
    heard = listening.heard()
    assert stream.TableGone("rows") in heard
    assert [key for event in heard if isinstance(event, stream.Changed) for key in event.keys] == [2]
    assert not [event for event in heard if isinstance(event, stream.HistoryLost)]


# ---- what breaks a stream -------------------------------------------------------------------------------------------


def token_of_an_event(own: Any) -> str:
    """A real one, of a row that is not among those that the tests look at."""
    with own.client[own.name].watch() as real:
        own["noise"].insert_one({})
        return str(real.next()["_id"]["_data"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda token: {"_data": f"82{1:08X}{1:08X}{token[18:]}"},
        lambda _: {"_data": "garbage"},
        lambda token: {"_data": token[:-1]},
        lambda token: {"_data": token[:30]},
        lambda _: {"_data": "82"},
        lambda _: {"_data": ""},
        lambda _: {"_data": 5},
        lambda _: {"other": 1},
        lambda token: {"_data": f"{token[:18]}2BFF{token[22:]}"},
        lambda token: {"_data": f"{token[:22]}00{token[24:]}"},
        lambda token: {"_data": f"{token}0F"},
    ],
    ids=["old", "garbage", "half a byte", "cut", "short", "empty", "a number", "no data", "version", "type", "long"],
)
def test_a_damaged_token_costs_nothing_if_the_time_is_known(own: Any, rows: Any, damage: Any) -> None:
    """The server refuses it, by any of dozens of codes, and the stream goes on from the position's time."""
    position = Position(just_after(cluster_time(own)), damage(token_of_an_event(own)))
    rows.insert_one({"_id": 1})
    listening = Listening(own, position=position)
    heard = listening.heard()
    assert [key for event in heard if isinstance(event, stream.Changed) for key in event.keys] == [1]
    assert not [event for event in heard if isinstance(event, stream.HistoryLost)]
    assert len(listening.stop.delays) <= 1


@pytest.mark.parametrize("spelled", [str.upper, str.lower])
@pytest.mark.parametrize("whole", [True, False], ids=["a token", "a time"])
def test_a_place_in_the_future_is_told_with_a_fresh_one(own: Any, rows: Any, spelled: Any, whole: bool) -> None:
    """Whatever says so: no event would come until then."""
    now = cluster_time(own)
    ahead = Timestamp(now.time + 3600, 1)
    token = {"_data": spelled(f"82{ahead.time:08X}{ahead.inc:08X}{token_of_an_event(own)[18:]}")}
    listening = Listening(own, position=Position(now, token) if whole else Position(ahead))
    heard = listening.heard()
    (lost,) = [event for event in heard if isinstance(event, stream.HistoryLost)]
    assert "lies in the future" in lost.reason
    assert now <= lost.fresh.cluster_time < ahead
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]


def test_an_empty_token_counts_as_none(own: Any, rows: Any) -> None:
    """The driver would start from now without a word; the cluster time is known."""
    position = Position(just_after(cluster_time(own)), {})
    rows.insert_one({"_id": 1})
    assert Listening(own, position=position).changed() == [1]


def test_a_time_that_is_gone_from_the_oplog_is_told_with_a_fresh_place(own: Any, rows: Any) -> None:
    """As a daemon meets it that was away for longer than the oplog reaches back."""
    listening = Listening(own)
    fail(own, "aggregate", 286)
    heard = listening.heard()
    assert [type(event) for event in heard] == [stream.HistoryLost, stream.Opened]
    rows.insert_one({"_id": 2})
    assert listening.changed() == [2]


@pytest.mark.parametrize("code", [136, 280, 286])
def test_history_that_is_lost_while_reading_is_told_with_a_fresh_place(own: Any, rows: Any, code: int) -> None:
    """A reader that was overtaken by the oplog, a fatal error of the stream."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    fail(own, "getMore", code)
    rows.insert_one({"_id": 2})
    heard = listening.heard()
    (lost,) = [event for event in heard if isinstance(event, stream.HistoryLost)]
    assert str(code) in lost.reason or "failCommand" in lost.reason
    rows.insert_one({"_id": 3})
    assert 3 in listening.changed()


@pytest.mark.parametrize("code", [6, 43, 216, 11601])
@pytest.mark.parametrize("command", ["getMore", "aggregate"])
def test_a_stream_that_breaks_goes_on_where_it_was(own: Any, rows: Any, code: int, command: str) -> None:
    """Whether the driver resumes or gives up, and also where opening fails, several times over: nothing is lost."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    fail(own, "getMore", code)
    rows.insert_one({"_id": 2})
    if command == "aggregate":
        assert listening.changed() == [2]
        fail(own, "aggregate", code, 3)
        listening = Listening(own, position=listening.position)
        rows.insert_one({"_id": 3})
        assert listening.changed() == [3]
        return
    heard = listening.heard()
    assert [key for event in heard if isinstance(event, stream.Changed) for key in event.keys] == [2]
    assert not [event for event in heard if isinstance(event, stream.HistoryLost)]


@pytest.mark.parametrize("code", [13, 18])
def test_a_refusal_says_what_to_grant_and_is_not_asked_again_at_once(own: Any, rows: Any, code: int) -> None:
    """Somebody has to act first."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    listening.changed()
    fail(own, "getMore", code)
    fail_again = listening.heard()
    rows.insert_one({"_id": 2})
    (refused,) = [event for event in fail_again if isinstance(event, stream.Interrupted)]
    assert "changeStream" in refused.reason
    assert all(delay >= 5 for delay in listening.stop.delays)
    assert len(listening.stop.delays) == 1
    assert listening.changed() == [2]


def test_waits_grow_while_it_cannot_be_opened(own: Any, rows: Any) -> None:
    """From a twentieth of a second to a few."""
    fail(own, "aggregate", 8, 12)  # one that the driver does not try again by itself
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    delays = listening.stop.delays
    assert len(delays) == 12
    assert delays[0] < 0.2
    assert max(delays) <= 5
    assert delays[-1] >= 2.5


def test_a_server_that_is_no_replica_set_is_named(own: Any, rows: Any) -> None:
    """With the remedy."""
    fail(own, "aggregate", 40573)
    (interrupted,) = [event for event in Listening(own).heard() if isinstance(event, stream.Interrupted)]
    assert "--replSet" in interrupted.reason
    assert rows.count_documents({}) == 0


def test_a_killed_cursor_goes_on_where_it_was(own: Any, rows: Any) -> None:
    """As a server does with cursors of a session that it ends."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    pipeline = [
        {"$currentOp": {"idleCursors": True, "allUsers": True}},
        {"$match": {"type": "idleCursor", "ns": {"$regex": f"^{own.name}\\."}}},
    ]
    (idle,) = own.client.admin.aggregate(pipeline)
    own.command({"killCursors": idle["ns"].partition(".")[2], "cursors": [idle["cursor"]["cursorId"]]})
    rows.insert_one({"_id": 2})
    assert listening.changed() == [2]


def test_it_stops_when_told_to(own: Any, rows: Any) -> None:
    """The generator ends."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    listening.heard()
    listening.stop.set()
    assert [event for event in listening._events if not isinstance(event, stream.Reached)] == []


class _any(Timestamp):  # noqa: N801  # reads as a word
    """Equal to every time."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timestamp)

    __hash__ = Timestamp.__hash__


@pytest.mark.parametrize(("code", "times"), [(43, 8), (189, 1), (10107, 1), (11602, 1)])
def test_a_stream_that_never_flows_again_is_opened_seldom(own: Any, rows: Any, code: int, times: int) -> None:
    """Whatever the driver would have resumed by itself: each opening is seen, and the pauses grow."""
    listening = Listening(own)
    rows.insert_one({"_id": 1})
    assert listening.changed() == [1]
    fail(own, "getMore", code, times)
    rows.insert_one({"_id": 2})
    heard: list[stream.Event] = []
    flowing = False
    while not flowing:
        heard.append(event := next(listening._events))
        flowing = isinstance(event, stream.Reached) and event.flowing
    assert [key for event in heard if isinstance(event, stream.Changed) for key in event.keys] == [2]
    assert sum(isinstance(event, stream.Opened) for event in heard) == times
    assert sum(isinstance(event, stream.Interrupted) for event in heard) == times
    assert not [event for event in heard if isinstance(event, stream.HistoryLost)]
    assert len(listening.stop.delays) == times
    assert times == 1 or sum(listening.stop.delays) > 3


def test_a_stream_that_does_not_get_past_a_place_goes_round_it(own: Any, rows: Any) -> None:
    """The event of a row with a very large `_id` has more than 16 MB, and no retry makes it smaller."""
    rows.insert_one({"_id": 0})
    listening = Listening(own)
    rows.insert_one({"_id": "x" * 6_000_000})
    before = cluster_time(own)
    heard = listening.heard()
    (lost,) = [event for event in heard if isinstance(event, stream.HistoryLost)]
    assert lost.fresh.cluster_time >= before
    assert len(listening.stop.delays) <= 12
    rows.insert_one({"_id": 2})
    assert listening.changed() == [2]


def test_many_rows_with_large_ids_come_in_smaller_batches(own: Any, rows: Any) -> None:
    """600 rows whose `_id`s have 50 KB each; none is left out."""
    rows.insert_one({"_id": 0})
    listening = Listening(own)
    keys = [f"{n:03}" + "x" * 50_000 for n in range(600)]
    for begin in range(0, 600, 100):
        rows.insert_many({"_id": key} for key in keys[begin : begin + 100])
    assert listening.changed() == keys


def test_a_batch_that_the_server_cannot_send_is_asked_for_in_parts(own: Any, rows: Any) -> None:
    """The server refuses a reply of more than 16 MB; a smaller batch passes."""
    listening = Listening(own)
    rows.insert_many({"_id": n} for n in range(10))
    assert listening.changed() == list(range(10))
    fail(own, "getMore", 10334, 2)
    rows.insert_many({"_id": n} for n in range(10, 20))
    heard = listening.heard()
    assert [key for event in heard if isinstance(event, stream.Changed) for key in event.keys] == list(range(10, 20))
    assert not [event for event in heard if isinstance(event, stream.HistoryLost)]


def test_the_oplog_that_is_left_behind_a_position_is_measured(own: Any, rows: Any) -> None:
    """All of it at its end, nothing before its begin."""
    rows.insert_one({"_id": 0})
    at_end = headroom(own, cluster_time(own))
    assert at_end is not None
    assert at_end[1] == 1.0
    lost = headroom(own, Timestamp(1, 1))
    assert lost is not None
    assert lost[1] == 0.0
