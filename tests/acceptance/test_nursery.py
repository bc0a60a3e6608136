"""Workers of a whole daemon that come from the nursery."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemons import eventually
from harness.processes import TABLE, Service, declarations
from pymongo.database import Database

from daemon.store import names

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def service(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Service]:
    """Two workers, each with a model of torch; one has as many threads as its model says."""
    linear = {"type": "torch", "object": "torch.nn:Linear", "preprocess": "torch:tensor"}
    models = {name: {**linear, "arguments": {"in_features": 2, "out_features": 1}} for name in ("one", "two")}
    models["two"]["threads"] = 3
    listeners = {name: {"table": TABLE, "key": "x", "model": name, "worker": name} for name in models}
    whole = declarations({TABLE: {"x": "vector[2]"}}, models, listeners)
    whole["security"] = {"allow_imports": ["torch"]}
    with Service(tmp_path / "s", mongo_uri, database.name, whole) as running:
        running.until_ready()
        yield running


def predicted(database: Database[dict[str, Any]], key: Any) -> None:
    """Inserts a row and waits for the outputs of both models."""
    database[TABLE].insert_one({"_id": key, "x": [1.0, 2.0]})
    found = {"_id": key, "_outputs.one.value": {"$exists": True}, "_outputs.two.value": {"$exists": True}}
    eventually(f"row {key} is predicted", lambda: database[TABLE].find_one(found))


def nursery(service: Service) -> int | None:
    """The process id of a nursery that is ready."""
    ready = [line for line in service.log.read_text().splitlines() if "the nursery is ready" in line]
    pids = service.children("daemon.engine.fork_server")
    return next((pid for pid in pids if any(f'"pid": {pid},' in line for line in ready)), None)


def was_forked(pid: int) -> bool:
    """The environment that it shows is the nursery's, which a worker that was started by exec has not."""
    return b"_PREDICTD_CHANNEL=" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_workers_share_the_cores_and_outlive_their_nursery(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """A nursery that is killed is replaced, and the next worker comes from its successor."""
    workers = service.worker_pids()
    assert all(map(was_forked, workers))
    each = max(1, CORES // 2)
    shown = {"workers.one.threads": each, "workers.two.threads": 3}
    eventually("status shows their threads", lambda: database[names.STATUS].find_one(shown))
    first = nursery(service)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    predicted(database, "without a nursery")
    eventually("the same workers are there", lambda: service.worker_pids() == workers)
    eventually("there is another one", lambda: nursery(service) not in (None, first))
    os.kill(workers[0], signal.SIGKILL)
    predicted(database, "after it")
    another = eventually("a worker is new", lambda: set(service.worker_pids()) - set(workers))
    assert all(map(was_forked, another))
    assert service.stop() == 0


@pytest.mark.slow
def test_ten_kills_five_seconds_apart(service: Service, database: Database[dict[str, Any]]) -> None:
    """The row after each gets its outputs, and no process or zombie is left."""
    for number in range(10):
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        predicted(database, number)
        time.sleep(5)
    children = psutil.Process(service.process.pid).children(recursive=True)
    assert len(children) == 3  # the nursery and two workers
    assert service.stop() == 0
