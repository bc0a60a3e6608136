"""The cursor of a change stream, with the server's own commands. The driver's cursor would resume by itself, without a
pause or an error, for as long as the server refuses.

Events come with the key of their row as it is stored. A reply is decoded whole, or event by event if it contains a
value that the driver cannot decode or would not send back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import bson
import pymongo
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.raw_value import EXACT, RAW, STRICT, UNDECODABLE, RawValue, fields, readable
from daemon.store.rows.positions import cluster_time

_COLLECTION: Final = "$cmd.aggregate"  # the collection name in `getMore` for a database's change stream


class EventCursor:
    """An open change stream. `events` is the last batch, `token` the place behind it, `time` the server's cluster time
    then.
    """

    def __init__(
        self,
        database: Database[dict[str, Any]],
        opening: Mapping[str, Any],
        pipeline: Sequence[Mapping[str, Any]],
        *,
        batch_size: int,
        seconds: float,
    ) -> None:
        """Opens the stream with the options `opening` of `$changeStream`, within so many seconds."""
        self._database, self._batch_size = database, batch_size
        self._session = database.client.start_session(causal_consistency=False)
        command = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": dict(opening)}, *pipeline],
            "cursor": {"batchSize": batch_size},
            "readConcern": {"level": "majority"},
        }
        try:
            with pymongo.timeout(seconds):
                self._take(database.command(command, session=self._session, codec_options=RAW))
        except BaseException:
            self._session.end_session()
            raise

    def more(self, milliseconds: int) -> None:
        """The next batch; empty if nothing comes within so many milliseconds."""
        command = {
            "getMore": self._id,
            "collection": _COLLECTION,
            "batchSize": self._batch_size,
            "maxTimeMS": milliseconds,
        }
        self._take(self._database.command(command, session=self._session, codec_options=RAW))

    @property
    def alive(self) -> bool:
        """Whether the server keeps the stream open; an `invalidate` ends it."""
        return self._id != 0

    def server_is_before(self, place: Timestamp) -> bool:
        """Whether the server's time has not come to this place. A reply's `time` is that of what is known to be
        committed, which may be less than before for a moment after an election; then the server is asked.
        """
        return place > self.time and place > cluster_time(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(broken=isinstance(error, PyMongoError))

    def close(self, *, broken: bool = False) -> None:
        """Ends the stream; `broken`: the server is not told, as it does not answer."""
        if self._id and not broken:
            with suppress(PyMongoError), pymongo.timeout(1.0):
                self._database.command({"killCursors": _COLLECTION, "cursors": [self._id]}, session=self._session)
        self._session.end_session()

    def _take(self, reply: RawBSONDocument) -> None:
        whole = fields(reply.raw)
        self.time: Timestamp = whole["operationTime"].value()
        cursor = fields(whole["cursor"][1:])
        self._id: int = cursor["id"].value()
        self.token: Mapping[str, Any] | None = None
        if "postBatchResumeToken" in cursor:
            self.token = cursor["postBatchResumeToken"].value()
        self.events = _events(cursor["firstBatch"] if "firstBatch" in cursor else cursor["nextBatch"])


def _events(batch: RawValue) -> list[dict[str, Any]]:
    try:
        events: list[dict[str, Any]] = list(bson.decode(batch[1:], STRICT).values())
        if all("documentKey" not in event or type(event["documentKey"]["_id"]) in EXACT for event in events):
            return events
    except UNDECODABLE:
        pass
    return [_event(raw.fields()) for raw in batch.fields().values()]


def _event(raw: dict[str, RawValue]) -> dict[str, Any]:
    key = raw.pop("documentKey", None)
    raw.pop("fullDocument", None)  # such a row is read as stored
    event = readable(raw)
    if key is not None:
        event["documentKey"] = readable(key.fields(), "_id")
    return event
