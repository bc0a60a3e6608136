"""Every occasion of `when` on real daemons, two on one database: each due run happens, and happens once, whichever of
them is killed or frozen.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.trainings import SERVICE, Site
from pymongo.database import Database

from components.signing_key import SigningKey
from daemon.store import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EVERY = 3
WHEN = f"""
[tables.rows]
fields = {{ x = "str", y = "float" }}

[models.plain]
type = "object"
object = "harness.models:digest"

[validations.often]
model = "plain"
key = ["x", "y"]
datasets = {{ all = {{ table = "rows", limit = 10 }} }}
metrics = {{ level = "harness.learning:mean_target" }}
when = [ {{ every = "{EVERY}s" }} ]

[validations.minutely]
model = "plain"
key = ["x", "y"]
datasets = {{ all = {{ table = "rows", limit = 10 }} }}
metrics = {{ minutely = "harness.learning:mean_target" }}
when = [ {{ cron = "* * * * *" }} ]

[models.a]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"

[trainers.a]
table = "rows"
key = ["x", "y"]
objective = "harness.learning:squares"
transform = "harness.learning:example"
max_iterations = 3
when = [ {{ rows = 1000 }}, {{ below = {{ "exam/all/level" = 0.5 }} }} ]

[validations.exam]
model = "a"
key = ["x", "y"]
datasets = {{ all = {{ table = "rows", limit = 10 }} }}
metrics = {{ level = "harness.learning:mean_target" }}
"""
COUNTED = 5.0
"""Seconds in which rows are counted at least twice."""
TRIGGERED = {"every", "cron", "rows", "below"}


@pytest.fixture
def sites(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[tuple[Site, Site]]:
    """Two folders for two daemons of one service, with one key."""
    key = tmp_path / "signing.key"
    SigningKey.fresh().write(key)
    with (
        Site(tmp_path / "one", mongo_uri, database, WHEN, key) as one,
        Site(tmp_path / "two", mongo_uri, database, WHEN, key) as two,
    ):
        yield one, two


def leads(site: Site) -> None:
    """Waits until the site's daemon is the active one."""
    assert site.daemon is not None
    pid = site.daemon.process.pid
    lease = {"_id": SERVICE, "pid": pid, "$expr": {"$gt": ["$expires", "$$NOW"]}}
    eventually("it leads", lambda: site.daemon.process.poll() is not None or site.data[names.LEASES].find_one(lease))
    assert site.daemon.process.poll() is None, site.log
    eventually(
        "it is active", lambda: site.data[names.STATUS].find_one({"_id": SERVICE, "owner.pid": pid, "state": "active"})
    )


def insert(site: Site, count: int, y: float = 0.9) -> None:
    begin = site.rows.count_documents({})
    site.rows.insert_many({"_id": n, "x": f"x{n}", "y": y} for n in range(begin, begin + count))


def counted(site: Site) -> dict[str, Any] | None:
    """What is remembered of the trainer's rows, once they have been counted."""
    return site.data[names.SCHEDULES].find_one({"_id": f"{SERVICE}/train/a/rows"})


def trained(site: Site, trigger: str) -> list[dict[str, Any]]:
    return site.fires("a", trigger)


def test_each_occasion_fires_once_whatever_happens_to_the_daemons(sites: tuple[Site, Site]) -> None:
    one, two = sites
    began = time.monotonic()
    insert(one, 10)  # what is due before the others come has something to measure
    one.start(ready=False)
    leads(one)
    eventually("the rows that are there are counted", lambda: counted(one))
    assert one.daemon is not None
    two.start(ready=False).until_reason("standby")

    insert(one, 997)
    time.sleep(COUNTED)
    assert not trained(one, "rows")
    one.kill()  # beside it, the standby sees that nobody leads any more
    leads(two)
    insert(two, 2)
    time.sleep(COUNTED)
    assert not trained(two, "rows"), "999 rows are not 1,000"
    insert(two, 1)
    (fired,) = eventually("the 1,000th row asks for a training", lambda: trained(two, "rows"))
    one.start(ready=False)
    assert two.ended(fired["_id"])["result"]["version"] == 2

    assert two.ended(two.asked("validate", "exam"))["result"]["metrics"]["all/level"] == pytest.approx(0.9)
    two.rows.update_many({}, {"$set": {"y": 0.25}})
    exam = two.ended(two.asked("validate", "exam"))
    assert exam["result"]["metrics"]["all/level"] == pytest.approx(0.25)
    (fired,) = eventually("a metric below its bound asks for a training", lambda: trained(two, "below"))
    assert fired["trigger"]["value"] == pytest.approx(0.25)
    two.ended(fired["_id"])
    two.ended(two.asked("validate", "exam"))  # it is no lower: a training would not mend it

    assert two.daemon is not None
    two.daemon.process.send_signal(
        signal.SIGSTOP
    )  # a machine that stands still; it believes that it leads when it goes on
    leads(one)
    two.daemon.process.send_signal(signal.SIGCONT)
    two.daemon.until_reason("standby")
    time.sleep(max(0.0, 70 - (time.monotonic() - began)))  # a minute has begun
    (first, *_) = eventually("a minute has begun", lambda: one.fires("minutely", "cron"))
    one.ended(first["_id"])
    one.stop()
    leads(two)
    two.stop()

    once(two)
    assert len(trained(two, "rows")) == 1
    assert len(trained(two, "below")) == 1


def once(site: Site) -> None:
    """No run came twice: not in the clock's moments, not in the numbers of the runs, not in the history of what was
    measured.
    """
    dues = [job["trigger"]["due"] for job in site.fires("often", "every")]
    assert len(dues) >= 5
    gaps = [later - sooner for sooner, later in pairwise(dues)]
    assert all(gap >= timedelta(seconds=EVERY) and gap % timedelta(seconds=EVERY) == timedelta() for gap in gaps), gaps
    minutes = [job["trigger"]["due"].replace(second=0, microsecond=0) for job in site.fires("minutely", "cron")]
    assert len(minutes) == len(set(minutes))
    assert all(job["trigger"]["due"].second < 20 for job in site.fires("minutely", "cron")), "a minute's run came late"
    jobs = [job.document() for job in site.jobs.listed(0) if TRIGGERED & set(job.trigger)]
    assert {job["state"] for job in jobs} <= {"done", "queued"}
    for version in (*site.versions("plain").listed(), *site.versions("a").listed()):
        measured = [each["job"] for each in version.validations]
        assert len(measured) == len(set(measured))
    history = [each["job"] for each in site.live("plain").validations]
    assert set(history) == {job["_id"] for job in jobs if job["model"] == "plain" and job["state"] == "done"}
