"""The corridor: from a changed row to its output, for one listener.

    change stream --+                                     one thread per stage, bounded queues between them
                    +--> dirty keys --> read --> prepare --> predict --> write --> position
    scan -----------+    (coalesced)  (snapshot)  (decode,    (model)   (guarded)   (contiguous prefix)
                                                preprocess)

1. *Events are dirty keys.* The stream and the scan only name rows. A row that is named ten times waits once, and one
   that a batch holds waits until that batch is written.
2. *Batches are drained, not timed.* `read` takes the waiting keys, up to a cap, so batches grow while the model is
   busy. There is no timer and no polling. A few rows that find the corridor empty go all the way in one thread.
3. *Rows are read once per batch, at a snapshot*. It is not older than the newest event of the batch (R3a), nor than
   this corridor's own newest acknowledged write. The reply's cluster time V is the version of everything in the batch.
4. *Every judged row is written, and each write compares and sets*: it names the output's `asof` that the snapshot saw.
   A write that matches no row met a race. Its row is judged again (R1b), at a snapshot not older than that write (R1c).
5. *The position moves last*. A key is finished when its write, or its dead letter, is acknowledged. A stretch of the
   stream is finished when all of its keys are.
6. *A failed batch is bisected* until the failing row is alone.

Rows that fail go through triage.py: it holds those that must wait for another attempt or be predicted alone.

`Corridor` holds the four steps as plain methods, so that a test can stop a batch between two of them. `CorridorThreads`
runs them. docs/architecture.md lists the rules (R1...).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

import structlog
from bson.timestamp import Timestamp

from components.raw_value import identity
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.dirty_keys import Batch, DirtyKeys
from daemon.handlers.predict.letters import letter
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.process_settings import PROCESS
from daemon.handlers.predict.records import Letter, Row, Snapshot, Write, Written
from daemon.handlers.predict.stages import Judged, Predicted, Prepared, judge, predict, prepare
from daemon.handlers.predict.suspects import UserStage
from daemon.handlers.predict.triage import PROBE_ROWS, Triage
from daemon.handlers.predict.turnstile import Turnstile
from daemon.health.measures import Measures

log = structlog.get_logger(__name__)

WAITING_BATCHES: Final = 1  # between two stages: enough that a stage always finds the next batch ready
BATCHES_HELD: Final = 4 + 3 * WAITING_BATCHES  # at most, in the four stages and the three queues between them
LONE_ROWS: Final = 4
LONE_SECONDS: Final = 0.1
"""So few rows, if nothing else waits or is in the corridor, go all the way in the reading thread: another thread takes
longer to wake than most steps take. Only if the last batches took less than these seconds: while it predicts, it does
not read what comes next.
"""

ROOM: Final = 8
"""The decoded and preprocessed inputs of a batch may take so many times the byte limit of its rows."""

MEETS_MONGODB: Final = ("read", "write")
B = TypeVar("B")
T = TypeVar("T")


class OutputsPort(Protocol):
    """The rows of the listener; `daemon.store.rows.outputs.Outputs` implements it."""

    def read(self, keys: Sequence[Any], after: Timestamp | None, max_bytes: int) -> Snapshot: ...
    def write(self, writes: Sequence[Write]) -> Written: ...
    def known_good(self, keys: Sequence[Any], rows: int, max_bytes: int) -> Snapshot | None: ...
    def unjudged(self, generation: int, rows: int) -> list[Any]: ...


class LettersPort(Protocol):
    """The dead letters of the listener; `daemon.store.rows.dead_letters.DeadLetters` implements it."""

    def add(self, letters: Iterable[Letter]) -> None: ...
    def clear(self, keys: Iterable[Any]) -> int: ...
    def settled(self, key: Any, input_: bytes, generation: int, scanned: bool) -> bool: ...
    def exist(self, key: Any, input_: bytes, generation: int) -> bool: ...


class Corridor:
    """The four steps of one listener. Each is called by one thread at a time; none keeps a batch."""

    def __init__(
        self,
        listener: str,
        *,
        live: Live,
        reload: Callable[[Live], Live],
        outputs: OutputsPort,
        letters: LettersPort,
        dirty: DirtyKeys,
        cap: BatchCap,
        measures: Measures,
        batch_bytes: int,
        triage: Triage | None = None,
    ) -> None:
        self.listener = listener
        self.live = live
        self.dirty = dirty
        self.cap = cap
        self.measures = measures
        self.batch_bytes = batch_bytes
        self._reload = reload
        self._outputs = outputs
        self._letters = letters
        self._floor: Timestamp | None = None
        self._well: deque[Any] = deque(maxlen=PROBE_ROWS)
        self.triage = triage or Triage(listener)
        self.triage.known_good, self.triage.wake = self._known_good, dirty.wake
        self.triage.unjudged = lambda rows: self._outputs.unjudged(self.live.generation, rows)

    def swap(self, live: Live) -> None:
        """Runs this version from the next batch on; batches in flight keep theirs. Its cost is not known yet."""
        self.live = live
        self.cap.begin()

    def read(self, batch: Batch) -> Judged:
        """Reads the batch's rows at one snapshot and decides what each needs."""
        after = max((t for t in (batch.after, self._floor) if t is not None), default=None)  # R3a, R3b
        snapshot = self._outputs.read([key.key for key in batch.keys], after, self.batch_bytes)
        if snapshot.unread:
            unread = {identity(key) for key in snapshot.unread}
            for key in batch.keys:
                if identity(key.key) in unread:
                    self.dirty.put_back(key)
            batch = replace(batch, keys=tuple(key for key in batch.keys if identity(key.key) not in unread))
        live = self.live
        if any(row.seen.generation > live.generation for row in snapshot.rows):  # R6
            # Another process has written with a newer generation. A generation above the registry's came with a copied
            # row: that row is predicted and overwritten (R6b).
            live = self._reload(live)  # only the registry decides: a swap may have come in between
        return judge(batch, snapshot, live, self._letters.settled, self._letters.exist)

    def prepare(self, judged: Judged) -> Prepared:
        """Decodes and preprocesses the rows. Rows for which there is no room become dirty again."""
        if judged.batch.purpose != "probe" and (self.triage.failing or self.triage.trips(judged)):
            return Prepared(judged, (), (), None, ())
        began = time.perf_counter()
        with PROCESS.kept(judged.live.model.identifier):
            prepared = prepare(judged, self.triage.suspects.guilt, ROOM * self.batch_bytes, self.cap.halve)
        if judged.live is self.live:  # else it is the cost of a version before
            self.cap.observe(len(prepared.rows), time.perf_counter() - began, "prepare")
        left = {identity(row.key) for row in prepared.left}
        for key in judged.batch.keys if left else ():
            if identity(key.key) in left:
                self.dirty.put_back(key)
        return prepared

    def predict(self, prepared: Prepared) -> Predicted:
        """Runs the model."""
        began = time.perf_counter()
        live = prepared.judged.live
        with PROCESS.kept(live.model.identifier):
            predicted = live.threads.model.run(predict, prepared, self.cap.halve)
        if live is self.live:
            self.cap.observe(len(prepared.rows), time.perf_counter() - began)
        predicted = self.triage.decide(predicted)
        if predicted.predicted:
            self._well.append(predicted.writes[-1].key if not predicted.letters else predicted.judged.rows[-1].key)
        return predicted

    def _known_good(self) -> bool | None:
        """Whether a row that had an output before gets one now too; None if no such row exists."""
        snapshot = self._outputs.known_good(list(self._well), PROBE_ROWS, self.batch_bytes)
        if snapshot is None or not snapshot.rows:
            return None
        judged = Judged(Batch(()), snapshot.at, self.live, snapshot.rows, (), frozenset())
        return judged.live.threads.model.run(predict, prepare(judged), lambda _: None).predicted > 0

    def write(self, predicted: Predicted) -> None:
        """Writes the batch's outputs and dead letters. Finishes its keys; a key whose write met a race becomes dirty
        again.
        """
        judged = predicted.judged
        self._letters.add(predicted.letters)
        written = self._outputs.write(predicted.writes) if predicted.writes else Written(frozenset(), {}, None)
        if written.refused:
            written = self._refused(predicted, written)
        if written.time is not None:
            self._floor = max(self._floor or written.time, written.time)
        dead = {identity(dead.key) for dead in predicted.letters} | set(written.refused) | judged.settled
        dead |= {identity(w.key) for w in predicted.writes if w.kind == "touch" and w.seen.error}
        done = [key for key in judged.batch.keys if identity(key.key) not in written.missed]
        self._letters.clear(key.key for key in done if identity(key.key) not in dead)
        for letter_ in predicted.letters:
            self.triage.suspects.sentenced(letter_.key)
        for key in judged.batch.keys:
            if identity(key.key) in written.missed:
                self.dirty.put_back(key, newest=written.time)  # R1b, R1c
        for key in done:
            key.finish()
        self.dirty.landed(judged.batch)
        self._count(predicted, written)

    def _refused(self, predicted: Predicted, written: Written) -> Written:
        """Rows that refuse their write get a dead letter. Their old output, now stale, is removed if the row accepts
        that.
        """
        judged = predicted.judged
        rows = {identity(row.key): row for row in judged.rows}
        letters, unsets = [], []
        for write in predicted.writes:
            name = identity(write.key)
            if name not in written.refused or write.kind == "touch":
                continue  # a row that refuses a touch has a current output and needs no dead letter
            row = rows.get(name) or Row(write.key, (), write.seen.input or b"", write.seen)
            refusal = letter(row, judged.live, "write", RuntimeError(written.refused[name]))
            letters.append(replace(refusal, type="WriteRefused", traceback="", unwritable=True))
            if write.seen.present and write.kind == "set":
                unsets.append(Write(write.key, write.seen, "unset", write.asof, write.generation))
        self._letters.add(letters)
        if not unsets:
            return written
        second = self._outputs.write(unsets)
        return Written(written.missed | second.missed, written.refused, second.time or written.time)

    def _count(self, predicted: Predicted, written: Written) -> None:
        judged, missed = predicted.judged, len(written.missed)
        kinds = [write.kind for write in predicted.writes if identity(write.key) not in written.missed]
        dead = len(predicted.letters)
        self.measures.rows(
            predicted=predicted.predicted,
            touched=kinds.count("touch"),
            unset=kinds.count("unset"),
            dead=dead + sum(w.kind != "touch" and identity(w.key) in written.refused for w in predicted.writes),
            conflict=missed,
            gone=max(0, len(judged.batch.keys) - len(judged.rows) - len(judged.writes)),
        )
        self.measures.batch(len(judged.batch.keys))


class CorridorThreads:
    """Runs a corridor: one thread per stage; each waits for the stage before it.

    `retry` wraps the steps that use MongoDB: it repeats them until MongoDB answers. Any other error that escapes a
    stage is a bug, or comes from a declaration that changed meanwhile: it goes to `failed`, which ends the worker, so
    that no worker goes on with a dead stage. With `joined`, one thread prepares and predicts: other processes use the
    other cores.
    """

    def __init__(
        self,
        corridor: Corridor,
        retry: Callable[[str, Callable[[], Any]], Any],
        failed: Callable[[BaseException], None],
        turnstile: Turnstile | None = None,
        *,
        joined: bool = False,
    ) -> None:
        self._corridor = corridor
        self._joined = joined
        self._turnstile = turnstile or Turnstile()
        self._retry = retry
        self._failed = failed
        self._judged: queue.Queue[Judged | None] = queue.Queue(WAITING_BATCHES)
        self._prepared: queue.Queue[Prepared | None] = queue.Queue(WAITING_BATCHES)
        self._predicted: queue.Queue[Predicted | None] = queue.Queue(WAITING_BATCHES)
        self._busy: dict[str, float] = {}
        self._moved = threading.Condition()
        self._inside = 0
        self._threads = [
            threading.Thread(
                target=self._guarded, args=(stage,), name=f"{corridor.listener}.{stage.__name__}", daemon=True
            )
            for stage in (self.read, self.prepare, self.predict, self.write)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Takes no more batches and waits for those in flight. Returns whether all ended within `timeout` seconds."""
        self._corridor.dirty.close()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def busy(self) -> dict[str, float]:
        """The seconds that each stage of user code has worked on its present batch."""
        now = time.monotonic()
        return {stage: now - since for stage, since in list(self._busy.items())}

    # ---- the stages -----------------------------------------------------------------------------------------------

    def read(self) -> None:
        corridor, triage, dirty = self._corridor, self._corridor.triage, self._corridor.dirty
        while True:
            batch = None
            if triage.waits:
                cap = corridor.cap
                batch = triage.next(idle=not any(dirty.depth().values()), cap=cap.value, seconds=cap.mean_seconds)
            if batch is None:
                drained = dirty.take(corridor.cap.value, triage.pause() if triage.waits else None)
                if drained is None:
                    break
                batch = triage.sort(drained)
                if not batch.keys:
                    dirty.landed(batch)
            if batch.keys:
                self._emptied(batch)
                judged = self._timed("read", corridor.read, batch)
                straight = self._is_lone(batch)
                self._passed(1)
                if straight:
                    self._through(judged)
                else:
                    self._judged.put(judged)
                self._emptied(batch)
        self._judged.put(None)

    def prepare(self) -> None:
        while (judged := self._judged.get()) is not None:
            prepared = self._timed("prepare", self._corridor.prepare, judged)
            if self._joined:
                self._predicted.put(self._timed("predict", self._corridor.predict, prepared))
            else:
                self._prepared.put(prepared)
            del judged, prepared  # while it waits, it keeps no version
        self._prepared.put(None)

    def predict(self) -> None:
        while (prepared := self._prepared.get()) is not None:
            self._predicted.put(self._timed("predict", self._corridor.predict, prepared))
            del prepared
        self._predicted.put(None)

    def write(self) -> None:
        while (predicted := self._predicted.get()) is not None:
            self._written(predicted)
            del predicted

    def _is_lone(self, batch: Batch) -> bool:
        few = len(batch.keys) <= LONE_ROWS and not any(self._corridor.dirty.depth().values())
        return few and not self._inside and 0 < self._corridor.cap.mean_seconds < LONE_SECONDS

    def _through(self, judged: Judged) -> None:
        """Takes a batch through the other steps in this thread: they are idle, and nothing waits behind it."""
        prepared = self._timed("prepare", self._corridor.prepare, judged)
        self._written(self._timed("predict", self._corridor.predict, prepared))

    def _written(self, predicted: Predicted) -> None:
        judged = predicted.judged
        alone = judged.batch.purpose == "alone" and len(judged.rows) == 1
        suspects = self._corridor.triage.suspects
        with suspects.working("write", judged.rows, judged.live.generation, alone=alone):
            self._timed("write", self._corridor.write, predicted)
        self._passed(-1)

    def _passed(self, batches: int) -> None:
        with self._moved:
            self._inside += batches
            self._moved.notify_all()

    def _emptied(self, batch: Batch) -> None:
        """Waits until the corridor is empty if the batch must be alone: it is blamed for the process's end, also for
        one that comes a moment after the model has returned.
        """
        if batch.purpose == "alone":
            with self._moved:
                self._moved.wait_for(lambda: not self._inside)

    def _timed(self, stage: str, step: Callable[[B], T], batch: B) -> T:
        began = time.perf_counter()
        try:
            if stage in MEETS_MONGODB:
                result: T = self._retry(f"{self._corridor.listener}.{stage}", lambda: step(batch))
                return result
            return self._user_code(stage, step, batch)  # type: ignore[arg-type]
        finally:
            self._busy.pop(stage, None)
            self._corridor.measures.stage(stage, time.perf_counter() - began)

    def _user_code(self, stage: UserStage, step: Callable[[B], T], batch: B) -> T:
        """Runs a step of the model's code. The rows at work are noted in a file that outlives this process."""
        assert isinstance(batch, (Judged, Prepared))
        judged = batch if isinstance(batch, Judged) else batch.judged
        rows = batch.rows
        alone = judged.batch.purpose == "alone"
        suspects = self._corridor.triage.suspects
        with self._turnstile.entered(alone=alone):
            self._busy[stage] = time.monotonic()
            with suspects.working(stage, rows, judged.live.generation, alone=alone and len(rows) == 1):
                return step(batch)

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:  # noqa: BLE001  # if a stage ended silently, its rows would wait for ever
            self._failed(error)
