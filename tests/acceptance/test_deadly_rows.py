"""Rows that kill or stop their process cost themselves alone; a model that fails on everything costs no row."""

from __future__ import annotations

import itertools
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from harness.daemons import eventually
from harness.models import digest
from harness.trainings import Site
from pymongo.database import Database

from daemon.store import names

TWO = """
[tables.rows]
fields = { x = "str" }
[tables.others]
fields = { x = "str" }

[models.deadly]
type = "object"
object = "harness.deadly_models:deadly"
[models.sure]
type = "object"
object = "harness.models:digest"

[listeners.deadly]
table = "rows"
key = "x"
model = "deadly"
worker = "w"
[listeners.sure]
table = "others"
key = "x"
model = "sure"
worker = "w"
"""
SLOW = TWO.replace('model = "deadly"', 'model = "deadly"\nmax_batch = 64').replace(
    'object = "harness.deadly_models:deadly"', 'object = "harness.deadly_models:slow_and_deadly"\nbatched = true'
)
ONE = """
[tables.rows]
fields = { x = "str" }
[models.m]
type = "object"
object = "harness.models:fails_until_mended"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""


STEPS = """
[tables.rows]
fields = { x = "str" }
[models.m]
type = "object"
object = "harness.odd_deaths:predict"
preprocess = "harness.odd_deaths:preprocess"
postprocess = "harness.odd_deaths:postprocess"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
CRASH = "import ctypes\nctypes.string_at(0)"


@pytest.fixture
def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mended"
    monkeypatch.setenv("PREDICTD_TEST_MENDED", str(path))
    return path


@pytest.fixture
def two(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Two listeners in one worker, whose models may take four seconds."""
    monkeypatch.setenv("PREDICTD_LIMITS__STAGE_SECONDS", "4")
    with Site(tmp_path / "site", mongo_uri, database, TWO) as site:
        site.start()
        yield site


def letters(site: Site) -> dict[Any, str]:
    """Of each dead row the type of its letter."""
    return {found["_id"]["row"]: found["error"]["type"] for found in site.data[names.DEAD_LETTERS].find()}


def restarts(site: Site) -> int:
    return int(site.tells("status")["workers"]["w"]["restarts"])


def has_all(site: Site, table: str, listener: str, rows: int) -> bool:
    return site.data[table].count_documents({f"_outputs.{listener}": {"$exists": True}}) == rows


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1_000, 10_000])
def test_a_row_that_crashes_and_one_that_hangs_become_dead_letters(two: Site, rows: int) -> None:
    """All others have outputs, those of the other listener too; nobody starts the supervisor again."""
    pid = two.daemon.process.pid if two.daemon else 0
    bad = {rows // 3: "segfault", rows // 2: "hang"}
    two.rows.insert_many([{"_id": n, "x": bad.get(n, f"x{n}")} for n in range(rows)])
    two.data["others"].insert_many([{"_id": n, "x": f"y{n}"} for n in range(rows)])
    eventually("every row is judged", lambda: has_all(two, "rows", "deadly", rows), 180)
    eventually("the other listener goes on", lambda: has_all(two, "others", "sure", rows), 60)
    assert letters(two) == {rows // 3: "WorkerDied", rows // 2: "TimedOut"}
    for row in two.rows.find():
        if row["_id"] in bad:
            assert row["_outputs"]["deadly"]["error"]["type"] == letters(two)[row["_id"]]
        else:
            assert row["_outputs"]["deadly"]["value"] == digest(row["x"])
    assert 3 <= restarts(two) <= 8
    assert two.daemon is not None
    assert (two.daemon.process.pid, two.daemon.process.poll()) == (pid, None)


@pytest.mark.slow
def test_a_slow_model_loses_no_more_rows_and_holds_up_its_neighbour_no_longer(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of two seconds: one row crashes, one hangs, all others have outputs after at most four restarts each; the
    other listener of the worker is late by less than 30 s meanwhile.
    """
    monkeypatch.setenv("PREDICTD_LIMITS__STAGE_SECONDS", "8")
    rows = 600
    bad = {rows // 3: "segfault", rows // 2: "hang"}
    with Site(tmp_path / "site", mongo_uri, database, SLOW) as site:
        daemon = site.start()
        site.rows.insert_many([{"_id": n, "x": bad.get(n, f"x{n}")} for n in range(rows)])
        with Trickle(site.data["others"], "_outputs.sure") as trickle:
            eventually("every row is judged", lambda: has_all(site, "rows", "deadly", rows), 420)
        assert letters(site) == {rows // 3: "WorkerDied", rows // 2: "TimedOut"}
        for row in site.rows.find({"_id": {"$nin": list(bad)}}):
            assert row["_outputs"]["deadly"]["value"] == digest(row["x"])
        assert 3 <= restarts(site) <= 8
        assert daemon.process.poll() is None
        lags = sorted(trickle.lags)
        assert lags[int(0.99 * len(lags))] < 30, lags[-20:]


class Trickle:
    """Inserts a row every quarter of a second and measures how long each takes to have its output."""

    def __init__(self, table: Any, output: str) -> None:
        self._table, self._output = table, output
        self._waiting: dict[int, float] = {}
        self.lags: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for n in itertools.count():
            if not self._done.is_set():
                self._waiting[n] = time.monotonic()
                self._table.insert_one({"_id": n, "x": f"y{n}"})
            elif not self._waiting:
                return
            time.sleep(0.25)
            query = {"_id": {"$in": list(self._waiting)}, self._output: {"$exists": True}}
            for row in self._table.find(query, {"_id": 1}):
                self.lags.append(time.monotonic() - self._waiting.pop(row["_id"]))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)


def test_a_row_that_kills_its_process_becomes_a_dead_letter_once(two: Site) -> None:
    """An update beside its input does not bring it back; one of its input does, and it has an output then."""
    two.rows.insert_many([{"_id": n, "x": "segfault" if n == 3 else f"x{n}"} for n in range(20)])
    eventually("every row is judged", lambda: has_all(two, "rows", "deadly", 20), 90)
    eventually("the letter is there", lambda: letters(two) == {3: "WorkerDied"})
    before = restarts(two)
    for n in range(5):
        two.rows.update_one({"_id": 3}, {"$set": {"beside": n}})
    two.rows.insert_one({"_id": 100, "x": "after"})
    eventually(
        "a later row is predicted", lambda: two.rows.find_one({"_id": 100, "_outputs.deadly.value": {"$exists": 1}})
    )
    assert restarts(two) == before
    two.rows.update_one({"_id": 3}, {"$set": {"x": "harmless"}})
    eventually(
        "the mended row has an output",
        lambda: two.rows.find_one({"_id": 3, "_outputs.deadly.value": digest("harmless")}),
    )
    eventually("its letter is gone", lambda: not letters(two))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_row_may_kill_in_any_step(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], processes: int
) -> None:
    """In `preprocess` at the first row of a batch, in `postprocess`, while its output is converted, by replacing the
    process with another program; each is one letter, and its neighbours have their outputs. Each death tells something
    about a row, so no start but the first again waits. So it is if `preprocess` has processes of its own.
    """
    bad = {
        0: f"preprocess {CRASH}",
        30: f"postprocess {CRASH}",
        60: f"output {CRASH}",
        90: "predict import os\nos.execv('/bin/true', ['true'])",
    }
    text = STEPS.replace("[listeners.m]", f"preprocess_processes = {processes}\n[listeners.m]")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": bad.get(n, f"x{n}")} for n in range(150)])
        eventually("every row is judged", lambda: has_all(site, "rows", "m", 150), 240)
        assert letters(site) == dict.fromkeys(bad, "WorkerDied")
        for row in site.rows.find({"_id": {"$nin": list(bad)}}):
            assert row["_outputs"]["m"]["value"] == f"did {row['x']}"
        waits = [float(each) for each in re.findall(r'"again_in_seconds": ([0-9.]+)', site.log)]
        assert len(waits) >= 8
        assert waits[1:] == [0.0] * len(waits[1:])


@pytest.mark.slow
def test_a_row_that_hangs_in_a_process_of_its_preprocess_becomes_a_dead_letter(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended with its worker, also if it holds the interpreter."""
    monkeypatch.setenv("PREDICTD_LIMITS__STAGE_SECONDS", "4")
    bad = {
        10: "preprocess import time\ntime.sleep(600)",
        70: "preprocess import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    }
    text = STEPS.replace("[listeners.m]", "preprocess_processes = 2\n[listeners.m]")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": bad.get(n, f"x{n}")} for n in range(100)])
        eventually("every row is judged", lambda: has_all(site, "rows", "m", 100), 240)
        assert letters(site) == dict.fromkeys(bad, "TimedOut")
        assert site.rows.count_documents({"_outputs.m.value": {"$exists": True}}) == 98
        forks = [each for each in site.processes("daemon.worker") if each.name() == "preprocess"]
        assert len(forks) == 2, "those of the workers before are gone"


@pytest.mark.slow
def test_a_row_that_takes_the_descriptors_of_its_process_costs_itself(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """A thread of the other listener may fail first; the dead letter is still that of the row."""
    bad = "predict import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\nopen('/dev/null')"
    other = TWO[TWO.index("[models.sure]") : TWO.index("[listeners.deadly]")]
    other += TWO[TWO.index("[listeners.sure]") :] + '[tables.others]\nfields = { x = "str" }\n'
    text = STEPS + 'worker = "w"\n' + other
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": bad if n == 20 else f"x{n}"} for n in range(40)])
        with Trickle(site.data["others"], "_outputs.sure"):
            eventually("every row is judged", lambda: has_all(site, "rows", "m", 40), 180)
        assert letters(site) == {20: "WorkerDied"}
        assert site.rows.count_documents({"_outputs.m.value": {"$exists": True}}) == 39


@pytest.mark.slow
@pytest.mark.parametrize("step", ["object", "preprocess", "postprocess"])
def test_a_row_that_breaks_the_accelerator_for_its_process_costs_itself(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], step: str
) -> None:
    """Every later call of the process would fail, with any row: a new process finds the one that does it."""
    code = {"object": "harness.models:echo", step: "harness.deadly_models:asserts"}
    lines = "\n".join(f'{key} = "{path}"' for key, path in code.items())
    text = ONE.replace('object = "harness.models:fails_until_mended"', lines)
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": "assert" if n == 30 else f"x{n}"} for n in range(60)])
        eventually("every row is judged", lambda: has_all(site, "rows", "m", 60), 120)
        assert letters(site) == {30: "WorkerDied"}
        assert site.rows.count_documents({"_outputs.m.value": {"$exists": True}}) == 59


@pytest.mark.slow
def test_a_worker_that_outgrows_its_memory_is_replaced_between_two_batches(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in order, and no row becomes a suspect or a letter."""
    monkeypatch.setenv("PREDICTD_LIMITS__WORKER_MEMORY", str(256 << 20))
    leaky = ONE.replace("models:fails_until_mended", "deadly_models:leaky")
    with Site(tmp_path / "site", mongo_uri, database, leaky) as site:
        daemon = site.start()
        for n in range(100):
            site.rows.insert_one({"_id": n, "x": f"x{n}"})
        eventually("every row has its output", lambda: has_all(site, "rows", "m", 100))
        eventually("the worker is replaced", lambda: "worker is replaced" in daemon.log.read_text())
        site.rows.insert_one({"_id": 100, "x": "x100"})
        eventually("its successor predicts", lambda: has_all(site, "rows", "m", 101))
        assert not letters(site)
        assert "worker ended and is started again" not in daemon.log.read_text()
        eventually("status counts the restart", lambda: site.tells("status")["workers"]["m"]["restarts"] >= 1)


@pytest.mark.slow
def test_workers_that_somebody_kills_condemn_no_row(two: Site) -> None:
    """Ten SIGKILLs from outside, whatever is at work just then."""
    for n in range(10):
        two.rows.insert_many([{"_id": f"{n}/{place}", "x": f"x{place}"} for place in range(100)])
        worker = eventually("a worker runs", lambda: two.processes("daemon.worker"))[0]
        worker.send_signal(signal.SIGKILL)
        psutil.wait_procs([worker], 30)
    eventually("every row has an output", lambda: has_all(two, "rows", "deadly", 1_000), 120)
    assert letters(two) == {}


def test_a_worker_that_is_stopped_is_replaced(two: Site) -> None:
    """SIGSTOP: it says nothing any more, and no watchdog of systemd is asked."""
    worker = eventually("a worker runs", lambda: two.processes("daemon.worker"))[0]
    worker.suspend()
    two.rows.insert_one({"_id": 1, "x": "after"})
    eventually("a new worker predicts", lambda: two.rows.find_one({"_id": 1, "_outputs.deadly.value": digest("after")}))
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_model_that_fails_on_everything_costs_no_row(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], mended: Path
) -> None:
    """The breaker opens after a few rows, one reason on /readyz, and closes by itself: all rows have outputs."""
    with Site(tmp_path / "site", mongo_uri, database, ONE) as site:
        daemon = site.start()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(2_000)])
        failing = eventually(
            "the listener is failing", lambda: "failing" in str(daemon.readyz().get("reason")) and daemon.readyz()
        )
        assert "not mended yet" in failing["reason"]
        assert len(letters(site)) <= 20
        assert site.log.count("listener is failing") == 1
        site.rows.insert_one({"_id": "late", "x": "late"})
        for process in site.processes("daemon.worker"):
            process.kill()  # what is owed is stored
        mended.touch()
        eventually("every row has an output", lambda: _valued(site) == 2_001, 120)
        eventually("no letter is left", lambda: not letters(site))
        eventually("it is ready", lambda: daemon.readyz().get("ready"))


@pytest.mark.slow
def test_a_model_that_ends_its_process_for_every_row_costs_no_row(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], mended: Path
) -> None:
    """The breaker opens after a few deaths, and stays open in the next process; the other listener of the worker goes
    on. What is mended is found by itself, and every row has its output.
    """
    text = TWO.replace("harness.deadly_models:deadly", "harness.deadly_models:dies_until_mended")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        daemon = site.start()
        mended.touch()
        site.rows.insert_many([{"_id": f"served {n}", "x": f"x{n}"} for n in range(5)])
        eventually("they are served", lambda: has_all(site, "rows", "deadly", 5))
        mended.unlink()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(300)])
        failing = eventually(
            "the listener is failing", lambda: "failing" in str(daemon.readyz().get("reason")) and daemon.readyz(), 120
        )
        assert "ends or stops its process on every row" in failing["reason"]
        died = eventually("a probe died too", lambda: site.log.count("killed by SIGILL") >= 14 and restarts(site), 60)
        assert died <= 40
        site.data["others"].insert_many([{"_id": n, "x": f"y{n}"} for n in range(100)])
        eventually("the other listener goes on", lambda: has_all(site, "others", "sure", 100), 60)
        assert len(letters(site)) <= 20
        assert site.log.count("listener is failing") == 1
        mended.touch()
        eventually("every row has its output", lambda: has_all(site, "rows", "deadly", 305), 120)
        eventually("no letter is left", lambda: not letters(site))
        eventually("it is ready", lambda: daemon.readyz().get("ready"))
        values = {row["_outputs"]["deadly"].get("value") == digest(row["x"]) for row in site.rows.find()}
        assert values == {True}


@pytest.mark.slow
def test_a_model_that_fails_on_the_first_rows_is_probed_with_others(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """It never had an output, and no row comes any more: the rows that wait are enough to find that some are good."""
    text = ONE.replace("harness.models:fails_until_mended", "harness.deadly_models:knows_fifths")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.rows.insert_many([{"_id": n, "x": str(n)} for n in range(400)])
        daemon = site.start(ready=False)
        eventually("each bad row has a letter", lambda: len(letters(site)) == 340, 240)
        eventually("each good row has its output", lambda: _valued(site) == 60)
        eventually("it is ready", lambda: daemon.readyz().get("ready"))


def test_rows_that_are_bad_do_not_open_the_breaker(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Rows that had an output before still get one: so these rows are the reason, and each has its letter."""
    text = ONE.replace("harness.models:fails_until_mended", "harness.deadly_models:picky")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(20)])
        eventually("the good rows have outputs", lambda: _valued(site) == 20)
        site.rows.insert_many([{"_id": f"bad {n}", "x": "poison"} for n in range(300)])
        eventually("each bad row has a letter", lambda: len(letters(site)) == 300, 90)
        site.rows.insert_one({"_id": "good", "x": "good"})
        eventually("a good row is predicted", lambda: _valued(site) == 21)


def test_a_backend_that_is_away_for_a_while_costs_no_row(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], mended: Path
) -> None:
    """A refused connection is tried again before it is a letter."""
    text = ONE.replace("harness.models:fails_until_mended", "harness.deadly_models:needs_backend")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.start()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(5)])
        eventually("a row was tried", lambda: site.tells("status")["workers"])
        assert letters(site) == {}
        mended.touch()
        eventually("every row has an output", lambda: _valued(site) == 5, 90)
        assert letters(site) == {}


def _valued(site: Site) -> int:
    return site.rows.count_documents({"_outputs.m.value": {"$exists": True}})
