"""The state of each schedule, so that no run is lost with a process and none happens twice.

    _predictd.schedules: {_id: service/key, service, key, run, fires, last, baseline, low}

* `last`: the time of the last run, or of the first sight of the schedule, by the server's clock.
* `baseline`: the number of rows at the last run of a `rows` trigger.
* `low`: the value at which a `below` fired last; absent once the metric has recovered.
* `fires` counts the runs. A run is claimed by its number, in the unique key of its job: if two daemons find the same
  run due, one queues it. `run` is the document's own id, so that numbers never repeat, even if the collection is
  dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import NoneType
from typing import Any, Final

from bson import ObjectId
from bson.codec_options import CodecOptions
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from daemon.store import names
from daemon.store.connection import ROW_CODEC
from daemon.store.documents import read

EXACT_ROWS = 100_000
_EXACT_SECONDS = 60.0
_WHOLE: Final[Mapping[str, Any]] = {
    "run": ObjectId,
    "fires": int,
    "last": datetime,
    "baseline": (int, NoneType),
    "low": (int, float, NoneType),
}
_AWARE: CodecOptions[dict[str, Any]] = ROW_CODEC.with_options(tz_aware=True)


@dataclass(frozen=True, slots=True)
class State:
    """The state of one schedule."""

    run: ObjectId
    fires: int
    last: datetime
    baseline: int | None
    low: float | None

    @property
    def claim(self) -> str:
        """The unique key of the next run."""
        return f"{self.run}-{self.fires + 1}"


class Schedules:
    """The schedules of one service."""

    def __init__(self, database: Database[dict[str, Any]], service: str) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database[names.SCHEDULES].with_options(codec_options=_AWARE)
        self._service = service

    def now(self) -> datetime:
        """The server's time."""
        now: datetime = self._database.command("hello", codec_options=_AWARE)["localTime"]
        return now

    def forget_all_but(self, keys: Iterable[str]) -> None:
        """Deletes schedules that are no longer declared: one that comes back starts from the beginning."""
        self._collection.delete_many({"service": self._service, "_id": {"$nin": [self._id(key) for key in keys]}})

    def states(self, baselines: Mapping[str, int | None]) -> dict[str, State]:
        """The states of these schedules; a new one begins now, at the row count that is given for it."""
        found = self._read(baselines)
        new = baselines.keys() - found.keys()
        for key in new:
            self._begin(key, baselines[key])
        return {**found, **self._read(new)} if new else found

    def _read(self, keys: Iterable[str]) -> dict[str, State]:
        ids = {self._id(key): key for key in keys}
        states = {}
        for document in read(self._collection, {"_id": {"$in": list(ids)}}):
            kept: dict[str, Any] = {name: document.get(name) for name in _WHOLE}
            if all(isinstance(kept[name], kinds) for name, kinds in _WHOLE.items()):
                states[ids[document["_id"]]] = State(**kept)
            else:  # not written by predictd: the schedule starts from the beginning
                self._collection.delete_one({"_id": document["_id"]})
        return states

    def _begin(self, key: str, baseline: int | None) -> None:
        first = {"service": self._service, "key": key, "run": ObjectId(), "fires": 0, "baseline": baseline}
        literal = {name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in first.items()}
        with suppress(DuplicateKeyError):  # another daemon was quicker; its document counts
            self._collection.update_one(
                {"_id": self._id(key)}, [{"$set": {**literal, "last": {"$ifNull": ["$last", "$$NOW"]}}}], upsert=True
            )

    def fired(self, key: str, state: State, last: datetime, baseline: int | None, low: float | None) -> None:
        """Notes the run that followed `state`; nothing if another daemon has noted it already."""
        changes = {"fires": state.fires + 1, "last": last, "baseline": baseline, "low": low}
        self._collection.update_one(self._at(key, state), {"$set": changes})

    def lowered(self, key: str, state: State, count: int) -> None:
        """Rows were deleted: new ones are counted from this number."""
        self._collection.update_one(self._at(key, state), {"$min": {"baseline": count}})

    def recovered(self, key: str, state: State) -> None:
        """The metric is no longer below its bound."""
        self._collection.update_one(self._at(key, state), {"$set": {"low": None}})

    def _at(self, key: str, state: State) -> dict[str, Any]:
        return {"_id": self._id(key), "run": state.run, "fires": state.fires}

    def _id(self, key: str) -> str:
        return f"{self._service}/{key}"


class RowCounts:
    """How many rows tables have: exactly up to `EXACT_ROWS`, beyond that as the server estimates it.

    The estimate costs nothing, but stays wrong after the server was killed. So a small table is counted whenever its
    estimate has changed, and once a minute.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int, float]] = {}

    def count(self, database: Database[dict[str, Any]], table: str) -> int:
        """The number of rows; 0 in a table that does not exist."""
        collection = database[table]
        estimate = collection.estimated_document_count()
        known, exact, at = self._known.get(table, (-1, 0, 0.0))
        if estimate > EXACT_ROWS:
            return estimate
        if known != estimate or time.monotonic() - at > _EXACT_SECONDS:
            exact = collection.count_documents({}, hint="_id_") if estimate or known else 0
            self._known[table] = (estimate, exact, time.monotonic())
        return exact
