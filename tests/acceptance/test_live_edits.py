"""service.toml is edited while rows flow: what is asked takes effect, what is wrong changes nothing, and no row is ever
forgotten.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import commands
from harness.commands import UNGUARDED, answer, metric, predictd, save
from harness.daemons import Daemon, eventually
from harness.edits import ALL, BEFORE, MARKED, PLAIN, Writer, file, holds, oracle, until_ready, until_workers
from pymongo.database import Database

from daemon.store import names

CONFIG_OK = "predictd_config_last_reload_successful"
SLOW = pytest.mark.slow


@pytest.fixture
def serve(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts `predictd run` with these listeners, in the folder `service`."""
    daemons: list[Daemon] = []

    def start(listeners: Mapping[str, Mapping[str, Any]]) -> Daemon:
        folder = tmp_path / "service"
        folder.mkdir()
        save(folder, file(mongo_uri, database.name, listeners) + UNGUARDED)
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
        save(daemon.folder, file(mongo_uri, database.name, listeners) + UNGUARDED)

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
        return file(mongo_uri, database.name, dict.fromkeys(listeners, ALL)) + UNGUARDED

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
