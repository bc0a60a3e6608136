"""The change stream as a source: which rows of which tables changed, as keys, and how far the stream is.

The server filters and projects: an update of which every path lies under `_outputs.` never leaves it (the daemon's own
writes cost nothing), and an event carries only its key, so none is too large and an update costs no lookup.

`watch` is one endless generator. It opens the stream, opens it again after errors from where it was (with backoff), and
turns what it cannot mend into an event: lost history is told with a fresh start point, *before* the stream goes on from
there, so that whoever consumes it can note the point and order scans.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pymongo
from bson.regex import Regex
from bson.timestamp import Timestamp
from pymongo.change_stream import ChangeStream
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from daemon.health.backoff import backoff
from daemon.store import names
from daemon.store.registry.registry import signature
from daemon.store.rows.positions import Position, cluster_time

# ChangeStreamHistoryLost, CappedPositionLost, InvalidResumeToken, ChangeStreamFatalError; and what a token that is
# damaged answers.
HISTORY_LOST: Final = frozenset(
    {286, 136, 260, 280} | {9, 14, 15, 40647, 40648, 40649, 50793, 50795, 50796, 50811, 50872, 51055}
)
NEVER_SPIN: Final = {13, 18}  # not allowed, not authenticated: somebody has to act, so ask seldom
AWAIT_MS: Final = 1000
STRETCH: Final = 64
SHORTEST_OPENING: Final = 20.0
LONGEST_OPENING: Final = 600.0


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a stream asks for: the tables, the paths under `_outputs.` that are somebody's input, and its service's
    requests.
    """

    service: str
    tables: tuple[str, ...]
    chained: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        return signature([sorted(self.tables), sorted(self.chained)])

    def pipeline(self) -> list[Mapping[str, Any]]:
        """The stages behind `$changeStream`."""
        here = {"$in": list(self.tables)}
        changes = [
            {"operationType": {"$in": ["insert", "replace", "delete"]}, "ns.coll": here},
            {"operationType": "update", "ns.coll": here, "$expr": _touches_more_than_outputs(self.chained)},
            {"operationType": "insert", "ns.coll": names.REQUESTS},
            # Filtered out, these would end the stream without a word.
            {"operationType": {"$in": ["drop", "rename"]}, "$or": [{"ns.coll": here}, {"to.coll": here}]},
            {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
        ]
        keep = {"operationType": 1, "ns": 1, "to": 1, "documentKey": 1, "clusterTime": 1}
        return [{"$match": {"$or": changes}}, {"$project": keep}]


def _touches_more_than_outputs(chained: Sequence[str]) -> Mapping[str, Any]:
    """An update that changes a path outside `_outputs`, or one that a chained key looks at.

    Paths are compared part by part: `_outputs2.x` and `_outputsx` are somebody else's fields.
    """
    change = "$updateDescription"
    updated = {"$objectToArray": {"$ifNull": [f"{change}.updatedFields", {}]}}
    paths = {
        "$concatArrays": [
            {"$map": {"input": updated, "as": "field", "in": "$$field.k"}},
            {"$ifNull": [f"{change}.removedFields", []]},
            {
                "$map": {
                    "input": {"$ifNull": [f"{change}.truncatedArrays", []]},
                    "as": "array",
                    "in": "$$array.field",
                }
            },
        ]
    }
    wanted: list[Mapping[str, Any]] = [{"$ne": [{"$arrayElemAt": [{"$split": ["$$path", "."]}, 0]}, "_outputs"]}]
    for path in chained:
        wanted.append({"$eq": ["$$path", path]})
        wanted.append({"$eq": [{"$indexOfBytes": ["$$path", f"{path}."]}, 0]})
        wanted.append({"$eq": [{"$indexOfBytes": [path, {"$concat": ["$$path", "."]}]}, 0]})
    # The daemon never takes `_outputs` away as a whole: that was a client, and the outputs are due again.
    taken_away = {"$in": ["_outputs", {"$ifNull": [f"{change}.removedFields", []]}]}
    return {"$or": [taken_away, {"$anyElementTrue": [{"$map": {"input": paths, "as": "path", "in": {"$or": wanted}}}]}]}


# ---- what the generator yields ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changed:
    """A row was inserted, changed or deleted."""

    table: str
    key: Any
    time: Timestamp


@dataclass(frozen=True, slots=True)
class Requested:
    """Somebody asked for a row to be judged again (`daemon.store.rows.dead_letters.retry`)."""

    listener: str
    key: Any
    time: Timestamp


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Another generation of the listener is live (`daemon.store.service.requests.reload`)."""

    listener: str


@dataclass(frozen=True, slots=True)
class TableGone:
    """The table was dropped, or renamed away."""

    table: str


@dataclass(frozen=True, slots=True)
class TableCame:
    """Another collection was renamed to the table: its rows brought no events."""

    table: str


@dataclass(frozen=True, slots=True)
class Reached:
    """Everything up to this position has been yielded."""

    position: Position


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream is open."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The stream broke, or cannot be opened; it is tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class HistoryLost:
    """What happened since the last position is no longer known. The stream goes on from `fresh`; everything must be
    scanned.
    """

    reason: str
    fresh: Position


Event = Changed | Requested | ReloadAsked | TableGone | TableCame | Reached | Opened | Interrupted | HistoryLost


@dataclass
class _Place:
    """Where the stream is: after which token, or from which time."""

    position: Position
    pending: int = 0  # events since the last Reached

    def opening(self) -> dict[str, Any]:
        if not self.position.token:  # an empty one would be passed over, and the stream begin now
            return {"start_at_operation_time": self.position.cluster_time}
        # After an invalidate only start_after works; elsewhere the two are the same.
        return {"start_after": self.position.token}


def watch(
    database: Database[dict[str, Any]], subscription: Subscription, position: Position, stop: threading.Event
) -> Iterator[Event]:
    """Yields what happens in the database from the position on, until `stop` is set. Raises nothing of pymongo's."""
    place = _Place(position)
    failures = 0
    while not stop.is_set():
        try:
            with _open(database, subscription, place, failures) as stream:
                yield Opened()
                for event in _read(stream, subscription, place, stop):
                    failures = 0
                    yield event
        except PyMongoError as error:
            failures += 1
            code = error.code if isinstance(error, OperationFailure) else None
            if code in HISTORY_LOST:
                try:
                    place = _Place(Position(cluster_time(database)))
                    yield HistoryLost(f"the change stream's history is lost ({error})", place.position)
                except PyMongoError as also:
                    yield Interrupted(_reason(also, None))  # the position stays the lost one, and is found lost again
            else:
                yield Interrupted(_reason(error, code))
            longest = 30.0 if code in NEVER_SPIN else 5.0
            least = 10.0 if code in NEVER_SPIN else 0.05
            stop.wait(backoff(failures, least, longest))


def _reason(error: PyMongoError, code: int | None) -> str:
    if code == 40573:
        return "MongoDB is not a replica set, and only those have change streams; start mongod with --replSet"
    if code in NEVER_SPIN:
        return (
            f"MongoDB refuses the change stream to this user (code {code}): "
            "grant it `changeStream` and `find` on the database"
        )
    return f"the change stream broke: {type(error).__name__}: {error}"


def _open(
    database: Database[dict[str, Any]], subscription: Subscription, place: _Place, failures: int
) -> ChangeStream[dict[str, Any]]:
    # Opening answers only when the server has come to the first event that passes the filter. Far behind in a busy
    # database that takes long, so each failure allows it more: the client's own limit would never let it open.
    with pymongo.timeout(min(LONGEST_OPENING, SHORTEST_OPENING * 2**failures)):
        return database.watch(subscription.pipeline(), max_await_time_ms=AWAIT_MS, batch_size=2000, **place.opening())


def _read(
    stream: ChangeStream[dict[str, Any]], subscription: Subscription, place: _Place, stop: threading.Event
) -> Iterator[Event]:
    """Yields until the stream ends (an invalidate), breaks (raises) or is told to stop."""
    while not stop.is_set():
        event = stream.try_next()
        if event is not None:
            yield from _told(event, subscription, event.get("clusterTime") or place.position.cluster_time)
            place.pending += 1
            place.position = Position.at_token(event["_id"], place.position.cluster_time)
            if place.pending < STRETCH:
                continue
        elif not stream.alive:
            return  # invalidated: opened again behind the event that said so
        elif stream.resume_token is not None:
            # An idle stream's event token dies with the oplog; the token of the empty reply does not.
            place.position = Position.at_token(stream.resume_token, place.position.cluster_time)
        place.pending = 0
        yield Reached(place.position)


_NEVER_AN_ID: Final = (Regex, re.Pattern, list)
"""What no row's `_id` can be, and what a query would not take for one."""


def _told(event: Mapping[str, Any], subscription: Subscription, time: Timestamp) -> Iterator[Event]:
    kind, name = event["operationType"], event.get("ns", {}).get("coll")
    if kind in {"insert", "update", "replace", "delete"}:
        key = event["documentKey"]["_id"]
        if name != names.REQUESTS:
            yield Changed(name, key, time)
        elif isinstance(key, Mapping) and key.get("service") == subscription.service:
            listener, row = str(key.get("listener")), key.get("row")
            if key.get("reload"):
                yield ReloadAsked(listener)
            elif not isinstance(row, _NEVER_AN_ID):
                yield Requested(listener, row, time)
    elif kind in {"drop", "rename"}:
        yield TableGone(name)
        if kind == "rename":
            yield TableCame(event["to"]["coll"])
