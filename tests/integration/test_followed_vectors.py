"""The vectors of a listener's outputs in memory are those that the rows hold, whatever happens to rows and stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from bson import Binary, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure

from components import nearest
from components.datatypes import datatype
from components.errors import IndexFull
from components.nearest import KEY_BYTES
from components.raw_value import RawValue, document, identity
from daemon.listeners import followed_vectors
from daemon.listeners.followed_vectors import FollowedVectors
from daemon.store.connection import open_database

LENGTH = 8
KIND = datatype(f"vector[{LENGTH}]")
RNG = np.random.default_rng(1)
MUCH = 1 << 30


def vector() -> np.ndarray[Any, Any]:
    return RNG.normal(size=LENGTH).astype(np.float32)


def output(generation: int = 1, value: Any = None) -> dict[str, Any]:
    stored = KIND.encode(vector()) if value is None else value
    return {"value": stored, "generation": generation, "asof": Timestamp(1, 1)}


def row(key: Any, generation: int = 1) -> dict[str, Any]:
    return {"_id": key, "_outputs": {"embed": output(generation)}}


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    return open_database(database.client, database.name)


@pytest.fixture
def followed(data: Database[dict[str, Any]]) -> Iterator[FollowedVectors]:
    made = FollowedVectors(data, "docs", "embed", KIND, "cosine", MUCH)
    yield made
    made.close()


def held(followed: FollowedVectors, generation: int = 1) -> dict[Any, float]:
    """All keys with their scores for one and the same vector."""
    found = followed.current().nearest(np.arange(1.0, LENGTH + 1, dtype=np.float32), generation, MUCH)
    return {identity(key): score for key, score in found}


def stored(data: Database[dict[str, Any]], generation: int = 1) -> dict[Any, float]:
    """The same by brute force."""
    wanted = np.arange(1.0, LENGTH + 1)
    scores = {}
    for each in data.docs.find({"_outputs.embed.generation": generation, "_outputs.embed.value": {"$exists": True}}):
        value = KIND.decode(each["_outputs"]["embed"]["value"]).astype(np.float64)
        scores[identity(each["_id"])] = float(value @ wanted / np.linalg.norm(value) / np.linalg.norm(wanted))
    return scores


def agree(data: Database[dict[str, Any]], followed: FollowedVectors, generation: int = 1) -> None:
    ours, theirs = held(followed, generation), stored(data, generation)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-6)


def drop(docs: Any) -> None:
    docs.drop()
    docs.insert_many([row(key) for key in range(40, 50)])


def rename(docs: Any) -> None:
    docs.database.other.insert_many([row(key) for key in range(20, 23)])
    docs.database.other.rename("docs", dropTarget=True)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "inserted": lambda docs: docs.insert_one(row("new")),
    "a new output": lambda docs: docs.update_one({"_id": 3}, {"$set": {"_outputs.embed": output()}}),
    "the first output of a row": lambda docs: (
        docs.insert_one({"_id": "bare"}),
        docs.update_one({"_id": "bare"}, {"$set": {"_outputs.embed": output()}}),
    ),
    "an output unset": lambda docs: docs.update_one({"_id": 3}, {"$unset": {"_outputs.embed": ""}}),
    "all outputs unset by a client": lambda docs: docs.update_one({"_id": 3}, {"$unset": {"_outputs": ""}}),
    "an error in place of the output": lambda docs: docs.update_one(
        {"_id": 3}, {"$set": {"_outputs.embed": {"error": {"type": "X"}, "generation": 1}}}
    ),
    "a part of the output changed by a client": lambda docs: docs.update_one(
        {"_id": 3}, {"$set": {"_outputs.embed.value": KIND.encode(vector())}}
    ),
    "an output of another kind": lambda docs: docs.update_one(
        {"_id": 3}, {"$unset": {"_outputs.embed.value": ""}, "$set": {"_outputs.embed.value2": 1}}
    ),
    "another generation": lambda docs: docs.update_one({"_id": 3}, {"$set": {"_outputs.embed": output(2)}}),
    "replaced": lambda docs: docs.replace_one({"_id": 3}, row(3)),
    "replaced, without an output": lambda docs: docs.replace_one({"_id": 3}, {"x": 1}),
    "deleted": lambda docs: docs.delete_one({"_id": 3}),
    "the last one deleted": lambda docs: docs.delete_one({"_id": 9}),
    "all deleted": lambda docs: docs.delete_many({}),
    "many at once": lambda docs: (
        docs.delete_many({"_id": {"$lt": 5}}),
        docs.insert_many([row(ObjectId()) for _ in range(50)]),
    ),
    "dropped": drop,
    "another collection in its place": rename,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_vectors_follow_each_change(data: Database[dict[str, Any]], followed: FollowedVectors, change: str) -> None:
    """At once: what the server had committed when it was asked is in the answer."""
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    CHANGES[change](data.docs)
    agree(data, followed)
    agree(data, followed, 2)


def test_a_table_that_comes_later_is_followed(data: Database[dict[str, Any]], followed: FollowedVectors) -> None:
    assert held(followed) == {}
    data.docs.insert_many([row(key) for key in range(3)])
    agree(data, followed)


def test_a_touch_is_no_change(
    data: Database[dict[str, Any]], followed: FollowedVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resync touches each row: none of them is read again."""
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    read = FollowedVectors._read_again
    keys: list[Any] = []

    def noted(self: FollowedVectors, vectors: Any, dirty: Any, after: Any) -> None:
        keys.extend(dirty)
        read(self, vectors, dirty, after)

    monkeypatch.setattr(FollowedVectors, "_read_again", noted)
    data.docs.update_many({}, {"$set": {"_outputs.embed.asof": Timestamp(2, 2)}})
    data.docs.update_many({}, {"$set": {"text": "x", "_outputs.embed2": output()}})
    data.docs.update_one({"_id": 3}, {"$set": {"_outputs.embed": output()}})
    agree(data, followed)
    assert keys == [3]


@pytest.mark.parametrize("key", [1.0, Int64(2**40), "ä", b"\x00", Binary(b"12", 2), {"a": 1}, {"b": [1.0]}, None, True])
def test_a_row_is_known_by_its_key_as_stored(
    data: Database[dict[str, Any]], followed: FollowedVectors, key: Any
) -> None:
    """Whatever its `_id` is; 1 and 1.0 are one row to MongoDB, True is another."""
    data.docs.insert_one(row("other"))
    agree(data, followed)
    data.docs.insert_one(row(key))
    assert len(held(followed)) == 2
    data.docs.update_one({"_id": "other"}, {"$set": {"_outputs.embed": output()}})
    data.docs.delete_one({"_id": key})
    assert held(followed).keys() == {"other"}


def test_a_key_that_the_driver_cannot_decode_is_no_obstacle(
    data: Database[dict[str, Any]], followed: FollowedVectors
) -> None:
    odd = RawValue(b"\x02\x02\x00\x00\x00\xff\x00")  # a string that is not UTF-8
    raw: RawBSONDocument = document({"_outputs": {"embed": output()}}, {"_id": odd})
    data.docs.insert_one(row("other"))
    agree(data, followed)
    data.command("insert", "docs", documents=[raw])
    assert held(followed).keys() == {"other", odd}


def test_more_changes_than_are_read_by_key_bring_a_scan(
    data: Database[dict[str, Any]], followed: FollowedVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_vectors, "REREAD", 5)
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    data.docs.delete_many({"_id": {"$lt": 9}})
    agree(data, followed)


def test_a_stream_without_history_brings_a_scan(data: Database[dict[str, Any]], followed: FollowedVectors) -> None:
    """As after a long pause: the oplog has passed the place of the token."""
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    data.docs.delete_one({"_id": 1})
    followed._close_cursor()
    followed._token = {"_data": "82000000010000000129296E1404"}
    agree(data, followed)


def test_a_cursor_that_is_gone_is_opened_again(data: Database[dict[str, Any]], followed: FollowedVectors) -> None:
    """As the server ends one that was idle for half an hour: it goes on from the token."""
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    vectors = followed._vectors
    assert followed._cursor is not None
    data.command("killCursors", "$cmd.aggregate", cursors=[Int64(followed._cursor._id)])
    data.docs.delete_one({"_id": 1})
    agree(data, followed)
    assert followed._vectors is vectors


def test_what_was_read_from_the_stream_and_not_applied_is_read_again(
    data: Database[dict[str, Any]], followed: FollowedVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows cannot be read for a moment: no change is lost."""
    data.docs.insert_many([row(key) for key in range(10)])
    agree(data, followed)
    data.docs.delete_one({"_id": 1})

    def refused(*_: Any) -> None:
        raise OperationFailure("not allowed", 13)

    with monkeypatch.context() as patch:
        patch.setattr(FollowedVectors, "_read_again", refused)
        for _ in range(3):  # the second time the event comes with the opening of the stream
            with pytest.raises(OperationFailure):
                followed.current()
    agree(data, followed)


WIDE = datatype("vector[256]")


def wide(key: Any, generation: int = 1) -> dict[str, Any]:
    """A row near to others: its vector differs by its own part from one that every tenth shares."""
    shared = np.random.default_rng(RNG.integers(10)).normal(size=256)
    value = WIDE.encode((shared + RNG.normal(scale=0.5, size=256)).astype(np.float32))
    return {"_id": key, "_outputs": {"embed": output(generation, value)}}


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_vectors_beyond_the_limit_are_rounded_and_followed(data: Database[dict[str, Any]], measure: Any) -> None:
    """At least 95 of the 100 nearest are found, after each change of rows and version; all of them once they fit."""

    def hits(generation: int = 1) -> float:
        vectors, wanted = followed.current(), RNG.normal(size=256).astype(np.float32)
        query = {"_outputs.embed.generation": generation}
        given = {each["_id"]: WIDE.decode(each["_outputs"]["embed"]["value"]) for each in data.docs.find(query)}
        matrix = np.stack(list(given.values())).astype(np.float64)
        scores = matrix @ wanted / (np.linalg.norm(matrix, axis=1) if measure == "cosine" else 1.0)
        best = {list(given)[place] for place in np.argsort(-scores)[:100]}
        found = vectors.nearest(wanted, generation, 100)
        assert vectors.count(generation) == len(given)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        return len(best & {key for key, _ in found}) / 100

    one = 4 * 256 + KEY_BYTES
    followed = FollowedVectors(data, "docs", "embed", WIDE, measure, 1000 * one)
    data.docs.insert_many([wide(key) for key in range(1000)])
    assert hits() == 1.0
    assert followed.current().exact
    data.docs.insert_many([wide(key) for key in range(1000, 2000)])
    assert hits() >= 0.95
    assert not followed.current().exact
    for key in range(0, 400, 2):
        data.docs.replace_one({"_id": key}, wide(key))
    data.docs.delete_many({"_id": {"$gte": 1500, "$lt": 1700}})
    assert hits() >= 0.95
    for key in range(300):
        data.docs.replace_one({"_id": key}, wide(key, 2))
    assert hits() >= 0.95
    assert hits(2) >= 0.95
    data.docs.delete_many({"_id": {"$gte": 700}})
    assert hits() == 1.0
    assert followed.current().exact
    followed.close()


def test_more_vectors_than_the_limit_holds_rounded_are_refused(data: Database[dict[str, Any]]) -> None:
    """The message says which limit; the vectors that were read are forgotten."""
    data.docs.insert_many([row(key) for key in range(10)])
    one = LENGTH + KEY_BYTES
    enough = FollowedVectors(data, "docs", "embed", KIND, "dot", 10 * one)
    assert len(enough.current()) == 10
    data.docs.insert_one(row(10))
    for _ in range(2):
        with pytest.raises(IndexFull, match=r"more outputs at _outputs.embed.*limits.index_bytes"):
            enough.current()
    assert enough._vectors is None


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_search_leaves_no_half_of_a_change(
    data: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    """As by Ctrl-C in a notebook, while the second block is rounded: the vectors are read anew."""
    monkeypatch.setattr("components.nearest.BLOCK", 4)
    followed = FollowedVectors(data, "docs", "embed", WIDE, "dot", 8 * (4 * 256 + KEY_BYTES))
    data.docs.insert_many([wide(key) for key in range(8)])
    assert len(followed.current()) == 8
    data.docs.insert_one(wide(8))
    rounded, calls = nearest._rounded, []

    def interrupted(vectors: Any) -> Any:
        calls.append(vectors)
        if len(calls) == 2:
            raise interruption
        return rounded(vectors)

    monkeypatch.setattr(nearest, "_rounded", interrupted)
    with pytest.raises(interruption):
        followed.current()
    data.docs.delete_one({"_id": 5})
    stored = {each["_id"]: WIDE.decode(each["_outputs"]["embed"]["value"]) for each in data.docs.find()}
    true = {key: float(value @ stored[8]) for key, value in stored.items()}
    assert dict(followed.current().nearest(stored[8], 1, 9)) == pytest.approx(true, abs=2)
    followed.close()


def test_both_measures_are_exact(data: Database[dict[str, Any]]) -> None:
    """The first ten of 9,000 rows, which is more than a block, are those of brute force."""
    data.docs.insert_many([row(key) for key in range(9_000)])
    vectors = {each["_id"]: KIND.decode(each["_outputs"]["embed"]["value"]) for each in data.docs.find()}
    matrix, wanted = np.stack(list(vectors.values())).astype(np.float64), vector()
    dots = matrix @ wanted.astype(np.float64)
    cosines = dots / np.linalg.norm(matrix, axis=1) / np.linalg.norm(wanted)
    for measure, scores in (("dot", dots), ("cosine", cosines)):
        followed = FollowedVectors(data, "docs", "embed", KIND, measure, MUCH)  # type: ignore[arg-type]
        found = followed.current().nearest(wanted, 1, 10)
        followed.close()
        assert [key for key, _ in found] == list(np.argsort(-scores)[:10])
        assert [score for _, score in found] == pytest.approx(sorted(scores)[:-11:-1], rel=1e-5)
