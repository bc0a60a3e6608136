"""A worker whose model preprocesses in processes of its own: the same outputs, the same promise, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemons import eventually
from harness.models import digest
from harness.oracle import History, Oracle, expecting
from harness.processes import LISTENER, Service, Workplace, alive, declared
from harness.writers import finish, write
from pymongo.database import Database

from components.declarations import ModelDeclaration
from daemon.store import names

CODE = "harness.preprocess_models"
NET = {
    "type": "torch",
    "object": f"{CODE}:Net",
    "preprocess": f"{CODE}:length",
    "postprocess": f"{CODE}:named",
    "device": "cpu",
    "preprocess_processes": 2,
}


def apart(model: dict[str, Any] = NET, **listener: Any) -> dict[str, Any]:
    declarations = declared(**listener)
    declarations["models"]["f"] = ModelDeclaration.model_validate(model).dump()
    return declarations


def forks(pid: int) -> list[int]:
    """The processes that preprocess for this one."""
    return sorted(each.pid for each in psutil.Process(pid).children() if each.name() == "preprocess")


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as workplace:
        yield workplace


def outputs(place: Workplace) -> dict[Any, Any]:
    return {row["_id"]: row["_outputs"][LISTENER] for row in place.rows.find({f"_outputs.{LISTENER}": {"$exists": 1}})}


def test_rows_one_by_one_and_many_at_once_are_preprocessed_elsewhere(place: Workplace) -> None:
    """Each in one of the forks of the worker, each predicted by the worker."""
    place.declare(apart())
    place.rows.insert_many({"_id": n, "x": "a" * n} for n in range(300))
    worker = place.run()
    for n in range(300, 305):
        place.rows.insert_one({"_id": n, "x": "a" * n})
        eventually("the lone row has its output", lambda n=n: n in outputs(place))
    place.rows.insert_many({"_id": n, "x": "bad" if n == 400 else "a" * n} for n in range(305, 500))
    place.rows.update_one({"_id": 7}, {"$set": {"x": "another"}})
    expected: dict[int, Any] = {n: n for n in range(500)} | {7: len("another"), 400: "ValueError"}
    eventually(
        "every row has its output",
        lambda: {key: _shown(output) for key, output in outputs(place).items()} == expected,
    )
    values = [output["value"] for output in outputs(place).values() if "value" in output]
    assert {value["predicted"] for value in values} == {worker.process.pid}
    assert sorted({value["prepared"] for value in values}) == forks(worker.process.pid)
    assert worker.stop() == 0


def _shown(output: dict[str, Any]) -> Any:
    return output["value"]["length"] if "value" in output else output["error"]["type"]


def test_two_processes_of_a_worker_have_their_own(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """With `partitions`, each preprocesses its share."""
    with Workplace(mongo_uri, database, tmp_path, partitions=2) as place:
        place.declare(apart(partitions=2))
        place.rows.insert_many({"_id": n, "x": "a" * n} for n in range(400))
        team = place.run_all()
        eventually("every row has its output", lambda: len(outputs(place)) == 400)
        own = {worker.process.pid: forks(worker.process.pid) for worker in team.members}
        assert [len(of) for of in own.values()] == [2, 2]
        for key, output in outputs(place).items():
            assert output["value"]["length"] == key
            assert output["value"]["prepared"] in own[output["value"]["predicted"]]
        assert team.stop() == 0


def test_a_worker_ends_as_a_fork_does_and_the_next_one_goes_on(place: Workplace) -> None:
    """A SIGKILL from outside condemns no row."""
    place.declare(apart())
    worker = place.run()
    before = forks(worker.process.pid)
    os.kill(before[0], signal.SIGKILL)
    place.rows.insert_many({"_id": n, "x": "a" * n} for n in range(300))
    assert worker.wait() == -signal.SIGKILL
    eventually("the other one has ended, too", lambda: not alive(before[1]))
    place.run()
    eventually("every row has its output", lambda: len(outputs(place)) == 300)
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0


EXPECT = expecting(digest, lambda row: row.get("m") is True, lambda x: None if isinstance(x, str) else "DecodeError")


def test_kills_of_workers_and_forks_lose_nothing_and_do_nothing_twice(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """While four clients write, forks, workers and the supervisor are killed at random instants."""
    seed = os.environ.get("PREDICTD_TEST_SEED", "apart")
    choose = random.Random(seed)
    declarations = declared("harness.models:digest", where={"m": True})
    declarations["models"]["f"] |= {"preprocess": "harness.preprocess_models:same", "preprocess_processes": 2}
    oracle, history = Oracle(database, EXPECT), History(database, EXPECT)
    service = Service(tmp_path, mongo_uri, database.name, declarations)
    try:
        service.until_ready()
        for turn, victim in enumerate(["fork", "worker", "fork", "supervisor", "fork"]):
            writers = write(mongo_uri, database.name, f"{seed}.{turn}", 200)
            time.sleep(choose.uniform(0, 1.0))  # a random instant, not a synchronisation
            workers = service.worker_pids()
            if victim == "supervisor":
                service.kill()
                service = Service(tmp_path, mongo_uri, database.name, declarations)
            for pid in workers if victim != "supervisor" else []:
                _kill(pid, fork=victim == "fork", choose=choose)
            finish(writers)
            oracle.settle(120)
        service.until_ready()
        assert service.stop() == 0, service.log.read_text()[-3000:]
    finally:
        service.__exit__()
    oracle.check()
    assert history.violations(LISTENER) == []


def _kill(worker: int, *, fork: bool, choose: random.Random) -> None:
    with suppress(psutil.NoSuchProcess, ProcessLookupError, IndexError):  # it has ended, or has no forks yet
        os.kill(choose.choice(forks(worker)) if fork else worker, signal.SIGKILL)


def test_memory_of_the_forks_counts(place: Workplace) -> None:
    """What a `preprocess` keeps is found out as what a model keeps."""
    model = {"type": "object", "object": "harness.models:digest", "preprocess": "harness.deadly_models:leaky"}
    place.declare(apart(model | {"preprocess_processes": 1}))
    worker = place.run(memory=256 << 20)
    stop = threading.Event()

    def insert() -> None:
        n = 0
        while not stop.wait(0.02):
            place.rows.insert_one({"_id": n, "x": f"x{n}"})
            n += 1

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        assert worker.wait() == 0
    finally:
        stop.set()
        thread.join()
    assert "limits.worker_memory" in worker.report["reason"]
    place.run()
    rows = place.rows.count_documents({})
    eventually("every row has its output", lambda: len(outputs(place)) == rows)
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0
