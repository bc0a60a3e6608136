"""service.toml is edited while rows flow: what is asked takes effect, what is wrong changes nothing, and no row is ever
forgotten.
"""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from harness import commands
from harness.commands import answer, metric, predictd, save, worker_pids
from harness.daemons import PATIENCE, Daemon, eventually
from harness.oracle import Oracle, expecting
from harness.processes import toml
from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names

BEFORE = 400
PAUSE = 0.01
ALL: Mapping[str, Any] = {}
MARKED: Mapping[str, Any] = {"m": True}
PLAIN: Mapping[str, Any] = {"m": False}
CONFIG_OK = "predictd_config_last_reload_successful"
SLOW = pytest.mark.slow


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


@pytest.fixture
def serve(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts `predictd run` with these listeners, in the folder `service`."""
    daemons: list[Daemon] = []

    def start(listeners: Mapping[str, Mapping[str, Any]]) -> Daemon:
        folder = tmp_path / "service"
        folder.mkdir()
        save(folder, file(mongo_uri, database.name, listeners))
        daemons.append(commands.start(folder))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.__exit__()


@SLOW
def test_saving_the_file_is_enough_while_rows_flow(
    serve: Callable[..., Daemon], mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """A listener is added, changed and removed, the file is broken and mended; after each the oracle holds over all
    rows.
    """

    def edit(listeners: Mapping[str, Mapping[str, Any]]) -> None:
        save(daemon.folder, file(mongo_uri, database.name, listeners))

    def added() -> None:
        edit({"a": ALL, "b": MARKED})
        until_ready(daemon, "a", "b")
        assert until_workers(daemon, database, "of_a", "of_b")["of_a"] == of_a, "who is not concerned is left alone"
        writer.flows()
        holds(database, {"a": ALL, "b": MARKED}, writer)
        assert database.rows.count_documents({"_id": {"$lt": BEFORE}, "_outputs.b": {"$exists": True}}) > 20

    def changed() -> None:
        edit({"a": ALL, "b": PLAIN})
        lost = {"m": True, "_outputs.b": {"$exists": True}}
        gained = {"m": False, "_outputs.b": {"$exists": False}, "x": {"$exists": True}}
        eventually("the new filter has reached old rows", lambda: _few(database, lost) and _few(database, gained))
        writer.flows()
        until_ready(daemon, "a", "b")
        holds(database, {"a": ALL, "b": PLAIN}, writer)
        assert until_workers(daemon, database, "of_a", "of_b")["of_a"] == of_a

    def removed() -> None:
        edit({"b": PLAIN})
        until_ready(daemon, "b")
        until_workers(daemon, database, "of_b")
        with writer.paused():
            first = writer._next
        writer.flows()
        holds(database, {"b": PLAIN}, writer)
        assert database.rows.count_documents({"_id": {"$gte": first}}) > 5
        assert database.rows.count_documents({"_id": {"$gte": first}, "_outputs.a": {"$exists": True}}) == 0
        assert "of_a" not in answer(daemon, "/metrics").text

    def broken() -> None:
        good = (daemon.folder / "service.toml").read_text()
        before = until_workers(daemon, database, "of_b")
        save(daemon.folder, good.replace('where = { "m" = false }', 'where = { "m" = { "$maybe" = false } }'))
        refused_everywhere(daemon, 'listeners.b.where.m."$maybe"', good)
        writer.flows()
        holds(database, {"b": PLAIN}, writer)
        assert until_workers(daemon, database, "of_b") == before

    def mended() -> None:
        # The file also brings back what was removed: its rows have changed meanwhile, and old outputs stand in them.
        edit({"a": ALL, "b": PLAIN})
        until_ready(daemon, "a", "b")
        eventually("the verdict is good again", lambda: metric(daemon, CONFIG_OK) == 1)
        assert answer(daemon, "/readyz").json()["config"]["error"] is None
        writer.flows()
        holds(database, {"a": ALL, "b": PLAIN}, writer)

    with Writer(mongo_uri, database.name) as writer:
        daemon = serve({"a": ALL})
        until_ready(daemon, "a")
        of_a = until_workers(daemon, database, "of_a")["of_a"]
        for step in (added, changed, removed, broken, mended):
            writer.flows()
            step()
        writer.flows()
    assert writer._failure is None, writer._failure
    for name, where in {"a": ALL, "b": PLAIN}.items():
        oracle(database, name, where).settle()
    assert database[names.DEAD_LETTERS].count_documents({}) == 0
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def _few(database: Database[dict[str, Any]], query: Mapping[str, Any]) -> bool:
    """Whether no more rows are like this than may be on their way at any moment."""
    return database.rows.count_documents(query) < 10


def refused_everywhere(daemon: Daemon, key: str, good: str) -> None:
    """The key of a refused file is named on /readyz, in the metric, the log and the status; the daemon is ready all the
    same.

    `good` is the text that still runs: who monitors the service from elsewhere has a copy of it.
    """
    eventually("the file is refused", lambda: daemon.readyz().get("config", {}).get("ok") is False)
    ready = answer(daemon, "/readyz")
    assert ready.status_code == 200
    assert key in ready.json()["config"]["error"]
    assert metric(daemon, CONFIG_OK) == 0
    said = [line for line in daemon.log.read_text().splitlines() if "is refused" in line]
    assert any(key in problem for problem in json.loads(said[-1])["problems"])

    elsewhere = daemon.folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    save(elsewhere, good)
    assert key in eventually("the status document names it", lambda: told(elsewhere))["error"]
    screen = predictd("status", cwd=elsewhere)
    assert screen.returncode == 0, screen.stderr
    assert "service.toml is refused" in screen.stdout
    assert key in screen.stdout
    beside_it = predictd("status", cwd=daemon.folder)
    assert key in beside_it.stdout + beside_it.stderr


def told(folder: Path) -> dict[str, Any] | None:
    """What `predictd status` tells of the configuration, once it is bad news."""
    document = json.loads(predictd("status", "--json", cwd=folder).stdout)
    return None if document["config"]["ok"] else document["config"]


@SLOW
def test_a_reload_can_be_asked_for(
    serve: Callable[..., Daemon], mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """SIGHUP and POST /-/reload: what systemd and scripts use, and what is left where a change of the file cannot be
    seen.

    Such a change is one through another name of the file, in a folder that nobody watches.
    """
    daemon = serve({"a": ALL})
    until_ready(daemon, "a")
    unseen = daemon.folder.parent / "unseen"
    unseen.hardlink_to(daemon.folder / "service.toml")

    def text(*listeners: str) -> str:
        return file(mongo_uri, database.name, dict.fromkeys(listeners, ALL))

    unseen.write_text(text("a", "b"))
    reply = daemon.reload()
    assert reply.status_code == 200, reply.text
    until_ready(daemon, "a", "b")

    unseen.write_text(text("a", "b").replace('key = "x"', 'key = "y"'))
    reply = daemon.reload()
    assert reply.status_code == 400
    assert "listeners.a.key" in reply.text
    assert "listeners.b.key" in reply.text
    assert answer(daemon, "/readyz").json()["config"]["ok"] is False
    assert metric(daemon, CONFIG_OK) == 0

    unseen.write_text(text("a", "c"))
    daemon.process.send_signal(signal.SIGHUP)
    until_ready(daemon, "a", "c")
    eventually("the verdict is good again", lambda: metric(daemon, CONFIG_OK) == 1)

    unseen.write_text("[service\n")
    daemon.process.send_signal(signal.SIGHUP)
    eventually("the file is refused", lambda: metric(daemon, CONFIG_OK) == 0)

    unseen.write_text(text("a").replace('name = "s"', 'name = "t"'))
    reply = daemon.reload()
    assert reply.status_code == 400
    assert "service.name: this cannot change while the service runs" in reply.text
    assert set(daemon.readyz()["listeners"]) == {"a", "c"}
    database.rows.insert_one({"_id": 1, "x": "still", "m": True})
    oracle(database, "a", ALL).settle()
    oracle(database, "c", ALL).settle()

    # A page in somebody's browser may not.
    assert daemon.reload(Origin="http://elsewhere.example").status_code == 403
    assert daemon.stop() == 0


@SLOW
def test_code_that_cannot_be_built_does_not_take_the_place_of_what_runs(
    serve: Callable[..., Daemon], mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """An import path with a typo is refused as a whole, by the key that it stands at; the worker that serves is left
    alone.
    """
    daemon = serve({"a": ALL})
    until_ready(daemon, "a")
    before = until_workers(daemon, database, "of_a")
    good = (daemon.folder / "service.toml").read_text()
    save(daemon.folder, good.replace("harness.models:digest", "harness.models:digst"))
    eventually("the file is refused", lambda: daemon.readyz().get("config", {}).get("ok") is False)
    error = daemon.readyz()["config"]["error"]
    assert "models.of_a.object" in error
    assert "did you mean 'digest'?" in error
    reply = daemon.reload()
    assert reply.status_code == 400
    assert "models.of_a.object" in reply.text
    database.rows.insert_one({"_id": 1, "x": "still", "m": True})
    oracle(database, "a", ALL).settle()
    assert until_workers(daemon, database, "of_a") == before
    save(daemon.folder, good)
    eventually("the verdict is good again", lambda: metric(daemon, CONFIG_OK) == 1)
    assert until_workers(daemon, database, "of_a") == before
    assert daemon.stop() == 0
