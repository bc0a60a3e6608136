"""What a service says of itself while something stands still: that it does, since when, and for which listener."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.commands import metric
from harness.daemons import Daemon, eventually
from harness.models import digest
from harness.trainings import Site
from pymongo.database import Database

TEXT = """
[tables.rows]
fields = { x = "str" }
[tables.others]
fields = { x = "str" }

[models.one]
type = "object"
object = "harness.models:hangs_on_hang"
[models.two]
type = "object"
object = "harness.models:digest"

[listeners.one]
table = "rows"
key = "x"
model = "one"
worker = "w"
[listeners.two]
table = "others"
key = "x"
model = "two"
worker = "w"
"""
LAG = 'predictd_lag_seconds{listener="%s"}'
READY = 'predictd_ready{listener="%s"}'


@pytest.fixture
def site(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Two listeners in one worker, which nobody replaces during the test."""
    monkeypatch.setenv("PREDICTD_LIMITS__STAGE_SECONDS", "600")
    with Site(tmp_path / "site", mongo_uri, database, TEXT) as site:
        site.start()
        yield site
        database.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def fail(site: Site, **data: Any) -> None:
    """Makes commands of the worker fail, or wait, until the test ends."""
    site.data.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {"appName": "predictd worker w", "errorLabels": [], **data},
        }
    )


def daemon_of(site: Site) -> Daemon:
    assert site.daemon is not None
    return site.daemon


def grows(daemon: Daemon, listener: str, seconds: float) -> bool:
    """Whether the listener's lag is more than that, everywhere where it is shown."""
    page = daemon.readyz()["listeners"][listener]
    return page["lag_seconds"] > seconds and (metric(daemon, LAG % listener) or 0.0) > seconds


def unready(daemon: Daemon) -> Mapping[str, str]:
    """The listeners that are not ready, with the reason."""
    return {n: one["reason"] for n, one in daemon.readyz()["listeners"].items() if not one["ready"]}


@pytest.mark.slow
def test_a_worker_that_hangs_is_late_and_not_ready(site: Site) -> None:
    """SIGSTOP: what it reported last is not what holds now, on any page."""
    daemon = daemon_of(site)
    (worker,) = site.processes("daemon.worker")
    worker.suspend()
    try:
        site.rows.insert_one({"_id": 1, "x": "a"})
        eventually("it is red", lambda: "has not reported" in str(unready(daemon).get("one")), 45)
        assert set(unready(daemon)) == {"one", "two"}
        assert daemon.readyz()["reason"].count("has not reported") == 1
        assert grows(daemon, "one", 9.0)
        assert metric(daemon, READY % "one") == 0.0
        assert (metric(daemon, 'predictd_worker_report_age_seconds{worker="w"}') or 0.0) > 9.0
        assert metric(daemon, 'predictd_queue_depth{lane="live",listener="one"}') is None
        eventually(
            "status says it", lambda: site.tells("status")["workers"]["w"]["listeners"]["one"]["lag_seconds"] > 9
        )
        eventually("the log says it", lambda: '"listener is not ready"' in site.log)
    finally:
        worker.resume()
    eventually("all is well again", lambda: daemon.readyz()["ready"] and not grows(daemon, "one", 0.0))
    eventually("the log says that, too", lambda: '"listener is ready"' in site.log)


@pytest.mark.slow
def test_a_stream_that_stands_still_is_late_and_not_ready(site: Site) -> None:
    """The server answers `getMore` every 18 s: too soon for an error, and rows wait."""
    daemon = daemon_of(site)
    fail(site, failCommands=["getMore"], blockConnection=True, blockTimeMS=18_000)
    time.sleep(2)
    site.rows.insert_one({"_id": 1, "x": "a"})
    eventually("lag grows", lambda: grows(daemon, "one", 5.0), 45)
    eventually("it is red", lambda: "has had no answer for" in str(unready(daemon).get("one")), 45)
    assert (metric(daemon, 'predictd_stream_silent_seconds{worker="w"}') or 0.0) > 3.0
    stream = eventually("status says it", lambda: _silent(site), 45)
    assert stream["place"]
    site.data.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    eventually("the row is predicted", lambda: site.rows.find_one({"_outputs.one.value": digest("a")}))
    eventually("all is well again", lambda: daemon.readyz()["ready"] and not grows(daemon, "one", 0.0))


def _silent(site: Site) -> Any:
    stream = site.tells("status")["workers"]["w"]["stream"]
    return stream if stream["silent_seconds"] > 3 else None


@pytest.mark.slow
def test_the_lag_of_a_model_that_hangs_is_its_own(site: Site) -> None:
    """The neighbour in the same worker goes on, and shows no lag."""
    daemon = daemon_of(site)
    site.rows.insert_one({"_id": 1, "x": "hang"})
    eventually("its lag grows", lambda: grows(daemon, "one", 6.0), 45)
    site.data["others"].insert_one({"_id": 1, "x": "a"})
    eventually("the other goes on", lambda: site.data["others"].find_one({"_outputs.two.value": digest("a")}))
    eventually("without lag", lambda: not grows(daemon, "two", 0.0), 45)
    assert grows(daemon, "one", 6.0)


@pytest.mark.slow
def test_lag_goes_on_growing_when_a_worker_starts_again(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """Since when rows are owed to a failing listener is stored, and the next worker and the next daemon go on from
    there.
    """
    text = TEXT.replace("harness.models:hangs_on_hang", "harness.deadly_models:fails")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        daemon = site.start()
        site.rows.insert_many([{"x": "a"} for _ in range(50)])
        fails(daemon)
        eventually("its lag grows", lambda: grows(daemon, "one", 15.0), 60)
        (worker,) = site.processes("daemon.worker")
        worker.kill()
        eventually("another worker runs", lambda: worker not in (site.processes("daemon.worker") or [worker]))
        fails(daemon)
        assert grows(daemon, "one", 15.0)
        site.kill()
        daemon = site.start(ready=False)
        fails(daemon)
        assert grows(daemon, "one", 15.0)
        eventually("its neighbour has no lag", lambda: not grows(daemon, "two", 0.0), 45)


def fails(daemon: Daemon) -> None:
    """Waits until listener one is failing, for this worker."""
    eventually("it fails", lambda: "failing" in str(daemon.readyz().get("listeners", {}).get("one")))


@pytest.mark.slow
def test_a_table_that_mongodb_refuses_is_red_alone_for_one_short_reason(site: Site) -> None:
    """The driver's text has thousands of characters; the other listener of the worker is ready."""
    daemon = daemon_of(site)
    fail(site, failCommands=["find", "aggregate"], namespace=f"{site.data.name}.rows", errorCode=8000)
    site.rows.insert_one({"_id": 1, "x": "a", "other": "o" * 1000})  # a small one comes with its event and is not read
    eventually("it is red", lambda: "waiting: MongoDB refuses" in str(unready(daemon).get("one")), 45)
    assert set(unready(daemon)) == {"one"}
    reason = daemon.readyz()["reason"]
    assert reason.count("MongoDB refuses") == 1
    assert len(reason) < 300
    assert "{" not in reason
    site.data["others"].insert_one({"_id": 1, "x": "a"})
    eventually("the other goes on", lambda: site.data["others"].find_one({"_outputs.two.value": digest("a")}))
    site.data.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    eventually("all is well again", lambda: daemon.readyz()["ready"])


@pytest.mark.slow
def test_a_wait_for_a_listener_that_fails_ends(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """`resync --wait` says which listener fails, and why, and ends with 1."""
    text = TEXT.replace("harness.models:hangs_on_hang", "harness.deadly_models:fails")
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        daemon = site.start()
        site.rows.insert_many([{"_id": n, "x": "a"} for n in range(100)])
        eventually("it fails", lambda: "failing" in str(unready(daemon).get("one")))
        assert set(unready(daemon)) == {"one"}
        eventually("its rows wait", lambda: grows(daemon, "one", 4.0), 45)
        said = site.runs("resync", "one", "--wait", code=1)
        assert "listener one is failing: the model fails on every row" in said
        assert site.runs("resync", "two", "--wait").endswith("two: all 0 rows are judged")
