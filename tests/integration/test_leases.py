"""Who is active for a service name, decided by a real server's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, Regex
from bson.timestamp import Timestamp
from pymongo.database import Database

from components.errors import LeaseLost, MongoUnavailable
from daemon.health.service_status import ServiceStatus
from daemon.store import connection, names
from daemon.store.connection import open_client
from daemon.store.service.leases import AnotherDaemon, Holder, Lease
from daemon.store.service.status import StatusBoard

ONE = Holder("one", "host-1", 11)
OTHER = Holder("other", "host-2", 22)


def lease(database: Database[dict[str, Any]], holder: Holder, ttl: float = 15.0) -> Lease:
    return Lease(database, "mnist", holder, ttl)


def test_a_lease_that_is_held_is_refused_and_its_holder_named(database: Any) -> None:
    """The second daemon learns whom it waits for."""
    assert lease(database, ONE).acquire() == 1
    with pytest.raises(AnotherDaemon, match=r"host-1 \(pid 11, epoch 1\) is active for the service 'mnist'"):
        lease(database, OTHER).acquire()


def test_its_own_lease_is_taken_back_at_once_with_a_higher_epoch(database: Any) -> None:
    """A daemon that was killed does not wait for its own lease to expire, and fences what is left of its former
    self.
    """
    lease(database, ONE).acquire()
    again = Holder("one", "host-1", 12)
    assert lease(database, again).acquire() == 2
    with pytest.raises(LeaseLost):
        lease(database, ONE).renew(1)


def test_a_copied_state_directory_on_another_host_does_not_take_the_lease(database: Any) -> None:
    """The instance id alone is not enough."""
    lease(database, ONE).acquire()
    with pytest.raises(AnotherDaemon):
        lease(database, Holder("one", "host-2", 11)).acquire()


def test_a_clone_waits_and_is_told_why(database: Any) -> None:
    """The same host name and a copied state directory: only the place differs, and neither ousts the other."""
    original, clone = Holder("one", "host-1", 11, "here"), Holder("one", "host-1", 11, "there")
    assert lease(database, original).acquire() == 1
    with pytest.raises(AnotherDaemon, match="from a copy of this state directory"):
        lease(database, clone).acquire()
    lease(database, clone).release(None)  # nor does it give back what is not its own
    lease(database, original).renew(1)
    assert lease(database, original).acquire() == 2, "its own lease is taken back at once"


def test_a_lease_is_released_though_its_epoch_was_never_heard(database: Any) -> None:
    """The process was asked to stop before the answer came."""
    lease(database, ONE).acquire()
    lease(database, Holder("one", "host-1", 12)).release(None)
    with pytest.raises(AnotherDaemon):
        lease(database, OTHER).acquire()
    lease(database, ONE).release(None)
    assert lease(database, OTHER).acquire() == 2


def test_an_expired_lease_goes_to_the_next_and_the_late_renewal_is_refused(database: Any) -> None:
    """A paused leader that wakes learns that it has been replaced."""
    lease(database, ONE, ttl=0.2).acquire()
    time.sleep(0.5)
    assert lease(database, OTHER).acquire() == 2
    with pytest.raises(LeaseLost, match="taken over by host-2"):
        lease(database, ONE).renew(1)


def test_a_renewal_keeps_the_epoch_and_the_lease(database: Any) -> None:
    """Only a taking raises the epoch."""
    mine = lease(database, ONE)
    epoch = mine.acquire()
    for _ in range(3):
        database[names.LEASES].update_one({}, [{"$set": {"expires": {"$add": ["$$NOW", 100]}}}])
        mine.renew(epoch)
    time.sleep(0.2)
    with pytest.raises(AnotherDaemon):
        lease(database, OTHER).acquire()
    assert database[names.LEASES].find_one({"_id": "mnist"})["epoch"] == epoch


def test_a_released_lease_is_free_at_once_and_its_epoch_goes_on(database: Any) -> None:
    """The document outlives its holder, because the epoch must never start again."""
    mine = lease(database, ONE)
    mine.release(mine.acquire())
    assert lease(database, OTHER).acquire() == 2
    mine.release(1)  # a late release by the old holder changes nothing
    with pytest.raises(AnotherDaemon):
        mine.acquire()


def test_texts_that_look_like_expressions_are_stored_as_they_are(database: Any) -> None:
    """A host may call itself anything."""
    lease(database, Holder("$NOW", "$$ROOT", 1)).acquire()
    assert database[names.LEASES].find_one({"_id": "mnist"})["host"] == "$$ROOT"


def test_the_status_document_is_not_written_over_by_a_daemon_that_was_replaced(database: Any) -> None:
    """The epoch fences it too; and its age comes from the server's clock."""
    board = StatusBoard(database, "mnist")
    assert board.read() is None
    assert board.publish(2, ServiceStatus(state="active"))
    assert not board.publish(1, ServiceStatus(state="stale"))
    status = board.read()
    assert status is not None
    assert (status.id, status.state, status.epoch) == ("mnist", "active", 2)
    assert status.age_seconds is not None
    assert 0 <= status.age_seconds < 60


def test_a_server_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own message, without the topology."""
    monkeypatch.setattr(connection, "OPERATION_SECONDS", 0.2)
    client = open_client("mongodb://user:secret@127.0.0.1:9/")
    with client, pytest.raises(MongoUnavailable) as caught:
        Lease(client["x"], "mnist", ONE).acquire()
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "expires", [Timestamp(1, 1), "soon", Regex("("), True, {"a": 1}, datetime(3000, 1, 1, tzinfo=UTC)], ids=repr
)
def test_a_lease_that_nobody_was_given_is_free(database: Any, expires: Any) -> None:
    """Its end is no time, or lies many terms ahead."""
    database[names.LEASES].insert_one({"_id": "mnist", "owner": "x", "host": "h", "epoch": 7, "expires": expires})
    mine = lease(database, ONE)
    assert mine.acquire() == 8
    mine.renew(8)


@pytest.mark.parametrize("epoch", [2**63 - 1, 1e300, float("nan"), float("inf"), -5, "x", Decimal128("1E+40"), None])
def test_an_epoch_that_was_never_given_is_not_counted_on(database: Any, epoch: Any) -> None:
    """The lease begins again, with an epoch that can be renewed."""
    database[names.LEASES].insert_one({"_id": "mnist", "epoch": epoch})
    mine = lease(database, ONE)
    assert mine.acquire() == 1
    mine.renew(1)


def test_a_status_with_an_epoch_that_no_daemon_had_is_written_over(database: Any) -> None:
    """Else nobody would see how the service is, for ever."""
    mine = lease(database, ONE)
    epoch = mine.acquire()
    database[names.STATUS].insert_one({"_id": "mnist", "epoch": 2**62, "at": "x"})
    board = StatusBoard(database, "mnist")
    assert board.read() is None
    assert board.publish(epoch, ServiceStatus(state="active"))
    status = board.read()
    assert status is not None
    assert status.state == "active"
