"""An oplog that is too small: history is lost, rows are late, and none is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.models import digest
from harness.trainings import Site
from pymongo import MongoClient

from faults.replica_set import ReplicaSet

pytestmark = pytest.mark.slow

TEXT = """
[tables.rows]
fields = { x = "str" }
[models.m]
type = "object"
object = "harness.deadly_models:naps"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
ROWS = 300
TINY_MB = 8


@pytest.fixture
def site(tmp_path: Path, mongod: Path) -> Iterator[Site]:  # without one the test is skipped
    """A daemon on a server whose oplog holds 8 MB, and that truncates it each second."""
    with (
        ReplicaSet(tmp_path / "mongod", options=("--syncdelay", "1"), oplog_mb=TINY_MB) as servers,
        MongoClient[dict[str, Any]](servers.own_uri) as client,
        Site(tmp_path / "site", servers.uri, client["small"], TEXT) as site,
    ):
        site.start()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(ROWS)])
        eventually("all rows have outputs", lambda: right(site, ROWS))
        yield site


def right(site: Site, rows: int) -> bool:
    """Whether there are so many rows, each with the output of what it holds."""
    found = list(site.rows.find())
    return len(found) == rows and all(
        each.get("_outputs", {}).get("m", {}).get("value") == digest(each["x"]) for each in found
    )


def change(site: Site) -> None:
    """A hundred rows change, a hundred are deleted, a hundred come."""
    site.rows.update_many({"_id": {"$lt": 100}}, {"$set": {"x": "changed"}})
    site.rows.delete_many({"_id": {"$gte": 200}})
    site.rows.insert_many([{"_id": f"new {n}", "x": f"new {n}"} for n in range(100)])


def roll_over(site: Site) -> None:
    """Writes until the oplog holds nothing that is there now."""
    client = site.data.client
    now = client.admin.command("ping")["operationTime"]

    def gone() -> bool:
        client["other"]["rows"].insert_many([{"x": os.urandom(500_000)} for _ in range(10)])
        oldest = client["local"]["oplog.rs"].find_one(sort=[("$natural", 1)])
        return oldest is not None and oldest["ts"] > now

    eventually("the oplog has rolled over", gone, 120)
    client.drop_database("other")


def test_an_oplog_that_rolls_over_while_no_daemon_runs_costs_no_row(site: Site) -> None:
    """Every row is scanned, and the log says why."""
    site.stop()
    change(site)
    roll_over(site)
    site.start()
    eventually("all rows have outputs", lambda: right(site, ROWS), 90)
    assert site.log.count("history lost: every row is scanned") == 1


def test_an_oplog_that_rolls_over_behind_a_slow_model_costs_no_row(site: Site) -> None:
    """A worker that is killed meanwhile finds its position gone; so does its successor's stream, once."""
    site.rows.insert_one({"_id": "slow", "x": "nap"})
    eventually("the model works", (site.folder / "napping").exists)
    change(site)
    roll_over(site)
    (worker,) = site.processes("daemon.worker")
    worker.kill()
    eventually("all rows have outputs", lambda: right(site, ROWS + 1), 90)
    assert site.log.count("history lost: every row is scanned") == 1
