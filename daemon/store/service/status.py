"""The status of the active daemon: one document for each service, for `predictd status` and for mongosh.

    _predictd.status: {_id: service, at, epoch, and the other fields of `daemon.health.service_status.ServiceStatus`}

`at` is the server's time of the last write, and a reader gets the age by the same clock; so the status of a daemon that
died looks old, independent of the machines' clocks. A replaced daemon cannot overwrite its successor's: the epoch only
grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.raw_value import RAW
from daemon.health.service_status import ServiceStatus
from daemon.store import names
from daemon.store.connection import reaching
from daemon.store.documents import decoded
from daemon.store.service.epochs import mended

_SERVER: Final = frozenset({"_id", "epoch", "at", "age_seconds"})


class StatusBoard:
    """The status document of one service. Every method raises MongoUnavailable if MongoDB does not answer."""

    def __init__(self, database: Database[dict[str, Any]], service: str) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.STATUS]
        self._service = service

    def publish(self, epoch: int, status: ServiceStatus) -> bool:
        """Writes the whole document; False if a daemon with a higher epoch has already written its own."""
        own = {name: value for name, value in status.document().items() if name not in _SERVER}
        for _ in range(2):
            try:
                with reaching(DuplicateKeyError):
                    self._collection.update_one(
                        {"_id": self._service, "epoch": {"$not": {"$gt": epoch}}},
                        {"$set": {**own, "epoch": epoch}, "$currentDate": {"at": True}},
                        upsert=True,
                    )
            except DuplicateKeyError:
                with reaching():
                    if not mended(self._collection, self._service, self._service, epoch):
                        return False
            else:
                return True
        return False

    def read(self) -> ServiceStatus | None:
        """The status, its age by the server's clock; None if no daemon has ever been active."""
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        pipeline: list[Mapping[str, Any]] = [
            {"$match": {"_id": self._service, "at": {"$type": "date", "$not": {"$type": "array"}}}},
            {"$set": {"age_seconds": age}},
        ]
        with reaching():
            raw = self._collection.with_options(codec_options=RAW).aggregate(pipeline)
            found = next((decoded(each, self._collection.codec_options) for each in raw), None)
        return None if found is None else ServiceStatus.from_document(found)
