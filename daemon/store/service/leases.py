"""Which daemon is active for a service name: one document, decided by the server's clock alone.

    _predictd.leases: {_id: service, owner, host, place, pid, expires, acquired_at, epoch, session, before}

* Acquiring is one `findOneAndUpdate` by pipeline on `$$NOW`: if the lease has expired, or is ours from before, it
  becomes ours.
* Each acquisition raises `epoch` by one; a renewal never does. The workers' writes carry the epoch, which fences a
  leader that was paused and has been replaced: its late writes are refused.
* `owner` is an instance id in the state directory. `place` names the lock file there as this boot of this machine sees
  it. Only one process at a time holds that lock, so a daemon that was killed takes its own lease back at once. A copy
  of the directory, or of the whole machine, has the same id and another place: it waits as any other daemon.
* A release only lets it expire: the document stays, because the epoch must never start again.
* `session` is that of the leader's transactions. Its successor ends it: what a leader that was killed within a
  transaction has written could be written by nobody else for a minute or more.

Times are the server's; no local clock decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bson import Binary
from pymongo import ReturnDocument, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database

from components.errors import LeaseLost, MongoUnavailable, PredictdError
from daemon.store import names
from daemon.store.connection import end_sessions, reaching
from daemon.store.documents import change_one, decoded, read_one

TTL_SECONDS = 10.0
NEVER_TERMS = 4  # no daemon writes a lease that lasts for so many terms
HIGHEST_EPOCH = 1 << 53


class AnotherDaemon(PredictdError):
    """Another daemon is active for this service, or works in this state directory; wait for it (standby), or stop
    it.
    """


@dataclass(frozen=True, slots=True)
class Holder:
    """A candidate for a lease: a stable instance id, the host, the process id and the place of the lock that keeps
    others from being the same candidate.
    """

    instance: str
    host: str
    pid: int
    place: str = ""

    def identity(self) -> dict[str, str]:
        """What no other living process shares, as the lease stores it."""
        return {"owner": self.instance, "host": self.host, "place": self.place}


class Lease:
    """The lease of one service, as one holder sees it. Every method raises MongoUnavailable if MongoDB does not
    answer.
    """

    def __init__(
        self, database: Database[dict[str, Any]], service: str, holder: Holder, ttl: float = TTL_SECONDS
    ) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database.get_collection(
            names.LEASES, write_concern=WriteConcern("majority")
        )
        self._service = service
        self._holder = holder
        self._ttl = ttl

    def acquire(self, session: Binary | None = None) -> int:
        """Acquires the lease and returns its new epoch. Raises AnotherDaemon, which names the holder, if it is held.

        `session` is that of this leader's transactions; its predecessor's is ended.
        """
        identity = self._holder.identity()
        free = {
            "$or": [
                {"$lte": ["$expires", "$$NOW"]},  # also if there is no document yet: a missing field sorts first
                {"$ne": [{"$type": "$expires"}, "date"]},
                {"$gt": ["$expires", {"$add": ["$$NOW", int(NEVER_TERMS * self._ttl * 1000)]}]},
                {"$and": [{"$eq": [f"${name}", {"$literal": own}]} for name, own in identity.items()]},
            ]
        }
        numbers = {"$in": [{"$type": "$epoch"}, ["int", "long", "double", "decimal"]]}
        # No daemon wrote any other value. Documents with a higher epoch are then repaired (`epochs`).
        real = {"$and": [numbers, {"$gte": ["$epoch", 0]}, {"$lt": ["$epoch", HIGHEST_EPOCH]}]}
        taken = {
            "_id": {"$literal": self._service},
            **{name: {"$literal": own} for name, own in identity.items()},
            "pid": {"$literal": self._holder.pid},
            "expires": self._expiry(),
            "acquired_at": "$$NOW",
            "session": {"$literal": session},
            "before": "$session",
            "epoch": {"$add": [{"$cond": [real, {"$toLong": {"$floor": "$epoch"}}, 0]}, 1]},
        }
        with reaching():
            found = change_one(
                self._collection,
                {"_id": self._service},
                [{"$replaceWith": {"$cond": [free, taken, "$$ROOT"]}}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        assert found is not None  # an upsert that returns the document after it
        document = decoded(found, self._collection.codec_options)
        if any(document.get(name) != own for name, own in identity.items()):
            copy = ", from a copy of this state directory" if document.get("owner") == self._holder.instance else ""
            raise AnotherDaemon(f"{_named(document)} is active for the service {self._service!r}{copy}")
        with suppress(MongoUnavailable), reaching():  # else the server ends it, later
            end_sessions(self._database, [document.get("before")])
        return int(document["epoch"])

    def renew(self, epoch: int) -> None:
        """Keeps the lease for another term. Raises LeaseLost if another daemon, or another epoch, holds it."""
        if not self._set_expiry(self._ours(epoch), self._expiry()):
            raise LeaseLost(f"the lease of {self._service!r} was taken over by {self.holder()}")

    def release(self, epoch: int | None) -> None:
        """Lets the lease expire now if it is still ours, so that another daemon need not wait. None is any epoch that
        this process was given: the answer may have been lost.
        """
        ours = self._ours(epoch) if epoch is not None else {**self._held(), "pid": self._holder.pid}
        self._set_expiry(ours, "$$NOW")

    def holder(self) -> str:
        """The holder of the lease, in words."""
        with reaching():
            document = read_one(self._collection, {"_id": self._service})
        return "nobody" if document is None else _named(document)

    def _set_expiry(self, ours: Mapping[str, Any], expires: Any) -> bool:
        # Not `update_one`, which the driver would retry: the server then first looks up the session, twice, and a slow
        # one takes three times as long. The caller repeats it.
        with reaching():
            return self._collection.update_many(ours, [{"$set": {"expires": expires}}]).matched_count > 0

    def _ours(self, epoch: int) -> dict[str, Any]:
        return {**self._held(), "epoch": epoch}

    def _held(self) -> dict[str, Any]:
        return {"_id": self._service, **self._holder.identity()}

    def _expiry(self) -> dict[str, Any]:
        return {"$add": ["$$NOW", int(self._ttl * 1000)]}


def _named(document: Mapping[str, Any]) -> str:
    return f"{document.get('host')} (pid {document.get('pid')}, epoch {document.get('epoch')})"
