"""Views, time series and capped collections: refused by name and reason, beside a listener that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.oracle import Oracle
from harness.processes import LISTENER, TABLE, WORKER, Worker, Workplace, declarations, toml
from pymongo.database import Database

from daemon.check import meet
from daemon.config import load
from daemon.store import names

ODD, OTHER = "odd", "M"
KINDS: dict[str, dict[str, Any]] = {
    "view": {"viewOn": "source", "pipeline": []},
    "time series": {"timeseries": {"timeField": "t"}},
    "capped": {"capped": True, "size": 100_000},
}


def two_tables() -> dict[str, Any]:
    """Two listeners in one worker: L on the table `rows`, M on `odd`."""
    listener = {"key": "x", "model": "f", "worker": WORKER}
    return declarations(
        {TABLE: {"x": "str"}, ODD: {"x": "str"}},
        {"f": {"object": "harness.models:digest"}},
        {LISTENER: {"table": TABLE, **listener}, OTHER: {"table": ODD, **listener}},
    )


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as workplace:
        workplace.declare(two_tables())
        yield workplace


def until_refused(worker: Worker, kind: str) -> None:
    worker.until("M is refused", lambda: f"is a {kind}" in (worker.listener(OTHER).get("reason") or ""))
    assert worker.listener(OTHER)["state"] == "missing"
    assert f"{ODD!r} cannot be served" in worker.listener(OTHER)["reason"]
    worker.until("L runs", lambda: worker.listener(LISTENER)["state"] == "running")
    worker.until("the worker goes on", lambda: worker.report.get("state") == "running")


def outputs(place: Workplace) -> int:
    return place.database[ODD].count_documents({f"_outputs.{OTHER}.value": {"$exists": True}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_cannot_be_served_costs_no_neighbour(place: Workplace, kind: str) -> None:
    """Its listener is missing, with the reason; the other one predicts and its position moves; later it is served."""
    database = place.database
    database["source"].insert_many({"x": f"v{n}"} for n in range(5))
    database.drop_collection(ODD)
    database.create_collection(ODD, **KINDS[kind])
    if kind == "capped":
        database[ODD].insert_many({"_id": n, "x": f"c{n}"} for n in range(5))
    worker = place.start()
    until_refused(worker, kind)
    position = database[names.POSITIONS].find_one()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(50))
    if kind == "capped":
        database[ODD].insert_one({"_id": "new", "x": "live"})
    Oracle(database).settle()
    eventually("the position moves", lambda: database[names.POSITIONS].find_one() != position)
    until_refused(worker, kind)
    assert outputs(place) == 0
    database.drop_collection(ODD)
    database[ODD].insert_many({"_id": n, "x": f"n{n}"} for n in range(20))
    eventually("the table that was made anew is served", lambda: outputs(place) == 20)
    worker.until_running()
    assert worker.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_replaced_while_it_is_served(place: Workplace, kind: str) -> None:
    """A drop, then another kind of collection under the name: refused from then on, nobody else waits."""
    worker = place.run()
    place.database[ODD].insert_one({"_id": 1, "x": "a"})
    eventually("it is served", lambda: outputs(place) == 1)
    place.database.drop_collection(ODD)
    place.database.create_collection(ODD, **KINDS[kind])
    if kind == "capped":
        place.database[ODD].insert_one({"_id": 2, "x": "b"})
    until_refused(worker, kind)
    place.rows.insert_one({"_id": 1, "x": "y"})
    Oracle(place.database).settle()
    assert outputs(place) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_replaced_while_its_rows_wait(place: Workplace, kind: str) -> None:
    """Rows that wait, are predicted or are written hold up neither the position nor the worker, and leave no letter."""
    database, two = place.database, two_tables()
    two["models"]["f"] = {**two["models"]["f"], "object": "harness.models:slow"}
    place.declare(two)
    worker = place.run()
    database[ODD].insert_many({"_id": n, "x": f"x{n}"} for n in range(1500))
    eventually("some are served", lambda: outputs(place) > 0)
    database.drop_collection(ODD)
    database.create_collection(ODD, **KINDS[kind])
    if kind == "capped":
        database[ODD].insert_many({"_id": n, "x": f"x{n}"} for n in range(1000, 1500))
    until_refused(worker, kind)
    worker.until("no key waits", lambda: not any(worker.listener(OTHER)["queue"].values()))
    position = database[names.POSITIONS].find_one()
    place.rows.insert_one({"_id": 1, "x": "y"})
    Oracle(database).settle()
    eventually("the position moves", lambda: database[names.POSITIONS].find_one() != position)
    until_refused(worker, kind)
    assert list(database[names.DEAD_LETTERS].find()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_check_names_the_table(place: Workplace, tmp_path: Path, kind: str) -> None:
    """`predictd check --mongo` has one problem, at the table's key."""
    place.database.drop_collection(ODD)
    place.database.create_collection(ODD, **KINDS[kind])
    (tmp_path / "service.toml").write_text(toml(place.uri, place.database.name, two_tables()))
    [problem] = meet(load(tmp_path / "service.toml", {}))
    assert problem.path == f"tables.{ODD}"
    assert f"is a {kind}" in problem.message
