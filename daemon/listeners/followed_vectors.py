"""The vectors of a listener's outputs, in memory, as its rows hold them now.

They are a cache: a scan of the rows fills it, and a change stream of its own names the rows whose output has changed
since; these are read again. Both are done when somebody asks, up to what the server had committed then: there is no
thread that could be late. If the stream's history is lost, or the table is exchanged, the cache is filled anew.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, Literal

import bson
import numpy as np
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from components.datatypes import Datatype
from components.errors import IndexFull, MongoUnavailable, RowError
from components.nearest import Full, Vectors
from components.raw_value import EXACT, RAW, STRICT, UNDECODABLE, among, chunks, fields, identity, readable
from daemon.listeners.change_stream import NEVER_SPIN, PASSES
from daemon.listeners.event_cursor import EventCursor
from daemon.listeners.subscription import changed_paths
from daemon.store.rows.positions import Position, cluster_time

ATTEMPTS: Final = 3
OPENING_SECONDS: Final = 20.0
PRESENT_SECONDS: Final = 20.0
"""How long the stream may take to reach the present without a new event: without a majority it never does."""
AWAIT_MS: Final = 1  # it ends a reply without events, which shows that there are no more
BATCH: Final = 2000
ROWS, BYTES = 1000, 4 * 1024 * 1024
REREAD: Final = 20_000
"""If more rows have changed, and half as many as there are vectors, a scan is quicker than reading them by key."""
FULL_SECONDS: Final = 60.0
_ABOUT_THE_STREAM: Final = (OperationFailure, *UNDECODABLE)

Array = np.ndarray[Any, Any]


class FollowedVectors:
    """The vectors of one listener. It is used by one thread at a time."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        table: str,
        listener: str,
        datatype: Datatype,
        measure: Literal["cosine", "dot"],
        most_bytes: int,
    ) -> None:
        """`datatype`: that of the outputs, a vector's. They may take `most_bytes`."""
        self._database, self._table, self._datatype = database, table, datatype
        self._path = f"_outputs.{listener}"
        self._length, self._measure = int(datatype.spec[len("vector[") : -1]), measure
        self._most_bytes = most_bytes
        self._vectors: Vectors | None = None
        self._cursor: EventCursor | None = None
        self._token: Mapping[str, Any] | None = None
        self._full_until = 0.0

    def current(self) -> Vectors:
        """The vectors, with every write that the server had committed when this was called. Raises IndexFull if they
        are too many, MongoUnavailable or a PyMongoError if MongoDB does not answer.
        """
        if time.monotonic() < self._full_until:
            raise self._full()
        attempt = 1
        while True:
            try:
                return self._followed()
            except Full:
                self.close()
                self._full_until = time.monotonic() + FULL_SECONDS
                raise self._full() from None
            except BaseException as error:
                self._close_cursor()  # what it has read and not applied is read again, from the token
                code = error.code if isinstance(error, OperationFailure) else None
                if isinstance(error, (KeyboardInterrupt, MemoryError)):  # amid a change, perhaps
                    self.close()
                if attempt == ATTEMPTS or code in NEVER_SPIN or not isinstance(error, _ABOUT_THE_STREAM):
                    raise
                if code not in PASSES:
                    self.close()
            attempt += 1

    def close(self) -> None:
        """Forgets everything; the next call fills the cache anew."""
        self._close_cursor()
        self._vectors = self._token = None

    def _close_cursor(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            cursor.close()

    def _full(self) -> IndexFull:
        return IndexFull(
            f"table {self._table!r} has more outputs at {self._path} than limits.index_bytes ({self._most_bytes:,}) "
            f"holds of vectors of {self._length} numbers, even rounded: raise it, or give the listener a `where` that "
            "takes fewer rows"
        )

    # ---- following ------------------------------------------------------------------------------------------------

    def _followed(self) -> Vectors:
        now = self._committed()
        if self._cursor is None:
            self._cursor = self._open()
        dirty = self._changed(self._cursor, now)
        if dirty is None:  # the table was exchanged
            self.close()
            self._cursor = self._open()
        vectors, after = self._vectors, max(now, self._cursor.time)
        if vectors is None or dirty is None or len(dirty) > max(REREAD, len(vectors) // 2):
            vectors = None
        else:
            self._read_again(vectors, dirty, after)
        if vectors is None or vectors.fit_exactly:
            self._vectors = None
            vectors = self._scanned(after)
        self._vectors, self._token = vectors, self._cursor.token  # not before: a half would be taken for all
        return vectors

    def _committed(self) -> Timestamp:
        """The server's time now, when a majority has what was written before: the stream shows only that."""
        now = cluster_time(self._database)
        for _ in self._read({"_id": {"$in": []}}, now):
            pass
        return now

    def _open(self) -> EventCursor:
        opening = {} if self._token is None else {"startAfter": self._token}
        return EventCursor(self._database, opening, self._pipeline(), batch_size=BATCH, seconds=OPENING_SECONDS)

    def _changed(self, cursor: EventCursor, now: Timestamp) -> list[Any] | None:
        """The keys of the rows whose outputs have changed up to `now`; None if the rows are others altogether."""
        dirty: dict[Hashable, Any] = {}
        end, asked = time.monotonic() + PRESENT_SECONDS, False
        while True:
            events, cursor.events = cursor.events, []
            for event in events:
                if "documentKey" not in event:
                    return None
                dirty[identity(event["documentKey"]["_id"])] = event["documentKey"]["_id"]
            if not cursor.alive:
                return None
            reached = Position.at_token(cursor.token or {}, Timestamp(0, 0)).cluster_time
            # A token may stand before the events of its own time: only a reply without events is behind them.
            if asked and (reached > now or (reached == now and not events)):
                return list(dirty.values())
            if events:
                end = time.monotonic() + PRESENT_SECONDS
            elif time.monotonic() > end:
                raise MongoUnavailable(
                    f"the change stream of table {self._table!r} does not reach the present: has the replica set a "
                    "majority?"
                )
            cursor.more(AWAIT_MS)
            asked = True

    def _pipeline(self) -> list[Mapping[str, Any]]:
        here = {"ns.coll": self._table}
        changes = [
            {"operationType": {"$in": ["insert", "replace", "delete"]}, **here},
            {"operationType": "update", **here, "$expr": _touches(self._path)},
            {"operationType": {"$in": ["drop", "rename"]}, "$or": [here, {"to.coll": self._table}]},
            {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
        ]
        return [{"$match": {"$or": changes}}, {"$project": {"documentKey._id": 1}}]

    # ---- reading --------------------------------------------------------------------------------------------------

    def _scanned(self, after: Timestamp) -> Vectors:
        vectors = Vectors(self._length, self._measure, self._most_bytes)
        for key, vector, generation in self._read({f"{self._path}.value": {"$exists": True}}, after):
            if vector is not None:
                vectors.put(key, vector, generation)
        return vectors

    def _read_again(self, vectors: Vectors, dirty: Iterable[Any], after: Timestamp) -> None:
        for keys in chunks(dirty, ROWS, BYTES):
            gone = {identity(key): key for key in keys}
            for key, vector, generation in self._read({"_id": among(keys)}, after):
                if vector is not None:
                    vectors.put(key, vector, generation)
                    gone.pop(identity(key), None)
            for key in gone.values():
                vectors.remove(key)

    def _read(self, query: Mapping[str, Any], after: Timestamp) -> Iterable[tuple[Any, Array | None, int]]:
        """The key, the vector (None if it has none) and the generation of each row, not older than `after` and not to
        be rolled back: what the stream names later is what changed later.
        """
        collection = self._database[self._table].with_options(codec_options=RAW, read_concern=ReadConcern("majority"))
        parts = {"_id": 1, "value": f"${self._path}.value", "generation": f"${self._path}.generation"}
        with self._database.client.start_session(causal_consistency=True) as session:
            session.advance_operation_time(after)
            with collection.find(query, parts, session=session, batch_size=ROWS) as found:
                for raw in found:
                    key, value, generation = _parts(raw)
                    yield key, self._vector(value), generation

    def _vector(self, value: Any) -> Array | None:
        try:
            return np.asarray(self._datatype.decode(value))
        except RowError:  # no output, or from before the listener had this datatype
            return None


def _parts(raw: RawBSONDocument) -> tuple[Any, Any, int]:
    try:
        row = bson.decode(raw.raw, STRICT)
    except UNDECODABLE:
        row = {}
    if type(row.get("_id")) not in EXACT:
        row = readable(fields(raw.raw), "_id")
    generation = row.get("generation")
    return row["_id"], row.get("value"), generation if isinstance(generation, int) else 0


def _touches(path: str) -> Mapping[str, Any]:
    """The condition for an update that changes more of the output at `path` than its `asof`, which a touch raises."""
    inside = {"$eq": [{"$indexOfBytes": ["$$path", f"{path}."]}, 0]}
    ours = [
        {"$in": ["$$path", ["_outputs", path]]},
        {"$and": [inside, {"$ne": ["$$path", f"{path}.asof"]}]},
    ]
    return {"$anyElementTrue": [{"$map": {"input": changed_paths(), "as": "path", "in": {"$or": ours}}}]}
