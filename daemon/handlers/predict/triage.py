"""Decides which rows go on with a batch, which are predicted alone, and which wait: one state machine per listener.

| state | when | what happens to rows |
|---|---|---|
| running | | they are predicted as they come |
| careful | rows were at work when the process died | these suspects are predicted apart, the others as usual |
| failing | the model fails on (nearly) every row: the breaker is open | a scan will find them; probes test the model |

*Retry.* A row with a transient error (connection refused, a timeout, no memory, `Retry`) waits and is tried again, with
growing pauses, before it gets a dead letter.

*The breaker* opens when `TRIP_ROWS` successive rows have failed and no row that had an output before gets one now. If
such a row still gets one, the failed rows are bad, not the model, and they get dead letters at once. Until that is
known, a failed row is tried once more. An opening breaker orders a scan, which is durable and waits until the breaker
closes. It then finishes every key, so that the position that other listeners share moves on. The breaker closes when a
row of a probe gets an output. A version that goes live is probed at once.

It also opens if the process has died `TRIP_ROWS` times since it last predicted a row, and then dies of a row that had
an output before, or there is none. What is known of that outlives the process; a probe is then one row.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import structlog

from daemon.handlers.predict.dirty_keys import Batch, DirtyKey
from daemon.handlers.predict.records import Letter
from daemon.handlers.predict.stages import Judged, Predicted
from daemon.handlers.predict.suspects import NoSuspects, fewest_first

log = structlog.get_logger(__name__)

TRIP_ROWS: Final = 10
MOSTLY: Final = 9
"""The model fails on nearly every row if more than so many rows fail for each row with an output."""

ALONE_SECONDS: Final = 5.0
"""A suspect waits until no other row waits, but at most so long. If the process hung, it waits as long: until then
the other listeners of the worker catch up.
"""

LONG_SECONDS: Final = 30.0
"""If it would take longer to predict the suspects one by one, some are predicted together."""

ROWS_ARE_BAD_SECONDS: Final = 5.0
PROBE_SECONDS: Final = (1.0, 60.0)
RETRY_SECONDS: Final = (1.0, 60.0)
PROBE_ROWS: Final = 8
WAITING_ROWS: Final = 1_000
SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how many seconds, a row with a transient error is tried before it gets a dead letter."""

    attempts: int = 5
    within: float = 600.0


@dataclass(slots=True)
class _Waiting:
    key: DirtyKey
    due: float
    since: float


class Triage:
    """The state of one listener. The reading thread calls `sort`, `next` and `pause`, the predicting thread `decide`.

    `owe(reason)` orders a scan and returns when the order is stored. `known_good()` returns whether a row that had an
    output before still gets one, None if there is no such row; `unjudged(n)` returns the keys of some rows that wait
    for an output. `wake()` makes the reading thread call `next`.
    """

    def __init__(
        self,
        listener: str,
        *,
        suspects: NoSuspects | None = None,
        retry: RetryPolicy | None = None,
        owe: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.suspects = NoSuspects() if suspects is None else suspects
        self.known_good: Callable[[], bool | None] = lambda: None
        self.unjudged: Callable[[int], list[Any]] = lambda _: []
        self.wake: Callable[[], None] = lambda: None
        self._listener = listener
        self.retry = retry or RetryPolicy()
        self._owe = owe
        self._clock = clock
        self._lock = threading.Lock()
        self._alone: dict[Hashable, _Waiting] = {}
        self._later: dict[Hashable, _Waiting] = {}
        self._attempts: dict[Hashable, tuple[int, float]] = {}
        self._others_turn = False
        self._failed_rows = 0
        self._rows_bad_until = 0.0
        toll = self.suspects.toll
        self._why: str | None = toll.why
        self.holds_scans = toll.why is not None
        """Whether scans must not begin: the breaker is open, or about to open."""
        self._sample: deque[Any] = deque(maxlen=PROBE_ROWS)
        self._probe_pause = max(PROBE_SECONDS[0], toll.pause)
        self._probe_at = self._clock() + self._probe_pause

    @property
    def failing(self) -> bool:
        """Whether the breaker is open: rows wait for the ordered scan."""
        return self._why is not None

    @property
    def state(self) -> tuple[Literal["running", "careful", "failing"], str | None]:
        """The state, and the reason of one that is not "running"."""
        if self._why is not None:
            return "failing", self._why
        if self._alone:
            return (
                "careful",
                f"{len(self._alone)} rows that were at work when the process died are predicted one by one",
            )
        return "running", None

    @property
    def waits(self) -> bool:
        """Whether rows or probes wait here."""
        return bool(self._alone or self._later or self._why is not None)

    # ---- reading --------------------------------------------------------------------------------------------------

    def sort(self, batch: Batch) -> Batch:
        """The batch without its suspects; an empty batch while the breaker is open."""
        self._others_turn = False
        if self.failing:
            self._sample.extend(key.key for key in batch.keys[-2:] if self.suspects.deaths(key.name) is None)
            for key in batch.keys:
                key.finish()  # the ordered scan will find it
            return replace(batch, keys=())
        if not len(self.suspects):
            return batch
        apart = [key for key in batch.keys if self.suspects.deaths(key.name) is not None]
        for key in apart:
            self._hold(self._alone, key, 0.0)
        names = {id(key) for key in apart}
        return replace(batch, keys=tuple(key for key in batch.keys if id(key) not in names)) if apart else batch

    def next(self, *, idle: bool, cap: int = 1, seconds: float = 0.0) -> Batch | None:
        """A batch that is due now, None if there is none; `idle` if no other row waits. A batch may hold `cap` rows,
        and takes about so many `seconds`.
        """
        now = self._clock()
        if self.failing:
            return self._probe(now) if now >= self._probe_at else None
        with self._lock:
            due = [name for name, waiting in self._later.items() if waiting.due <= now]
            if due:
                return Batch(tuple(self._later.pop(name).key for name in due))
            if self._alone and self._may_be_alone(now, idle=idle):
                self._others_turn = True
                left = len(self._alone)
                together = min(cap, math.isqrt(left)) if left * seconds > LONG_SECONDS else 1
                names = fewest_first(self.suspects, self._alone, together)
                return Batch(tuple(self._alone.pop(name).key for name in names), "alone")
        return None

    def _probe(self, now: float) -> Batch | None:
        self._probe_at = now + self._probe_pause * random.uniform(0.75, 1.25)  # noqa: S311 - keeps workers apart
        self._probe_pause = min(PROBE_SECONDS[1], 2 * self._probe_pause)
        if self.suspects.toll.why is not None:  # it may be the last act of this process
            self.suspects.note(pause=self._probe_pause)
            keys = [*self._sample][-1:] or self.unjudged(1)
        else:  # others each time: some may be good though those that came last are not
            keys = list(dict.fromkeys([*self._sample, *self.unjudged(PROBE_ROWS)]))
        return Batch(tuple(DirtyKey(key, "scan") for key in keys), "probe") if keys else None

    def _may_be_alone(self, now: float, *, idle: bool) -> bool:
        waited = now - min(each.since for each in self._alone.values()) > ALONE_SECONDS
        return (waited or not self.suspects.hung) if idle else (waited and not self._others_turn)

    def pause(self) -> float | None:
        """Seconds until a batch may be due; None if nothing waits here."""
        now = self._clock()
        with self._lock:
            times = [waiting.due for waiting in self._later.values()]
            if self._alone:
                since = min(each.since for each in self._alone.values())
                times.append(since + ALONE_SECONDS if self.suspects.hung else now)
        if self.failing:
            times.append(self._probe_at)
        return max(0.0, min(times) - now) if times else None

    # ---- predicting -----------------------------------------------------------------------------------------------

    def decide(self, predicted: Predicted) -> Predicted:
        """The part of the batch that is written now: without rows that are tried again, and without any row if the
        breaker opens.
        """
        purpose = predicted.judged.batch.purpose
        if purpose == "probe":
            return self._probed(predicted)
        if self.failing:
            return self.released(predicted)
        if predicted.predicted:
            self.suspects.note(deaths=0.0)
        if purpose == "alone":
            for row in predicted.judged.rows:
                if self.suspects.guilt(row, predicted.judged.live.generation) is None:
                    self.suspects.passed(row.name)
        failed = [letter for letter in predicted.letters if letter.cause != "row"]
        doubtful = bool(failed) and len(failed) > MOSTLY * predicted.predicted and self._model_may_fail()
        if doubtful:
            self._failed_rows += len(failed)
            if self._failed_rows >= TRIP_ROWS:
                last = failed[-1]
                message = f"{last.type}: {' '.join(last.message.split())}"[:SHOWN]
                why = f"the model fails on every row, in stage {last.stage}: {message}"
                self._open(why, f"the model failed on every row ({last.type})", failed)
                return self.released(predicted)
        elif predicted.predicted:
            self._failed_rows = 0
        return self._tried_again(predicted, doubtful=doubtful)

    def trips(self, judged: Judged) -> bool:
        """Called before a batch is tried: whether the breaker opens, because the process dies of every row."""
        toll = self.suspects.toll
        if not judged.rows or not (toll.asks or toll.deaths >= TRIP_ROWS):
            return False
        if not toll.asks:
            self.suspects.note(asks=True)
            if self.known_good():
                self.suspects.note(asks=False, deaths=0.0)
                return False
        why = "the model ends or stops its process on every row"
        self._open(why, why)
        self.suspects.note(asks=False, deaths=0.0, why=why, pause=self._probe_pause)
        return True

    def mended(self) -> None:
        """Another version is live: probes it at once."""
        self._failed_rows = 0
        self._probe_at, self._probe_pause = 0.0, PROBE_SECONDS[0]
        self.wake()

    def released(self, predicted: Predicted) -> Predicted:
        """The batch without its predicted rows, which the ordered scan will find."""
        return self._let_go(predicted, {row.name for row in predicted.judged.rows})

    def _let_go(self, predicted: Predicted, names: set[Hashable]) -> Predicted:
        for key in predicted.judged.batch.keys:
            if key.name in names:
                key.finish()
        return predicted.without(names)

    def _model_may_fail(self) -> bool:
        """Whether the model may be the reason: no row that had an output before gets one now."""
        now = self._clock()
        if now < self._rows_bad_until:
            return False
        if self.known_good():
            self._rows_bad_until = now + ROWS_ARE_BAD_SECONDS
            return False
        return True

    def _open(self, why: str, owed: str, failed: Sequence[Letter] = ()) -> None:
        self.holds_scans = True  # before the order: the keys of the scan must not be finished with the others
        self._owe(owed)  # durable before the first key is finished
        self._sample.extend(letter.key for letter in failed[-PROBE_ROWS // 2 :])
        self._why = why
        self._probe_pause = PROBE_SECONDS[0]
        self._probe_at = self._clock() + self._probe_pause
        with self._lock:
            for waiting in (*self._later.values(), *self._alone.values()):
                waiting.key.finish()
            self._later.clear()
            self._alone.clear()
            self._attempts.clear()
        self.wake()
        log.error("listener is failing: its rows wait until the model works again", listener=self._listener,
                  reason=self._why, traceback=failed[-1].traceback if failed else None)  # fmt: skip

    def _probed(self, predicted: Predicted) -> Predicted:
        rows = predicted.judged.rows
        if rows and not predicted.predicted:
            return self.released(predicted)
        if self.failing:
            log.info("listener works again: the rows that waited are scanned", listener=self._listener)
            self._why, self.holds_scans = None, False
            self.suspects.note(why=None, deaths=0.0 if rows else float(TRIP_ROWS - 1))
            self._failed_rows = 0 if rows else TRIP_ROWS - 1  # no row was tried: the next failure opens it again
            self._sample.clear()
        return self._let_go(predicted, {letter.name for letter in predicted.letters})

    def _tried_again(self, predicted: Predicted, *, doubtful: bool) -> Predicted:
        """The batch without the rows to try again: those with a transient error; once, others if the model may be the
        cause.
        """
        if not predicted.letters and not self._attempts:
            return predicted
        now, names = self._clock(), set()
        keys = {key.name: key for key in predicted.judged.batch.keys}
        for letter in predicted.letters:
            name = letter.name
            attempts, first = self._attempts.pop(name, (0, now))
            most = {"transient": self.retry.attempts, "model": 2 if doubtful else 1, "row": 1}[letter.cause]
            attempts += 1
            if len(self._later) < WAITING_ROWS and attempts < most and now - first < self.retry.within:
                self._attempts[name] = attempts, first
                names.add(name)
                pause = min(RETRY_SECONDS[1], RETRY_SECONDS[0] * 2.0 ** (attempts - 1))
                self._hold(self._later, keys[name], pause * random.uniform(0.75, 1.25))  # noqa: S311 - guards nothing
        for name in keys.keys() - names:
            self._attempts.pop(name, None)
        return predicted.without(names) if names else predicted

    def _hold(self, waiting: dict[Hashable, _Waiting], key: DirtyKey, seconds: float) -> None:
        now, name = self._clock(), key.name
        with self._lock:
            known = waiting.setdefault(name, _Waiting(key, now + seconds, now))
            if known.key is not key:
                known.key.take_over(key)
        self.wake()
