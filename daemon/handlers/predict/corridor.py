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
   A small row that was inserted or replaced alone comes with its event: V is the event's time, and nothing is read.
4. *Every judged row is written, and each write compares and sets*: it names the output's `asof` that the snapshot saw.
   A write that matches no row met a race. Its row is judged again (R1b), at a snapshot not older than that write (R1c).
5. *The position moves last*. A key is finished when its write, or its dead letter, is acknowledged. A stretch of the
   stream is finished when all of its keys are.
6. *A failed batch is bisected* until the failing row is alone.

Rows that fail go through triage.py: it holds those that must wait for another attempt or be predicted alone.

`Corridor` holds the four steps as plain methods, so that a test can stop a batch between two of them; the threads of
corridor_threads.py run them. docs/architecture.md lists the rules (R1...).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog
from bson.timestamp import Timestamp

from components.raw_value import identity
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.dirty_keys import Batch, DirtyKeys
from daemon.handlers.predict.letters import letter
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.process_settings import PROCESS
from daemon.handlers.predict.records import Letter, Row, Snapshot, Write, Written, joined
from daemon.handlers.predict.stages import Judged, Predicted, Prepared, judge, predict, prepare
from daemon.handlers.predict.triage import PROBE_ROWS, Triage
from daemon.health.measures import Measures

log = structlog.get_logger(__name__)

ROOM: Final = 8
"""The decoded and preprocessed inputs of a batch may take so many times the byte limit of its rows."""


class OutputsPort(Protocol):
    """The rows of the listener; `daemon.store.rows.outputs.Outputs` implements it."""

    def read(self, keys: Sequence[Any], after: Timestamp | None, max_bytes: int) -> Snapshot: ...
    def told(self, post_image: Mapping[str, Any], at: Timestamp) -> Snapshot | None: ...
    def write(self, writes: Sequence[Write]) -> Written: ...
    def known_good(self, keys: Sequence[Any], rows: int, max_bytes: int) -> Snapshot | None: ...
    def unjudged(self, generation: int, rows: int) -> list[Any]: ...


class LettersPort(Protocol):
    """The dead letters of the listener; `daemon.store.rows.dead_letters.DeadLetters` implements it."""

    def add(self, letters: Iterable[Letter]) -> None: ...
    def clear(self, rows: Iterable[Hashable]) -> int: ...
    def settled(self, name: Hashable, input_: bytes, generation: int, scanned: bool) -> bool: ...
    def exist(self, name: Hashable, input_: bytes, generation: int) -> bool: ...


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
        snapshot = None
        if after is not None and (image := batch.post_image(after)) is not None:
            snapshot = self._outputs.told(image, after)
        if snapshot is None:
            snapshot = self._outputs.read([key.key for key in batch.keys], after, self.batch_bytes)
        if snapshot.unread:
            unread = {identity(key) for key in snapshot.unread}
            for key in batch.keys:
                if key.name in unread:
                    self.dirty.put_back(key)
            batch = replace(batch, keys=tuple(key for key in batch.keys if key.name not in unread))
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
        left = {row.name for row in prepared.left}
        for key in judged.batch.keys if left else ():
            if key.name in left:
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
        dead = {dead.name for dead in predicted.letters} | set(written.refused) | judged.settled
        dead |= {w.name for w in predicted.writes if w.kind == "touch" and w.seen.error}
        done = [key for key in judged.batch.keys if key.name not in written.missed]
        self._letters.clear(key.name for key in done if key.name not in dead)
        for letter_ in predicted.letters:
            self.triage.suspects.sentenced(letter_.name)
        for key in judged.batch.keys:
            if key.name in written.missed:
                self.dirty.put_back(key, newest=written.time)  # R1b, R1c
        for key in done:
            key.finish()
        self.dirty.landed(judged.batch)
        self._count(predicted, written)

    def _refused(self, predicted: Predicted, written: Written) -> Written:
        """Rows that refuse their write get a dead letter, and then one more write. A change beside the key may have
        mended one, and that event was passed over if the letter was not there yet. The old output of the others, now
        stale, is removed if they accept that.
        """
        judged = predicted.judged
        rows = {row.name: row for row in judged.rows}
        # A row that refuses a touch has a current output and needs no dead letter.
        writes = [w for w in predicted.writes if w.name in written.refused and w.kind != "touch"]
        letters = []
        for write in writes:
            row = rows.get(write.name) or Row(write.key, (), write.seen.input or b"", write.seen)
            refusal = letter(row, judged.live, "write", RuntimeError(written.refused[write.name]))
            letters.append(replace(refusal, type="WriteRefused", traceback="", unwritable=True))
        self._letters.add(letters)
        if not writes:
            return written
        second = self._outputs.write(writes)
        landed = {write.name for write in writes} - second.refused.keys()
        refused = {name: reason for name, reason in written.refused.items() if name not in landed}
        # A landed error has its own letter again.
        self._letters.add(own for own in predicted.letters if own.name in landed - second.missed)
        unsets = [
            Write(w.key, w.seen, "unset", w.asof, w.generation, name=w.name)
            for w in writes
            if w.name in refused and w.seen.present and w.kind == "set"
        ]
        third = self._outputs.write(unsets) if unsets else Written(frozenset(), {}, None)
        return replace(joined((written, second, third)), refused=refused)

    def _count(self, predicted: Predicted, written: Written) -> None:
        judged, missed = predicted.judged, len(written.missed)
        kinds = [write.kind for write in predicted.writes if write.name not in written.missed]
        dead = len(predicted.letters)
        self.measures.rows(
            predicted=predicted.predicted,
            touched=kinds.count("touch"),
            unset=kinds.count("unset"),
            dead=dead + sum(w.kind != "touch" and w.name in written.refused for w in predicted.writes),
            conflict=missed,
            gone=max(0, len(judged.batch.keys) - len(judged.rows) - len(judged.writes)),
        )
        self.measures.batch(len(judged.batch.keys))
