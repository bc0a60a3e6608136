"""MongoDB that is not there, a daemon that is there already, and a wrong configuration: a message, an exit code, never
a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import commands
from harness.commands import answer, metric, predictd
from harness.daemons import Daemon, eventually
from harness.models import digest
from pymongo import MongoClient
from pymongo.database import Database

from daemon.embedded.server import ensure, uri_of

LIGHT = {
    "tables": {"rows": {"fields": {"x": "str"}}},
    "models": {"f": {"type": "object", "object": "harness.models:digest"}},
    "listeners": {"L": {"table": "rows", "key": "x", "model": "f"}},
}
Start = Callable[..., Daemon]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons by the console script, and ends what a failed test left."""
    daemons: list[Daemon] = []

    def start_one(folder: Path, *arguments: str) -> Daemon:
        daemons.append(commands.start(folder, *arguments))
        return daemons[-1]

    yield start_one
    for daemon in daemons:
        daemon.__exit__()


def absent(folder: Path) -> tuple[str, int]:
    """The address of a MongoDB that is not there, and its port; a server of ours on `folder` could listen there
    later.
    """
    port = commands.free_port()
    return uri_of(folder, port), port


def logged(daemon: Daemon) -> list[dict[str, Any]]:
    """The lines of the log so far; each is whole and JSON, so nothing else was ever printed."""
    text = daemon.log.read_text()
    assert "Traceback" not in text
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.usefixtures("mongod")
@pytest.mark.slow
def test_it_waits_for_a_mongodb_that_comes_later(tmp_path: Path, start: Start) -> None:
    """Alive and red with the reason all the while, one clear line in the log; then it does its work as if nothing had
    been.
    """
    uri, port = absent(tmp_path / "mongo")
    commands.write_service(tmp_path, uri, "later", LIGHT)
    daemon = start(tmp_path)
    assert "MongoDB: no primary answers" in daemon.until_reason("MongoDB: no primary answers")
    red = answer(daemon, "/readyz")
    assert red.status_code == 503
    assert str(port) in red.json()["reason"]
    listener = red.json()["listeners"]["L"]
    assert (listener["ready"], listener["reason"]) == (False, red.json()["reason"])
    assert red.json()["config"]["ok"] is True
    assert answer(daemon, "/healthz").status_code == 200
    assert metric(daemon, "predictd_mongo_up") == 0
    waits = [line for line in logged(daemon) if "cannot be reached" in line["event"]]
    assert len(waits) == 1, waits
    assert waits[0]["level"] == "warning"
    assert str(port) in waits[0]["reason"]

    with ensure(tmp_path / "mongo", port), MongoClient[dict[str, Any]](uri) as mongo:
        daemon.until_ready()
        assert answer(daemon, "/readyz").status_code == 200
        assert metric(daemon, "predictd_mongo_up") == 1
        mongo.later.rows.insert_one({"_id": 1, "x": "at last"})
        eventually(
            "the row has its output",
            lambda: mongo.later.rows.find_one({"_id": 1, "_outputs.L.value": digest("at last")}),
        )
        assert any("answers again" in line["event"] for line in logged(daemon))
        assert daemon.stop() == 0
    logged(daemon)


def test_it_stops_at_once_while_it_waits(tmp_path: Path, start: Start) -> None:
    """SIGTERM needs no MongoDB."""
    commands.write_service(tmp_path, absent(tmp_path / "mongo")[0], "never", LIGHT)
    daemon = start(tmp_path)
    daemon.until_reason("MongoDB")
    assert daemon.stop() == 0
    logged(daemon)


def test_it_gives_up_after_the_wait_that_was_asked_for(tmp_path: Path) -> None:
    """69, as every command that needs MongoDB."""
    uri, port = absent(tmp_path / "mongo")
    path = str(commands.write_service(tmp_path, uri, "never", LIGHT))
    ran = predictd("run", "-c", path, "--wait", "2", cwd=tmp_path)
    assert ran.returncode == 69, ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: MongoDB cannot be reached: MongoDB was not there within 2 s")
    assert str(port) in last
    assert not ran.stdout


@pytest.mark.slow
def test_a_command_says_that_mongodb_is_absent(tmp_path: Path) -> None:
    """The address is named, the password in it is not."""
    path = str(
        commands.write_service(tmp_path, f"mongodb://me:secret@127.0.0.1:{commands.free_port()}/", "never", LIGHT)
    )
    ran = predictd("status", "-c", path, cwd=tmp_path)
    assert ran.returncode == 69, ran.stderr
    assert ran.stderr.startswith("error: MongoDB cannot be reached: no primary answers: 127.0.0.1:")
    assert len(ran.stderr.splitlines()) == 1
    assert "secret" not in ran.stderr + ran.stdout


def test_a_command_says_that_the_embedded_mongodb_does_not_run(tmp_path: Path) -> None:
    """A command never starts a server; it says which command does."""
    path = str(commands.write_service(tmp_path, "embedded", "never", LIGHT))
    ran = predictd("tables", "-c", path, cwd=tmp_path)
    assert ran.returncode == 69, ran.stderr
    assert "start `predictd run` or `predictd mongod` first" in ran.stderr


@pytest.fixture
def first(tmp_path: Path, start: Start, mongo_uri: str, database: Database[dict[str, Any]]) -> Daemon:
    """The active daemon of a service; beside it lies the folder `two`, for another one of the same service."""
    for name in ("one", "two"):
        commands.write_service(tmp_path / name, mongo_uri, database.name, LIGHT)
    daemon = start(tmp_path / "one")
    daemon.until_ready()
    return daemon


def test_a_second_daemon_of_the_service_leaves_where_it_may_not_stand_by(tmp_path: Path, first: Daemon) -> None:
    """75, and who is active; each of the two has a state directory of its own."""
    ran = predictd("run", "-c", str(tmp_path / "two" / "service.toml"), "--no-standby", cwd=tmp_path)
    assert ran.returncode == 75, ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"(pid {first.process.pid}, epoch 1) is active for the service 's'" in last
    assert first.readyz()["ready"] is True


@pytest.mark.slow
def test_a_second_daemon_of_the_service_stands_by_and_takes_over(
    tmp_path: Path, first: Daemon, start: Start, database: Database[dict[str, Any]]
) -> None:
    """It says whom it waits for, is not ready meanwhile, and does the work when the first has gone."""
    second = start(tmp_path / "two")
    assert f"pid {first.process.pid}" in second.until_reason("standby")
    assert answer(second, "/readyz").status_code == 503
    assert first.stop() == 0
    second.until_ready()
    database.rows.insert_one({"_id": 1, "x": "taken over"})
    eventually(
        "the second predicts", lambda: database.rows.find_one({"_id": 1, "_outputs.L.value": digest("taken over")})
    )
    assert second.stop() == 0


GOOD = """
[service]
name = "s"
[mongo]
uri = "mongodb://127.0.0.1:1/"
database = "d"
[security]
allow_imports = ["harness"]
[tables.rows]
fields = { x = "str" }
[models.f]
type = "object"
object = "harness.models:digest"
[listeners.L]
table = "rows"
key = "x"
model = "f"
"""
BAD = {
    "several things at once": (
        GOOD.replace('"mongodb://127.0.0.1:1/"', '"postgres://h/"')
        .replace('"harness.models:digest"', '"os:system"')
        .replace('"str"', '"strr"')
        .replace('key = "x"', 'key = "y"\nmax_batches = 3\nlatency_budget = "soon"'),
        [
            "mongo.uri: ",
            "models.f.object: ",
            "tables.rows.fields.x: ",
            "listeners.L.key: ",
            "listeners.L.max_batches: ",
            "listeners.L.latency_budget: ",
        ],
    ),
    "no TOML": (GOOD + "[listeners.L\n", ["service.toml", "line"]),
    "a variable that is not set": (
        GOOD.replace('"d"', '"${NOT_SET_ANYWHERE}"'),
        ["mongo.database", "NOT_SET_ANYWHERE"],
    ),
    "a state directory that cannot be": (
        GOOD.replace("[mongo]", 'state_dir = "/proc/no"\n[mongo]'),
        ["service.state_dir"],
    ),
}


@pytest.mark.parametrize(
    "kind", [kind if kind == "several things at once" else pytest.param(kind, marks=pytest.mark.slow) for kind in BAD]
)
def test_a_wrong_file_ends_the_daemon_with_all_that_is_wrong(kind: str, tmp_path: Path) -> None:
    """78: every key is named, each in a line of its own, and nothing was started."""
    text, told = BAD[kind]
    commands.save(tmp_path, text)
    ran = predictd("run", "--wait", "1", cwd=tmp_path)
    assert ran.returncode == 78, ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    for words in told:
        assert any(words in line for line in errors), f"{words!r} is not in {errors}"
    if len(told) > 2:
        assert len(errors) == len(told)
    assert not (tmp_path / ".predictd").exists()


@pytest.mark.slow
def test_other_commands_refuse_a_wrong_file_too(tmp_path: Path) -> None:
    """The same message and exit code, whoever reads the file; and where there is none."""
    commands.save(tmp_path, GOOD.replace("[listeners.L]", "[listener.L]"))
    for command in (("check",), ("mongod",)):
        ran = predictd(*command, cwd=tmp_path)
        assert ran.returncode == 78, ran.stderr
        assert "error: listener: unknown section" in ran.stderr
        assert "did you mean `listeners`?" in ran.stderr
        assert not ran.stdout
    ran = predictd("run", "-c", "nowhere.toml", cwd=tmp_path)
    assert ran.returncode == 78, ran.stderr
    assert "nowhere.toml" in ran.stderr
