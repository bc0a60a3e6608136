"""What the active daemon says about itself: one document per service, for `predictd status` and for whoever looks with
mongosh.

    _predictd.status: {_id: service, at, owner, epoch, state, workers: {name: report}, config: {ok, error, loaded_at}}

`at` is the server's time of the last word; a reader gets its age by the server's clock too, so a daemon that died shows
as old, whatever the clocks of the machines say. A daemon that has been replaced cannot write over its successor: the
epoch only grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from daemon.store import names
from daemon.store.connection import reaching
from daemon.store.service.epochs import mended

__all__ = ["StatusBoard"]


class StatusBoard:
    """The status document of one service. Every method raises MongoUnavailable where MongoDB does not answer."""

    def __init__(self, database: Database[dict[str, Any]], service: str) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.STATUS]
        self._service = service

    def publish(self, epoch: int, document: Mapping[str, Any]) -> bool:
        """Writes the whole document; False where a daemon with a higher epoch has already written its own."""
        for _ in range(2):
            try:
                with reaching(DuplicateKeyError):
                    self._collection.update_one(
                        {"_id": self._service, "epoch": {"$not": {"$gt": epoch}}},
                        {"$set": {**document, "epoch": epoch}, "$currentDate": {"at": True}},
                        upsert=True,
                    )
            except DuplicateKeyError:
                with reaching():
                    if not mended(self._collection, self._service, self._service, epoch):
                        return False
            else:
                return True
        return False

    def read(self) -> dict[str, Any] | None:
        """The document with `age_seconds` by the server's clock, or None where no daemon has ever been active."""
        dated = {"$eq": [{"$type": "$at"}, "date"]}
        age = {"$cond": [dated, {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}, "$$REMOVE"]}
        with reaching():
            found = list(
                self._collection.aggregate([{"$match": {"_id": self._service}}, {"$set": {"age_seconds": age}}])
            )
        if not found:
            return None
        document: dict[str, Any] = found[0]
        return document
