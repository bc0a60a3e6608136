"""The rows of a listener on a real mongod: what a snapshot sees of them, what a guarded write does to them, and which
refuse it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp
from harness.parameters import shown
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from components.raw_value import identity
from daemon.handlers.predict.records import MISSING, Letter, Seen, Write
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.rows import raw_updates
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.outputs import Outputs
from daemon.store.rows.positions import cluster_time
from daemon.store.rows.raw_updates import Answer, Refusal
from daemon.store.rows.row_reader import value_at

NOW = Timestamp(1000, 1)
MANY = 64 * 1024 * 1024

IDS: list[Any] = [
    1,
    Int64(2**40),
    1.5,
    "1",
    "",
    b"\x00\xff",
    Binary(b"0123456789abcdef", 4),
    ObjectId(),
    None,
    True,
    False,
    datetime(2020, 1, 1),  # noqa: DTZ001  # as the driver gives it back
    DatetimeMS(10**15),
    Timestamp(5, 6),
    Decimal128("2.50"),
    float("inf"),
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
    {"a": {"b": [1, {"c": None}]}},
    {},
]


@pytest.fixture
def rows(database: Database[dict[str, Any]]) -> Collection[dict[str, Any]]:
    return open_database(database.client, database.name)["rows"]


def of(rows: Any, where: Any = None, fields: tuple[str, ...] = ("x",)) -> Outputs:
    return Outputs(rows, "L", fields, where or {})


def read(outputs: Outputs, *keys: Any, max_bytes: int = MANY) -> Any:
    return outputs.read(keys, None, max_bytes)


def output(value: Any, asof: Timestamp = NOW, generation: int = 1) -> dict[str, Any]:
    return {"value": value, "model": "f", "version": 1, "generation": generation, "asof": asof, "input": b"hash"}


def setting(key: Any, value: Any = "v", seen: Seen | None = None, asof: Timestamp = NOW) -> Write:
    return Write(key, seen or Seen(), "set", asof, 1, output(value, asof))


def held(rows: Any, key: Any = 1) -> Any:
    return rows.find_one({"_id": key}).get("_outputs", {}).get("L")


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_snapshot_tells_rows_from_strays_from_the_rest(rows: Any) -> None:
    """Those that match; those that do not and hold an output; all others have nothing to lose."""
    rows.insert_many(
        [
            {"_id": "match", "x": 1, "m": True},
            {"_id": "no key", "m": True},
            {"_id": "no match", "x": 1, "m": False},
            {"_id": "stray without key", "m": True, "_outputs": {"L": output(1)}},
            {"_id": "stray", "x": 1, "m": False, "_outputs": {"L": output(1)}},
            {"_id": "another's", "x": 1, "m": False, "_outputs": {"M": output(1)}},
        ]
    )
    keys = [row["_id"] for row in rows.find()] + ["gone"]
    snapshot = read(of(rows, {"m": True}), *keys)
    assert [row.key for row in snapshot.rows] == ["match"]
    assert {key for key, _ in snapshot.strays} == {"stray", "stray without key"}
    assert snapshot.unread == ()
    assert snapshot.at >= Timestamp(1, 1)


def test_a_snapshot_is_not_older_than_asked_for(rows: Any) -> None:
    """And everything in it is of one time."""
    rows.insert_one({"_id": 1, "x": "old"})
    rows.update_one({"_id": 1}, {"$set": {"x": "new"}})
    after = cluster_time(rows.database)
    snapshot = of(rows).read([1], after, MANY)
    assert snapshot.at >= after
    assert snapshot.rows[0].values == ("new",)


@pytest.mark.parametrize(
    ("held", "seen"),
    [
        ({}, Seen()),
        ({"_outputs": {}}, Seen()),
        ({"_outputs": {"L": {}}}, Seen(MISSING, present=True)),
        ({"_outputs": {"L": output(1)}}, Seen(NOW, 1, b"hash", present=True)),
        ({"_outputs": {"L": {"error": {}, "asof": NOW}}}, Seen(NOW, 0, None, error=True, present=True)),
        ({"_outputs": {"L": {"asof": None, "generation": "x"}}}, Seen(MISSING, 0, None, present=True)),
        ({"_outputs": {"L": 5}}, Seen()),
        ({"_outputs": {"L": None}}, Seen()),
        ({"_outputs": 5}, Seen()),
        ({"_outputs": None}, Seen()),
    ],
    ids=shown,
)
def test_whatever_stands_in_the_place_of_the_output_is_seen_for_what_it_is(rows: Any, held: Any, seen: Seen) -> None:
    """Ours, somebody's half of one, or nothing that could be one."""
    rows.insert_one({"_id": 1, "x": 1, **held})
    assert read(of(rows), 1).rows[0].seen == seen


def test_every_type_of_id_is_read_and_written(rows: Any) -> None:
    """Embedded documents with the order of their fields, dates that Python has none for, all in one batch."""
    rows.insert_many({"_id": key, "x": 1} for key in IDS)
    outputs = of(rows)
    snapshot = read(outputs, *IDS)
    assert {identity(row.key) for row in snapshot.rows} == {identity(key) for key in IDS}
    written = outputs.write([setting(row.key, repr(identity(row.key)), row.seen) for row in snapshot.rows])
    assert (written.missed, written.refused) == (frozenset(), {})
    assert all(row["_outputs"]["L"]["value"] == repr(identity(row["_id"])) for row in rows.find())
    # What matched nothing is told apart among them too.
    again = outputs.write(
        [setting(key, "late", Seen()) for key in IDS[::2]] + [setting(key, "late", _now()) for key in IDS[1::2]]
    )
    assert again.missed == {identity(key) for key in IDS[::2]} - {
        identity(key) for key in IDS[::2] if held(rows, key)["asof"] == NOW
    }


def _now() -> Seen:
    return Seen(NOW, 1, b"hash", present=True)


def test_equal_numbers_are_one_row_to_mongodb_and_come_back_as_stored(rows: Any) -> None:
    """1 and 1.0 cannot both be `_id`s; whoever asks with one gets the row as it is."""
    rows.insert_one({"_id": 1.0, "x": 1})
    assert [identity(row.key) for row in read(of(rows), 1.0).rows] == [identity(1.0)]


def test_the_input_hash_changes_with_the_value_and_its_type_only(rows: Any) -> None:
    """Not with what else the row holds."""
    values: list[Any] = [1, 1.0, "1", True, None, [1], {"a": 1, "b": 2}, {"b": 2, "a": 1}, b"1", Int64(1)]
    rows.insert_many({"_id": n, "x": value} for n, value in enumerate(values))
    outputs = of(rows)
    hashes = {row.key: row.input for row in read(outputs, *range(len(values))).rows}
    assert len(set(hashes.values())) == len(values)
    rows.update_many({}, {"$set": {"other": 1}})
    assert {row.key: row.input for row in read(outputs, *range(len(values))).rows} == hashes


def test_values_that_python_has_no_form_for_do_not_stop_the_batch(rows: Any) -> None:
    """A year 20000, a broken UTF-8 sequence: the batch is read, and each is its row's own matter."""
    rows.insert_one({"_id": 1, "x": DatetimeMS(10**15)})
    broken = bson.encode({"_id": 2, "x": "ab"}).replace(b"ab\x00", b"a\xff\x00")
    rows.database.command("insert", "rows", documents=[bson.raw_bson.RawBSONDocument(broken)])
    rows.insert_one({"_id": 3, "x": 1})
    assert len(read(of(rows), 1, 2, 3).rows) == 3


def test_rows_over_the_byte_limit_are_left_unread(rows: Any) -> None:
    """What a reply brings counts; nothing is read twice, nothing left out, and each read gets further."""
    for n in range(12):
        rows.insert_one({"_id": n, "x": bytes(4 * 1024 * 1024)})
    outputs, left, done = of(rows), [*range(12), "gone"], []
    while left:
        snapshot = outputs.read(left, None, 17 * 1024 * 1024)
        assert snapshot.rows or not snapshot.unread
        done += [row.key for row in snapshot.rows]
        assert set(snapshot.unread) < set(left)
        assert len(snapshot.rows) < 12
        left = list(snapshot.unread)
    assert sorted(done) == list(range(12))
    assert rows.database.client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["pinned"] == 0


def test_one_row_larger_than_the_limit_is_read_all_the_same(rows: Any) -> None:
    """It would be unread for ever otherwise."""
    rows.insert_one({"_id": 1, "x": bytes(15 * 1024 * 1024)})
    snapshot = read(of(rows), 1, max_bytes=1024)
    assert [row.key for row in snapshot.rows] == [1]
    assert snapshot.unread == ()


def test_a_table_that_does_not_exist_holds_no_rows(rows: Any) -> None:
    """It was dropped with the batch in flight."""
    snapshot = read(of(rows), 1, 2)
    assert (snapshot.rows, snapshot.strays, snapshot.unread) == ((), (), ())


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", {"b": {"c": 1}}), ("a.b.c", 1), ("a.b.d", None), ("a.x.y", None), ("list.b", [{"b": 1}]), ("none", None)],
)
def test_a_dotted_path_leads_through_documents(path: str, value: Any) -> None:
    """Through a list it gives the list itself."""
    assert value_at({"a": {"b": {"c": 1}}, "list": [{"b": 1}]}, path) == value


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "lands"),
    [
        ({"x": 1, "m": True}, True),
        ({"x": 1, "m": True, "_outputs": {}}, True),
        ({"x": None, "m": True}, True),
        ({"x": 1, "m": True, "_outputs": {"L": 5}}, True),
        ({"x": 1, "m": True, "_outputs": {"L": {"asof": NOW}}}, False),
        ({"x": 1, "m": True, "_outputs": {"L": {"asof": None}}}, True),
        ({"x": 1, "m": True, "_outputs": {"L": {"asof": "copied"}}}, True),
        ({"x": 1, "m": True, "_outputs": {"L": {"asof": {"$timestamp": 1}}}}, True),
        ({"x": 1, "m": False}, False),
        ({"x": 1}, False),
        ({"m": True}, False),
        (None, False),
    ],
    ids=repr,
)
def test_a_first_output_lands_where_there_is_none_and_the_row_matches(rows: Any, before: Any, lands: bool) -> None:
    """Otherwise it is told as missed, and changes nothing."""
    if before is not None:
        rows.insert_one({"_id": 1, **before})
    written = of(rows, {"m": True}).write([setting(1, asof=Timestamp(2000, 1))])
    assert written.missed == (frozenset() if lands else {identity(1)})
    after = rows.find_one({"_id": 1})
    if lands:
        assert after["_outputs"]["L"] == output("v", Timestamp(2000, 1))
    else:
        assert after == (None if before is None else {"_id": 1, **before})


@pytest.mark.parametrize("kind", ["set", "touch", "unset"])
@pytest.mark.parametrize(
    ("asof", "lands"),
    [(NOW, True), (Timestamp(1000, 2), False), (None, False), (MISSING, False), ("NOW", False)],
    ids=shown,
)
def test_a_later_write_lands_on_the_output_that_was_seen_only(rows: Any, kind: Any, asof: Any, lands: bool) -> None:
    """It compares and sets."""
    before = output("old") if asof is not MISSING else None
    if before:
        before["asof"] = asof
    rows.insert_one(
        {"_id": 1, "x": 1, "_outputs": {"L": before, "M": output("other")} if before else {"M": output("other")}}
    )
    new = Timestamp(3000, 1)
    write = Write(1, _now(), kind, new, 1, output("new", new) if kind == "set" else None)
    written = of(rows).write([write])
    after = rows.find_one({"_id": 1})["_outputs"]
    expected = {"set": output("new", new), "touch": output("old", new), "unset": None}[kind] if lands else before
    assert after.get("L") == expected
    assert after["M"] == output("other")
    missed = not lands and not (kind == "unset" and asof is MISSING)  # gone is gone
    assert written.missed == ({identity(1)} if missed else frozenset())


@pytest.mark.parametrize("there", [5, None, [], {}, {"value": 1}], ids=repr)
def test_a_stray_that_is_no_output_of_ours_can_be_taken_away(rows: Any, there: Any) -> None:
    """Whatever a client has left in the place of an output."""
    rows.insert_one({"_id": 1, "_outputs": {"L": there}})
    outputs = of(rows)
    ((key, seen),) = read(outputs, 1).strays
    written = outputs.write([Write(key, seen, "unset", NOW, 1)])
    assert written.missed == frozenset()
    assert rows.find_one({"_id": 1}) == {"_id": 1, "_outputs": {}}


def test_which_of_a_bulk_matched_nothing_is_found_out(rows: Any) -> None:
    """One was deleted, one was written by somebody else, one does not match any more; the others land."""
    rows.insert_many({"_id": n, "x": 1, "m": True} for n in range(10))
    rows.delete_one({"_id": 2})
    rows.update_one({"_id": 4}, {"$set": {"_outputs.L": output("theirs", Timestamp(9, 9))}})
    rows.update_one({"_id": 6}, {"$set": {"m": False}})
    written = of(rows, {"m": True}).write([setting(n) for n in range(10)])
    assert written.missed == {identity(n) for n in (2, 4, 6)}
    assert written.refused == {}
    assert {row["_id"] for row in rows.find({"_outputs.L.value": "v"})} == {0, 1, 3, 5, 7, 8, 9}


def test_a_bulk_that_is_sent_twice_missed_nothing(rows: Any) -> None:
    """Its answer was lost; what had landed is recognized."""
    rows.insert_many({"_id": n, "x": 1} for n in range(3))
    rows.insert_one({"_id": 3, "x": 1, "_outputs": {"L": output("old", Timestamp(5, 5))}})
    rows.insert_one({"_id": 4, "_outputs": {"L": output("old", Timestamp(5, 5))}})
    seen = Seen(Timestamp(5, 5), 1, b"hash", present=True)
    writes = [
        *(setting(n) for n in range(3)),
        Write(3, seen, "touch", NOW, 1),
        Write(4, seen, "unset", NOW, 1),
    ]
    for _ in range(2):
        written = of(rows).write(writes)
        assert (written.missed, written.refused) == (frozenset(), {})
    assert held(rows, 3) == output("old", NOW)


def test_the_answer_has_a_time_not_before_the_writes(rows: Any) -> None:
    """What is judged anew after a race is read not before it."""
    rows.insert_one({"_id": 1, "x": 1})
    before = cluster_time(rows.database)
    assert of(rows).write([setting(1)]).time > before
    assert of(rows).write([setting(2)]).time > before


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [5, "text", None, True], ids=repr)
def test_a_row_with_something_else_in_the_place_of_outputs_refuses(rows: Any, there: Any) -> None:
    """With a reason, and the rest of its bulk lands."""
    rows.insert_many([{"_id": 1, "x": 1, "_outputs": there}, {"_id": 2, "x": 1}])
    written = of(rows).write([setting(1), setting(2)])
    assert set(written.refused) == {identity(1)}
    assert "MongoDB refuses the write" in written.refused[identity(1)]
    assert written.missed == frozenset()
    assert held(rows, 2) is not None
    assert rows.find_one({"_id": 1})["_outputs"] == there


def test_a_validator_that_refuses_outputs_is_told(rows: Any) -> None:
    """By its code, for each row."""
    rows.insert_many({"_id": n, "x": 1} for n in range(3))
    rows.database.command("collMod", "rows", validator={"_outputs": {"$exists": False}})
    written = of(rows).write([setting(n) for n in range(3)])
    assert len(written.refused) == 3
    assert "code 121" in written.refused[identity(0)]


def test_writes_that_an_administrator_blocks_are_waited_for(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`setUserWriteBlockMode` says nothing about a row. A letter that was stored beside one that was refused goes with
    its row's output.
    """
    rows.insert_many([{"_id": n, "x": n} for n in range(2)])
    send = raw_updates.send

    def blocked(*arguments: Any, **options: Any) -> Answer:
        return Answer(send(*arguments, **options).matched, [Refusal(1, 371, "User writes blocked")])

    monkeypatch.setattr(raw_updates, "send", blocked)
    with pytest.raises(OperationFailure, match="User writes blocked"):
        of(rows).write([setting(0), setting(1)])
    letters = DeadLetters(rows.database, "s", "L", "rows")
    with pytest.raises(OperationFailure, match="User writes blocked"):
        letters.add([Letter(n, b"in", 1, 1, "write", "E", "m", "") for n in range(2)])
    assert rows.database[names.DEAD_LETTERS].count_documents({}) == 2
    monkeypatch.undo()
    letters.clear([identity(0), identity(1)])
    assert rows.database[names.DEAD_LETTERS].count_documents({}) == 0


def test_a_row_that_would_become_too_large_refuses(rows: Any) -> None:
    """A row holds 16 MB, and this one nearly does already; it can still be read, and its neighbours written."""
    rows.insert_one({"_id": 1, "x": bytes(16 * 1024 * 1024 - 100)})
    rows.insert_one({"_id": 2, "x": 1})
    outputs = of(rows)
    snapshot = read(outputs, 1, 2)
    assert {row.key for row in snapshot.rows} == {1, 2}
    written = outputs.write([setting(1, "y" * 1000), setting(2)])
    assert set(written.refused) == {identity(1)}
    assert written.missed == frozenset()
    assert held(rows, 2) is not None


def test_refusals_and_races_in_one_bulk_are_told_apart(rows: Any) -> None:
    """A refused row is not a missed one."""
    rows.insert_many([{"_id": 1, "x": 1, "_outputs": 5}, {"_id": 2, "x": 1}, {"_id": 3, "x": 1}])
    written = of(rows).write([setting(1), setting(2), setting(3), setting(4)])
    assert set(written.refused) == {identity(1)}
    assert written.missed == {identity(4)}


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [deep(90), {"$set": 1}, {"a.b": 1}, {"": 1}, Timestamp(0, 0), {"_id": 1}, [{"$x": [1]}]],
    ids=lambda value: repr(value)[:30],
)
def test_an_odd_output_lands_or_is_refused_and_harms_no_other(rows: Any, value: Any) -> None:
    """One row's output never fails the whole bulk."""
    rows.insert_many({"_id": n, "x": 1} for n in range(3))
    written = of(rows).write([setting(0), setting(1, value), setting(2)])
    assert written.missed == frozenset()
    assert set(written.refused) <= {identity(1)}
    assert held(rows, 0) is not None
    assert held(rows, 2) is not None
    if not written.refused:
        assert held(rows)["value"] == value
