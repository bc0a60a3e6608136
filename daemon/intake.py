"""What fills the corridors of a worker: one change stream for all of them, and a scan for each.

`ScanLane` runs the scans of a listener: a backfill at its first start, again whenever the listener's mark is not the one that it
serves, and when somebody asks (lost history, a queue that overflowed, a generation that was raised). `StreamIntake` reads the
stream and hands out keys. `Keeper` saves how far both are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
from pymongo.collection import Collection
from pymongo.database import Database

from daemon.batching import DirtyKeys, Progress, Stretch, identity
from daemon.listeners import change_stream as stream
from daemon.listeners.scan import PAGE, Order, pages
from daemon.store.dead_letters import DeadLetters
from daemon.store.patience import Patience
from daemon.store.positions import Position, Positions, cluster_time
from daemon.store.scans import Mark, Run, Scans

log = structlog.get_logger(__name__)

KEEP_SECONDS: Final = 0.5
KEEP_IDLE_SECONDS: Final = 30.0  # saving an idle position moves the oplog, which moves the position: seldom
POLL_SECONDS: Final = 0.02  # only while a scan goes on


class _Scan:
    """One run of a scan in this process: whatever belongs to it, and ends with it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress: Progress[tuple[Any, int]] = Progress()
        self.done = run.done
        self.total: int | None = None
        self.saved: tuple[Any, int] | None = None
        self.began = time.monotonic()

    def report(self) -> dict[str, Any]:
        """How far it is, for people; `rate` in rows a second since it began in this process."""
        rate = (self.done - self.run.done) / max(time.monotonic() - self.began, 1e-9)
        left = max(0, self.total - self.done) if self.total is not None else None
        eta = round(left / rate, 1) if left is not None and rate > 0 else None
        return {
            "done": self.done, "total": self.total, "rate": round(rate, 1), "eta_seconds": eta, "reason": self.run.reason
        }  # fmt: skip

    def ahead(self, rate: float) -> bool:
        """Whether it has named more rows than `rate` (rows a second; 0: any) allows until now."""
        return bool(rate) and (self.done - self.run.done) > rate * (time.monotonic() - self.began)


class ScanLane:
    """The scans of one listener, one at a time, on a thread of its own that sleeps between them.

    Which run counts is decided in the database: an order gives the scan a new run id there, and whatever goes on under an older
    one is overtaken, wherever it stands. So no lock is held while MongoDB is asked for something.
    """

    def __init__(
        self,
        table: Collection[dict[str, Any]],
        *,
        listener: str,
        dirty: DirtyKeys,
        scans: Scans,
        mark: Callable[[], Mark],
        dead: Callable[[], list[Any]],
        patience: Patience,
        order: Order,
        rate: float,
    ) -> None:
        """`order`: which end of the table comes first; `rate`: rows a second at most, 0 for as many as the live lane leaves room for."""
        self._order, self._rate = order, rate
        self._page = PAGE if not rate else max(1, min(PAGE, int(rate)))
        self._table, self._listener, self._dead = table, listener, dead
        self._dirty, self._scans, self._mark, self._patience = dirty, scans, mark, patience
        self._wake = threading.Condition()
        self._orders = 1  # the first: to look whether one is due
        self._stopped = False
        self._scan: _Scan | None = None

    def request(self, reason: str) -> None:
        """Orders a scan from the beginning. Noted in the database when this returns, so a position may move on behind it."""
        self._patience(f"{self._listener}.scan", lambda: self._scans.begin(self._mark(), reason, self._order))
        with self._wake:
            self._orders += 1
            self._wake.notify_all()
        log.info("a scan is due", listener=self._listener, reason=reason)

    def run(self) -> None:
        """Scans whatever is due, until stopped."""
        seen = 0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._orders != seen)  # noqa: B023  # called right here
                if self._stopped:
                    return
                seen = self._orders
            while not self._patience(f"{self._listener}.scan", partial(self._scan_once, seen)):
                if self._interrupted(seen):
                    break
            self._scan = None

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    def report(self) -> dict[str, Any] | None:
        """How far the scan is; None where none goes on."""
        scan = self._scan
        return None if scan is None else scan.report()

    def save(self) -> None:
        """Notes how far the scan is. Called by the keeper."""
        scan = self._scan
        place = None if scan is None else scan.progress.position()
        if scan is not None and place is not None and place is not scan.saved:
            self._scans.progress(scan.run, *place)
            scan.saved = place

    def _scan_once(self, orders: int) -> bool:
        """One scan, from where it is; False where it was overtaken by a newer order, or stopped."""
        run = self._scans.due(self._mark(), self._order)
        if run is None:
            return True
        self._scan = scan = _Scan(run)
        log.info("scan begins", listener=self._listener, reason=run.reason, resumed=run.resumed, done=run.done)
        start = cluster_time(self._table.database)  # R3d: asked for now; every row is judged not before it
        scan.total = self._table.estimated_document_count()
        source = pages(self._table, start, run.last, resumed=run.resumed, order=self._order, size=self._page)
        for page in source:
            if not self._room(orders, scan):
                return False
            for key in page:
                self._dirty.put(key, "scan", [scan.progress.begin()], start)  # R3c
            scan.done += len(page)
            scan.progress.close((page[-1], scan.done))
        for key in self._gone():
            self._dirty.put(key, "scan", [scan.progress.begin()], start)
        while not scan.progress.idle():
            if self._interrupted(orders):
                return False
            time.sleep(POLL_SECONDS)
        if not self._scans.finish(run, scan.done):  # R9b: only now
            return False
        log.info("scan ends", listener=self._listener, rows=scan.done, rows_per_second=scan.report()["rate"])
        return True

    def _gone(self) -> list[Any]:
        """Dead rows that a scan does not come across, because they no longer exist: once judged, their letters go too."""
        dead, gone = self._dead(), []
        for begin in range(0, len(dead), PAGE):
            some = dead[begin : begin + PAGE]
            there = {identity(found["_id"]) for found in self._table.find({"_id": {"$in": some}}, {"_id": 1})}
            gone += [key for key in some if identity(key) not in there]
        return gone

    def _room(self, orders: int, scan: _Scan) -> bool:
        """Waits until the scan lane is nearly empty: live rows go first, and a scan holds about one page of keys at a time.

        A scan with a rate waits as well until it is no longer ahead of it.
        """
        while self._dirty.depth()["scan"] > self._page // 2 or scan.ahead(self._rate):
            if self._interrupted(orders):
                return False
            time.sleep(POLL_SECONDS)
        return not self._interrupted(orders)

    def _interrupted(self, orders: int) -> bool:
        return self._stopped or self._orders != orders


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
    ) -> None:
        """`reload` makes the worker look at the registry again, soon, on another thread."""
        self.listener, self.table, self.reload = listener, table, reload
        self.dirty, self.scan, self.letters = dirty, scan, letters
        self.missing: str | None = None

    def changed(self, key: Any, time_: Any, stretch: Stretch[Any]) -> None:
        """A row changed. Where too many wait already, they are dropped for a scan: late, never lost."""
        self.missing = None
        if not self.dirty.put(key, "live", [stretch], time_):
            # Taken out first: what the new scan names must not be among what is dropped.
            dropped = self.dirty.take_live()
            self.scan.request("too many rows changed at once")
            for each in dropped:
                each.finish()
            log.warning("the queue is full: falling back to a scan", listener=self.listener, dropped=len(dropped))
            self.dirty.put(key, "live", [stretch], time_)


class StreamIntake:
    """The change stream of a worker: reads it, and marks rows as dirty in the corridors that watch their table."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        subscription: stream.Subscription,
        positions: Positions,
        feeds: Sequence[Feed],
        *,
        patience: Patience,
        count_key: Callable[[], None],
        count_open: Callable[[], None],
    ) -> None:
        self._database, self._subscription, self._positions = database, subscription, positions
        self._patience, self._count_key, self._count_open = patience, count_key, count_open
        self._feeds = list(feeds)
        self._watching: dict[str, list[Feed]] = {}
        for feed in feeds:
            self._watching.setdefault(feed.table, []).append(feed)
        self.progress: Progress[Position] = Progress()
        self._kept: tuple[Position | None, float] = (None, 0.0)
        self._worked = False
        self._start: Position
        self.open = False
        self._stop = threading.Event()

    def claim(self) -> None:
        """Takes the stream over from whoever had it. One without a position starts now, and everything is scanned.

        Comes before the first scan begins: what a scan does not see has to come through the stream.
        """
        position = self._patience("stream", lambda: self._positions.claim(self._subscription.hash))
        if position is None:
            position = self._fresh(
                self._patience("stream", lambda: Position(cluster_time(self._database))), "first start"
            )
        self._start = position

    def run(self) -> None:
        """Reads the stream from the claimed position until stopped."""
        for event in stream.watch(self._database, self._subscription, self._start, self._stop):
            self._handle(event)

    def stop(self) -> None:
        self._stop.set()

    def save(self, *, last: bool = False) -> None:
        """Saves the position over the contiguous finished prefix. Called by the keeper. Raises Fenced."""
        position, now = self.progress.position(), time.monotonic()
        kept, at = self._kept
        if position is None or position is kept:
            return
        if self._worked or last or now - at >= KEEP_IDLE_SECONDS:
            self._worked = not self.progress.idle()
            self._positions.save(position, self._subscription.hash)
            self._kept = (position, now)

    def _fresh(self, position: Position, reason: str) -> Position:
        """Starts from a new point, asked for before the scans begin, so that what they do not see comes through the stream.

        The scans are ordered before the point is saved: killed in between, the next start finds no point (or the lost one)
        and orders them again. The other way round it would find a point and nothing to do.
        """
        for feed in self._feeds:
            feed.scan.request(reason)
            feed.reload()  # a promotion that lies before the new point does not come through the stream
        self._patience("stream", lambda: self._positions.save(position, self._subscription.hash))
        return position

    def _handle(self, event: stream.Event) -> None:  # noqa: C901  # one line for each kind of event
        match event:
            case stream.Changed(table, key, time_):
                self._changed(table, key, time_)
            case stream.Reached(position):
                self.progress.close(position)
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
                self._fresh(fresh, "the change stream's history was lost")
            case stream.Opened():
                self._count_open()
                self._open()
            case stream.Interrupted(reason):
                if self.open:
                    log.warning("the change stream is interrupted", reason=reason)
                self.open = False
                self._patience.note("stream", reason)

    def _changed(self, table: str, key: Any, time_: Any) -> None:
        self._count_key()
        self._worked = True
        feeds = self._watching.get(table, ())
        if feeds:
            stretch = self.progress.begin(len(feeds))
            for feed in feeds:
                feed.changed(key, time_, stretch)

    def _gone(self, table: str) -> None:
        for feed in self._watching.get(table, ()):
            feed.missing = f"table {table!r} was dropped or renamed; it is served again when it is back"
            for key in feed.letters.rows():  # judged again: those of rows that are gone are cleared
                feed.dirty.put(key, "scan", [self.progress.begin()])
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
        """Somebody asks for a row to be judged again: the dead letter's way back. The event holds all of it, and comes again
        after a kill as any other.
        """
        for feed in self._feeds:
            if feed.listener == listener:
                feed.letters.forget(key)
                feed.changed(key, time_, self.progress.begin())


class Keeper:
    """Saves the positions of a worker's stream and scans, as often as they move."""

    def __init__(self, intake: StreamIntake, scans: Sequence[ScanLane], patience: Patience) -> None:
        self._intake, self._scans, self._patience = intake, scans, patience
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.wait(KEEP_SECONDS):
            self._patience("positions", self.save)

    def save(self, *, last: bool = False) -> None:
        self._intake.save(last=last)
        for scan in self._scans:
            scan.save()

    def stop(self) -> None:
        self._stop.set()
