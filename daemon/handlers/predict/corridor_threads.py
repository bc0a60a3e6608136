"""The threads that run the steps of a corridor (corridor.py)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from daemon.handlers.predict.corridor import Corridor
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.stages import Judged, Predicted, Prepared
from daemon.handlers.predict.suspects import UserStage
from daemon.handlers.predict.turnstile import Turnstile

WAITING_BATCHES: Final = 1  # between two stages: enough that a stage always finds the next batch ready
BATCHES_HELD: Final = 4 + 3 * WAITING_BATCHES  # at most, in the four stages and the three queues between them
LONE_ROWS: Final = 4
LONE_SECONDS: Final = 0.1
"""So few rows, if nothing else waits or is in the corridor, go all the way in the reading thread: another thread takes
longer to wake than most steps take. Only if the last batches took less than these seconds: while it predicts, it does
not read what comes next.
"""

MEETS_MONGODB: Final = ("read", "write")
B = TypeVar("B")
T = TypeVar("T")


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
