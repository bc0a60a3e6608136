"""A service whose file is edited while a client writes: what the tests of edits share."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names
from harness.commands import worker_pids
from harness.daemons import PATIENCE, Daemon, eventually
from harness.oracle import Oracle, expecting
from harness.processes import toml

BEFORE = 400
PAUSE = 0.01
ALL: Mapping[str, Any] = {}
MARKED: Mapping[str, Any] = {"m": True}
PLAIN: Mapping[str, Any] = {"m": False}


class Writer:
    """A client that inserts, updates, marks and deletes rows at random, some eighty times a second, until it is
    paused.
    """

    def __init__(self, uri: str, database: str, seed: int = 11) -> None:
        self._mongo = MongoClient[dict[str, Any]](uri)
        self._rows = self._mongo[database].rows
        self._random = random.Random(seed)
        self._next = BEFORE
        self._flow, self._still, self._end = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="writer")
        self.writes = 0

    def __enter__(self) -> Self:
        self._rows.insert_many(self._row(n) for n in range(BEFORE))
        self._flow.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._flow.set()
        self._thread.join(PATIENCE)
        self._mongo.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block nothing is written."""
        self._still.clear()
        self._flow.clear()
        assert self._still.wait(PATIENCE), f"the writer has ended: {self._failure}"
        yield
        self._flow.set()

    def flows(self) -> None:
        """Waits until a good many rows have been written from now on."""
        until = self.writes + 60
        eventually("rows flow", lambda: self._failure or self.writes >= until)
        assert self._failure is None, self._failure

    def _row(self, n: int) -> dict[str, Any]:
        return {"_id": n, "x": f"x{n}", "m": n % 2 == 0}

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                if not self._flow.is_set():
                    self._still.set()
                    self._flow.wait()
                    continue
                self._write()
                self._end.wait(PAUSE)
        except Exception as error:
            self._failure = error

    def _write(self) -> None:
        self.writes += 1
        any_row = {"_id": self._random.randrange(self._next)}
        match self._random.choices(("insert", "change", "mark", "replace", "delete"), (40, 25, 15, 10, 10))[0]:
            case "insert":
                self._rows.insert_one(self._row(self._next))
                self._next += 1
            case "change":
                self._rows.update_one(any_row, {"$set": {"x": f"changed {self.writes}"}})
            case "mark":
                self._rows.update_one(any_row, {"$set": {"m": self._random.random() < 0.5}})
            case "replace":
                self._rows.replace_one(any_row, {"x": f"replaced {self.writes}", "m": self._random.random() < 0.5})
            case "delete":
                self._rows.delete_one(any_row)


def file(uri: str, database: str, listeners: Mapping[str, Mapping[str, Any]]) -> str:
    """A service.toml with these listeners and their filters, each with a model, and so a worker, of its own."""
    return toml(
        uri,
        database,
        {
            "tables": {"rows": {"fields": {"x": "str", "m": "bool"}}},
            "models": {f"of_{name}": {"type": "object", "object": "harness.models:digest"} for name in listeners},
            "listeners": {
                name: {"table": "rows", "key": "x", "model": f"of_{name}", "where": dict(where)}
                for name, where in listeners.items()
            },
        },
    )


def oracle(database: Database[dict[str, Any]], listener: str, where: Mapping[str, Any]) -> Oracle:
    def matches(row: Mapping[str, Any]) -> bool:
        return all(row.get(name) == value for name, value in where.items())

    return Oracle(database, expecting(where=matches), listener=listener)


def holds(database: Database[dict[str, Any]], listeners: Mapping[str, Mapping[str, Any]], writer: Writer) -> None:
    """While nobody writes for a moment, every row comes to what these listeners ask for."""
    with writer.paused():
        for name, where in listeners.items():
            oracle(database, name, where).settle()
        for name, where in listeners.items():
            oracle(database, name, where).check()


def until_ready(daemon: Daemon, *listeners: str) -> None:
    """Waits until exactly these listeners are there, and all of them are ready."""

    def ready() -> bool:
        page = daemon.readyz()
        return bool(page.get("ready")) and set(page["listeners"]) == set(listeners)

    eventually(f"{', '.join(listeners)} are ready", ready)


def workers(daemon: Daemon, database: Database[dict[str, Any]]) -> dict[str, int]:
    """The process of each worker, as the status document tells them; only processes that are there."""
    document = database[names.STATUS].find_one() or {}
    alive = worker_pids(daemon)
    return {name: each["pid"] for name, each in document.get("workers", {}).items() if each["pid"] in alive}


def until_workers(daemon: Daemon, database: Database[dict[str, Any]], *names: str) -> dict[str, int]:
    """Waits until these workers, and no other process, run; their processes."""

    def running() -> dict[str, int] | None:
        found = workers(daemon, database)
        return found if set(found) == set(names) and len(worker_pids(daemon)) == len(names) else None

    return eventually(f"the workers {', '.join(names)} run, and no other", running)
