"""Large documents in predictd's collections, which somebody without the key has written, are not held in memory."""

from __future__ import annotations

from typing import Any

from harness.allocations import at_most
from harness.keys import trust
from harness.processes import LISTENER, SERVICE, TABLE
from pymongo.database import Database

from daemon.handlers.predict.records import Letter
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.versions import Versions
from daemon.store.rows.dead_letters import DeadLetters, listed

LARGE = "x" * 15_000_000
MODEL = "f"


def test_large_letters_are_neither_loaded_nor_listed(database: Database[dict[str, Any]]) -> None:
    """By a worker, by a command; a row with a large `_id` keeps its letter."""
    data = open_database(database.client, database.name)
    letters = DeadLetters(data, SERVICE, LISTENER, TABLE)
    own = ["small", "k" * 2_000_000]
    letters.add([Letter(key, b"in", 1, 1, "predict", "E", "m", "trace") for key in own])
    for n in range(8):
        about = {"_id": {"service": SERVICE, "listener": LISTENER, "row": n}, "table": TABLE, "generation": 1}
        data[names.DEAD_LETTERS].insert_one({**about, ("input", "error", "other")[n % 3]: LARGE})
    with at_most(40):
        letters.load()
        found = list(listed(data, SERVICE, {}))
    assert letters.rows() == own
    assert [letter["_id"]["row"] for letter in found] == own


def test_large_versions_are_not_listed(database: Database[dict[str, Any]]) -> None:
    """The traces of a long training may be long."""
    data = open_database(database.client, database.name)
    versions = Versions(data, SERVICE, MODEL, trust(data, SERVICE))
    given = {"signature": "s", "source": "", "object_signature": "", "origin": "a test"}
    number = versions.add(b"weights", "hash", history=[{"step": 1, "note": "x" * 5_000_000}], **given).number
    own = data[names.VERSIONS].find_one({}) or {}
    for n in range(100, 108):
        data[names.VERSIONS].insert_one(
            {**own, "_id": f"{SERVICE}/{MODEL}/{n}", "number": n, "origin": LARGE, "history": []}
        )
    with at_most(40):
        assert [each.number for each in versions.listed(traces=False)] == [number]
        assert [each.number for each, _ in versions.believed()] == [number]
    assert [each.number for each in versions.listed()] == [number]
