"""How far each change stream is processed: resume token and cluster time, fenced by the epoch.

A position moves only over finished stretches (rule R10, in `daemon.handlers.predict.dirty_keys.Progress`), and only for
the leader. A daemon that was paused and has been replaced has a lower epoch, so its save is refused (rule R10b). Each
save has an id, and names the one before it: if an older position was put back beneath the running daemon, with the rows
of then (a snapshot of the server, a backup), the position would pass over what was not written then (rule R10c).

All partitions of a worker are in one document (`daemon.store.partition`). If their number has changed, each new
one begins at the earliest position of the old ones: whatever its keys were in, nothing after that is missed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bson import Binary, ObjectId
from bson.timestamp import Timestamp
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.database import Database

from components.raw_value import fields, readable
from daemon.store import names
from daemon.store.connection import end_sessions
from daemon.store.documents import change_one
from daemon.store.partition import WHOLE, Partition, lay_out, shares
from daemon.store.service.epochs import fenced

T = TypeVar("T")

LARGEST_TOKEN: Final = 1024 * 1024
_PARTS: Final = ("token", "cluster_time", "subscription", "sessions", "saved_at", "save")
"""The fields of each share."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the change stream: the `token` to resume after, and a cluster time from which all events can be read
    again.

    The token is None if only the time is known (a fresh start). The time is never later than the token's place.
    """

    cluster_time: Timestamp
    token: Mapping[str, Any] | None = None

    @classmethod
    def at_token(cls, token: Mapping[str, Any], known: Timestamp) -> Position:
        """The position of a resume token; its time is that in the token, or `known`, an earlier time, if the token has
        none.

        A token's `_data` is a hexadecimal key string whose first element is a timestamp: type byte 82, then seconds and
        increment, four bytes each (MongoDB's docs/change_streams and src/mongo/db/pipeline/resume_token.h).
        """
        found = re.match(r"82([0-9A-F]{8})([0-9A-F]{8})", str(token.get("_data", "")))
        time = Timestamp(int(found[1], 16), int(found[2], 16)) if found else known
        return cls(max(time, known), token)


class Positions:
    """The position of one stream (one process of a worker) in `_predictd.positions`."""

    def __init__(
        self, database: Database[dict[str, Any]], service: str, worker: str, epoch: int, partition: Partition = WHOLE
    ) -> None:
        self._database, self._partition = database, partition
        self._collection: Collection[dict[str, Any]] = database[names.POSITIONS]
        self._service, self._id = service, f"{service}/{worker}"
        self._epoch = epoch
        self._last, self._next = ObjectId(), ObjectId()
        self._saving = threading.Lock()  # the stream saves one, too, if its history is lost

    def claim(self, subscription: str, sessions: Sequence[Binary] = ()) -> Position | None:
        """Raises the stored epoch to this one, so that an older leader's saves are refused from now on. Returns the
        position, None if there is no valid one.

        `sessions` are those of this process's transactions; they are stored for its successor. The predecessor's are
        ended: if it was killed within a transaction, the rows of that could not be written for a minute or more.

        `subscription` is a hash of the stream's filter. A token is valid only with the filter that it was made with
        (with another one MongoDB may answer with error 280), so under a changed filter only the cluster time is used.
        """
        path = self._partition.path

        def claimed() -> Any:
            lay_out(self._collection, self._id, self._epoch, self._partition.of, self._carried, _PARTS)
            return change_one(
                self._collection,
                self._own,
                {"$set": {"epoch": self._epoch, path("sessions"): list(sessions), path("save"): self._last}},
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )

        raw = self._fenced(claimed, self._own)
        before = {} if raw is None else readable(self._partition.own(fields(raw.raw)))
        left = before.get("sessions")
        end_sessions(self._database, left if isinstance(left, list) else ())
        time = before.get("cluster_time")
        if not isinstance(time, Timestamp):
            return None
        token = before.get("token") if before.get("subscription") == subscription else None
        return Position(time, token if isinstance(token, dict) else None)

    def save(self, position: Position, subscription: str) -> None:
        """Saves the position. Raises Fenced if a higher epoch owns the stream, or if another position is there than
        this process has left.
        """
        token = position.token
        if token is not None and len(str(token.get("_data"))) > LARGEST_TOKEN:
            token = None  # of a row with a very large `_id`; the time is enough to resume
        path = self._partition.path
        with self._saving:
            # The answer to the save before may have been lost, or the database dropped, position and all.
            left = [{path("save"): {"$in": [self._last, self._next]}}, {path("save"): None, path("cluster_time"): None}]
            own = {**self._own, "$or": left}  # R10c
            self._fenced(
                lambda: self._collection.update_one(
                    own,
                    {
                        "$set": {
                            path("token"): token,
                            path("cluster_time"): position.cluster_time,
                            path("subscription"): subscription,
                            path("save"): self._next,
                            "epoch": self._epoch,
                        },
                        "$currentDate": {path("saved_at"): True},
                    },
                    upsert=True,  # the database may have been dropped
                ),
                own,
            )
            self._last, self._next = self._next, ObjectId()

    @property
    def _own(self) -> dict[str, Any]:
        """The document, as long as it is this leader's and divided as this process believes."""
        return {"_id": self._id, "of": self._partition.layout, "epoch": {"$not": {"$gt": self._epoch}}}  # R10b

    def _carried(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where each process begins under another number of them. The sessions of the old ones are ended."""
        old = shares(document)
        for each in old:
            left = each.get("sessions")
            end_sessions(self._database, left if isinstance(left, list) else ())
        times = [time for each in old if isinstance(time := each.get("cluster_time"), Timestamp)]
        return {"cluster_time": min(times)} if len(times) == len(old) else {}  # R11a

    def _fenced(self, write: Callable[[], T], own: Mapping[str, Any]) -> T:
        """Makes a write that only the owner of the stream may make. Raises Fenced."""
        what = f"the stream {self._id}, or an older state of it was put back"
        return fenced(write, self._collection, own, self._service, self._epoch, what)


def cluster_time(database: Database[dict[str, Any]]) -> Timestamp:
    """The server's cluster time now: no write that was acknowledged before is later."""
    time: Timestamp = database.command("ping")["operationTime"]
    return time
