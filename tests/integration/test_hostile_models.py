"""Models that do something to their process, in a whole daemon: it costs them, and nobody else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.processes import LISTENER, TABLE, Service, alive, declared
from pymongo.database import Database

from daemon.store import names


@pytest.fixture
def service(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Service]:
    with Service(tmp_path / "s", mongo_uri, database.name, declared("harness.hostile:does")) as running:
        running.until_ready()
        yield running


def predicted(database: Database[dict[str, Any]], key: Any, what: str) -> None:
    def value() -> Any:
        row = database[TABLE].find_one({"_id": key})
        return row is not None and row.get("_outputs", {}).get(LISTENER, {}).get("value") == f"did {what}"

    eventually(f"row {key} is predicted", value)


def epoch(database: Database[dict[str, Any]]) -> int:
    lease = database[names.LEASES].find_one({})
    assert lease is not None
    return int(lease["epoch"])


def children_of_a_model(service: Service, database: Database[dict[str, Any]]) -> list[int]:
    """Process ids of what a model has started."""
    file = service.folder / "children"
    database[TABLE].insert_one({"_id": "starts", "x": f"starts {file}"})
    predicted(database, "starts", "starts")
    pids = list(map(int, file.read_text().split()))
    assert all(map(alive, pids))
    return pids


def test_a_model_that_prints_reports_and_closes_its_streams_changes_nothing(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """The daemon stays ready with the same worker and epoch; what was printed is in the log as output."""
    workers = service.worker_pids()
    for what in ("prints", "closes", "nothing"):
        database[TABLE].insert_one({"_id": what, "x": what})
        predicted(database, what, what)
    service.until_ready()
    assert (service.worker_pids(), epoch(database)) == (workers, 1)
    entries = [json.loads(line) for line in service.log.read_text().splitlines()]
    printed = [entry for entry in entries if entry["event"] == "worker output"]
    assert {(entry["worker"], entry["stream"]) for entry in printed} == {("w", "stdout"), ("w", "stderr")}
    assert all("level" in entry and "event" in entry for entry in entries)
    assert service.stop() == 0


RAISED = {
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "RecursionError": "def f(): f()\nf()",
    "StopIteration": "raise StopIteration",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "import asyncio\nraise asyncio.CancelledError",
    "Silent": "class Silent(BaseException):\n def __str__(self): raise SystemExit(3)\nraise Silent",
    "ValueError": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)",
}
CHANGED = (
    "import sys, threading\nt = threading.Thread(target=sys.exit, args=(3,))\nt.start()\nt.join()",
    "import os\nos.chdir('/')",
    "import os\nos.environ.clear()",
    "import os\nos.fork() or os._exit(3)",
    "import socket\nsocket.setdefaulttimeout(0.0001)",
    "import warnings\nwarnings.simplefilter('error')",
    "import logging, sys\nlogging.disable(100)\nsys.stdout = sys.stderr = None",
    "import sys\nsys.setrecursionlimit(60)",
    "import time\ntime.sleep = lambda s: None",
    "import random, decimal\nrandom.seed(1)\ndecimal.getcontext().prec = 1",
)


def test_what_a_model_raises_costs_its_row_and_what_it_changes_nothing(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """Whatever can be raised is one dead letter; the process works on, with the same worker and epoch."""
    workers, table = service.worker_pids(), database[TABLE]
    table.insert_one({"_id": "before", "x": "nothing"})
    predicted(database, "before", "nothing")  # so that it is known that the model works
    for name, code in RAISED.items():
        table.insert_one({"_id": name, "x": f"runs {code}"})
        query = {"_id": name, f"_outputs.{LISTENER}.error.type": name}
        eventually(f"{name} is a letter", lambda: table.find_one(query))  # noqa: B023  # called right here
    for number, code in enumerate(CHANGED):
        table.insert_one({"_id": number, "x": f"runs {code}"})
        predicted(database, number, "runs")
    table.insert_one({"_id": "after", "x": "nothing"})
    predicted(database, "after", "nothing")
    assert (service.worker_pids(), epoch(database)) == (workers, 1)
    assert service.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)",
        "import sys\nsys.modules.clear()",
        "import os, threading\nthreading.Timer(0.001, os._exit, (0,)).start()",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
        "import sys\nsys.setrecursionlimit(30)",
    ],
    ids=["signal", "modules", "thread", "descriptors", "recursion"],
)
def test_a_row_that_damages_the_interpreter_costs_itself(
    service: Service, database: Database[dict[str, Any]], code: str
) -> None:
    """Also if predictd's own code fails because of it, once the model has returned. What a thread does later may be too
    late: then the row has its output.
    """
    database[TABLE].insert_many([{"_id": n, "x": f"runs {code}" if n == 5 else "nothing"} for n in range(10)])
    query = {"_id": 5, f"_outputs.{LISTENER}": {"$exists": True}}
    row = eventually("it has an output or an error", lambda: database[TABLE].find_one(query), 90)
    for n in {*range(10)} - {5}:
        predicted(database, n, "nothing")
    output = row["_outputs"][LISTENER]
    assert output.get("value") == "did runs" or output["error"]["type"] == "WorkerDied"
    assert database[names.DEAD_LETTERS].distinct("_id.row") == ([5] if "error" in output else [])


@pytest.mark.slow
def test_a_worker_that_cannot_report_any_more_is_replaced_and_names_no_row(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """A row ends the thread that reports: a crash, and no silence that would be taken for a hanging row."""
    ends = (
        "import ctypes, threading\n"
        "for t in threading.enumerate():\n"
        " if t.name == 'reporter':\n"
        "  ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(t.ident), ctypes.py_object(SystemExit))"
    )
    database[TABLE].insert_one({"_id": 1, "x": f"runs {ends}"})
    predicted(database, 1, "runs")
    eventually("it is replaced", lambda: service.log.read_text().count('"worker started"') > 1)
    database[TABLE].insert_one({"_id": 2, "x": "nothing"})
    predicted(database, 2, "nothing")
    assert "has not reported" not in service.log.read_text()
    assert database[names.DEAD_LETTERS].count_documents({}) == 0


@pytest.mark.parametrize("code", [0, 64, 65, 76])
def test_an_exit_code_of_user_code_is_a_crash(service: Service, database: Database[dict[str, Any]], code: int) -> None:
    """It starts no epoch and no minute of waiting: the worker is started again, and runs once the row is mended."""
    database[TABLE].insert_one({"_id": 1, "x": f"exits {code}"})
    eventually("it is started again", lambda: service.log.read_text().count('"worker ended and is started again"') >= 2)
    database[TABLE].update_one({"_id": 1}, {"$set": {"x": "nothing"}})
    predicted(database, 1, "nothing")
    assert epoch(database) == 1
    assert f"exit code {code}" in service.log.read_text()


def test_the_next_output_does_not_wait_for_what_a_killed_worker_had_started(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """Its programs are ended with it, also that in a session of its own."""
    children = children_of_a_model(service, database)
    os.kill(service.worker_pids()[0], signal.SIGKILL)
    database[TABLE].insert_one({"_id": "next", "x": "nothing"})
    predicted(database, "next", "nothing")
    assert not any(map(alive, children))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_program_of_a_model_outlives_the_daemon(
    service: Service, database: Database[dict[str, Any]], end: str
) -> None:
    """Whether it is stopped, which does not wait for them, or killed."""
    children = [*children_of_a_model(service, database), *service.worker_pids()]
    if end == "stop":
        assert service.stop() == 0
    else:
        service.kill()
    eventually("all have ended", lambda: not any(map(alive, children)))
