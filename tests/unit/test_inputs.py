"""Which updates concern a listener, by the fields that they change."""

from __future__ import annotations

from typing import Any

import pytest
from bson.timestamp import Timestamp

from daemon.handlers.predict.dirty_keys import DirtyKeys
from daemon.listeners.change_stream import Changed
from daemon.listeners.inputs import inputs
from daemon.listeners.intake import Feed

OWN = {"_outputs"}


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ({}, {"x"}),
        ({"m": True, "a.b.c": {"$gt": 1}}, {"x", "m", "a"}),
        ({"$or": [{"m": 1}, {"$and": [{"n.o": 1}, {"$nor": [{"p": 1}]}]}]}, {"x", "m", "n", "p"}),
        ({"tags": {"$elemMatch": {"k": 1}}, "m": {"$not": {"$in": [1]}}}, {"x", "tags", "m"}),
        ({"$expr": {"$gt": ["$a", "$b"]}}, None),
        ({"m": 1, "$and": [{"$where": "this.a > 1"}]}, None),
        ({"$jsonSchema": {"required": ["a"]}}, None),
        ({"$comment": "why", "m": 1}, None),
    ],
)
def test_the_fields_of_a_filter(where: dict[str, Any], fields: set[str] | None) -> None:
    """All that it compares; any, if an operator may read any."""
    assert inputs(["x.y"], where) == (None if fields is None else fields | OWN)


class Letters:
    """The letters of one dead row."""

    def hold(self, name: Any) -> bool:
        return bool(name == "dead")


def test_rows_are_judged_if_a_field_that_is_read_has_changed() -> None:
    """Else only those that are dead."""
    scan: Any = None
    letters: Any = Letters()
    feed = Feed("l", "t", DirtyKeys(9), scan, letters, lambda: None, inputs=inputs(["x"], {"m": 1}))
    keys, times = ("a", "dead", "b"), tuple(Timestamp(1, n) for n in range(3))
    assert feed.concerned(Changed("t", keys, times)) == (keys, times)
    for fields in (None, ["x"], ["m", "other"], ["_outputs"]):
        told = Changed("t", keys, times, fields=(["other"], ["other"], fields))
        assert feed.concerned(told) == (["dead", "b"], [times[1], times[2]])
    told = Changed("t", keys, times, fields=(["other"],) * 3)
    assert feed.concerned(told) == (["dead"], [times[1]])
