"""The rows that jobs run on, from a real MongoDB: pinned at one snapshot, read in any order, decoded."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from bson.timestamp import Timestamp
from PIL import Image
from pymongo.database import Database

from components.extended_json import encoded as encoded_filter
from daemon.store import names
from daemon.store.rows import datasets
from daemon.store.rows.datasets import Pinned, RowExamples, kept, pinned

TABLE = "rows"
SEVERAL: list[Any] = ["a", 1.5, 7, {"k": 1}, b"b", True, ObjectId(), Timestamp(1, 1)]


def query(where: Any = None, *, limit: int | None = None, pin: bool = False, **sample: int) -> dict[str, Any]:
    return {"table": TABLE, "where": encoded_filter(where or {}), "limit": limit, "pin": pin, **sample}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade).save(stream, "PNG")
    return stream.getvalue()


# ---- which rows -----------------------------------------------------------------------------------------------------


def test_rows_are_pinned_in_the_order_of_their_id_whatever_its_type(database: Database[dict[str, Any]]) -> None:
    """At one cluster time; those that do not match, or lack a field, are not among them."""
    database[TABLE].insert_many({"_id": key, "x": 1, "y": 1} for key in SEVERAL)
    database[TABLE].insert_many([{"_id": "no y", "x": 1}, {"_id": "other", "x": 2, "y": 1}])
    found = pinned(database, TABLE, encoded_filter({"x": 1}), ["x", "y"])
    ordered = [row["_id"] for row in database[TABLE].find({"x": 1, "y": 1}).sort("_id", 1)]
    assert found.ids == ordered
    assert len(found.ids) == len(SEVERAL)
    assert isinstance(found.at, Timestamp)
    assert pinned(database, TABLE, {}, ["x"], limit=3).ids == [
        row["_id"] for row in database[TABLE].find().sort("_id", 1).limit(3)
    ]


def test_a_filter_with_dates_and_ids_is_read_as_it_was_declared(database: Database[dict[str, Any]]) -> None:
    one, other = ObjectId(), ObjectId()
    database[TABLE].insert_many([{"_id": 1, "x": one}, {"_id": 2, "x": other}])
    assert pinned(database, TABLE, encoded_filter({"x": one}), []).ids == [1]


def test_a_table_that_does_not_exist_has_no_rows(database: Database[dict[str, Any]]) -> None:
    assert pinned(database, "nowhere", {}, ["x"]).ids == []


def test_many_rows_come_in_several_replies_of_one_snapshot(database: Database[dict[str, Any]]) -> None:
    database[TABLE].insert_many({"_id": n, "x": n} for n in range(5000))
    assert pinned(database, TABLE, {}, ["x"]).ids == list(range(5000))


def test_a_sample_is_the_same_rows_again(database: Database[dict[str, Any]]) -> None:
    """Chosen by the seed among the rows that match and have the fields; rows that come change it by one at most each,
    rows that are deleted are replaced.
    """

    def chosen(size: int = 50, seed: int = 0) -> list[Any]:
        return list(kept(database, "s", "proof", "d", query({"x": {"$lt": 1000}}, sample=size, seed=seed), ["x"]).ids)

    database[TABLE].insert_many({"_id": n, "x": n} for n in range(2000))
    database[TABLE].insert_many({"_id": -n, "y": n} for n in range(1, 500))
    first = chosen()
    assert first == chosen() == sorted(first)
    assert len(set(first)) == 50
    assert all(0 <= key < 1000 for key in first)
    assert any(key > 500 for key in first)
    assert len(set(first) & set(chosen(seed=1))) < 25
    assert set(first) < set(chosen(100))
    database[TABLE].insert_many({"_id": n, "x": 1} for n in range(3000, 3020))
    later = chosen()
    assert len(later) == 50
    assert set(later) - set(first) <= set(range(3000, 3020))
    database[TABLE].delete_many({"_id": {"$in": later[:10]}})
    assert set(later[10:]) < set(chosen())
    assert len(chosen(5000)) == 1010


def test_a_sample_has_ids_of_every_type(database: Database[dict[str, Any]]) -> None:
    database[TABLE].insert_many({"_id": key, "x": 1} for key in SEVERAL)
    found = kept(database, "s", "proof", "d", query(sample=len(SEVERAL)), ["x"])
    assert found.ids == [row["_id"] for row in database[TABLE].find().sort("_id", 1)]
    assert isinstance(found.at, Timestamp)
    assert kept(database, "s", "proof", "d", {**query(sample=3), "table": "nowhere"}, ["x"]).ids == []


def test_a_pinned_sample_stays(database: Database[dict[str, Any]]) -> None:
    database[TABLE].insert_many({"_id": n, "x": n} for n in range(100))
    first = kept(database, "s", "proof", "d", query(pin=True, sample=10), ["x"])
    database[TABLE].delete_many({})
    assert kept(database, "s", "proof", "d", query(pin=True, sample=10), ["x"]) == first


# ---- pinned datasets ------------------------------------------------------------------------------------------------


def choose(database: Any, *, pin: bool = True, where: Any = None, dataset: str = "d") -> Pinned:
    return kept(database, "s", "proof", dataset, query(where, pin=pin), ["x"])


def test_a_pinned_dataset_keeps_its_rows(database: Database[dict[str, Any]]) -> None:
    """Rows that come later are not in it; another query, or another dataset, is another choice."""
    database[TABLE].insert_many({"_id": n, "x": n} for n in range(10))
    first = choose(database)
    database[TABLE].insert_one({"_id": 10, "x": 10})
    database[TABLE].delete_one({"_id": 0})
    assert choose(database) == first
    assert len(choose(database, pin=False).ids) == 10
    assert len(choose(database, dataset="e").ids) == 10
    assert choose(database, where={"x": {"$lt": 3}}).ids == [1, 2]


def test_an_empty_choice_is_made_again(database: Database[dict[str, Any]]) -> None:
    """A validation that ran before the first rows came must not stay empty for ever."""
    assert choose(database).ids == []
    database[TABLE].insert_one({"_id": 1, "x": 1})
    assert choose(database).ids == [1]


def test_a_long_list_is_kept_in_parts_and_read_back_whole(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "PART_BYTES", 1000)
    database[TABLE].insert_many({"_id": n, "x": n} for n in range(1000))
    first = choose(database)
    assert database[names.DATASETS].count_documents({}) > 10
    database[TABLE].delete_many({})
    assert choose(database) == first


def test_of_two_who_choose_at_once_the_first_counts(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "PART_BYTES", 50)
    database[TABLE].insert_many({"_id": n, "x": n} for n in range(20))
    first = choose(database)
    key = database[names.DATASETS].find_one({"_id.part": 0})["_id"]["of"]  # type: ignore[index]
    parts = database[names.DATASETS].count_documents({})
    assert datasets._store(database, key, Pinned(list(range(100, 120)), Timestamp(1, 1))) == first
    assert database[names.DATASETS].count_documents({}) == parts


# ---- their values ---------------------------------------------------------------------------------------------------


@pytest.fixture
def images(mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[RowExamples]:
    database[TABLE].insert_many({"_id": n, "img": png(n), "meta": {"class": n % 3}} for n in range(20))
    rows = RowExamples(mongo_uri, database.name, TABLE, [("img", "pil_image"), ("meta.class", "int")], list(range(20)))
    yield rows
    rows.close()


def shades(rows: list[Any]) -> list[Any]:
    return [None if row is None else (row[0].getpixel((0, 0)), row[1]) for row in rows]


def test_rows_are_fetched_in_any_order_and_decoded(images: RowExamples) -> None:
    assert len(images) == 20
    assert shades(images.fetch([7, 0, 7, 19])) == [(7, 1), (0, 0), (7, 1), (19, 1)]
    assert images.fetch([]) == []


def test_a_row_that_is_gone_or_cannot_be_decoded_is_none(
    images: RowExamples, database: Database[dict[str, Any]]
) -> None:
    """The others come all the same."""
    database[TABLE].delete_one({"_id": 0})
    database[TABLE].update_one({"_id": 1}, {"$unset": {"meta.class": ""}})
    database[TABLE].update_one({"_id": 2}, {"$set": {"img": "no image"}})
    database[TABLE].update_one({"_id": 3}, {"$set": {"meta.class": None}})
    assert shades(images.fetch(range(6))) == [None, None, None, None, (4, 1), (5, 2)]


def test_ids_of_every_type_find_their_rows(mongo_uri: str, database: Database[dict[str, Any]]) -> None:
    """1 and True are not one row, nor is the order of a document's keys all the same."""
    ids: list[Any] = [*SEVERAL, 1, {"a": 1, "b": 2}, {"b": 2, "a": 1}]
    database[TABLE].insert_many({"_id": key, "x": n} for n, key in enumerate(ids))
    rows = RowExamples(mongo_uri, database.name, TABLE, [("x", None)], pinned(database, TABLE, {}, ["x"]).ids)
    found = rows.fetch(range(len(ids)))
    rows.close()
    assert sorted(row[0] for row in found if row is not None) == list(range(len(ids)))


def _in_a_child(rows: RowExamples, results: Any) -> None:
    results.put(shades(rows.fetch([3])))
    rows.close()


def test_each_process_opens_a_client_of_its_own(images: RowExamples) -> None:
    """A DataLoader forks its workers, or sends them their dataset."""
    assert shades(images.fetch([3])) == [(3, 0)]
    sent = pickle.loads(pickle.dumps(images))
    assert shades(sent.fetch([4])) == [(4, 1)]
    sent.close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_in_a_child, args=(images, results))
    child.start()
    assert results.get(timeout=50) == [(3, 0)]
    child.join(10)
    assert child.exitcode == 0
