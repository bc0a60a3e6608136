"""The intake of a worker: one change stream for all of its listeners.

`StreamIntake` reads the stream and hands keys to the `Feed` of each listener that watches the row's table.
`PositionSaver` saves how far the stream and the scans are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from bson import Binary
from bson.timestamp import Timestamp
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.raw_value import identity
from daemon.handlers.predict.dirty_keys import DirtyKeys
from daemon.handlers.predict.progress import Progress, Stretch, earliest
from daemon.listeners import change_stream as stream
from daemon.listeners.pulse import Pulse
from daemon.listeners.scan_lane import ScanLane
from daemon.store.mongo_retry import MongoRetry
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.oplog_window import headroom
from daemon.store.rows.positions import Position, Positions, cluster_time

log = structlog.get_logger(__name__)

KEEP_SECONDS: Final = 0.5
HEADROOM_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 5.0
SHORT_OF_OPLOG: Final = 0.5
KEEP_IDLE_SECONDS: Final = 30.0  # saving an idle position adds to the oplog, which moves the position: save seldom

LET_PASS_SECONDS: Final = 0.005
"""If one row changed, and its corridor was empty, the stream waits so long for its output before it asks for more: to
ask takes the interpreter from the row's own threads. What changes meanwhile comes with the next reply.
"""


class Feed:
    """One listener as the stream sees it."""

    def __init__(
        self,
        listener: str,
        table: str,
        dirty: DirtyKeys,
        scan: ScanLane,
        letters: DeadLetters,
        reload: Callable[[], None],
        refusal: Callable[[], str | None] = lambda: None,
        inputs: frozenset[str] | None = None,
    ) -> None:
        """`reload` makes the worker look at the registry again, soon, on another thread; `refusal` asks MongoDB why the
        table cannot be served, None if it can; `inputs` are the fields that the listener reads (inputs.py).
        """
        self._refusal = refusal
        self.refused: str | None = None
        self.listener, self.table, self.reload = listener, table, reload
        self.dirty, self.scan, self.letters = dirty, scan, letters
        self.missing: str | None = None
        self._inputs = inputs
        self.progress: Progress[Position] = Progress()
        """How far this listener is with the stream; the shares of all listeners are closed together."""

    def concerned(self, changed: stream.Changed) -> tuple[Sequence[Any], Sequence[Timestamp]]:
        """The keys and times of the rows that have to be judged: not those of which only fields were updated that the
        listener does not read, but for dead ones: what refused an output may accept it now.
        """
        read = self._inputs
        if not changed.fields or read is None:
            return changed.keys, changed.times
        places = [
            place
            for place, fields in enumerate(changed.fields)
            if fields is None or not read.isdisjoint(fields) or self.letters.hold(identity(changed.keys[place]))
        ]
        return [changed.keys[place] for place in places], [changed.times[place] for place in places]

    def changed(
        self,
        keys: Sequence[Any],
        times: Sequence[Timestamp],
        stretch: Stretch[Any],
        post_image: Mapping[str, Any] | None = None,
    ) -> None:
        """Rows changed. If too many keys wait already, they are dropped and a scan is ordered: late, never lost."""
        if self.missing is not None:
            self.missing = None
            self.look()  # the table may be another one now
        if self.refused is not None:
            stretch.finish(len(keys))  # a scan is due, for when the table can be served
            return
        done = self.dirty.put_live(keys, times, stretch, post_image)
        while done < len(keys):
            # Taken out first: the keys of the new scan must not be dropped.
            dropped = self.dirty.take_live()
            self.scan.request("too many rows changed at once", self.progress.oldest())
            for each in dropped:
                each.finish()
            log.warning("the queue is full: falling back to a scan", listener=self.listener, dropped=len(dropped))
            done += self.dirty.put_live(keys[done:], times[done:], stretch)

    def look(self) -> None:
        """Asks whether the table can be served. While it cannot be, its events are passed over and its scans are held.

        The scan that makes up for that is noted in the database first, so that it outlives this process.
        """
        before, reason = self.refused, self._refusal()
        self.refused = reason  # before the scan is ordered, so that it is held
        if reason is not None and before is None:
            self.scan.request("the table could not be served", self.progress.oldest() or time.monotonic())
            log.error("the table cannot be served", listener=self.listener, table=self.table, reason=reason)
        elif reason is None and before is not None:
            log.info("the table can be served again", listener=self.listener, table=self.table)


class StreamIntake:
    """Reads a worker's change stream, and marks rows as dirty in the corridors that watch their table."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        subscription: stream.Subscription,
        positions: Positions,
        feeds: Sequence[Feed],
        *,
        patience: MongoRetry,
        count_keys: Callable[[int], None],
        count_open: Callable[[], None],
        show_headroom: Callable[[float], None],
        sessions: Sequence[Binary] = (),
    ) -> None:
        """`sessions` are those of this worker's transactions."""
        self._database, self._subscription, self._positions = database, subscription, positions
        self._patience, self._count_keys, self._count_open = patience, count_keys, count_open
        self._show_headroom, self._short = show_headroom, False
        self._sessions = sessions
        self._feeds = list(feeds)
        self._watching: dict[str, list[Feed]] = {}
        for feed in feeds:
            self._watching.setdefault(feed.table, []).append(feed)
        self.pulse = Pulse()
        self._kept: tuple[Position | None, float] = (None, 0.0)
        self._worked = False
        self._start: Position
        self._claimed: Timestamp
        self.open = False
        self._stop = threading.Event()

    def claim(self) -> None:
        """Takes the stream over from another leader. A stream without a position starts now, and every table is
        scanned.

        Called before the first scan begins: rows that a scan does not see must come through the stream.
        """
        position = self._patience("stream", lambda: self._positions.claim(self._subscription.hash, self._sessions))
        self._claimed = now = self._patience("stream", lambda: cluster_time(self._database))
        self.pulse.answered(now)
        if position is None:
            position = self._fresh(Position(now), "first start")
        self.pulse.reached(position.cluster_time)
        self._start = position

    def look(self) -> None:
        """Asks of every table whether it can be served. Comes before the first scan, and again from time to time."""
        for feed in self._feeds:
            feed.look()

    def run(self) -> None:
        """Reads the stream from the claimed position until stopped."""
        for event in stream.watch(self._database, self._subscription, self._start, self._stop, self.pulse.answered):
            self._handle(event)

    def stop(self) -> None:
        self._stop.set()

    def save(self, *, last: bool = False) -> None:
        """Saves the end of the contiguous finished prefix. `PositionSaver` calls it. Raises Fenced."""
        position, now = self._position(), time.monotonic()
        kept, at = self._kept
        if position is None or position is kept:
            return
        if position.cluster_time < self._start.cluster_time:
            return  # of the history that was lost: the stream could not be resumed there
        if self._worked or last or now - at >= KEEP_IDLE_SECONDS:
            self._worked = not all(feed.progress.idle() for feed in self._feeds)
            self._positions.save(position, self._subscription.hash)
            self._kept = (position, now)

    def _position(self) -> Position | None:
        return earliest(feed.progress for feed in self._feeds)

    def headroom(self) -> None:
        """Measures how far the oplog reaches back behind the position; warns once it is less than half of it."""
        place = self._position() or self._start
        found = headroom(self._database, place.cluster_time)
        if found is None:
            return
        seconds, share = found
        self._show_headroom(share)
        short = (
            share < SHORT_OF_OPLOG and cluster_time(self._database).time - place.cluster_time.time > KEEP_IDLE_SECONDS
        )
        if short and not self._short:
            log.warning(
                "the oplog may overtake the change stream: every row would then be scanned; enlarge the oplog",
                share_left=round(share, 2),
                seconds_left=seconds,
            )
        self._short = short

    def _fresh(self, position: Position, reason: str, owed_since: float | None = None) -> Position:
        """Starts from a new point, read before the scans begin, so that rows that they do not see come through the
        stream.

        The scans are ordered before the point is saved. If the process is killed in between, the next start finds no
        point (or the lost one) and orders them again. In the other order it would find a point and order no scan.
        """
        for feed in self._feeds:
            feed.scan.request(reason, owed_since)
            feed.reload()  # a promotion before the new point does not come through the stream
        self._patience("stream", lambda: self._positions.save(position, self._subscription.hash))
        return position

    def _handle(self, event: stream.Event) -> None:  # noqa: C901  # one line for each kind of event
        match event:
            case stream.Changed():
                self._changed(event)
            case stream.Reached(position, flowing):
                self.pulse.reached(position.cluster_time)
                for feed in self._feeds:
                    feed.progress.close(position)
                if flowing:
                    self._open()
            case stream.Requested(listener, key, time_):
                self._requested(listener, key, time_)
            case stream.ReloadAsked(listener):
                self._reload(listener)
            case stream.TableGone(table):
                self._gone(table)
            case stream.TableCame(table):
                self._came(table)
            case stream.HistoryLost(reason, fresh):
                log.error("history lost: every row is scanned", reason=reason)
                lost = self.pulse.moment((self._position() or self._start).cluster_time)
                self._start = self._fresh(fresh, "the change stream's history was lost", lost)
            case stream.Opened():
                self._count_open()
            case stream.Interrupted(reason):
                if self.open:
                    log.warning("the change stream is interrupted", reason=reason)
                self.open = False
                self._patience.note("stream", reason)

    def _changed(self, changed: stream.Changed) -> None:
        self._count_keys(len(changed.keys))
        self._worked = True
        moment = self.pulse.moment(changed.times[0])
        feeds = self._watching.get(changed.table, ())
        # The process before this one may have handled the event: then the row has an output, or is dead.
        image = changed.post_image if changed.times[0] > self._claimed else None
        for feed in feeds:
            keys, times = feed.concerned(changed)
            if keys:
                feed.changed(keys, times, feed.progress.begin(len(keys), moment), image)
        if changed.alone:
            until = time.monotonic() + LET_PASS_SECONDS
            for feed in feeds:
                feed.dirty.let_pass(until - time.monotonic())

    def _gone(self, table: str) -> None:
        for feed in self._watching.get(table, ()):
            feed.missing = f"table {table!r} was dropped or renamed; it is served again when it is back"
            for key in feed.letters.rows():  # judged again: the letters of deleted rows are cleared
                feed.dirty.put(key, "scan", [feed.progress.begin()])
            log.warning("the table is gone", listener=feed.listener, table=table)

    def _came(self, table: str) -> None:
        for feed in self._watching.get(table, ()):
            feed.missing = None
            feed.scan.request("another collection was renamed to the table")

    def _open(self) -> None:
        if not self.open:
            self.open = True
            self._patience.note("stream", None)

    def _reload(self, listener: str) -> None:
        for feed in self._feeds:
            if feed.listener == listener:
                feed.reload()

    def _requested(self, listener: str, key: Any, time_: Any) -> None:
        """A client asks for a dead row to be judged again. The event contains the whole request, and is replayed after
        a kill as any other.
        """
        for feed in self._feeds:
            if feed.listener == listener:
                feed.letters.forget(key)
                feed.changed([key], [time_], feed.progress.begin(since=self.pulse.moment(time_)))


class PositionSaver:
    """Saves the positions of a worker's stream and scans, as often as they move."""

    def __init__(self, intake: StreamIntake, scans: Sequence[ScanLane], patience: MongoRetry) -> None:
        self._intake, self._scans, self._patience = intake, scans, patience
        self._stop = threading.Event()

    def run(self) -> None:
        measured, looked = -HEADROOM_SECONDS, time.monotonic()
        while not self._stop.wait(KEEP_SECONDS):
            self._patience("positions", self.save)
            if time.monotonic() - looked >= LOOK_SECONDS:
                self._intake.look()
                looked = time.monotonic()
            if time.monotonic() - measured >= HEADROOM_SECONDS:
                measured = time.monotonic()
                with suppress(PyMongoError):  # only a measurement: the next one comes soon
                    self._intake.headroom()

    def save(self, *, last: bool = False) -> None:
        self._intake.save(last=last)
        for scan in self._scans:
            scan.save()

    def stop(self) -> None:
        self._stop.set()
