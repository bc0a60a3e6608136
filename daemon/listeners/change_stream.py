"""The change stream as a source: the keys of the rows that changed, by table, and how far the stream is.

`watch` is one endless generator. It opens the stream, opens it again after errors from its last position (with
backoff), and yields an event for each error that it cannot repair. For lost history it yields a fresh start point
*before* the stream goes on from there, so that the consumer can save the point and order scans. If the stream does not
get past a position (an event of more than 16 MB with its tokens), it reads in ever smaller batches; in the end that
counts as lost history. `HISTORY_LOST` lists the error codes that do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from components.errors import PredictdError
from components.raw_value import UNDECODABLE, RawValue, readable
from daemon.health.backoff import backoff
from daemon.listeners.event_cursor import EventCursor
from daemon.listeners.subscription import Subscription as Subscription  # noqa: PLC0414  # for those who call `watch`
from daemon.store import names
from daemon.store.driver_errors import sentence
from daemon.store.rows.positions import Position, cluster_time

# ChangeStreamHistoryLost, CappedPositionLost, InvalidResumeToken, ChangeStreamFatalError.
HISTORY_LOST: Final = frozenset({286, 136, 260, 280})
NEVER_SPIN: Final = {13, 18}  # not allowed, not authenticated: an administrator has to act, so retry seldom
PASSES: Final = frozenset(
    {
        6, 7, 24, 43, 46, 50, 63, 64, 89, 91, 112, 133, 134, 150, 189, 202, 211, 216, 234, 237, 246, 262, 290, 314, 317,
        365, 8000, 9001, 10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 40573,
    }
)  # fmt: skip
"""Errors that are not about the stream's position: they are retried."""

_NOT_OF_THE_PLACE: Final = PASSES | NEVER_SPIN

AWAIT_MS: Final = 1000
FIRST_AWAIT_MS: Final = 1  # the first reply after the opening shows that the stream works; it may be empty
BATCH: Final = 2000
SHRINKS: Final = 32  # a batch is divided by this each time that the stream does not get past a position
TOO_LARGE: Final = frozenset({10334, 17419, 17420, 10003})  # an event with its tokens, or a reply, is over 16 MB
ROUND_AFTER_TOO_LARGE: Final = 3  # failures at one position before the stream skips it
ROUND_AFTER: Final = 20  # the same, if the event may not be the cause
STRETCH: Final = 64
SHORTEST_OPENING: Final = 20.0
LONGEST_OPENING: Final = 600.0


# ---- what the generator yields ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows of one table were inserted, changed or deleted, one after the other, at these cluster times."""

    table: str
    keys: tuple[Any, ...]
    times: tuple[Timestamp, ...]
    alone: bool = False
    """Whether nothing else came with the event."""
    post_image: Mapping[str, Any] | None = None
    """The small row that an insert or a replace left at that time, if its event came alone."""
    fields: tuple[Sequence[str] | None, ...] = ()
    """The top-level fields that each update changed, None if any may have changed; empty if this is so of all."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A client asked for a row to be judged again (`daemon.store.rows.dead_letters.retry`)."""

    listener: str
    key: Any
    time: Timestamp


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Another generation of the listener is live (`daemon.store.service.requests.reload`)."""

    listener: str


@dataclass(frozen=True, slots=True)
class TableGone:
    """The table was dropped, or renamed to another name."""

    table: str


@dataclass(frozen=True, slots=True)
class TableCame:
    """Another collection was renamed to the table: its rows brought no events."""

    table: str


@dataclass(frozen=True, slots=True)
class Reached:
    """Everything up to this position has been yielded. `flowing`: the stream has had a reply since it was opened."""

    position: Position
    flowing: bool = True


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream was opened; the next `Reached` shows whether it flows."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The stream broke, or cannot be opened; it is opened again."""

    reason: str


@dataclass(frozen=True, slots=True)
class HistoryLost:
    """The events since the last position are lost. The stream goes on from `fresh`; every table must be scanned."""

    reason: str
    fresh: Position


Event = Changed | Requested | ReloadAsked | TableGone | TableCame | Reached | Opened | Interrupted | HistoryLost


@dataclass
class _Place:
    """The position of the stream (a token or a time), and how often it failed there."""

    position: Position
    batch: int = BATCH
    failures: int = 0  # since the stream last flowed
    failed_at: Position | None = None
    stuck: int = 0  # failures at `failed_at` that are about this position

    def opening(self) -> dict[str, Any]:
        if not self.position.token:  # MongoDB would ignore an empty one and begin now
            return {"startAtOperationTime": self.position.cluster_time}
        # After an invalidate only startAfter works; elsewhere resumeAfter is the same.
        return {"startAfter": self.position.token}

    def refused(self, error: Exception) -> bool:
        """Whether the server refused to open the stream at this token: then its time is tried. What may be wrong with a
        token has dozens of codes.
        """
        refused = (
            bool(self.position.token) and isinstance(error, OperationFailure) and error.code not in _NOT_OF_THE_PLACE
        )
        if refused:
            self.position = Position(self.position.cluster_time)
        return refused

    def flows(self) -> None:
        self.failures, self.batch = 0, min(BATCH, self.batch * 2)

    def failed(self, *, passes: bool) -> None:
        """Counts a failure. One that is about the position (`passes` is false) makes the batches smaller."""
        self.failures += 1
        if passes:
            return
        self.stuck = self.stuck + 1 if self.failed_at == self.position else 1
        self.failed_at = self.position
        self.batch = max(1, self.batch // SHRINKS)

    def lost(self, code: int | None) -> bool:
        """Whether the stream has to skip this position."""
        return self.batch == 1 and self.stuck >= (ROUND_AFTER_TOO_LARGE if code in TOO_LARGE else ROUND_AFTER)


def watch(
    database: Database[dict[str, Any]],
    subscription: Subscription,
    position: Position,
    stop: threading.Event,
    answered: Callable[[Timestamp], None] = lambda _: None,
) -> Generator[Event, None, None]:
    """Yields the events of the database from the position on, until `stop` is set. Raises no PyMongoError.

    `answered` is called for each reply, with the server's cluster time, before its events are yielded.
    """
    place = _Place(position)
    while not stop.is_set():
        opened = False
        try:
            with _open(database, subscription, place) as cursor:
                opened = True
                yield Opened()
                yield from _read(cursor, subscription, place, stop, answered)
        except (PyMongoError, *UNDECODABLE, _AheadOfServer) as error:
            code = error.code if isinstance(error, OperationFailure) else None
            place.failed(passes=code in _NOT_OF_THE_PLACE or not isinstance(error, _ABOUT_THE_PLACE))
            loss = _loss(error, code, place)
            if not opened and place.refused(error):
                yield Interrupted(_reason(error, code))
            elif loss is not None:
                try:
                    place = _Place(Position(cluster_time(database)), failures=place.failures)
                    yield HistoryLost(f"the change stream's {loss} ({sentence(error)})", place.position)
                except PyMongoError as also:
                    yield Interrupted(_reason(also, None))  # the position stays the lost one, and is found lost again
            else:
                yield Interrupted(_reason(error, code))
            longest = 30.0 if code in NEVER_SPIN else 5.0
            least = 10.0 if code in NEVER_SPIN else 0.05
            stop.wait(backoff(place.failures, least, longest))


_ABOUT_THE_PLACE: Final = (OperationFailure, *UNDECODABLE)


class _AheadOfServer(PredictdError):
    """The position lies in the future, as after a restore from a server whose clock was ahead: until that time is
    reached, no event would come.
    """


def _loss(error: Exception, code: int | None, place: _Place) -> str | None:
    """What is wrong with the position, if the stream has to go on from another one; else None."""
    if isinstance(error, _AheadOfServer):
        return "position lies in the future"
    if code in HISTORY_LOST:
        return "history is lost"
    return "next event cannot be read" if place.lost(code) else None


def _reason(error: Exception, code: int | None) -> str:
    if code == 40573:
        return "MongoDB is not a replica set, and only those have change streams; start mongod with --replSet"
    if code in NEVER_SPIN:
        return (
            f"MongoDB refuses the change stream to this user (code {code}): "
            "grant it `changeStream` and `find` on the database"
        )
    return f"the change stream broke: {sentence(error)}"


def _open(database: Database[dict[str, Any]], subscription: Subscription, place: _Place) -> EventCursor:
    # The opening returns only when the server has found the first event that passes the filter. That takes long far
    # behind in a busy database, so each failure allows more time; under the client's own limit it would never open.
    seconds = min(LONGEST_OPENING, SHORTEST_OPENING * 2**place.failures)
    return EventCursor(database, place.opening(), subscription.pipeline(), batch_size=place.batch, seconds=seconds)


def _read(
    cursor: EventCursor,
    subscription: Subscription,
    place: _Place,
    stop: threading.Event,
    answered: Callable[[Timestamp], None],
) -> Iterator[Event]:
    """Yields until the stream ends (an invalidate), breaks (raises) or `stop` is set."""
    flowing = False
    while not stop.is_set():
        answered(cursor.time)
        for begin in range(0, len(cursor.events), STRETCH):
            page = cursor.events[begin : begin + STRETCH]
            yield from _told(page, subscription, place.position.cluster_time, alone=len(cursor.events) == 1)
            place.position = Position.at_token(page[-1]["_id"], place.position.cluster_time)
            if len(page) == STRETCH:
                yield Reached(place.position, flowing)
        if not cursor.alive:
            return  # invalidated: it is opened again behind that event
        if cursor.token is not None:
            # The token of an idle stream's last event becomes invalid with the oplog; that of an empty reply does not.
            place.position = Position.at_token(cursor.token, place.position.cluster_time)
        if cursor.server_is_before(place.position.cluster_time):
            raise _AheadOfServer(f"the server's time is {cursor.time.as_datetime().isoformat()}")
        yield Reached(place.position, flowing)
        cursor.more(AWAIT_MS if flowing else FIRST_AWAIT_MS)
        flowing = True
        place.flows()


_OF_ROWS: Final = frozenset({"insert", "update", "replace", "delete"})

_NEVER_AN_ID: Final = {0x04, 0x0B}
"""The BSON types that no row's `_id` can have: an array, and a regular expression."""


def _told(
    page: Sequence[Mapping[str, Any]], subscription: Subscription, since: Timestamp, *, alone: bool = False
) -> Iterator[Event]:
    """The page's events, with changed rows of a table together; none of them is before `since`. `alone`: it is one
    event, and all that came.
    """
    table = ""
    keys: list[Any] = []
    times: list[Timestamp] = []
    fields: list[Sequence[str] | None] = []
    # Within a transaction a later update of the row has the same time: its insert's row is of no time.
    image = page[0].get("fullDocument") if alone and "txnNumber" not in page[0] else None
    for event in page:
        kind, name = event["operationType"], event.get("ns", {}).get("coll")
        of_row = kind in _OF_ROWS and name != names.REQUESTS
        if keys and not (of_row and name == table):
            yield Changed(table, tuple(keys), tuple(times), fields=tuple(fields) if any(fields) else ())
            keys, times, fields = [], [], []
        if of_row:
            table = name
            fields.append(event.get("changed"))
            keys.append(event["documentKey"]["_id"])
            times.append(event.get("clusterTime", since))
        elif kind in _OF_ROWS:
            yield from _asked(event["documentKey"]["_id"], subscription, event.get("clusterTime", since))
        elif kind in {"drop", "rename"}:
            yield TableGone(name)
            if kind == "rename":
                yield TableCame(event["to"]["coll"])
    if keys:
        yield Changed(table, tuple(keys), tuple(times), alone, image, tuple(fields) if any(fields) else ())


def _asked(key: Any, subscription: Subscription, time: Timestamp) -> Iterator[Event]:
    """What a request asks for; its document is the `_id`."""
    if not isinstance(key, RawValue):
        return
    request = readable(key.fields(), "row")
    if request.get("service") != subscription.service:
        return
    listener, row = str(request.get("listener")), request.get("row")
    if request.get("reload"):
        yield ReloadAsked(listener)
    elif RawValue.of(row)[0] not in _NEVER_AN_ID:
        yield Requested(listener, row, time)
