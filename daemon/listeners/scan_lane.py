"""The scans of a listener: a backfill at its first start, and again whenever its stored mark is out of date or a scan
is ordered.

A scan is ordered if history was lost, a queue overflowed, or a generation was raised.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog
from bson.timestamp import Timestamp
from pymongo.collection import Collection

from components.raw_value import RAW, among, chunks, equals, identity
from daemon.handlers.predict.dirty_keys import KEY_BYTES, DirtyKeys
from daemon.handlers.predict.progress import Progress
from daemon.health.worker_report import ScanReport
from daemon.listeners.scan import PAGE, Order, pages
from daemon.store.mongo_retry import MongoRetry
from daemon.store.partition import WHOLE, Partition
from daemon.store.rows.positions import cluster_time
from daemon.store.rows.row_reader import keys
from daemon.store.rows.scans import Mark, Run, Scans
from daemon.store.rows.table_kind import TableKind

log = structlog.get_logger(__name__)

HELD_SECONDS: Final = 0.1
POLL_SECONDS: Final = 0.02  # only while a scan goes on


class _Scan:
    """One run of a scan in this process, with the state that ends with it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress: Progress[tuple[Any, int]] = Progress()
        self.done = run.done
        self.total: int | None = None
        self.saved: tuple[Any, int] | None = None
        self.began = time.monotonic()

    def report(self) -> ScanReport:
        """How far it is; `rate` is in rows a second since it began in this process."""
        rate = (self.done - self.run.done) / max(time.monotonic() - self.began, 1e-9)
        left = max(0, self.total - self.done) if self.total is not None else None
        eta = round(left / rate, 1) if left is not None and rate > 0 else None
        return ScanReport(self.done, self.total, round(rate, 1), eta, self.run.reason)

    def ahead(self, rate: float) -> bool:
        """Whether it has marked more rows than `rate` (rows a second; 0: no limit) allows until now."""
        return bool(rate) and (self.done - self.run.done) > rate * (time.monotonic() - self.began)


class ScanLane:
    """The scans of one listener, one at a time, on a thread of its own that sleeps between them.

    The database decides which run counts: an order gives the scan a new run id there, which supersedes every older run.
    So no lock is held during an operation of MongoDB.
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
        patience: MongoRetry,
        order: Order,
        rate: float,
        held: Callable[[], bool] = lambda: False,
        partition: Partition = WHOLE,
    ) -> None:
        """`order`: the end of the table that comes first; `rate`: the most rows a second of all partitions, 0 for as
        many as the live lane leaves room for; `held`: whether no scan may begin now.
        """
        self._partition = partition
        self.tune(order, rate)
        self._table, self._listener, self._dead = table, listener, dead
        self._dirty, self._scans, self._mark, self._patience = dirty, scans, mark, patience
        self._held = held
        self._wake = threading.Condition()
        self._orders = 1  # the first one makes `run` look whether a scan is due
        self._served = 0
        self._stopped = False
        self._scan: _Scan | None = None
        self.owed_since: float | None = None
        """When (monotonic seconds) the oldest row changed that only a scan will find; None if there is none."""

    def tune(self, order: Order, rate: float) -> None:
        """Takes up another rate at once, and another order for the next scan."""
        self._order, self._rate = order, rate / self._partition.of
        self._page = PAGE if not rate else max(1, min(PAGE, int(self._rate)))

    def request(self, reason: str, owed_since: float | None = None) -> None:
        """Orders a scan from the beginning. The order is stored when this returns, so the stream's position may then
        move on. `owed_since` is given if it stands in for changed rows.
        """
        self._patience(f"{self._listener}.scan", lambda: self._begin(reason, owed_since))
        with self._wake:
            self._orders += 1
            self._owe(owed_since)
            self._wake.notify_all()
        log.info("a scan is due", listener=self._listener, reason=reason)

    def run(self) -> None:
        """Runs the scans that are due, until stopped."""
        seen = 0
        self._patience(f"{self._listener}.scan", self._recall)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._orders != seen)  # noqa: B023  # called right here
                if self._stopped:
                    return
                seen = self._orders
            while not self._patience(f"{self._listener}.scan", partial(self._scan_once, seen)):
                if self._interrupted(seen):
                    break
            else:
                self._paid(seen)
            self._scan = None
            self._served = seen

    def claim(self) -> None:
        """Carries the scan over from another number of partitions. Called before any other use of the scan."""
        self._patience(f"{self._listener}.scan", self._scans.claim)

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    def report(self) -> ScanReport | None:
        """How far the scan is; None if none is running."""
        scan = self._scan
        return None if scan is None else scan.report()

    @property
    def due(self) -> bool:
        """Whether a scan is running or due. Until the first look it is not known, and this is true."""
        return self._served != self._orders

    def save(self) -> None:
        """Saves how far the scan is. `PositionSaver` calls it."""
        scan = self._scan
        place = None if scan is None else scan.progress.position()
        if scan is not None and place is not None and place is not scan.saved:
            self._scans.progress(scan.run, *place)
            scan.saved = place

    def _begin(self, reason: str, owed_since: float | None) -> None:
        owed = None
        if owed_since is not None:
            passed = int(time.monotonic() - owed_since)
            owed = Timestamp(max(0, cluster_time(self._table.database).time - passed), 0)
        self._scans.begin(self._mark(), reason, self._order, owed)

    def _recall(self) -> None:
        """Takes over since when rows are owed from the process before this one."""
        owed = self._scans.owed()
        if owed is not None:
            passed = max(0, cluster_time(self._table.database).time - owed.time)
            with self._wake:
                self._owe(time.monotonic() - passed)

    def _owe(self, since: float | None) -> None:
        if since is not None:
            self.owed_since = since if self.owed_since is None else min(since, self.owed_since)

    def _scan_once(self, orders: int) -> bool:
        """Runs the due scan from its saved place. False if a newer order superseded it, or if it was stopped."""
        if not self._free(orders):
            return False
        run = self._scans.due(self._mark(), self._order)
        if run is None:
            return True
        self._scan = scan = _Scan(run)
        log.info("scan begins", listener=self._listener, reason=run.reason, resumed=run.resumed, done=run.done)
        start = cluster_time(self._table.database)  # R3d: the time now; no row is judged at an earlier snapshot
        scan.total = self._table.estimated_document_count() // self._partition.of
        place: dict[str, Any] = {"last": run.last, "resumed": run.resumed, "order": self._order}
        owed = self.owed_since is not None
        source = pages(self._table, start, **place, size=self._page, partition=self._partition)
        for page in source:
            if not self._room(orders, scan):
                return False
            for key in page:
                self._dirty.put(key, "scan", [scan.progress.begin()], start, owed=owed)  # R3c
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
        log.info("scan ends", listener=self._listener, rows=scan.done, rows_per_second=scan.report().rate)
        return True

    def _gone(self) -> list[Any]:
        """Dead rows that no longer exist, so that the scan does not find them; once they are judged, their letters are
        deleted.
        """
        gone: list[Any] = []
        one_by_one = TableKind(self._table).clustered()
        for some in chunks(self._dead(), 1 if one_by_one else PAGE, KEY_BYTES):
            query = {"find": self._table.name, "filter": {"_id": equals(some[0]) if one_by_one else among(some)}}
            only = {"projection": {"_id": 1}, "batchSize": len(some) + 1}
            reply = self._table.database.command({**query, **only}, codec_options=RAW)
            found = {identity(key) for key in keys(reply)}
            gone += [key for key in some if identity(key) not in found]
        return gone

    def _room(self, orders: int, scan: _Scan) -> bool:
        """Waits until the scan lane is nearly empty: live rows go first, and about one page of scan keys waits at a
        time.

        A scan with a rate also waits until it is no longer ahead of its rate.
        """
        while self._dirty.depth()["scan"] > self._page // 2 or scan.ahead(self._rate):
            if self._interrupted(orders):
                return False
            time.sleep(POLL_SECONDS)
        return not self._interrupted(orders)

    def _free(self, orders: int) -> bool:
        """Waits until a scan may begin; False if a newer order superseded this one."""
        while self._held():
            self._patience.note(f"{self._listener}.scan", None)  # an error before may be the reason why it is held
            if self._interrupted(orders):
                return False
            time.sleep(HELD_SECONDS)
        return True

    def _paid(self, orders: int) -> None:
        with self._wake:
            if self._orders == orders:
                self.owed_since = None

    def _interrupted(self, orders: int) -> bool:
        return self._stopped or self._orders != orders
