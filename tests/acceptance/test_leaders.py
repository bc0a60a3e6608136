"""Which daemon leads: rows flow again soon after a leader's end, a clone disturbs nobody, and a lease is given back."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from faults.disk import UNSHARE, require_mounts
from harness.commands import PREDICTD, start
from harness.daemons import Daemon, eventually
from harness.models import digest
from harness.trainings import SERVICE, Site
from pymongo.database import Database

from daemon.store import names
from daemon.store.service.leases import TTL_SECONDS

TEXT = """
[tables.rows]
fields = { x = "str" }
[models.m]
type = "object"
object = "harness.deadly_models:naps"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
SLACK = 3
AT_SIGTERM, AT_SIGKILL = 5 * SLACK, 15 * SLACK
"""Seconds until rows flow again, with the slack of a loaded machine."""


@pytest.fixture
def pair(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[tuple[Site, Site]]:
    """A leader, and a daemon that stands by."""
    with Site(tmp_path / "one", mongo_uri, database, TEXT) as one:
        one.start()
        with Site(tmp_path / "two", mongo_uri, database, TEXT, one.folder / ".predictd" / "signing.key") as two:
            stands_by(two)
            yield one, two


def stands_by(site: Site) -> None:
    daemon = site.start(ready=False)
    eventually("it stands by", lambda: "standby" in str(daemon.readyz().get("reason")))
    eventually("its nursery is there", lambda: "the nursery is ready" in site.log)


def lease(database: Database[dict[str, Any]]) -> dict[str, Any] | None:
    """The lease, with `left`: the seconds that it still runs."""
    left = {"$divide": [{"$subtract": ["$expires", "$$NOW"]}, 1000]}
    pipeline: list[Any] = [{"$match": {"_id": SERVICE}}, {"$set": {"left": left}}]
    return next(iter(database[names.LEASES].aggregate(pipeline)), None)


def leads(site: Site) -> bool:
    """Whether its daemon holds the lease."""
    assert site.daemon is not None
    return (lease(site.data) or {}).get("pid") == site.daemon.process.pid


@contextmanager
def slow(database: Database[dict[str, Any]], milliseconds: int, mode: Any = "alwaysOn", **block: Any) -> Iterator[None]:
    """Within the block these commands of a supervisor take so long."""
    admin = database.client.admin
    data = {"appName": "predictd", "blockConnection": True, "blockTimeMS": milliseconds, **block}
    admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def open_transactions(database: Database[dict[str, Any]]) -> list[Any]:
    """The transactions of a supervisor that are about to commit."""
    query = {"appName": "predictd", "command.commitTransaction": 1}
    return list(database.client.admin.aggregate([{"$currentOp": {"allUsers": True}}, {"$match": query}]))


def flows(site: Site, key: Any) -> Callable[[], Any]:
    site.rows.insert_one({"_id": key, "x": str(key)})
    return lambda: site.rows.find_one({"_id": key, "_outputs.m.value": digest(str(key))})


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, AT_SIGTERM), (signal.SIGKILL, AT_SIGKILL)])
def test_rows_flow_again_soon_after_the_leaders_end(pair: tuple[Site, Site], number: int, seconds: float) -> None:
    """In both directions."""
    leader, other = pair
    for turn in range(2):
        assert leader.daemon is not None
        leader.daemon.process.send_signal(number)
        eventually("the other one leads", lambda: leads(other), seconds)  # noqa: B023  # called right here
        eventually(f"row {turn} is predicted", flows(leader, turn), seconds)
        leader.daemon.process.wait(60)
        stands_by(leader)
        leader, other = other, leader


@pytest.mark.slow
def test_a_batch_that_takes_long_does_not_hold_up_the_next_leader(pair: tuple[Site, Site]) -> None:
    """The old one finishes it; what it writes late is guarded by the protocol."""
    leader, other = pair
    leader.rows.insert_one({"_id": "slow", "x": "nap"})
    eventually("the model works", (leader.folder / "napping").exists)
    assert leader.daemon is not None
    leader.daemon.process.terminate()
    eventually("a row is predicted", flows(other, "after"), AT_SIGTERM)
    assert leader.daemon.process.poll() is None, "it still works on the slow row"
    eventually("the slow row is predicted", lambda: leader.rows.find_one({"_outputs.m.value": digest("nap")}))
    assert leader.daemon.process.wait(60) == 0


@pytest.mark.slow
def test_a_clone_stands_by_and_says_why(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> None:
    """The same host name and a copy of the state directory of a daemon that runs: no epoch is used up."""
    with Site(tmp_path / "one", mongo_uri, database, TEXT) as one:
        one.start()
        shutil.copytree(one.folder, tmp_path / "two")
        with Site(tmp_path / "two", mongo_uri, database, TEXT) as two:
            before = lease(database)
            daemon = two.start(ready=False)
            assert "from a copy of this state directory" in daemon.until_reason("standby")
            time.sleep(1.5 * TTL_SECONDS)
            after = lease(database)
            assert before is not None
            assert after is not None
            assert after["epoch"] == before["epoch"]
            eventually("the original leads", flows(one, 1))
            one.kill()
            eventually("the clone takes over", flows(two, 2), AT_SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "moment"),
    [
        ({"failCommands": ["find", "aggregate", "insert", "update", "commitTransaction"]}, "lease taken"),
        ({"failCommands": ["findAndModify"]}, "predictd starts"),
    ],
    ids=["publishing", "taking the lease"],
)
def test_a_daemon_that_is_stopped_while_it_starts_gives_the_lease_back(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], block: dict[str, Any], moment: str
) -> None:
    """Its commands take two seconds each, and it is asked to stop in the middle. The next one serves at once."""
    with Site(tmp_path / "s", mongo_uri, database, TEXT) as site:
        with slow(database, 2_000, **block):
            daemon = site.start(ready=False)
            eventually(moment, lambda: f'"{moment}"' in site.log)
            time.sleep(0.5)
            assert daemon.stop() == 0, site.log
            found = lease(database)
            assert found is None or found["left"] <= 0
            assert "Traceback" not in site.log
        site.start()
        eventually("a row is predicted", flows(site, 1), AT_SIGTERM)


@pytest.mark.slow
def test_a_leader_that_is_killed_while_it_publishes_keeps_nobody_from_publishing(pair: tuple[Site, Site]) -> None:
    """Its open transaction is ended by its successor; MongoDB would keep it for a minute."""
    leader, other = pair
    assert leader.daemon is not None
    with slow(leader.data, 100_000, {"times": 1}, failCommands=["commitTransaction"]):
        leader.write(TEXT.replace('key = "x"', 'key = "x"\nmax_batch = 7'))
        eventually("it commits", lambda: open_transactions(leader.data))
        leader.kill()
        eventually("the other one serves", flows(other, 1), AT_SIGKILL)


# ---- a state directory without room ---------------------------------------------------------------------------------


@pytest.fixture
def mounts() -> None:
    require_mounts()


def on_a_disk(site: Site, script: str, size: str = "16k") -> Daemon:
    """`predictd run` whose state directory is a tiny file system of its own, prepared by this script."""
    (site.folder / ".predictd").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={size},mode=700 none .predictd"
    fill = "(head -c 1000000 /dev/zero > .predictd/fill; true) 2> /dev/null"
    text = f"{mount} && {script.format(fill=fill)} && exec {PREDICTD} run -c service.toml"
    environ = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return Daemon(site.folder, environ=environ, command=(*UNSHARE, "sh", "-c", text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("{fill}", "No space left on device"),
        ("mount -o remount,ro .predictd", "Read-only file system"),
        ("mount -o remount,nr_inodes=1 .predictd", "No space left on device"),
    ],
    ids=["full", "read-only", "no inodes"],
)
@pytest.mark.usefixtures("mounts")
def test_a_state_directory_without_room_is_a_sentence(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], script: str, says: str
) -> None:
    """Without a key or a lock nothing can run: exit 78."""
    with Site(tmp_path / "s", mongo_uri, database, TEXT) as site:
        assert on_a_disk(site, script).process.wait(60) == 78, site.log
        assert says in site.log
        assert "service.state_dir" in site.log
        assert "Traceback" not in site.log


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_on_a_full_disk_it_runs_with_a_key_from_elsewhere(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Without what the directory would hold: it says so, and predicts."""
    with Site(tmp_path / "other", mongo_uri, database, TEXT) as other:
        other.start()
        other.stop()
        with Site(tmp_path / "s", mongo_uri, database, TEXT, other.folder / ".predictd" / "signing.key") as site:
            with on_a_disk(site, "{fill}") as daemon:
                eventually("a row is predicted", flows(site, 1), 90)
                assert daemon.stop() == 0
            assert site.log.count("a file of the state directory cannot be written") == 2
            assert "the state directory cannot be written: a row that kills" in site.log
            assert "Traceback" not in site.log


def fill(disk: Path) -> None:
    """Takes all the room that is left."""
    with suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_a_row_that_kills_is_found_on_a_disk_that_becomes_full(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """One dead letter, all others have outputs, and the daemon goes on: what it needs to note has its room already."""
    with Site(tmp_path / "s", mongo_uri, database, TEXT.replace("naps", "deadly")) as site:
        with on_a_disk(site, "true", "512k") as daemon:
            eventually("a row is predicted", flows(site, 1), 90)
            fill(Path(f"/proc/{daemon.process.pid}/root{site.folder}/.predictd"))
            site.rows.insert_many([{"_id": f"x{n}", "x": "segfault" if n == 7 else f"x{n}"} for n in range(20)])
            letters = database[names.DEAD_LETTERS]
            eventually("the row has its letter", lambda: letters.find_one({"error.type": "WorkerDied"}), 90)
            query = {"_outputs.m.value": {"$exists": True}}
            eventually("all others have outputs", lambda: site.rows.count_documents(query) == 20)
            assert letters.count_documents({}) == 1
            assert daemon.stop() == 0
        assert "Traceback" not in site.log


def test_a_state_directory_behind_a_link_works(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """As /var/lib/predictd may be one; what it leads to is locked."""
    with Site(tmp_path / "s", mongo_uri, database, TEXT) as site:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (site.folder / ".predictd").symlink_to(tmp_path / "elsewhere")
        site.start()
        second = start(site.folder)
        assert second.process.wait(60) == 75
        site.stop()


def test_an_embedded_mongodb_without_its_folder_is_a_sentence(tmp_path: Path, database: Any) -> None:
    """Something else has the folder's name: exit 78."""
    with Site(tmp_path / "s", "embedded", database, TEXT) as site:
        (site.folder / ".predictd").mkdir(mode=0o700)
        (site.folder / ".predictd" / "mongod").write_text("something else")
        assert site.start(ready=False).process.wait(60) == 78
        assert "service.state_dir: the embedded MongoDB cannot use it" in site.log
        assert "Traceback" not in site.log
