"""How far each change stream is processed: resume token and cluster time, fenced by the epoch.

A position moves only over finished stretches (rule R10, in `daemon.handlers.predict.dirty_keys.Progress`), and only for
the leader. A daemon that was paused and has been replaced has a lower epoch, so its save is refused (rule R10b).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bson import Binary
from bson.timestamp import Timestamp
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.errors import Fenced
from components.raw_value import RAW, fields, readable
from daemon.store import names
from daemon.store.connection import end_sessions
from daemon.store.service.epochs import mended

T = TypeVar("T")

LARGEST_TOKEN: Final = 1024 * 1024


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
    """The position of one stream (one worker of a service) in `_predictd.positions`."""

    def __init__(self, database: Database[dict[str, Any]], service: str, worker: str, epoch: int) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database[names.POSITIONS]
        self._service, self._id = service, f"{service}/{worker}"
        self._epoch = epoch

    def claim(self, subscription: str, sessions: Sequence[Binary] = ()) -> Position | None:
        """Raises the stored epoch to this one, so that an older leader's saves are refused from now on. Returns the
        position, None if there is no valid one.

        `sessions` are those of this process's transactions; they are stored for its successor. The predecessor's are
        ended: if it was killed within a transaction, the rows of that could not be written for a minute or more.

        `subscription` is a hash of the stream's filter. A token is valid only with the filter that it was made with
        (with another one MongoDB may answer with error 280), so under a changed filter only the cluster time is used.
        """
        raw = self._fenced(
            lambda: self._collection.with_options(codec_options=RAW).find_one_and_update(
                {"_id": self._id, "epoch": {"$not": {"$gt": self._epoch}}},
                {"$set": {"epoch": self._epoch, "sessions": list(sessions)}},
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )
        )
        before = {} if raw is None else readable(fields(raw.raw))
        left = before.get("sessions")
        end_sessions(self._database, left if isinstance(left, list) else ())
        time = before.get("cluster_time")
        if not isinstance(time, Timestamp):
            return None
        token = before.get("token") if before.get("subscription") == subscription else None
        return Position.at_token(token, time) if isinstance(token, dict) else Position(time)

    def save(self, position: Position, subscription: str) -> None:
        """Saves the position. Raises Fenced if a higher epoch owns the stream."""
        token = position.token
        if token is not None and len(str(token.get("_data"))) > LARGEST_TOKEN:
            token = None  # of a row with a very large `_id`; the time is enough to resume
        self._fenced(
            lambda: self._collection.update_one(
                {"_id": self._id, "epoch": {"$not": {"$gt": self._epoch}}},  # R10b
                {
                    "$set": {
                        "token": token,
                        "cluster_time": position.cluster_time,
                        "subscription": subscription,
                        "epoch": self._epoch,
                    },
                    "$currentDate": {"saved_at": True},
                },
                upsert=True,  # the database may have been dropped
            )
        )

    def _fenced(self, write: Callable[[], T]) -> T:
        """Makes a write that only the owner of the stream may make. Raises Fenced."""
        for attempt in (1, 2):
            try:
                return write()
            except DuplicateKeyError:
                if attempt == 2 or not mended(self._collection, self._id, self._service, self._epoch):
                    raise Fenced(
                        f"another daemon, with a higher epoch than {self._epoch}, owns the stream {self._id}"
                    ) from None
        raise AssertionError  # the second attempt returned or raised


def cluster_time(database: Database[dict[str, Any]]) -> Timestamp:
    """The server's cluster time now: no write that was acknowledged before is later."""
    time: Timestamp = database.command("ping")["operationTime"]
    return time
