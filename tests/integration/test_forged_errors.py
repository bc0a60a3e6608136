"""An error mark in a row that no dead letter stands for: the row is predicted, as if the mark were not there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Timestamp
from harness.daemons import eventually
from harness.models import digest
from harness.oracle import Oracle
from harness.processes import LISTENER, SERVICE, Workplace
from pymongo.database import Database

from daemon.store import names

TEXT = "a"


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


def forged(place: Workplace, value: Any = TEXT, **more: Any) -> dict[str, Any]:
    """An error with the hash of the row's input and the present generation."""
    component = place.database[names.COMPONENTS].find_one({"_id": f"{SERVICE}/listener/{LISTENER}"})
    assert component is not None
    return {
        "error": {"type": "ValueError", "message": "forged", "stage": "predict"},
        "model": "f",
        "version": 1,
        "generation": component["generation"],
        "asof": Timestamp(1, 1),
        "input": hashlib.blake2b(bson.encode({"": value}), digest_size=16).digest(),
        **more,
    }


@pytest.mark.parametrize("more", [{}, {"error": None}, {"value": "also forged"}, {"asof": None}])
def test_a_forged_error_hides_no_row(place: Workplace, more: dict[str, Any]) -> None:
    """Whether a scan, an insert or a replacement brings the row."""
    place.declare()
    place.rows.insert_one({"_id": 0, "x": TEXT})
    place.run().stop()  # its model has a version now
    row = {"x": TEXT, "_outputs": {LISTENER: forged(place, **more)}}
    place.rows.insert_one({"_id": 1, **row})
    place.database[names.SCANS].delete_many({})
    worker = place.run()
    place.rows.insert_one({"_id": 2, **row})
    place.rows.replace_one({"_id": 0}, row)
    for key in range(3):
        worker.until(
            "the row has its output",
            lambda key=key: place.rows.find_one({"_id": key, f"_outputs.{LISTENER}.value": digest(TEXT)}),
        )
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0
    Oracle(place.database).settle()


SHAPES: dict[str, Any] = {
    "only the hash": lambda its: {"input": its["input"], "generation": its["generation"]},
    "all but the value": lambda its: {name: part for name, part in its.items() if name != "error"},
    "an empty error": lambda its: {**its, "error": {}},
    "an error beside a value": lambda its: {**its, "value": "forged"},
    "of another version and model": lambda its: {**its, "version": 99, "model": "other"},
    "of a later generation": lambda its: {**its, "generation": 2**62},
    "of a generation that is no integer": lambda its: {**its, "generation": float(its["generation"])},
    "of the future": lambda its: {**its, "asof": Timestamp(2**32 - 1, 2**32 - 1)},
    "of no time": lambda its: {**its, "asof": [Timestamp(1, 1)]},
    "in an array": lambda its: [its],
    "within itself": lambda its: {LISTENER: its},
    "no output at all": lambda _: "forged",
    "null": lambda _: None,
}


@pytest.mark.parametrize("how", ["before the scan", "insert", "replace", "update"])
def test_what_takes_an_output_away_is_undone(place: Workplace, how: str) -> None:
    """Whatever stands in an output's place, and however it comes: each row has its output again, and no letter."""
    place.declare()
    place.rows.insert_one({"_id": -1, "x": TEXT})
    worker = place.run()
    its = forged(place)
    forgeries = {name: make(its) for name, make in SHAPES.items()}
    if how == "before the scan":
        worker.stop()
        place.database[names.SCANS].delete_many({})
    if how in ("before the scan", "insert"):
        place.rows.insert_many({"_id": n, "x": TEXT, "_outputs": {LISTENER: each}} for n, each in forgeries.items())
        if how == "before the scan":
            place.run()
    else:
        place.rows.insert_many({"_id": name, "x": TEXT} for name in forgeries)
        Oracle(place.database).settle()
        for name, each in forgeries.items():
            if how == "replace":
                place.rows.replace_one({"_id": name}, {"x": TEXT, "_outputs": {LISTENER: each}})
            else:
                place.rows.update_one({"_id": name}, {"$set": {f"_outputs.{LISTENER}": each}})
    Oracle(place.database).settle()
    assert place.rows.count_documents({f"_outputs.{LISTENER}.value": digest(TEXT)}) == 1 + len(forgeries)
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0


@pytest.mark.parametrize(
    "update",
    [
        {"$unset": {f"_outputs.{LISTENER}": ""}},
        {"$unset": {f"_outputs.{LISTENER}.value": ""}},
        {"$set": {f"_outputs.{LISTENER}.error": {"type": "ValueError", "message": "forged", "stage": "predict"}}},
        {"$rename": {f"_outputs.{LISTENER}": "_outputs.elsewhere"}},
        {"$set": {f"_outputs.{LISTENER}.generation": 0}},
        [{"$set": {f"_outputs.{LISTENER}": "$$REMOVE"}}],
    ],
    ids=repr,
)
def test_a_part_of_an_output_that_is_taken_away_comes_back(place: Workplace, update: Any) -> None:
    """At once, for a row that has its output and does not change otherwise."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": TEXT})
    worker = place.run()
    Oracle(place.database).settle()
    before = worker.rows()["predicted"]
    place.rows.update_one({"_id": 1}, update)
    worker.until("the row is predicted again", lambda: worker.rows()["predicted"] > before)
    row = eventually("the output", lambda: place.rows.find_one({f"_outputs.{LISTENER}.value": digest(TEXT)}))
    assert "error" not in row["_outputs"][LISTENER]


def test_a_copied_dead_row_gets_a_letter_of_its_own(place: Workplace) -> None:
    """The copy holds the error of the first row, with the right hash; each dead row is listed."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": 5})
    worker = place.run()
    dead = place.rows.find_one({"_id": 1})
    assert dead is not None
    place.rows.insert_one({**dead, "_id": 2})
    letters = place.database[names.DEAD_LETTERS]
    worker.until("both have a letter", lambda: letters.count_documents({}) == 2)
    Oracle(place.database).settle()


def test_a_dead_row_is_not_tried_again_by_a_scan_or_a_change_beside_its_key(place: Workplace) -> None:
    """Its letter stands, so its error counts: one attempt, also after a restart."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": 5})
    place.run().stop()
    place.database[names.SCANS].delete_many({})
    worker = place.run()
    place.rows.update_one({"_id": 1}, {"$set": {"note": 1}})
    eventually("the row is touched twice", lambda: worker.rows().get("touched", 0) >= 2)
    letter = place.database[names.DEAD_LETTERS].find_one({})
    assert letter is not None
    assert letter["attempts"] == 1
