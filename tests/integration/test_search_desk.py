"""Searches of clients that only speak to MongoDB: a document in `_predictd.searches`, its nearest rows out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Binary
from harness import vectors
from harness.daemons import eventually
from harness.processes import SERVICE, TABLE, WORKER, Workplace, declarations
from pymongo.database import Database

from components.datatypes import datatype
from components.raw_value import RawValue, document
from daemon.store import names
from daemon.store.service.searches import SearchRequests

KIND = datatype("vector[4]")


@pytest.fixture
def place(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


def declared(model: str = "spread") -> dict[str, Any]:
    """Listeners `embed` and `other`, of two workers, each with an index of its name."""
    listener = {"table": TABLE, "key": "x", "model": "embed", "output": "vector[4]"}
    made = declarations(
        {TABLE: {"x": "float"}},
        {"embed": {"object": f"harness.vectors:{model}"}},
        {"embed": {**listener, "worker": WORKER}, "other": {**listener, "worker": "o"}},
    )
    return made | {"indexes": {name: {"listener": name, "measure": "dot"} for name in ("embed", "other")}}


def insert(place: Workplace, count: int) -> None:
    place.rows.insert_many({"_id": n, "x": float(n)} for n in range(count))


def asked(place: Workplace, **request: Any) -> Any:
    return place.database[names.SEARCHES].insert_one({"service": SERVICE, **request}).inserted_id


def answered(place: Workplace, request: Any) -> dict[str, Any]:
    """The request, once it has an answer."""

    def answer() -> dict[str, Any] | None:
        found = place.database[names.SEARCHES].find_one({"_id": request})
        return found if found is not None and found.get("state") in ("done", "failed") else None

    found: dict[str, Any] = eventually(f"{request} is answered", answer)
    return found


def ids(answer: dict[str, Any]) -> list[Any]:
    assert answer["state"] == "done", answer
    return [each["_id"] for each in answer["found"]]


def current(place: Workplace, listener: str = "embed") -> None:
    missing = {f"_outputs.{listener}.value": {"$exists": False}}
    eventually("each row has its vector", lambda: place.rows.count_documents(missing) == 0)


def test_a_document_in_and_neighbours_out(place: Workplace) -> None:
    """By a document and by a vector; each change of the rows is in the next answer."""
    place.declare(declared())
    insert(place, 20)
    before = asked(place, index="embed", like={"x": 3.0}, n=2)  # while no worker runs
    place.run()
    current(place)
    answered(place, before)
    answer = answered(place, asked(place, index="embed", like={"x": 3.0}, n=3))
    assert ids(answer) == [19, 18, 17]
    assert answer["found"][0]["score"] == pytest.approx(float(vectors.spread(3.0) @ vectors.spread(19.0)))
    assert (answer["compared"], answer["of"], answer["version"], answer["exact"]) == (20, 20, 1, True)
    assert answer["like"] == {"x": 3.0}
    assert answer["answered_at"] is not None
    for like in ([0, -1, 0, 0], KIND.encode([0, -1, 0, 0])):
        assert ids(answered(place, asked(place, index="embed", like=like)))[:2] == [0, 1]
    place.rows.delete_one({"_id": 19})
    assert ids(answered(place, asked(place, index="embed", like={"x": 3.0}, n=1))) == [18]


def test_what_cannot_be_answered_has_a_reason(place: Workplace) -> None:
    """One mistake after the other; the worker goes on."""
    place.declare(declared())
    insert(place, 3)
    worker = place.run()
    current(place)
    for request, reason in (
        ({"index": "none", "like": {"x": 1.0}}, "there is no index 'none'; there is embed, other"),
        ({"like": {"x": 1.0}}, "there is no index None"),
        ({"index": 7, "like": {"x": 1.0}}, "there is no index 7"),
        ({"index": "embed"}, "is null; expected a vector of 4 numbers"),
        ({"index": "embed", "like": "text"}, "expected a vector of 4 numbers"),
        ({"index": "embed", "like": [1.0]}, "expected a vector of 4 numbers"),
        ({"index": "embed", "like": [float("inf"), 0.0, 0.0, 0.0]}, "holds nan or an infinity"),
        ({"index": "embed", "like": {}}, "no field 'x'"),
        ({"index": "embed", "like": {"x": "a"}}, "DecodeError in decode: x: expected a float"),
        ({"index": "embed", "like": {"x": -1.0}}, "ValueError in preprocess: a negative number"),
        ({"index": "embed", "like": {"x": 1.0}, "n": 0}, "from 1 to 1000, got 0"),
        ({"index": "embed", "like": {"x": 1.0}, "n": 10_000}, "from 1 to 1000, got 10000"),
        ({"index": "embed", "like": {"x": 1.0}, "n": "3"}, "from 1 to 1000, got '3'"),
    ):
        answer = answered(place, asked(place, **request))
        assert answer["state"] == "failed"
        assert reason in answer["error"].replace("in predict:", "in preprocess:")
    assert len(ids(answered(place, asked(place, index="embed", like={"x": 1.0})))) == 3
    assert worker.stop() == 0


def test_each_request_is_answered_by_the_worker_of_its_index(place: Workplace) -> None:
    """A request for another worker's index, or of another service, stays as it is until that one runs."""
    place.declare(declared())
    insert(place, 3)
    place.run()
    current(place)
    theirs = asked(place, index="other", like={"x": 1.0})
    foreign = place.database[names.SEARCHES].insert_one({"service": "t", "index": "embed", "like": {"x": 1.0}})
    assert len(ids(answered(place, asked(place, index="embed", like={"x": 1.0})))) == 3
    for left in (theirs, foreign.inserted_id):
        assert "state" not in (place.database[names.SEARCHES].find_one({"_id": left}) or {})
    place.start(worker="o").until_running()
    assert answered(place, theirs)["state"] == "done"


def test_what_a_dead_process_was_computing_has_failed(place: Workplace) -> None:
    """It may be why the process died, so it is not begun again. What a neighbour computes is left to it."""
    place.declare(declared())
    insert(place, 3)
    lost, neighbours = (
        asked(place, index="embed", like={"x": 1.0}, state="running", by=name) for name in (WORKER, f"{WORKER}/1")
    )
    place.run()
    answer = answered(place, lost)
    assert (answer["state"], answer["error"]) == ("failed", "the process that computed it ended; ask again")
    assert (place.database[names.SEARCHES].find_one({"_id": neighbours}) or {})["state"] == "running"


def test_what_no_worker_answers_has_failed_after_a_while(place: Workplace) -> None:
    """As of a listener that is paused, or whose worker cannot start; not what is being computed, nor another's."""
    waits, computed = asked(place, index="embed", like={"x": 1.0}), asked(place, index="embed", state="running", by="w")
    others = place.database[names.SEARCHES].insert_one({"service": "other", "index": "embed"}).inserted_id
    leader = SearchRequests(place.database, SERVICE, "leader")
    leader.give_up()
    assert "state" not in (place.database[names.SEARCHES].find_one({"_id": waits}) or {})

    def late() -> bool:
        leader.give_up(0.2)
        return "state" in (place.database[names.SEARCHES].find_one({"_id": waits}) or {})

    eventually("it is given up", late)
    answer = answered(place, waits)
    assert (answer["state"], answer["error"][:33]) == ("failed", "no worker has answered for 0.2 s;")
    assert (place.database[names.SEARCHES].find_one({"_id": computed}) or {})["state"] == "running"
    assert "seen_at" not in (place.database[names.SEARCHES].find_one({"_id": others}) or {})


def test_an_answer_is_of_one_version(place: Workplace) -> None:
    """After a swap the vector and the rows are the new version's."""
    place.declare(declared())
    insert(place, 5)
    place.run().stop()
    place.declare(declared("turned"))
    place.run()
    eventually("all are predicted anew", lambda: place.rows.count_documents({"_outputs.embed.version": 2}) == 5)
    answer = answered(place, asked(place, index="embed", like={"x": 1.0}))
    assert (ids(answer), answer["version"]) == ([1, 0, 2, 3, 4], 2)  # `turned` leaves 1 as it is


def test_odd_keys_of_requests_and_rows_are_answered(place: Workplace) -> None:
    """Whatever `_id` a client has chosen; rows are named by their `_id` as stored."""
    place.declare(declared())
    odd = RawValue(b"\x02\x02\x00\x00\x00\xff\x00")  # a string that is not UTF-8
    place.database.command("insert", TABLE, documents=[document({"x": 1.0}, {"_id": odd})])
    place.rows.insert_one({"_id": {"a": 1}, "x": 2.0})
    place.run()
    there = {"_outputs.embed.value": {"$exists": True}}
    eventually("both have vectors", lambda: place.rows.count_documents(there) == 2)
    for key in ("text", 1.0, {"b": [1]}, Binary(b"12", 2)):
        request = asked(place, _id=key, index="embed", like={"x": 1.0}, n=1)
        assert ids(answered(place, request)) == [{"a": 1}]
    both = asked(place, index="embed", like={"x": 1.0})
    done = {"_id": both, "state": "done", "found": {"$size": 2}}
    eventually("both are named", lambda: place.database[names.SEARCHES].count_documents(done) == 1)


def test_answers_are_removed_later(place: Workplace) -> None:
    """By a TTL index, from the moment of the answer."""
    place.declare(declared())
    place.run()
    searches = place.database[names.SEARCHES]
    made = eventually("it is made", lambda: searches.index_information().get("answered_at_1"))
    assert made["expireAfterSeconds"] == 3600
