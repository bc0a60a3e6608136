"""The command line against a running daemon, through the real console script: what is told, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import commands
from harness.commands import ESCAPE, PREDICTD, Terminal, predictd
from harness.daemons import PATIENCE, Daemon, eventually
from harness.models import digest
from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names

GOOD = "service.toml: good (1 table, 1 model, 1 listener, 1 trainer, 1 validation)\n"

DECLARED = {
    "tables": {"rows": {"fields": {"x": "str", "y": "str"}}},
    "models": {
        "sure": {"type": "object", "object": "harness.models:digest"},
        "frail": {"type": "object", "object": "harness.models:fails_until_mended"},
    },
    "listeners": {
        "good": {"table": "rows", "key": "x", "model": "sure", "worker": "both"},
        "bad": {"table": "rows", "key": "y", "model": "frail", "worker": "both"},
    },
}


@dataclass(frozen=True)
class Place:
    """A running daemon, its folder and its database; its frail model fails while the file `mended` is not there."""

    daemon: Daemon
    database: Database[dict[str, Any]]
    mended: Path

    def tells(self, *arguments: str) -> Any:
        """The JSON of a command, once it ends well: the daemon's status is published some time after it is ready."""

        def ends_well() -> str:
            ran = self.runs(*arguments, "--json")
            return ran.stdout if ran.returncode == 0 else ""

        return json.loads(eventually("the command ends well", ends_well))

    def tells_state(self, listener: str) -> str | None:
        """What the status says of a listener: the state in which its worker reports it, or that it is paused."""
        ran = self.runs("status", "--json")
        status = json.loads(ran.stdout)
        if listener in status["paused"]:
            return "paused"
        found = [
            each["listeners"][listener]["state"] for each in status["workers"].values() if listener in each["listeners"]
        ]
        return found[0] if found else None

    def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in the daemon's folder."""
        return predictd(*arguments, cwd=self.daemon.folder)


@pytest.fixture(scope="module")
def running(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cli")
    with MongoClient[dict[str, Any]](mongo_uri) as mongo:
        database = mongo[f"test_{uuid4().hex[:16]}"]
        commands.write_service(folder, mongo_uri, database.name, DECLARED)
        mended = folder / "mended"
        try:
            with commands.start(folder, environ={"PREDICTD_TEST_MENDED": str(mended)}) as daemon:
                daemon.until_ready()
                yield Place(daemon, database, mended)
        finally:
            mongo.drop_database(database)


@pytest.fixture
def place(running: Place) -> Place:
    """The same daemon for every test, without rows and letters of the one before."""
    running.mended.unlink(missing_ok=True)
    running.database.rows.delete_many({})
    eventually("the letters are gone", lambda: running.database[names.DEAD_LETTERS].count_documents({}) == 0)
    return running


def test_init_writes_a_first_file_that_is_good(tmp_path: Path) -> None:
    """And never over a file that is there, unless it is told to."""
    ran = predictd("init", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "wrote service.toml; next: predictd check -c service.toml, then predictd run -c service.toml\n"
    ran = predictd("check", "--no-build", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, GOOD), ran.stderr
    ran = predictd("init", cwd=tmp_path)  # in a checkout it is there from the start
    assert (ran.returncode, ran.stdout.partition(";")[0]) == (
        0,
        "service.toml is there already, as this would write it",
    )

    (tmp_path / "service.toml").write_text("mine")
    ran = predictd("init", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "error: service.toml is there already; --force overwrites it\n"
    assert (tmp_path / "service.toml").read_text() == "mine"
    assert predictd("init", "--force", ".", cwd=tmp_path).returncode == 0, "a folder stands for the file in it"
    assert (tmp_path / "service.toml").read_text() != "mine"


def test_check_builds_what_the_file_names_and_meets_mongodb(place: Place) -> None:
    """Beside a running daemon, which it does not disturb."""
    ran = place.runs("check", "--mongo")
    assert (ran.returncode, ran.stdout) == (0, "service.toml: good (1 table, 2 models, 2 listeners)\n"), ran.stderr
    assert place.daemon.readyz()["ready"] is True


def test_status_tables_and_models_tell_what_there_is(place: Place) -> None:
    """As JSON for programs, and as plain text where the output goes into a pipe."""
    place.database.rows.insert_many([{"_id": 1, "x": "one"}, {"_id": 2}])
    eventually("the output", lambda: place.database.rows.find_one({"_id": 1, "_outputs.good.value": digest("one")}))

    status = place.tells("status")
    assert (status["_id"], status["state"], status["ready"]) == ("s", "active", True)
    assert status["config"]["ok"] is True
    assert status["workers"]["both"]["listeners"]["good"]["state"] == "running"
    assert status["waiting"] == {"bad": 2, "good": 1}
    assert status["owner"]["pid"] == place.daemon.process.pid
    screen = place.runs("status")
    assert screen.returncode == 0, screen.stderr
    assert screen.stdout.startswith("service s: active\n")
    good = next(line for line in screen.stdout.splitlines() if line.startswith("good"))
    assert "running" in good

    tables = place.tells("tables")
    assert [(t["name"], t["rows"], t["fields"], t["listeners"]) for t in tables] == [
        ("rows", 2, {"x": "str", "y": "str"}, ["bad", "good"])
    ]

    models = {model["name"]: model for model in place.tells("models")}
    assert models["sure"]["live"]["number"] == 1
    assert models["sure"]["object"] == "harness.models:digest"
    assert models["frail"]["listeners"] == ["bad"]
    assert "harness.models:fails_until_mended" in place.runs("models").stdout


@pytest.mark.slow
def test_a_dead_letter_is_listed_shown_retried_and_discarded(place: Place) -> None:
    """The way of a row that cannot be predicted, from its reason to its output; and of one that is given up."""
    rows = place.database.rows
    rows.insert_many([{"_id": "a row/with a slash", "y": "one"}, {"_id": 7, "y": "two"}])
    eventually("two letters", lambda: place.database[names.DEAD_LETTERS].count_documents({}) == 2)

    letters = {letter["_id"]["row"]: letter for letter in place.tells("dead-letters", "list")}
    assert set(letters) == {"a row/with a slash", 7}
    assert letters[7]["error"] == {"type": "RuntimeError", "message": "not mended yet", "stage": "predict"}
    listed = place.runs("dead-letters", "list").stdout
    assert "bad/a row/with a slash" in listed
    assert "RuntimeError: not mended yet" in listed

    shown = place.runs("dead-letters", "show", "bad/7")
    assert shown.returncode == 0, shown.stderr
    assert "row        bad/7 of table rows" in shown.stdout
    assert 'raise RuntimeError("not mended yet")' in shown.stdout

    ran = place.runs("dead-letters", "retry", "good/7")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "error: there is no dead letter 'good/7'; `predictd dead-letters list` shows all of them\n"
    ran = place.runs("dead-letters", "retry")
    assert ran.returncode == 2
    assert "say --all" in ran.stderr

    place.mended.touch()
    ran = place.runs("dead-letters", "retry", "bad/7")
    assert (ran.returncode, ran.stdout) == (0, "1 dead letter: will be tried again\n"), ran.stderr
    eventually("its output", lambda: rows.find_one({"_id": 7, "_outputs.bad.value": digest("two")}))

    ran = place.runs("dead-letters", "discard", "--all", "--listener", "bad")
    assert (ran.returncode, ran.stdout) == (0, "1 dead letter: forgotten\n"), ran.stderr
    assert place.runs("dead-letters", "list").stdout == "no dead letters\n"
    assert "error" in rows.find_one({"_id": "a row/with a slash"})["_outputs"]["bad"]


def test_a_status_that_is_not_well_exits_with_1(mongo_uri: str, tmp_path: Path) -> None:
    """Where no daemon was ever active for the service, a script has to see it."""
    path = str(commands.write_service(tmp_path, mongo_uri, f"test_{uuid4().hex[:16]}", DECLARED))
    ran = predictd("status", "-c", path, "--json", cwd=tmp_path)
    assert ran.returncode == 1
    assert (json.loads(ran.stdout)["state"], json.loads(ran.stdout)["ready"]) == ("never started", False)


def test_reload_tells_the_verdict(place: Place) -> None:
    """What was done, or all that is wrong; and meanwhile the service is still to be seen."""
    file = place.daemon.folder / "service.toml"
    good = file.read_text()
    try:
        commands.save(
            place.daemon.folder, good.replace("[listeners.bad]", "[listener.bad]").replace('"y"', '"nothing"')
        )
        ran = place.runs("reload")
        assert (ran.returncode, ran.stdout) == (78, "")
        assert "error: listener: unknown section" in ran.stderr
        assert all(line.startswith("error: ") for line in ran.stderr.splitlines())
        eventually("the status", lambda: not place.tells("status")["config"]["ok"])
        assert "service.toml is refused" in place.runs("status").stdout
    finally:
        commands.save(place.daemon.folder, good)
    ran = place.runs("reload")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.splitlines()) == 1
    eventually("the status", lambda: place.tells("status")["config"]["ok"])


@pytest.mark.parametrize("how", ["altered", "deleted"])
def test_a_reload_brings_back_what_was_refused(place: Place, how: str) -> None:
    """A declaration of the file that somebody altered or deleted, or an older one that a restore put back: a worker
    that starts meanwhile passes its listeners over.
    """
    components, rows = place.database[names.COMPONENTS], place.database.rows
    status = place.tells("status")
    service, worker = status["_id"], status["workers"]["both"]["pid"]
    if how == "altered":
        assert components.update_one({"_id": f"{service}/model/sure"}, {"$set": {"revision": 1}}).matched_count
    else:
        assert components.delete_one({"_id": f"{service}/listener/good"}).deleted_count
    place.runs("resync", "bad")  # the daemon looks at what is applied
    if how == "altered":
        eventually("it is refused", lambda: "model/sure is refused" in place.runs("status").stdout)
    os.kill(worker, signal.SIGKILL)
    eventually("its worker has begun again without it", lambda: place.tells_state("good") is None)
    rows.insert_one({"_id": 1, "x": "meanwhile"})
    assert place.runs("reload").returncode == 0
    eventually("its output", lambda: rows.find_one({"_id": 1, "_outputs.good.value": digest("meanwhile")}))


def test_a_paused_listener_leaves_its_rows_alone_until_it_is_resumed(place: Place) -> None:
    """And then predicts what came meanwhile; the other listener of its worker goes on."""
    rows = place.database.rows
    assert place.runs("pause", "good").returncode == 0
    eventually("it is paused", lambda: place.tells_state("good") == "paused")
    rows.insert_one({"_id": 1, "x": "meanwhile", "y": "beside"})
    eventually("the other", lambda: rows.find_one({"_id": 1, "_outputs.bad.error": {"$exists": True}}))
    assert "good" not in rows.find_one({"_id": 1})["_outputs"]
    ran = place.runs("resume", "good", "--wait")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "good: all 1 rows are judged"
    assert rows.find_one({"_id": 1})["_outputs"]["good"]["value"] == digest("meanwhile")


def test_resync_judges_every_row_anew(place: Place) -> None:
    """Under a higher generation."""
    rows = place.database.rows
    rows.insert_many([{"_id": n, "x": f"row {n}"} for n in range(20)])
    eventually("the outputs", lambda: rows.count_documents({"_outputs.good.value": {"$exists": True}}) == 20)
    before = rows.find_one({"_id": 7})["_outputs"]["good"]["generation"]
    ran = place.runs("resync", "good", "--wait")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "good: all 20 rows are judged"
    assert rows.count_documents({"_outputs.good.generation": before + 1}) == 20


@pytest.mark.slow
def test_on_a_terminal_the_status_is_drawn_and_refreshed(place: Place) -> None:
    """In colours, again and again, until Ctrl-C."""
    with Terminal("status", "--watch", cwd=place.daemon.folder) as terminal:
        shown = terminal.until(lambda screen: screen.count("service ") >= 3)
        assert ESCAPE in shown
        assert "running" in shown
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(lambda screen: "Traceback" in screen or terminal.process.poll() is not None)
        assert terminal.process.wait(PATIENCE) == 130
        assert "Traceback" not in terminal.shown


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_drama(place: Place) -> None:
    """`predictd ... | head -0`: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ran = subprocess.run(
            [PREDICTD, "tables", "--json"],
            cwd=place.daemon.folder,
            env=commands.environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.parametrize(
    ("command", "into", "code", "told"),
    [
        ("tables --json", ">/dev/full", 1, "error: the output cannot be written: No space left on device\n"),
        ("jobs --json", ">/dev/full", 1, "error: the output cannot be written: No space left on device\n"),
        ("tables --json", ">&-", 0, ""),
        ("run --no-standby", "<&- >&- 2>&-", 75, ""),
    ],
)
def test_an_output_that_leads_nowhere_is_no_drama(place: Place, command: str, into: str, code: int, told: str) -> None:
    """A full disk is said in a line; streams that are closed, as by a script that starts a daemon, fail nothing."""
    ran = subprocess.run(
        ["sh", "-c", f"exec {PREDICTD} {command} {into}"],
        cwd=place.daemon.folder,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (code, told)


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "--limit", f"{10**20}"),
        ("dead-letters", "list", "--limit", f"{10**20}"),
        ("dead-letters", "list", "--limit", "-1"),
        ("promote", "sure", f"{10**20}"),
        ("run", "--wait", "-1"),
    ],
)
def test_a_number_that_cannot_be_is_wrong_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert predictd(*arguments, cwd=tmp_path).returncode == 2


@pytest.mark.usefixtures("mongod")
def test_mongod_prints_an_address_that_works_until_it_is_stopped(tmp_path: Path) -> None:
    """One line on standard output, for mongosh; SIGTERM stops the server, and not just the command."""
    commands.write_service(tmp_path, "embedded", "d", DECLARED)
    with subprocess.Popen(
        [PREDICTD, "mongod"], cwd=tmp_path, env=commands.environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            uri = server.stdout.readline().strip()
            assert "@127.0.0.1:" in uri
            assert predictd("uri", cwd=tmp_path).stdout.strip() == uri.replace("/?", "/d?")
            with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=5000) as mongo:
                mongo.d.rows.insert_one({"_id": 1})
                with mongo.d.rows.watch() as stream:
                    mongo.d.rows.insert_one({"_id": 2})
                    assert next(stream)["documentKey"] == {"_id": 2}
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            assert server.stdout.read() == ""
        finally:
            if server.poll() is None:
                server.kill()
    assert predictd("status", cwd=tmp_path).returncode == 69
