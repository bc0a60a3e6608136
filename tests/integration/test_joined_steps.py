"""If as many processes as cores share the rows, one thread of each prepares and predicts them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness.corridors import LISTENER, TABLE, SteppedWorker, declare
from harness.daemons import eventually
from harness.processes import Workplace, declared
from harness.zygote import zygote
from pymongo.database import Database

from components.declarations import ModelDeclaration
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.corridor_threads import LONE_ROWS, CorridorThreads

BATCHES, ROWS = 6, 20
SECONDS = 60


@pytest.mark.parametrize("joined", [True, False])
def test_joined_steps_follow_one_another_while_a_write_waits(
    database: Database[dict[str, Any]], *, joined: bool
) -> None:
    """The first write waits until two more batches were predicted, as they may be meanwhile; every row gets its output.
    To prepare and to predict overlap if they are not joined.
    """
    declare(database)
    worker = SteppedWorker(database, 1)
    corridor = worker.corridor
    corridor.cap = BatchCap(1.0, ROWS)
    keys = list(range(BATCHES * ROWS))
    database[TABLE].insert_many([{"_id": key, "x": f"{key}", "m": True} for key in keys])
    spans: list[tuple[float, float]] = []
    predicted, failures = threading.Semaphore(0), list[BaseException]()

    def timed(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(batch: Any) -> Any:
            began = time.monotonic()
            time.sleep(0.02)  # so that steps in other threads overlap
            result = step(batch)
            spans.append((began, time.monotonic()))
            if step == predict:
                predicted.release()
            return result

        return run

    def write(batch: Any) -> None:
        if not written:
            waited = [predicted.acquire(timeout=SECONDS) for _ in range(3)]
            assert all(waited), "nothing was predicted while a write waited"
        written.append(len(batch.judged.rows))
        landed(batch)

    written: list[int] = []
    predict, landed = corridor.predict, corridor.write
    corridor.prepare, corridor.predict, corridor.write = (  # type: ignore[method-assign]
        timed(corridor.prepare),
        timed(predict),
        write,
    )
    threads = CorridorThreads(corridor, lambda _, step: step(), failures.append, joined=joined)
    worker.dirty_by_scan(*keys)
    threads.start()
    end = time.monotonic() + SECONDS
    while database[TABLE].count_documents({f"_outputs.{LISTENER}.value": {"$exists": True}}) < len(keys):
        assert not failures, failures
        assert time.monotonic() < end, "not every row has an output"
        time.sleep(0.05)
    assert threads.stop(SECONDS)
    assert all(row["_outputs"][LISTENER]["value"] == f"f({row['x']})" for row in database[TABLE].find())
    assert max(written) > LONE_ROWS
    spans.sort()
    overlaps = sum(after[0] < before[1] for before, after in pairwise(spans))
    assert (overlaps == 0) if joined else (overlaps > 0), spans


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Processes that are started meanwhile have two cores, or the machine's only one."""
    server = zygote()._server.pid
    cores = os.sched_getaffinity(server)
    os.sched_setaffinity(server, sorted(cores)[:2])
    yield
    os.sched_setaffinity(server, cores)


CODE = "harness.stamped_models"
NET = {"type": "torch", "object": f"{CODE}:Stamped", "device": "cpu"}
FUNCTION = {"type": "object", "object": f"{CODE}:stamped", "batched": True}


@pytest.mark.parametrize(("processes", "model", "joined"), [(1, NET, False), (2, NET, True), (2, FUNCTION, False)])
def test_as_many_processes_as_cores_join_their_steps(
    two_cores: None,
    mongo_uri: str,
    database: Database[dict[str, Any]],
    tmp_path: Path,
    processes: int,
    model: dict[str, Any],
    *,
    joined: bool,
) -> None:
    """No row is preprocessed in a process while its model is at work. In a single process some are, and with a function
    as the model, which may wait for a service.
    """
    functions = {name: f"{CODE}:{name}" for name in ("preprocess", "postprocess")}
    declarations = declared(partitions=processes, max_batch=40)
    declarations["models"]["f"] = ModelDeclaration.model_validate({**model, **functions}).dump()
    database["rows"].insert_many({"_id": key, "x": "x"} for key in range(600))
    with Workplace(mongo_uri, database, tmp_path, partitions=processes) as place:
        place.declare(declarations)
        team = place.run_all()
        path = f"_outputs.{LISTENER}.value"
        eventually("all have outputs", lambda: database["rows"].count_documents({path: {"$exists": True}}) == 600)
        assert team.stop() == 0
    stamps = [row["_outputs"][LISTENER]["value"] for row in database["rows"].find()]
    assert len({of for *_, of in stamps}) == processes
    meanwhile = 0
    for began, ended, _, _, of in stamps:
        meanwhile += any(began < end and start < ended for _, _, start, end, other in stamps if other == of)
    assert (meanwhile == 0) if joined else (meanwhile > 0)
