"""Searches that any client of MongoDB asks for: a document in, its nearest rows out.

    _predictd.searches: {service, index, like, n}                        as a client inserts it
                        {..., state: "done", found: [{_id, score}], ...}  as it is answered

`like` is a document with the fields that the index's listener reads, or a vector. The worker that runs the listener
answers, each request once: one that was being computed when its process ended has failed. If no worker answers, as
none of a paused or failed listener does, the leader does so after a minute. A TTL index removes them later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pymongo import timeout
from pymongo.database import Database

from components.raw_value import RAW, equals, fields, readable
from daemon.store import names

KEEP_SECONDS: Final = 3600
"""How long an answer stays."""

PATIENCE_SECONDS: Final = 60
"""How long a request waits for a worker, by the server's clock."""

LOOK_SECONDS: Final = 2.0


class SearchRequests:
    """The requests of one service. Every error of the driver passes through."""

    def __init__(self, database: Database[dict[str, Any]], service: str, process: str) -> None:
        """`process` is the name of the one that answers: several may share the rows of a listener."""
        self._database, self._service, self._process = database, service, process
        self._collection = database[names.SEARCHES]
        self._new: dict[str, Any] = {"service": service, "state": {"$exists": False}}

    def prepare(self) -> None:
        """Makes the TTL index."""
        self._collection.create_index("answered_at", expireAfterSeconds=KEEP_SECONDS)

    def indexed(self) -> bool:
        """Whether the service has an index at all; not verified."""
        of = {"service": self._service, "kind": "index", "state": "applied"}
        return self._database[names.COMPONENTS].count_documents(of, limit=1) > 0

    def waiting(self) -> bool:
        """Whether there is a request that nobody has claimed."""
        return self._collection.count_documents(self._new, limit=1) > 0

    def give_up(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Answers those that have waited for so long since a leader saw them first."""
        error = f"no worker has answered for {seconds:g} s; `predictd status` tells whether its listener is served"
        seen = {"$currentDate": {"seen_at": True}}
        late = {"$lt": ["$seen_at", {"$subtract": ["$$NOW", seconds * 1000]}]}
        failed = {"$set": {"state": "failed", "error": error, "answered_at": "$$NOW"}}
        with timeout(LOOK_SECONDS):  # the leader has its lease to renew
            self._collection.update_many({**self._new, "seen_at": {"$exists": False}}, seen)
            self._collection.update_many({**self._new, "$expr": late}, [failed])

    def next(self, mine: Collection[str], known: Collection[str]) -> Mapping[str, Any] | None:
        """A request for one of the indexes `mine`, or for one that is not among those that are `known`, claimed for the
        caller; None if there is none.
        """
        index = {"$or": [{"index": {"$in": list(mine)}}, {"index": {"$nin": list(known)}}]}
        raw = self._collection.with_options(codec_options=RAW)
        for found in raw.find({**self._new, **index}, limit=1).sort("_id", 1):
            request = readable(fields(found.raw), "_id")
            claim = {"$set": {"state": "running", "by": self._process}, "$currentDate": {"answered_at": True}}
            if self._collection.update_one({**self._new, "_id": equals(request["_id"])}, claim).matched_count:
                return request
        return None

    def answer(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Writes the answer into the request."""
        change = {"$set": dict(answer), "$currentDate": {"answered_at": True}}
        self._collection.update_one({"_id": equals(request["_id"])}, change)

    def fail_claimed(self, error: str) -> None:
        """Answers the requests that the process before this one has claimed and not answered."""
        claimed = {"service": self._service, "state": "running", "by": self._process}
        self._collection.update_many(claimed, {"$set": {"state": "failed", "error": error}})
