"""A version goes live while rows stream in: nothing waits, nothing is lost, and each output is what its stated version
computes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bson.timestamp import Timestamp
from harness.daemons import eventually
from harness.keys import KEY, trust
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, Worker, Workplace, declarations
from harness.torch_models import answered, stored
from pymongo.database import Database

from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions

MODEL = "a"


def answering(module: str = "Answer", processes: int = 0, **listener: Any) -> dict[str, Any]:
    """Declarations of a listener whose model is an `Answer`."""
    code = "harness.torch_models"
    model = {
        "type": "torch",
        "object": f"{code}:{module}",
        "preprocess": f"{code}:number",
        "postprocess": f"{code}:plain",
        "preprocess_processes": processes,
    }
    about = {"table": TABLE, "key": "x", "model": MODEL, "worker": WORKER, **listener}
    return declarations({TABLE: {"x": "str"}}, {MODEL: model}, {LISTENER: about})


class Answers:
    """The versions of the model; version n answers 10 n."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.data = open_database(database.client, database.name)
        self.versions = Versions(self.data, SERVICE, MODEL, trust(self.data, SERVICE))

    def add(self) -> Version:
        """A candidate like the live version, but for its answer."""
        live = self.versions.live()
        assert live is not None
        data, digest = stored(10.0 * (len(self.versions.listed()) + 1))
        return self.versions.add(
            data, digest, signature=live.signature, source=live.source, object_signature=live.object_signature,
            origin="a test", parent=live.number, trained=True,
        )  # fmt: skip

    def promote(self) -> int:
        number = self.add().number
        assert self.versions.promote(number, reason="a test")
        return number


def wrong(place: Workplace) -> list[str]:
    """Rows whose output is not what the version that it names computes."""
    return [
        f"{row['_id']}: {output}"
        for row in place.rows.find()
        if (output := row["_outputs"][LISTENER])["value"]
        != answered(row["x"], 10.0 * output["version"] if output["version"] > 1 else 0.0)
    ]


def all_of(place: Workplace, version: int) -> bool:
    """Whether every row has its output by this version, and under the generation that is live."""
    generation = (
        Registry(open_database(place.database.client, place.database.name), SERVICE, 1, KEY)
        .listener(LISTENER)
        .generation
    )
    current = {f"_outputs.{LISTENER}.version": version, f"_outputs.{LISTENER}.generation": generation}
    return place.rows.count_documents(current) == place.rows.count_documents({})


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


def running(place: Workplace, environ: dict[str, str] | None = None, **listener: Any) -> tuple[Worker, Answers]:
    place.declare(answering(**listener))
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(300))
    worker = place.run(environ=environ)
    return worker, Answers(place.database)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_promotion_reaches_every_row_while_rows_stream_in(place: Workplace, processes: int) -> None:
    """Also if each version preprocesses in processes of its own, which end with it."""
    worker, answers = running(place, module="SlowAnswer", processes=processes)
    end, sent = threading.Event(), 0
    for _ in range(3):
        number = answers.promote()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            place.rows.insert_one({"_id": f"new{sent}", "x": f"y{sent}"})
            sent += 1
            time.sleep(0.005)
        eventually(f"every row is of version {number}", lambda n=number: all_of(place, n))
        assert wrong(place) == []
    end.set()
    assert worker.listener()["version"] == 4
    forks = [each for each in psutil.Process(worker.process.pid).children() if each.name() == "preprocess"]
    assert len(forks) == processes
    assert worker.stop() == 0


def test_no_row_waits_for_a_load(place: Workplace) -> None:
    """The new version takes seconds to build; rows that come meanwhile have the old one's output long before."""
    seconds = 3.0
    _, answers = running(place, {"PREDICTD_TEST_BUILD_SECONDS": str(seconds)}, module="SlowAnswer")
    for n in range(20):  # the model is warm
        place.rows.insert_one({"_id": f"w{n}", "x": "w"})
    eventually(
        "the first rows have outputs",
        lambda: place.rows.count_documents({f"_outputs.{LISTENER}": {"$exists": False}}) == 0,
    )
    number = answers.promote()
    longest, versions = 0.0, [1]
    while versions[-1] != number:
        began, row = time.monotonic(), f"z{len(versions)}"
        place.rows.insert_one({"_id": row, "x": row})
        while (found := place.rows.find_one({"_id": row, f"_outputs.{LISTENER}": {"$exists": True}})) is None:
            time.sleep(0.001)
        longest = max(longest, time.monotonic() - began)
        versions.append(found["_outputs"][LISTENER]["version"])
    assert versions.count(1) > 2
    assert longest < seconds / 2, f"a row waited {longest:.2f} s; the load takes {seconds} s"
    assert wrong(place) == []


def test_a_rollback_brings_the_outputs_back(place: Workplace) -> None:
    _, answers = running(place)
    number = answers.promote()
    eventually("every row is of the new version", lambda: all_of(place, number))
    assert answers.versions.rollback("a test").number == 1
    eventually("every row is of the first version", lambda: all_of(place, 1))
    assert wrong(place) == []


def test_a_promotion_that_nobody_heard_is_made_up_for_at_the_next_start(place: Workplace) -> None:
    worker, answers = running(place)
    worker.kill()
    number = answers.promote()
    place.run()
    eventually("every row is of the new version", lambda: all_of(place, number))
    assert wrong(place) == []


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it_at_work(place: Workplace) -> None:
    worker, answers = running(place)
    number = answers.add().number
    answers.data["_predictd.weights.chunks"].update_one(
        {"files_id": answers.versions.get(number).weights},
        {"$set": {"data": b"no weights at all"}},  # type: ignore[union-attr]
    )
    assert answers.versions.promote(number, reason="a test")
    worker.until("it says so", lambda: "cannot be loaded" in str(worker.listener().get("reason")))
    place.rows.insert_one({"_id": "after", "x": "after"})
    # One that was copied from elsewhere asks for the newest version (R6), which cannot be had.
    foreign = {"value": 0, "generation": 99, "version": 9, "asof": Timestamp(1, 1), "input": b"", "model": MODEL}
    place.rows.insert_one({"_id": "copied", "x": "copied", "_outputs": {LISTENER: foreign}})
    for row in ("after", "copied"):
        eventually(
            "a row that comes now has its output",
            lambda row=row: place.rows.find_one({"_id": row, f"_outputs.{LISTENER}.version": 1}),
        )
    assert worker.process.poll() is None
    assert answers.versions.rollback("it is broken").number == 1
    worker.until("all is well again", lambda: worker.report.get("state") == "running")
    eventually("every row is current", lambda: all_of(place, 1))


def test_resync_predicts_every_row_anew_newest_first(place: Workplace) -> None:
    worker, answers = running(place, scan_order="newest", scan_rate=200.0)
    before = {row["_id"]: row["_outputs"][LISTENER]["asof"] for row in place.rows.find()}
    Registry(answers.data, SERVICE, 1, KEY).resync(LISTENER)
    began = time.monotonic()
    generation = worker.listener()["generation"] + 1
    fresh = {f"_outputs.{LISTENER}.generation": generation}
    eventually("it begins", lambda: place.rows.count_documents(fresh) > 0)
    done = {row["_id"] for row in place.rows.find(fresh)}
    newest = set(range(100, 300))  # the first page, of a second's rows; within it there is no order
    assert newest <= done or done <= newest
    worker.until(
        "the scan tells how long it takes",
        lambda: "eta_seconds" in (worker.listener().get("scan") or {}) or all_of(place, 1),
    )
    eventually("every row was judged again", lambda: all_of(place, 1))
    assert time.monotonic() - began > 0.4
    assert all(row["_outputs"][LISTENER]["asof"] > before[row["_id"]] for row in place.rows.find())
