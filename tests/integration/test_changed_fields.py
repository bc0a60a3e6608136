"""An update's event names the fields that it changed: none may be missing, or a row would keep a stale output."""

from __future__ import annotations

from typing import Any

import pytest
from harness.listening import Listening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database
from pymongo.errors import WriteError

from daemon.listeners import change_stream as stream
from daemon.listeners.subscription import MOST_BYTES, MOST_PATHS

FILLER = "x" * 2000  # on a small document an update by pipeline comes as a replace
ROW: dict[str, Any] = {
    "a": {"b": {"c": 1}, "d": [1, 2, 3]},
    "list": [{"k": 1}, {"k": 2}, [3, 4]],
    "n": 1,
    "": 1,
    "x": "text",
    "f": FILLER,
}
PATHS = ["a", "a.b", "a.b.c", "a.b.new", "a.d", "a.d.1", "list", "list.0.k", "list.5", "list.$[].k", "n", "x", "new.y"]
VALUES = st.sampled_from([0, 1, "v", [1], {"b": 1}, None])
CHANGES = st.one_of(
    st.builds(lambda op, path, value: {op: {path: value}}, st.sampled_from(["$set"]), st.sampled_from(PATHS), VALUES),
    st.builds(lambda path: {"$unset": {path: ""}}, st.sampled_from(PATHS)),
    st.builds(lambda path, n: {"$inc": {path: n}}, st.sampled_from(["n", "a.b.c", "a.d.0"]), st.integers(-1, 1)),
    st.builds(lambda path, v: {"$push": {path: v}}, st.sampled_from(["list", "a.d"]), VALUES),
    st.builds(lambda path: {"$pop": {path: 1}}, st.sampled_from(["list", "a.d"])),
    st.builds(lambda old, new: {"$rename": {old: new}}, st.sampled_from(["n", "a.b", "x"]), st.sampled_from(PATHS)),
    st.builds(lambda path, value: [{"$set": {path: {"$literal": value}}}], st.sampled_from(PATHS[:6]), VALUES),
    st.builds(lambda path: [{"$unset": path}], st.sampled_from(PATHS[:6])),
    st.just([{"$set": {"list": {"$slice": ["$list", 1]}}}]),
    st.just([{"$replaceWith": {"$setField": {"field": "p.q", "input": "$$ROOT", "value": 1}}}]),
    st.just([{"$replaceWith": {"$setField": {"field": {"$literal": "$n"}, "input": "$$ROOT", "value": 1}}}]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.lists(CHANGES, min_size=1, max_size=2), min_size=1, max_size=12))
def test_every_field_that_an_update_changes_is_named(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, changes: list[list[Any]]
) -> None:
    """Whatever operators it is made of: the row before and after tells which fields these are."""
    monkeypatch.setattr(stream, "AWAIT_MS", 20)
    rows = database["rows"]
    rows.delete_many({})
    rows.insert_one({"_id": 0, **ROW})
    differ: list[set[str]] = []
    listening = Listening(database)
    for parts in changes:
        for part in parts:
            before = rows.find_one() or {}
            try:
                rows.update_one({"_id": 0}, part)
            except WriteError:  # a path through a value that has no fields, for example
                continue
            after = rows.find_one() or {}
            if list(before.items()) != list(after.items()):
                missing = object()
                differ.append({k for k in before | after if before.get(k, missing) != after.get(k, missing)})
    told = [event for event in listening.heard() if isinstance(event, stream.Changed)]
    listening.close()
    fields = [fields for event in told for fields in event.fields or [None] * len(event.keys)]
    assert len(fields) == len(differ)
    for named, differing in zip(fields, differ, strict=True):
        # A field whose name has a dot cannot be a key field, nor the first part of one.
        assert named is None or {name for name in differing if "." not in name} <= set(named)


def test_an_update_of_many_fields_may_concern_anything(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the limit they are named, each once; inserts, replaces and deletes name none."""
    monkeypatch.setattr(stream, "AWAIT_MS", 20)
    rows = database["rows"]
    rows.insert_one({"_id": 0})
    listening = Listening(database)
    rows.update_one({"_id": 0}, {"$set": {f"f.n{n}": n for n in range(MOST_PATHS)}})
    rows.update_one({"_id": 0}, {"$set": {"f": 1, **{f"g{n}": n for n in range(MOST_PATHS)}}})
    rows.update_one({"_id": 0}, {"$set": {"n" * MOST_BYTES: 1, "m": 1}})
    rows.update_one({"_id": 0}, {"$set": {"a.b": 1, "a.c": 1, "b": 1}})
    rows.replace_one({"_id": 0}, {"f": 1})
    rows.delete_one({"_id": 0})
    told = [event for event in listening.heard() if isinstance(event, stream.Changed)]
    assert [event.fields for event in told] == [(["f"], None, None, ["a", "b"], None, None)]
