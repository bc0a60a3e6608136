"""The supervisor with fake workers, in a process of its own, on a real MongoDB: what it starts, shows, refuses,
survives and gives back.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import edits
from harness.commands import free_port
from harness.daemons import PATIENCE, Daemon, NotifySocket, eventually
from pymongo.database import Database

from daemon.embedded.server import ensure, uri_of
from daemon.store import names

FILE = """
[service]
name = "mnist"
stop_timeout = {stop_timeout}
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = ["harness"]
[guard]
unset_share = 1.0
[tables.mnist]
fields = {{ img = "pil_image", text = "str", _fold = "str" }}
[models.one]
type = "object"
object = "harness.models:echo"
[models.two]
type = "object"
object = "harness.models:echo"
[listeners.first]
table = "mnist"
key = "text"
model = "one"
[listeners.second]
table = "mnist"
key = "text"
model = "two"
"""
THIRD = """
[listeners.third]
table = "mnist"
key = "text"
model = "one"
worker = "three"
"""

Start = Callable[..., Daemon]


@pytest.fixture
def folder(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Path:
    """A folder with a service.toml for an empty database."""
    (tmp_path / "service.toml").write_text(FILE.format(uri=mongo_uri, database=database.name, stop_timeout=10))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons, and ends those that a failed test left."""
    daemons: list[Daemon] = []

    def start_one(folder: Path, *arguments: str, **environ: str) -> Daemon:
        daemons.append(Daemon(folder, *arguments, environ=environ))
        return daemons[-1]

    yield start_one
    for daemon in daemons:
        daemon.__exit__()


def edit(folder: Path, old: str, new: str) -> None:
    """As an editor does: a new file in the old one's place."""
    path = folder / "service.toml"
    text = path.read_text()
    assert old in text
    (folder / "service.toml~").write_text(text.replace(old, new))
    (folder / "service.toml~").replace(path)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_starts_its_workers_shows_them_and_gives_everything_back(folder: Path, start: Start, database: Any) -> None:
    """READY when the streams are open; at the end workers are drained, the lease is free, and torch was never
    imported.
    """
    with NotifySocket(folder) as systemd:
        daemon = start(folder, NOTIFY_SOCKET=systemd.path)
        daemon.until_ready()
        assert systemd.heard("READY=1")
        assert set(daemon.readyz()["listeners"]) == {"first", "second"}
        assert "predictd_leader 1.0" in daemon.get("/metrics").text
        eventually("the streams are shown", lambda: systemd.heard("STATUS=2 listeners running, lag 0.0 s"))
        status = eventually(
            "the status document", lambda: database[names.STATUS].find_one({"_id": "mnist", "ready": True})
        )
        assert status["config"]["ok"] is True
        assert status["workers"]["one"]["listeners"]["first"]["rows"] == {"predicted": 7}
        assert "samples" not in status["workers"]["one"]
        assert database[names.COMPONENTS].count_documents({}) > 0
        assert daemon.stop() == 0
        assert systemd.heard("STOPPING=1")
    assert daemon.history("one")[-1] == daemon.history("two")[-1] == "stopped"
    assert not (daemon.state_dir / "http").exists()
    lease = database[names.LEASES].find_one({"_id": "mnist", "$expr": {"$lte": ["$expires", "$$NOW"]}})
    assert lease["epoch"] == 1
    assert database[names.STATUS].find_one({"_id": "mnist"})["state"] == "stopped"
    log = daemon.log.read_text()
    assert "torch imported: False" in log
    assert "a model printed this" in log


def test_a_worker_that_is_killed_is_started_again(folder: Path, start: Start) -> None:
    """The other one goes on."""
    daemon = start(folder)
    daemon.until_ready()
    os.kill(daemon.starts("one")[0][1], signal.SIGKILL)
    eventually("it is started again", lambda: len(daemon.starts("one")) == 2)
    daemon.until_ready()
    assert len(daemon.starts("two")) == 1
    assert 'predictd_worker_restarts_total{worker="one"} 1.0' in daemon.get("/metrics").text


def test_a_worker_that_cannot_be_built_waits_until_somebody_asks(folder: Path, start: Start) -> None:
    """Its reason is readable; SIGHUP tries again at once, for the code may have been mended though the file is the
    same.
    """
    daemon = start(folder)
    daemon.order("one", ending="cannot_be_built")
    assert "cannot be built: as the test ordered" in daemon.until_reason("cannot be built")
    eventually("the other one goes on", lambda: daemon.readyz()["listeners"]["second"]["ready"])
    daemon.order("one")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until_ready()
    assert len(daemon.starts("one")) in {2, 3}  # the daemon's first look at the registry may have come after the first


def test_a_worker_whose_declaration_changed_starts_again(folder: Path, start: Start) -> None:
    """At once."""
    daemon = start(folder)
    daemon.until_ready()
    daemon.order("one", ending="declaration_changed")
    eventually("it has ended", lambda: gone(daemon.starts("one")[0][1]))
    daemon.order("one")
    eventually("it is started again", lambda: len(daemon.starts("one")) >= 2)
    daemon.until_ready()


def test_a_supervisor_that_stood_still_blames_no_worker(folder: Path, start: Start) -> None:
    """SIGSTOP of the supervisor for longer than a worker may be silent: the workers reported all the while."""
    daemon = start(folder, PREDICTD_LIMITS__STAGE_SECONDS="2")
    daemon.until_ready()
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # as long as it stands still
    daemon.process.send_signal(signal.SIGCONT)
    time.sleep(4)  # some looks at the workers
    daemon.until_ready()
    assert [len(daemon.starts(worker)) for worker in ("one", "two")] == [1, 1]


def test_a_fenced_worker_makes_the_daemon_step_down_and_ask_for_the_lease_anew(folder: Path, start: Start) -> None:
    """The new epoch is higher, and every worker carries it."""
    daemon = start(folder)
    daemon.until_ready()
    daemon.order("one", ending="fenced")
    eventually("the other one is stopped", lambda: "stopped" in daemon.history("two"))
    daemon.order("one")
    eventually("both carry the new epoch", lambda: daemon.starts("two")[-1][0] > 1 and daemon.starts("one")[-1][0] > 1)
    daemon.until_ready()


def test_saving_the_file_starts_stops_and_restarts_just_the_workers_it_concerns(folder: Path, start: Start) -> None:
    """An added listener, a changed filter, a removed listener; what is not concerned keeps its process."""
    daemon = start(folder)
    daemon.until_ready()
    edit(folder, 'model = "two"\n', 'model = "two"\n' + THIRD)
    eventually("the new worker runs", lambda: daemon.starts("three"))
    daemon.until_ready()
    edit(folder, 'model = "two"\n', 'model = "two"\nwhere = { _fold = "valid" }\n')
    eventually("the changed one is restarted", lambda: len(daemon.starts("two")) == 2)
    assert daemon.history("two")[1] == "stopped"
    edit(folder, THIRD, "")
    eventually("the removed one is stopped", lambda: daemon.history("three")[-1] == "stopped")
    edits.until_ready(daemon, "first", "second")
    assert len(daemon.starts("one")) == 1


def test_a_broken_file_changes_nothing_and_its_key_is_named_everywhere(
    folder: Path, start: Start, database: Any
) -> None:
    """In /readyz, metrics, status document, log, and in the answer to who asks for a reload; a good file clears it."""
    daemon = start(folder)
    daemon.until_ready()
    edit(folder, 'model = "two"', 'model = "nonsuch"')
    eventually("it is refused", lambda: daemon.readyz()["config"]["ok"] is False)
    assert daemon.readyz()["ready"]
    assert "listeners.second.model" in daemon.readyz()["config"]["error"]
    assert "predictd_config_last_reload_successful 0.0" in daemon.get("/metrics").text
    answer = daemon.reload()
    assert answer.status_code == 400
    assert "listeners.second.model" in answer.text
    eventually(
        "the status document says so", lambda: database[names.STATUS].find_one({"config.error": {"$regex": "nonsuch"}})
    )
    assert "listeners.second.model" in daemon.log.read_text()
    edit(folder, 'model = "nonsuch"', 'model = "two"')
    eventually("it is good again", lambda: daemon.readyz()["config"]["ok"])
    assert len(daemon.starts("one")) == len(daemon.starts("two")) == 1


def test_what_needs_a_restart_of_the_service_is_refused(folder: Path, start: Start) -> None:
    """Together with all else in the file."""
    daemon = start(folder)
    daemon.until_ready()
    edit(folder, 'name = "mnist"', 'name = "other"')
    answer = daemon.reload()
    assert answer.status_code == 400
    assert answer.text.startswith("service.name: this cannot change while the service runs")


def test_a_file_behind_swapped_links_is_followed(tmp_path: Path, folder: Path, start: Start) -> None:
    """As Kubernetes does it: the link's own name never changes."""
    for name in ("..1", "..2"):
        (folder / name).mkdir()
    text = (folder / "service.toml").read_text()
    (folder / "..1" / "service.toml").write_text(text)
    (folder / "..2" / "service.toml").write_text(text + THIRD)
    (folder / "service.toml").unlink()
    (folder / "..data").symlink_to("..1")
    (folder / "service.toml").symlink_to("..data/service.toml")
    daemon = start(folder)
    daemon.until_ready()
    (folder / "..fresh").symlink_to("..2")
    (folder / "..fresh").replace(folder / "..data")
    eventually("the new file is applied", lambda: daemon.starts("three"))
    (folder / "..2" / "service.toml").write_text(text)  # and the target, edited in place
    eventually("the edit is applied", lambda: daemon.history("three")[-1] == "stopped")


def test_workers_go_with_a_supervisor_that_is_killed_and_its_successor_leads_at_once(
    folder: Path, start: Start, database: Any
) -> None:
    """The same state directory takes its own lease back, however long that still has; the epoch is higher all the
    same.
    """
    first = start(folder)
    first.until_ready()
    first.process.kill()
    first.process.wait()
    eventually("its workers have left", lambda: first.history("one")[-1] == first.history("two")[-1] == "orphaned")
    database[names.LEASES].update_one({}, [{"$set": {"expires": {"$add": ["$$NOW", 3_600_000]}}}])
    second = start(folder)
    eventually("the next one leads", lambda: len(second.starts("one")) == 2)
    assert second.starts("one")[-1][0] == 2
    second.until_ready()


def test_a_second_daemon_stands_by_and_takes_over(folder: Path, start: Start, tmp_path: Path) -> None:
    """It is ready for systemd, red for everybody else, and leads as soon as the first one has gone."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "service.toml").write_text((folder / "service.toml").read_text())
    first = start(folder)
    first.until_ready()
    with NotifySocket(tmp_path) as systemd:
        second = start(other, NOTIFY_SOCKET=systemd.path)
        assert "is active" in second.until_reason("standby: ")
        assert second.get("/readyz").status_code == 503
        assert systemd.heard("READY=1")
        assert start(other, "--no-standby").process.wait(60) == 75  # the state directory is in use
        assert first.stop() == 0
        second.until_ready()
        assert second.starts("one")[-1][0] == 2


def test_the_leader_sees_a_search_that_no_worker_answers(folder: Path, start: Start, database: Any) -> None:
    """From then on the search does not wait for ever (`SearchRequests.give_up`)."""
    start(folder).until_ready()
    asked = database[names.SEARCHES].insert_one({"service": "mnist", "index": "none", "like": [1.0]}).inserted_id
    eventually("it is seen", lambda: "seen_at" in database[names.SEARCHES].find_one({"_id": asked}))


def test_a_daemon_that_must_not_stand_by_leaves(folder: Path, start: Start, tmp_path: Path) -> None:
    """Exit code 75, and it says who is active."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "service.toml").write_text((folder / "service.toml").read_text())
    start(folder).until_ready()
    second = start(other, "--no-standby")
    assert second.process.wait(60) == 75
    assert "is active for the service 'mnist'" in second.log.read_text()


@pytest.mark.slow
def test_without_mongodb_it_is_red_and_waits_and_starts_when_mongodb_comes(
    tmp_path: Path, start: Start, mongod: Path
) -> None:
    """It answers over HTTP meanwhile; when MongoDB goes away later it turns red, keeps its workers, and recovers."""
    port = free_port()
    uri = uri_of(tmp_path / "mongo", port)
    (tmp_path / "service.toml").write_text(FILE.format(uri=uri, database="db", stop_timeout=10))
    daemon = start(tmp_path)
    assert f"127.0.0.1:{port}" in daemon.until_reason("MongoDB: ")
    assert daemon.get("/healthz").status_code == 200
    assert "predictd_mongo_up 0.0" in daemon.get("/metrics").text
    with ensure(tmp_path / "mongo", port):
        daemon.until_ready()
    daemon.until_reason("MongoDB: ")
    with ensure(tmp_path / "mongo", port):
        daemon.until_ready()
        assert len(daemon.starts("one")) == 1
        assert daemon.stop() == 0
    assert daemon.log.read_text().count("MongoDB cannot be reached") < 8


def test_the_wait_for_mongodb_can_be_bounded(tmp_path: Path, start: Start) -> None:
    """Exit code 69 with the reason."""
    (tmp_path / "service.toml").write_text(
        FILE.format(uri=f"mongodb://user:secret@127.0.0.1:{free_port()}/", database="db", stop_timeout=10)
    )
    daemon = start(tmp_path, "--wait", "1")
    assert daemon.process.wait(60) == 69
    assert "MongoDB was not there within 1 s" in daemon.log.read_text()
    assert "secret" not in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_it_starts_the_embedded_mongodb_and_stops_it_last(tmp_path: Path, start: Start, mongod: Path) -> None:
    """A worker is told the real address."""
    (tmp_path / "service.toml").write_text(FILE.format(uri="embedded", database="db", stop_timeout=10))
    daemon = start(tmp_path)
    daemon.until_ready()
    assert daemon.stop() == 0
    assert "embedded MongoDB is up" in daemon.log.read_text()


def test_a_deaf_worker_is_killed_after_the_stop_timeout(folder: Path, start: Start) -> None:
    """The daemon ends well nevertheless."""
    edit(folder, "stop_timeout = 10", "stop_timeout = 1")
    daemon = start(folder)
    daemon.until_ready()
    daemon.order("one", deaf=True)
    pid = daemon.starts("one")[-1][1]
    assert daemon.stop() == 0
    assert gone(pid)
    assert "is killed" in daemon.log.read_text()


def test_a_second_signal_leaves_at_once(folder: Path, start: Start) -> None:
    """Workers are not waited for, and do not stay behind."""
    edit(folder, "stop_timeout = 10", "stop_timeout = 600")
    daemon = start(folder)
    daemon.until_ready()
    daemon.order("one", deaf=True)
    pid = daemon.starts("one")[-1][1]
    daemon.process.terminate()
    eventually("it drains", lambda: "stopped" in daemon.history("two"))
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(PATIENCE) == 1
    eventually("the worker is gone", lambda: gone(pid))


def test_a_worker_whose_stage_hangs_is_replaced_while_the_watchdog_is_fed(folder: Path, start: Start) -> None:
    """Systemd's watchdog is for the supervisor."""
    with NotifySocket(folder) as systemd:
        daemon = start(folder, NOTIFY_SOCKET=systemd.path, WATCHDOG_USEC="1500000")
        daemon.until_ready()
        eventually("it is fed", lambda: systemd.heard("WATCHDOG=1"))
        before = len(daemon.starts("one"))
        daemon.order("one", busy={"first.predict": 99.0})
        eventually("it is replaced", lambda: len(daemon.starts("one")) > before)
        daemon.order("one")
        systemd.forget()
        eventually("it is fed", lambda: systemd.heard("WATCHDOG=1"))
        assert "stage first.predict has worked on one batch" in daemon.log.read_text()


def test_a_port_that_is_taken_is_one_clear_error(folder: Path, start: Start) -> None:
    """It names the key."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        edit(folder, "127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}")
        daemon = start(folder)
        assert daemon.process.wait(60) == 1
        assert "http.listen" in daemon.log.read_text()
