"""Queries: conditions become MongoDB filters, and nothing is changed in place."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from bson import Decimal128, Int64, ObjectId

from components import DeclarationError, Query
from components.extended_json import decoded, encoded
from components.query import Condition, mentioned

table = Query("mnist")


@pytest.mark.parametrize(
    ("condition", "where"),
    [
        (table["_fold"] == "valid", {"_fold": "valid"}),
        (table["_fold"] != "valid", {"_fold": {"$ne": "valid"}}),
        (table["n"] < 3, {"n": {"$lt": 3}}),
        (table["n"] <= 3, {"n": {"$lte": 3}}),
        (table["n"] > 3, {"n": {"$gt": 3}}),
        (table["n"] >= 3, {"n": {"$gte": 3}}),
        (table["a.b"].isin({1}), {"a.b": {"$in": [1]}}),
        (table["n"] == np.int64(3), {"n": 3}),
        (table["n"].isin(np.array([1, 2])), {"n": {"$in": [1, 2]}}),
        (table["n"].isin([np.float32(0.5), np.str_("x"), torch.tensor(1)]), {"n": {"$in": [0.5, "x", 1]}}),
        (table["n"].isin(np.array(["x", None], dtype=object)), {"n": {"$in": ["x", None]}}),
        (Condition({"n": {"$in": np.array(["x", 1], dtype=object)}}), {"n": {"$in": ["x", 1]}}),
        (table["a"].exists(), {"a": {"$exists": True}}),
        (table["a"].exists(False), {"a": {"$exists": False}}),
        (table["a"] == {"x": 1}, {"a": {"$eq": {"x": 1}}}),
        ((table["a"] == 1) & (table["b"] == 2), {"a": 1, "b": 2}),
        ((table["n"] > 1) & (table["n"] < 5), {"$and": [{"n": {"$gt": 1}}, {"n": {"$lt": 5}}]}),
        ((table["a"] == 1) | (table["b"] == 2) | {"c": 3}, {"$or": [{"a": 1}, {"b": 2}, {"c": 3}]}),
        (~(table["a"] == 1), {"$nor": [{"a": 1}]}),
    ],
)
def test_a_comparison_makes_a_mongodb_filter(condition, where):
    """Each operator, and the ways to put conditions together."""
    assert condition.where == where


def test_filter_select_and_limit_return_new_queries_of_the_same_class():
    """The table handle of the API is a subclass, and stays one."""

    class Handle(Query):
        pass

    handle = Handle("mnist")
    one = handle.filter(handle["_fold"] == "valid", {"n": {"$gt": 1}}).select("img", "class").limit(7)
    assert type(one) is Handle
    assert (one.where, one.fields, one.max_rows) == ({"_fold": "valid", "n": {"$gt": 1}}, ("img", "class"), 7)
    assert handle == Handle("mnist")
    assert one.filter({"n": 2}).where == {"$and": [{"_fold": "valid", "n": {"$gt": 1}}, {"n": 2}]}
    assert repr(Query("t").limit(2)) == "Query('t', limit=2)"


def test_conditions_have_no_truth_value():
    """`a and b` would silently be `b`."""
    with pytest.raises(TypeError, match="write & for and"):
        bool(table["a"] == 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Query(""),
        lambda: table.limit(0),
        lambda: table.limit(True),
        table.select,
        lambda: table["$where"],
        lambda: table["a"].isin("abc"),
        lambda: table.filter("x"),
    ],
)
def test_what_is_no_query_is_refused(make):
    """At once, with a message."""
    with pytest.raises(DeclarationError, match="query"):
        make()


def test_a_query_by_itself_is_not_iterated():
    """Python would otherwise ask for field 0, 1, 2... for ever."""
    with pytest.raises(TypeError, match="is only a query"):
        list(table)


def test_which_fields_a_filter_mentions():
    """Also inside of alternatives; a document to be equal to is no field of the row."""
    assert mentioned({"$or": [{"_fold": "train"}, {"a.b": 1}], "n": {"$gt": 3}, "d": {"x": 1}}) == {
        "_fold",
        "a",
        "n",
        "d",
    }


def test_filters_survive_json_and_have_the_form_of_the_configuration():
    """What JSON has no word for is Extended JSON, the same in both places."""
    where = {
        "id": ObjectId("65a000000000000000000001"),
        "at": {"$gt": datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))},
        "n": {"$in": [1, Int64(2), 2.5, float("inf"), None, True, b"x"]},
        "price": Decimal128("1.10"),
    }
    assert encoded(where) == encoded(where)
    back = decoded(encoded(where))
    assert back == decoded(encoded(where))
    assert back["at"]["$gt"] == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert back["n"]["$in"][1:4] == [2, 2.5, float("inf")]
    assert encoded({"a": re.compile("^x", re.IGNORECASE)}) == {"a": {"$regex": "^x", "$options": "i"}}
    with pytest.raises(DeclarationError, match="cannot hold a object"):
        encoded({"a": object()})
