"""Rows that are kept as they were: their contents, their bounds, and what becomes of files that nobody names."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from daemon.store import names
from daemon.store.registry import judged
from daemon.store.registry.judged import Judged
from daemon.store.rows import kept_rows
from daemon.store.rows.datasets import pinned
from daemon.store.rows.kept_rows import KeptExamples, keep, kept

FIELDS = {"x": "str", "y": "int"}


def ids(database: Database[dict[str, Any]]) -> list[Any]:
    return list(pinned(database, "rows", {}, list(FIELDS)).ids)


def kept_of(database: Database[dict[str, Any]]) -> str:
    name = keep(database, "rows", FIELDS, ids(database))
    assert name is not None
    return name


def test_what_was_kept_stays_whatever_becomes_of_the_rows(database: Database[dict[str, Any]]) -> None:
    """Updated, replaced and deleted rows, keys of several types; a row without a field is no example, as ever."""
    keys = [1, 2.5, "1", ObjectId(), {"a": 1}, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]
    database.rows.insert_many({"_id": key, "x": str(n), "y": n, "secret": "s"} for n, key in enumerate(keys))
    name = kept_of(database)
    database.rows.update_many({}, {"$set": {"y": -1}})
    database.rows.delete_one({"_id": 1})
    rows = kept(database, name)
    assert rows is not None
    examples = KeptExamples("rows", list(FIELDS.items()), rows)
    assert {*examples.fetch(range(len(examples)))} == {(str(n), n) for n in range(len(keys))}
    assert all(row.keys() == {"_id", "x", "y"} for row in rows)


def test_equal_contents_are_stored_once(database: Database[dict[str, Any]]) -> None:
    """By their hash; another content is another file."""
    database.rows.insert_many({"_id": n, "x": str(n), "y": n} for n in range(30))
    assert kept_of(database) == kept_of(database)
    files = database[f"{names.DATASETS}.files"]
    assert files.count_documents({}) == 1
    database.rows.update_one({"_id": 0}, {"$set": {"y": 7}})
    kept_of(database)
    assert files.count_documents({}) == 2


def test_both_bounds_hold(database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows and in bytes, and the same rows are chosen each time."""
    database.rows.insert_many({"_id": n, "x": "x" * 100, "y": n} for n in range(1000))
    monkeypatch.setattr(kept_rows, "ROWS", 300)
    rows = kept(database, kept_of(database))
    assert rows is not None
    assert len(rows) == 300
    assert len({row["_id"] for row in rows}) == 300
    assert rows == kept(database, kept_of(database))
    assert max(row["_id"] for row in rows) > 900
    monkeypatch.setattr(kept_rows, "BYTES", 5000)
    rows = kept(database, kept_of(database))
    assert rows is not None
    assert 0 < len(rows) < 50


def test_a_pinned_dataset_is_its_rows_as_they_were(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, the first contents count, and no sweep takes them. Too many bytes are not kept."""
    database.rows.insert_many({"_id": n, "x": str(n), "y": n} for n in range(2500))
    first = kept_rows.contents(database, "key", "rows", FIELDS, ids(database))
    assert first is not None
    database.rows.update_many({}, {"$set": {"y": -1}})
    assert kept_rows.contents(database, "key", "rows", FIELDS, ids(database)) == first
    rows = kept(database, first)
    assert rows is not None
    assert [row["y"] for row in rows] == list(range(2500))
    assert first in judged.named(database)
    monkeypatch.setattr(kept_rows, "BYTES", 5000)
    assert kept_rows.contents(database, "other", "rows", FIELDS, ids(database)) is None
    assert kept_rows.contents(database, "none", "rows", FIELDS, []) is None


def test_no_rows_are_no_file(database: Database[dict[str, Any]]) -> None:
    assert keep(database, "rows", FIELDS, []) is None
    assert keep(database, "rows", FIELDS, [1, 2]) is None


@pytest.mark.parametrize(
    "change", [{"length": 0}, {"length": 2**62}, {"chunkSize": 0}, {"chunkSize": -1}, {"length": "long"}]
)
def test_a_damaged_file_counts_as_missing(database: Database[dict[str, Any]], change: dict[str, Any]) -> None:
    """Whatever its document holds; the next keeping stores it again."""
    database.rows.insert_one({"_id": 1, "x": "a", "y": 1})
    name = kept_of(database)
    database[f"{names.DATASETS}.files"].update_one({}, {"$set": change})
    assert kept(database, name) is None
    assert kept(database, "0" * 64) is None
    database[f"{names.DATASETS}.files"].delete_many({})
    assert kept(database, kept_of(database)) is not None


def test_another_content_under_the_name_is_noticed(database: Database[dict[str, Any]]) -> None:
    database.rows.insert_one({"_id": 1, "x": "a", "y": 1})
    name = kept_of(database)
    chunk = database[f"{names.DATASETS}.chunks"].find_one()
    assert chunk is not None
    database[f"{names.DATASETS}.chunks"].update_one({}, {"$set": {"data": chunk["data"][:-2] + b"\x07\x00"}})
    assert kept(database, name) is None


def test_files_that_no_version_names_are_swept(database: Database[dict[str, Any]]) -> None:
    """After a day: a job may be about to name a younger one."""
    database.rows.insert_one({"_id": 1, "x": "a", "y": 1})
    name = kept_of(database)
    assert kept_rows.sweep(database, judged.named(database)) == 0
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    database[f"{names.DATASETS}.files"].update_many({}, {"$set": {"uploadDate": old}})
    database[names.VERSIONS].insert_one({"_id": "s/m/1", "state": "live", "judged": {"rows": {"v/d": name, "odd": 7}}})
    assert kept_rows.sweep(database, judged.named(database)) == 0
    database[names.VERSIONS].delete_many({})
    assert kept_rows.sweep(database, judged.named(database)) == 1
    assert database[f"{names.DATASETS}.chunks"].count_documents({}) == 0


def test_the_last_promotion_counts(database: Database[dict[str, Any]]) -> None:
    """A rollback is one too; candidates, and versions without kept rows, do not count."""

    def version(number: int, state: str, day: int, **more: Any) -> dict[str, Any]:
        at = dt.datetime(2026, 1, day, tzinfo=dt.UTC)
        return {"_id": f"s/m/{number}", "service": "s", "model": "m", "number": number, "state": state, **more} | (
            {"promoted_at": at} if state in ("live", "retired") else {}
        )

    database[names.VERSIONS].insert_many(
        [
            version(
                1,
                "live",
                9,
                judged={"rows": {"v/d": "one"}},
                anchor={"rows": {"v/d": "old"}, "metrics": {"d/acc": 0.9, "odd": []}},
            ),
            version(2, "retired", 5, judged={"rows": {"v/d": "two"}}),
            version(3, "candidate", 9, judged={"rows": {"v/d": "three"}}, held=True, reason="it fell"),
            version(4, "rejected", 9),
        ]
    )
    expected = (Judged({"v/d": "one"}), Judged({"v/d": "old"}, {"d/acc": 0.9}))
    assert judged.judges(database, "s", "m") == expected
    assert judged.judges(database, "s", "other") == (Judged(), Judged())
    assert judged.named(database) == {"one", "two", "three", "old"}
    assert judged.held(database, "s") == {"m": "version 3 is held: it fell"}
    database[names.VERSIONS].insert_one(version(5, "live", 10))
    assert judged.held(database, "s") == {}
    assert judged.judges(database, "s", "m") == expected
