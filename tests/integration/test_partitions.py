"""Processes that share the keys of a listener: each key is in one share, and a change of their number loses nothing."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId
from bson.timestamp import Timestamp
from harness.daemons import eventually
from harness.models import digest
from harness.oracle import Oracle, expecting
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, Workplace, declared
from pymongo.database import Database

from components.errors import Fenced
from components.raw_value import RawValue, document, identity
from daemon.listeners import change_stream as stream
from daemon.listeners.scan import pages
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.partition import WHOLE, Partition, combined, everyone
from daemon.store.rows.dead_letters import DeadLetters, listed, retry
from daemon.store.rows.positions import Position, Positions, cluster_time
from daemon.store.rows.scans import Mark, Scans
from daemon.store.service import requests

NOT_UTF8 = RawValue(b"\x02\x03\x00\x00\x00\xff\xfe\x00")
TWICE = RawValue(
    b"\x03" + document({}, {"a": 1}).raw[:-1].replace(b"\x0c", b"\x13", 1) + b"\x10a\x00\x02\x00\x00\x00\x00"
)
ODD: list[Any] = [
    *(5, Int64(6), 7.0, 7.5, Decimal128("8"), Decimal128("9.5"), -0.0, float("nan"), float("inf"), 2**62, -(2**63)),
    *(1e300, Decimal128("1E+6000"), Decimal128("-Infinity"), True, False, None, MinKey(), MaxKey(), Timestamp(1, 2)),
    *(
        "",
        "a",
        "A",
        "x" * 10_000,
        b"x",
        Binary(b"y", 5),
        Binary(b"\x00" * 16, 4),
        ObjectId(),
        Code("x"),
        Code("x", {"a": 1}),
    ),
    *({}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": [1, {"b": None}]}, NOT_UTF8, TWICE),
]
ONE_MARK = Mark(3, "scope")


@pytest.fixture
def own(database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Database[dict[str, Any]]:
    monkeypatch.setattr(stream, "AWAIT_MS", 50)
    return open_database(database.client, database.name)


def heard(own: Database[dict[str, Any]], partition: Partition, since: Timestamp) -> list[Any]:
    """The keys of all changes since then, and of the requests, that the stream of a partition names."""
    end = cluster_time(own)
    own["noise"].insert_one({})  # moves the place of a stream that has nothing to say
    keys: list[Any] = []
    subscription = stream.Subscription(SERVICE, (TABLE,), partition=partition)
    for event in stream.watch(own, subscription, Position(since), threading.Event()):
        match event:
            case stream.Changed(_, changed, _):
                keys += changed
            case stream.Requested(_, key, _):
                keys.append(key)
            case stream.Reached(position, _) if position.cluster_time > end:
                break
    return keys


@pytest.mark.parametrize("of", [2, 3, 64])
def test_every_id_is_in_one_share_of_stream_scan_requests_and_letters(own: Database[dict[str, Any]], of: int) -> None:
    """Of every type and value that an `_id` may have: one share in each of them, and the same one."""
    rows, start = own[TABLE], cluster_time(own)
    letters = own[names.DEAD_LETTERS]
    for key in ODD:
        rows.insert_one(document({"x": "a"}, {"_id": key}))
        letters.insert_one(
            document({"table": TABLE}, {"_id": document({"service": SERVICE, "listener": LISTENER}, {"row": key})})
        )
    scanned: Counter[Any] = Counter()
    for partition in everyone(of):
        page = [
            identity(k) for some in pages(rows, start, None, resumed=False, size=3, partition=partition) for k in some
        ]
        scanned.update(page)
        dead = DeadLetters(own, SERVICE, LISTENER, TABLE, partition)
        dead.load()
        assert set(dead.rows()) == set(page)
        if of < 64:
            assert Counter(map(identity, heard(own, partition, start))) == Counter(page)
    assert scanned == Counter(map(identity, ODD))
    asked = cluster_time(own)
    for key in ODD:
        requests.retry(own, {"service": SERVICE, "listener": LISTENER, "row": key})
    for partition in everyone(of if of < 64 else 0):
        again = {identity(key) for key in heard(own, partition, Timestamp(asked.time, asked.inc + 1))}
        share = {identity(k) for some in pages(rows, start, None, resumed=False, partition=partition) for k in some}
        assert again == share


def test_numbers_that_are_the_same_id_are_in_the_same_share(own: Database[dict[str, Any]]) -> None:
    """5, 5.0, a long and a decimal are one `_id` to MongoDB: a request by another of them reaches the row's share."""
    for spellings in ([5, Int64(5), 5.0, Decimal128("5"), Decimal128("5.00")], [0, -0.0, Decimal128("-0")]):
        found = []
        for number in spellings:
            own[TABLE].insert_one({"_id": number})
            hits = [own[TABLE].count_documents({"$expr": each.holds("$_id")}) for each in everyone(7)]
            found.append(hits)
            own[TABLE].delete_many({})
        assert all(hits == found[0] and sum(hits) == 1 for hits in found)


# ---- another number of processes ------------------------------------------------------------------------------------


def position(own: Database[dict[str, Any]], epoch: int, partition: Partition) -> Positions:
    return Positions(own, SERVICE, WORKER, epoch, partition)


def test_each_new_process_begins_at_the_earliest_position_of_the_old_ones(own: Database[dict[str, Any]]) -> None:
    """One process, then three, two, one again. A token is for one filter, so only the time is carried over."""
    kept = own[names.POSITIONS]
    whole = position(own, 1, WHOLE)
    whole.claim("h")
    whole.save(Position(Timestamp(50, 1), {"_data": "8200000032000000012B"}), "h")
    assert "of" not in (kept.find_one() or {})
    for each in everyone(3):
        one = position(own, 2, each)
        assert one.claim("h3") == Position(Timestamp(50, 1))
        one.save(Position(Timestamp(60 + each.index, 1)), "h3")
    assert position(own, 2, Partition(1, 3)).claim("h3") == Position(Timestamp(61, 1))
    for each in reversed(everyone(2)):
        one = position(own, 2, each)
        assert one.claim("h2") == Position(Timestamp(60, 1))
        one.save(Position(Timestamp(80 - each.index, 1)), "h2")
    assert position(own, 3, WHOLE).claim("h") == Position(Timestamp(79, 1))
    assert set(kept.find_one() or {}) == {"_id", "epoch", "cluster_time", "sessions", "save"}


def test_a_process_that_has_no_position_makes_all_new_ones_begin_anew(own: Database[dict[str, Any]]) -> None:
    """The rows of its share are not known to be predicted: without a position every table is scanned."""
    both = [position(own, 1, each) for each in everyone(2)]
    for each in both:
        each.claim("h")
    both[0].save(Position(Timestamp(60, 1)), "h")
    assert [position(own, 2, each).claim("h") for each in everyone(3)] == [None] * 3


def test_a_process_of_the_old_number_is_fenced_by_the_epoch(own: Database[dict[str, Any]]) -> None:
    """A leader that was paused saves no position, begins and ends no scan; also if the same number comes back."""
    old = [position(own, 1, each) for each in everyone(2)]
    scans = [Scans(own, SERVICE, LISTENER, 1, each) for each in everyone(2)]
    for positions, scan in zip(old, scans, strict=True):
        positions.claim("h")
        positions.save(Position(Timestamp(60, 1)), "h")
        run = scan.begin(ONE_MARK, "first start", "oldest")
    for number, epoch in ((3, 2), (1, 3), (2, 4)):
        for each in everyone(number):
            Scans(own, SERVICE, LISTENER, epoch, each).claim()
            assert position(own, epoch, each).claim("h") == Position(Timestamp(60, 1))
        for positions, scan in zip(old, scans, strict=True):
            scan.claim()
            with pytest.raises(Fenced):
                positions.claim("h")
            with pytest.raises(Fenced):
                positions.save(Position(Timestamp(90, 1)), "h")
            with pytest.raises(Fenced):
                scan.begin(ONE_MARK, "again", "oldest")
            with pytest.raises(Fenced):
                scan.due(ONE_MARK, "oldest")
        scans[-1].progress(run, 7, 7)
        assert not scans[-1].finish(run, 7)
        assert combined(own[names.SCANS].find_one() or {})["state"] == "running"


def test_a_scan_that_all_have_finished_stays_finished_and_any_other_begins_again(own: Database[dict[str, Any]]) -> None:
    """Its mark counts for the new processes only if every old one had it; rows that it stands in for stay owed."""
    first = Scans(own, SERVICE, LISTENER, 1)
    assert first.finish(first.begin(ONE_MARK, "first start", "oldest"), 10)
    halves = [Scans(own, SERVICE, LISTENER, 2, each) for each in everyone(2)]
    for half in halves:
        half.claim()
        assert half.due(ONE_MARK, "oldest") is None
    assert combined(own[names.SCANS].find_one() or {})["done"] == 10
    newer = Mark(4, "scope")
    run = halves[0].begin(newer, "version 2 is live", "oldest", Timestamp(7, 1))
    halves[0].progress(run, 3, 3)
    for each in everyone(3):  # one half scans for the new mark, the other does not know of it yet
        third = Scans(own, SERVICE, LISTENER, 3, each)
        third.claim()
        assert third.owed() == Timestamp(7, 1)
        due = third.due(newer, "oldest")
        assert due is not None
        assert (due.resumed, due.done) == (False, 0)
        third.finish(due, 4)
    assert combined(own[names.SCANS].find_one() or {})["mark"] == newer.document()
    whole = Scans(own, SERVICE, LISTENER, 4)
    whole.claim()
    assert whole.due(newer, "oldest") is None
    assert "of" not in (own[names.SCANS].find_one() or {})


@pytest.mark.parametrize(
    "garbage",
    [
        {"of": "x"},
        {"of": 2},
        {"of": 2, "partitions": {"0": 5}},
        {"of": 10**6, "partitions": {}},
        {"of": 3, "partitions": 5},
        {"of": 3, "partitions": {"1": 5}},
    ],
)
@pytest.mark.parametrize("partition", [WHOLE, Partition(1, 3)])
def test_a_document_that_is_divided_in_no_known_way_counts_as_none(
    own: Database[dict[str, Any]], garbage: dict[str, Any], partition: Partition
) -> None:
    """Somebody wrote it: every row is scanned."""
    own[names.POSITIONS].insert_one({"_id": f"{SERVICE}/{WORKER}", **garbage})
    own[names.SCANS].insert_one({"_id": f"{SERVICE}/{LISTENER}", **garbage})
    scans = Scans(own, SERVICE, LISTENER, 1, partition)
    scans.claim()
    assert scans.due(ONE_MARK, "oldest") is not None
    one = position(own, 1, partition)
    assert one.claim("h") is None
    one.save(Position(Timestamp(5, 1)), "h")
    assert position(own, 2, partition).claim("h") == Position(Timestamp(5, 1))


def test_processes_that_begin_at_the_same_moment_do_not_fence_each_other(own: Any) -> None:
    """MongoDB answers the later of two inserts of a document with DuplicateKeyError; it is the neighbour's."""
    wrong: list[BaseException] = []

    def begin(n: int, partition: Partition, together: threading.Barrier) -> None:
        together.wait()
        try:
            Scans(own, SERVICE, f"L{n}", 1, partition).begin(ONE_MARK, "first start", "oldest")
            Positions(own, SERVICE, f"w{n}", 1, partition).save(Position(Timestamp(5, 1)), "h")
        except Fenced as error:
            wrong.append(error)

    for n in range(60):
        together = threading.Barrier(4)
        threads = [threading.Thread(target=begin, args=(n, each, together)) for each in everyone(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    own[names.SCANS].update_one({"_id": f"{SERVICE}/L0"}, {"$set": {"epoch": 2}})
    own[names.LEASES].insert_one({"_id": SERVICE, "epoch": 2})
    with pytest.raises(Fenced, match="owns the scan of"):
        Scans(own, SERVICE, "L0", 1, everyone(4)[0]).begin(ONE_MARK, "another", "oldest")


# ---- real processes -------------------------------------------------------------------------------------------------


def test_two_processes_share_the_rows_of_a_chain_and_of_two_tables(place: Workplace) -> None:
    """Each row is predicted by one of them, and the second listener of the chain by the same."""
    place.declare(chain())
    team = place.run_all()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(300))
    place.database["others"].insert_many({"_id": f"o{n}", "x": f"x{n}"} for n in range(300))
    oracles = [
        Oracle(place.database),
        Oracle(
            place.database,
            listener="C",
            fields=("_outputs.L.value",),
            expect=lambda row: expecting()({"x": digest(row["x"])}),
        ),
        Oracle(place.database, table="others", listener="O"),
    ]
    for oracle in oracles:
        oracle.settle()
    assert team.stop() == 0
    for name in (LISTENER, "C", "O"):
        predicted = [member.rows(name)["predicted"] for member in team.members]
        assert 300 <= sum(predicted) < 400, name  # a row of C is in one batch at a time, of its insert or of its update
        assert min(predicted) > 50, name


def chain() -> dict[str, Any]:
    found = declared()
    more = declared(key="_outputs.L.value", model="harness.models:digest")["listeners"][LISTENER]
    other = declared()["listeners"][LISTENER] | {"table": "others"}
    tables = {**found["tables"], "others": found["tables"][TABLE]}
    return {**found, "tables": tables, "listeners": {**found["listeners"], "C": more, "O": other}}


def test_a_dead_row_is_retried_by_the_process_that_has_its_key(place: Workplace) -> None:
    """And counted once; each process has the letters of its own share."""
    place.declare(declared("harness.models:fails_on_poison", batched=True))
    place.rows.insert_many({"_id": n, "x": "poison" if n < 8 else "good"} for n in range(80))
    team = place.run_all()
    eventually("all are dead", lambda: place.database[names.DEAD_LETTERS].count_documents({}) == 8)
    eventually("each is reported once", lambda: sum(each.listener()["dead_letters"] for each in team.members) == 8)
    eventually("each is counted", lambda: team.rows()["dead"] >= 8)
    for letter in list(listed(place.database, SERVICE, {})):
        retry(place.database, letter)
    eventually("each is tried once more", lambda: team.rows()["dead"] >= 16)
    assert team.stop() == 0
    assert team.rows()["dead"] < 24  # 24 if both processes tried each


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Any) -> Any:
    with Workplace(mongo_uri, database, tmp_path, partitions=2) as workplace:
        yield workplace
