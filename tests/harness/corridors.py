"""A worker that takes one step at a time: for tests that hold a batch between its read and its write. All of its parts
are the real ones, over a real MongoDB; only the threads are missing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from bson.timestamp import Timestamp
from pymongo.database import Database

from components.key import Key
from components.model import ObjectModel
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.corridor import Corridor
from daemon.handlers.predict.dirty_keys import DirtyKeys
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.stages import Predicted
from daemon.health.measures import Measures, WorkerMeasures
from daemon.listeners import change_stream
from daemon.listeners.inputs import inputs
from daemon.listeners.intake import Feed, StreamIntake
from daemon.listeners.scan_lane import ScanLane
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.mongo_retry import MongoRetry
from daemon.store.registry.registry import Registry
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.outputs import Outputs
from daemon.store.rows.positions import Position, Positions
from daemon.store.rows.row_finder import RowFinder
from daemon.store.rows.scans import Mark, Scans
from harness.keys import KEY
from harness.models import echo

TABLE, LISTENER, SERVICE = "rows", "L", "s"
WHERE = {"m": True}
DECLARATIONS: dict[str, Any] = {
    "tables": {TABLE: {"fields": {"x": "str"}}},
    "models": {"f": {"type": "object", "object": "harness.models:echo"}},
    "listeners": {LISTENER: {"table": TABLE, "key": "x", "model": "f", "where": WHERE, "worker": "w"}},
}


def declare(database: Database[dict[str, Any]]) -> None:
    Registry(database, SERVICE, 1, KEY).publish(DECLARATIONS)


def promote(database: Database[dict[str, Any]]) -> None:
    """Generation 2 is live."""
    database[names.COMPONENTS].update_one({"_id": f"{SERVICE}/listener/{LISTENER}"}, {"$inc": {"generation": 1}})


class OldestFinder(RowFinder):
    """Reads at the oldest snapshot that the reader permits, but not before `wanted`, as a slow secondary could."""

    wanted: Timestamp

    def _find(self, session: Any, query: Any, projection: Any, concern: Any, *rest: Any) -> Any:
        if "atClusterTime" not in concern:
            after = concern.get("afterClusterTime", self.wanted)
            concern = {"level": "snapshot", "atClusterTime": max(after, self.wanted)}
        return super()._find(session, query, projection, concern, *rest)


class OldestOutputs(Outputs):
    """Reads through an `OldestFinder`."""

    def __init__(self, table: Any, *arguments: Any) -> None:
        super().__init__(table, *arguments)
        self._finder = self.finder = OldestFinder(table)


class SteppedWorker:
    """One worker of the service; a second one beside it, with a higher epoch, is the leader that replaced it."""

    def __init__(self, database: Database[dict[str, Any]], epoch: int, outputs: type[Outputs] = Outputs) -> None:
        self.database = database = open_database(database.client, database.name)
        registry = Registry(database, SERVICE, epoch, KEY)
        generation = registry.listener(LISTENER).generation
        model = ObjectModel("f", echo)
        self.outputs = outputs(database[TABLE], LISTENER, ("x",), WHERE)
        self.letters = DeadLetters(database, SERVICE, LISTENER, TABLE)
        self.letters.load()
        self.dirty = DirtyKeys(1000, overlap=True)
        measures = WorkerMeasures()
        self.measures = Measures(measures, LISTENER)
        self.corridor = Corridor(
            LISTENER,
            live=Live(model, 1, generation, Key.parse("x"), (None,)),
            reload=self._reload,
            outputs=self.outputs,
            letters=self.letters,
            dirty=self.dirty,
            cap=BatchCap(1.0, 100),
            measures=self.measures,
            batch_bytes=1 << 24,
        )
        self._registry = registry
        patience = MongoRetry(threading.Event())
        self.scan = ScanLane(
            database[TABLE],
            listener=LISTENER,
            dirty=self.dirty,
            scans=Scans(database, SERVICE, LISTENER, epoch),
            mark=lambda: Mark(self.corridor.live.generation, "scope"),
            dead=self.letters.rows,
            patience=patience,
            order="oldest",
            rate=0,
        )
        read = inputs(("x",), WHERE)
        feed = Feed(LISTENER, TABLE, self.dirty, self.scan, self.letters, lambda: None, inputs=read)
        self.intake = StreamIntake(
            database,
            change_stream.Subscription(SERVICE, (TABLE,)),
            Positions(database, SERVICE, "w", epoch),
            [feed],
            patience=patience,
            count_keys=lambda _: None,
            count_open=lambda: None,
            show_headroom=lambda _: None,
        )
        self.intake.claim()
        self._events: Iterator[Any] = change_stream.watch(
            database, change_stream.Subscription(SERVICE, (TABLE,)), self.intake._start, threading.Event()
        )

    def _reload(self, live: Live) -> Live:
        generation = self._registry.listener(LISTENER).generation
        self.corridor.live = Live(live.model, live.version, generation, live.key, live.datatypes)
        return self.corridor.live

    # ---- steps ----------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Takes the events of the stream until it has reached its end."""
        heard = False
        for event in self._events:
            self.intake._handle(event)
            heard |= isinstance(event, change_stream.Changed)
            if isinstance(event, change_stream.Reached) and heard:
                return
            if isinstance(event, change_stream.Reached) and self.caught_up(event):
                return

    def caught_up(self, event: change_stream.Reached) -> bool:
        """The position of an idle stream moves past all earlier writes; no event had to come."""
        return event.position.cluster_time >= self.database.command("ping")["operationTime"]

    def dirty_by_scan(self, *keys: Any) -> None:
        """A scan marks these rows; its start is the time now."""
        for key in keys:
            self.dirty.put(key, "scan", [], self.database.command("ping")["operationTime"])

    def read(self) -> Predicted:
        """Reads and predicts the dirty rows; holds the write."""
        batch = self.dirty.take(100)
        assert batch is not None
        return self.corridor.predict(self.corridor.prepare(self.corridor.read(batch)))

    def write(self, held: Predicted) -> None:
        self.corridor.write(held)

    def finish(self) -> None:
        """Goes on until no row is dirty."""
        while any(self.dirty.depth().values()):
            self.write(self.read())

    def lose_history(self, fresh: Position) -> None:
        """The stream goes on from this point; what was before is lost."""
        self.intake._handle(change_stream.HistoryLost("the test says so", fresh))

    def save(self) -> None:
        """Saves the position as the keeper would."""
        self.intake.save(last=True)
