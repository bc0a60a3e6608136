"""A daemon without its MongoDB for a while: nothing ends, little is used, it says so, and it catches up by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from harness.daemons import eventually
from harness.models import digest
from harness.trainings import Site
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from daemon.store import names
from faults.disk import require_mounts
from faults.replica_set import ReplicaSet

pytestmark = pytest.mark.timeout(600)

SHORT = 20.0
"""Seconds of an outage in `make acceptance`; `make soak` runs the whole ones."""
RED_SECONDS, CORE, GROWTH = 15.0, 0.05, 0.10
SERVER_ENDS_SECONDS = 60.0
"""A mongod refuses writes without room, and ends at its next checkpoint (5 s)."""
SLACK = 3
"""A shared machine is slower now and then."""

ONE = """
[tables.rows]
fields = { x = "str" }
[models.m]
type = "object"
object = "harness.models:digest"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""


def gone(servers: ReplicaSet) -> None:
    """The primary, and of three nodes another one, is killed."""
    primary = servers.primary()
    others = [member for member in servers.members if member is not primary]
    for member in (primary, *others[:1]):
        member.kill()


def partitioned(servers: ReplicaSet) -> None:
    servers.members[0].proxy.partition()


def full(servers: ReplicaSet) -> None:
    """Writes go on until the server ends of it."""
    fill(servers)
    eventually("the server ends without room", lambda: not servers.members[0].running(), SERVER_ENDS_SECONDS)


def fill(servers: ReplicaSet) -> None:
    """No byte is free, nor one of those that the server had taken for its journal."""
    servers.disks[0].fill()
    rows = servers.members[0].direct["outage"]["ballast"]
    with pytest.raises(PyMongoError):  # noqa: PT012  # one of the inserts
        while rows.insert_many([{"x": "x" * 100_000} for _ in range(20)]):
            pass


@dataclass(frozen=True)
class Outage:
    nodes: int
    begin: Callable[[ReplicaSet], None]
    seconds: float
    disk_mb: int | None = None


OUTAGES = {
    "no mongod": Outage(1, gone, 120.0),
    "a partition": Outage(1, partitioned, 60.0),
    "two of three nodes gone": Outage(3, gone, 30.0),
    "a full disk": Outage(1, full, 30.0, disk_mb=400),
}
SHORT_AND_WHOLE = pytest.mark.parametrize(
    "whole", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.soak)]
)


@pytest.mark.usefixtures("mongod")
@SHORT_AND_WHOLE
@pytest.mark.parametrize("cause", OUTAGES)
def test_an_outage_is_said_costs_little_and_is_caught_up_with(tmp_path: Path, cause: str, *, whole: bool) -> None:
    """No process ends, less than a twentieth of a core, no memory; red meanwhile, ready again by itself."""
    outage = OUTAGES[cause]
    seconds = outage.seconds if whole else SHORT
    if outage.disk_mb is not None:
        require_mounts()
    with (
        ReplicaSet(tmp_path / "mongod", outage.nodes, disk_mb=outage.disk_mb) as servers,
        MongoClient(servers.own_uri) as client,
        Site(tmp_path / "site", servers.uri, client["outage"], ONE) as site,
    ):
        daemon = site.start()
        insert(site, 0, 500)
        family = site.processes()
        memory, used = resident(family), cpu(family)
        outage.begin(servers)
        began = time.monotonic()
        eventually("it says that it is not ready", lambda: not daemon.readyz().get("ready"), SLACK * RED_SECONDS)
        red = time.monotonic() - began
        daemon.until_reason("MongoDB")
        time.sleep(max(0.0, seconds - red))  # what is measured is what it does meanwhile
        share = (cpu(family) - used) / (time.monotonic() - began)
        grown = [now / before - 1 for before, now in zip(memory, resident(family), strict=True)]
        assert daemon.process.poll() is None
        assert site.processes() == family

        if cause == "a partition":  # the rig's own client is on the other side
            site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(500, 600)])
        servers.heal()
        daemon.until_ready()
        insert(site, 600, 700)
        assert site.rows.count_documents({"_outputs.m.value": {"$exists": False}}) == 0
        print(f"{cause}: red after {red:.1f} s, {share:.2%} of a core, {max(grown):.1%} more memory")
        assert share < SLACK * CORE
        assert max(grown) < GROWTH
        assert site.processes() == family, "somebody was started again"


def insert(site: Site, begin: int, end: int) -> None:
    """Rows, and their outputs."""
    site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(begin, end)])
    last = {"_id": end - 1, "_outputs.m.value": digest(f"x{end - 1}")}
    eventually("the last row has its output", lambda: site.rows.find_one(last))
    eventually("all have", lambda: not site.rows.count_documents({"_outputs.m.value": {"$exists": False}}))


def resident(family: list[psutil.Process]) -> list[int]:
    return [process.memory_info().rss for process in family]


def cpu(family: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family)


@pytest.mark.slow
@pytest.mark.usefixtures("mongod")
def test_a_disk_that_is_full_for_a_while_makes_no_letter(tmp_path: Path) -> None:
    """The server refuses each write (code 8) until it ends at its next checkpoint: that says nothing about a row."""
    require_mounts()
    with (
        ReplicaSet(tmp_path / "mongod", disk_mb=400) as servers,
        MongoClient(servers.own_uri) as client,
        Site(tmp_path / "site", servers.uri, client["outage"], ONE.replace("digest", "large")) as site,
    ):
        site.start()
        [worker] = site.processes("daemon.worker")
        worker.suspend()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(3)])
        fill(servers)
        worker.resume()
        time.sleep(10)  # it tries and tries
        servers.heal()
        eventually("all have outputs", lambda: not site.rows.count_documents({"_outputs.m.value": {"$exists": False}}))
        assert site.data[names.DEAD_LETTERS].count_documents({}) == 0
