"""The scheduler queues trainings and validations when they are due: each run once, even if daemons are killed.

    the clock, a poll of row counts, a changed configuration  ->  look  ->  claim by the job's unique key  ->  note it

`look` decides everything from what MongoDB holds (`daemon.store.service.schedules`), by the server's clock. A daemon
that was killed between claim and note finds the run claimed at its next look, and notes it then. If a job of the same
target waits in the queue, a due run is noted without another job, since the waiting one sees the same rows.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from components import cron
from components.declarations import TrainerDeclaration, ValidationDeclaration
from components.errors import MongoUnavailable, NotApplied
from daemon.handlers.schedule import Schedule, below, due_every, next_every, rows_due, schedules
from daemon.listeners.clock import Clock, local_now
from daemon.store.connection import Data
from daemon.store.service.jobs import Jobs
from daemon.store.service.schedules import RowCounts, Schedules, State
from daemon.supervisor.leader_context import Call, Spawn
from daemon.supervisor.timed_wait import timed_wait

log = structlog.get_logger(__name__)

ROWS_SECONDS = 2.0
"""How often rows are counted, if a schedule counts any."""
LOOK_SECONDS = 30.0
"""How often it looks without being woken: this machine's clock may jump or stop."""
RETRY_SECONDS = 2.0

Declarations = Mapping[str, Mapping[str, TrainerDeclaration | ValidationDeclaration]]


@dataclass(frozen=True, slots=True)
class Upcoming:
    """What a schedule waits for: a time or a number of rows; a `below` has neither. `problem`: why it cannot run as it
    is.
    """

    schedule: Schedule
    at: datetime | None = None
    rows: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one look: the server's time, the queued runs, the next ones."""

    now: datetime
    queued: tuple[Schedule, ...] = ()
    upcoming: tuple[Upcoming, ...] = field(default=())


class Scheduler:
    """The schedules of one service while this daemon leads, from `start` to `stop`. `queued` is called after a run was
    queued.
    """

    def __init__(self, call: Call, service: str, spawn: Spawn, queued: Callable[[], None] = lambda: None) -> None:
        self._call = call
        self._service = service
        self._spawn = spawn
        self._queued = queued
        self._schedules: tuple[Schedule, ...] = ()
        self._counts = RowCounts()
        self._ahead = timedelta()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._clock: Clock | None = None
        self.upcoming: tuple[Upcoming, ...] = ()
        """What comes next, as of the last look."""

    def start(self, declarations: Declarations) -> None:
        """Runs these schedules from now on: the "trainers" and "validations" among the declarations, by name, as they
        are stored.
        """
        self.change(declarations)
        if self._task is None:
            self._clock = Clock(lambda _: self._woken.set(), lambda: local_now() + self._ahead)
            self._task = self._spawn(self._run(self._clock))

    def change(self, declarations: Declarations) -> None:
        """Runs other schedules from now on; one that stays keeps its count, even if its number differs."""
        self._schedules = tuple(schedules(declarations))
        self._woken.set()

    async def validated(self, target: str, metrics: Mapping[str, float]) -> None:
        """A validation of a live model has ended with these metrics, "dataset/metric": queues what waits for one to
        fall.

        If MongoDB does not answer, that is logged, and the next validation decides.
        """
        known = self._schedules
        try:
            fired = await self._call(lambda data: judge(data, self._service, known, target, metrics))
        except (MongoUnavailable, NotApplied) as error:
            log.warning("a validation's metrics could not be looked at", validation=target, reason=str(error))
            return
        self._announce(fired)

    async def stop(self) -> None:
        """Ends all timers; nothing is queued any more."""
        task, clock, self._task, self._clock = self._task, self._clock, None, None
        if clock is not None:
            clock.close()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.upcoming = ()

    async def _run(self, clock: Clock) -> None:
        while True:
            self._woken.clear()
            pause = await self._look(clock)
            await timed_wait(self._woken, pause)

    async def _look(self, clock: Clock) -> float | None:
        """Looks once; returns the seconds until the next look, None if only a change of the schedules matters."""
        known = self._schedules
        try:
            looked = await self._call(lambda data: look(data, self._service, known, self._counts))
        except MongoUnavailable:  # `Leadership` logs it
            return RETRY_SECONDS
        self._ahead = looked.now - local_now()
        for each in looked.upcoming:
            if each.problem is not None and each not in self.upcoming:
                log.warning("cannot be scheduled", key=each.schedule.key, reason=each.problem)
        self.upcoming = looked.upcoming
        clock.set({each.schedule.key: each.at for each in looked.upcoming if each.at is not None})
        if not known:
            return None
        self._announce(looked.queued)
        return ROWS_SECONDS if any(each.trigger == "rows" for each in known) else LOOK_SECONDS

    def _announce(self, fired: tuple[Schedule, ...]) -> None:
        for schedule in fired:
            log.info("queued", kind=schedule.kind, target=schedule.target, when=dict(schedule.when))
        if fired:
            self._queued()


def look(data: Data, service: str, known: tuple[Schedule, ...], counts: RowCounts) -> Look:
    """Queues what is due by time or by rows; returns that, and what comes next."""
    store = Schedules(data, service)
    counted = {table: counts.count(data, table) for each in known if each.trigger == "rows" for table in each.tables}
    rows = {
        each.key: sum(counted[table] for table in each.tables) if each.trigger == "rows" else None for each in known
    }
    store.forget_all_but(rows)
    states = store.states(rows)
    looker = _Looker(store, Jobs(data, service), store.now())
    upcoming: list[Upcoming] = []
    for each in known:
        state, count = states[each.key], rows[each.key]
        try:
            if count is not None:
                upcoming.append(looker.at_rows(each, state, count))
            elif each.trigger == "below":
                upcoming.append(Upcoming(each))
            else:
                upcoming.append(looker.at_time(each, state))
        except (NotApplied, OverflowError, ValueError) as error:
            # Not in the registry yet, or no longer; or a time zone that only another machine knows.
            upcoming.append(Upcoming(each, problem=str(error)))
    return Look(looker.now, tuple(looker.queued), tuple(upcoming))


def judge(
    data: Data, service: str, known: tuple[Schedule, ...], target: str, metrics: Mapping[str, float]
) -> tuple[Schedule, ...]:
    """Queues what waits for one of these metrics of the validation `target` to fall below its bound; returns
    what was queued.
    """
    values = {f"{target}/{name}": value for name, value in metrics.items() if not math.isnan(value)}
    waiting = [each for each in known if each.trigger == "below" and each.metric[0] in values]
    if not waiting:
        return ()
    store = Schedules(data, service)
    states = store.states(dict.fromkeys((each.key for each in waiting), None))
    looker = _Looker(store, Jobs(data, service), store.now())
    for schedule in waiting:
        with suppress(NotApplied):  # removed meanwhile
            looker.at_metric(schedule, states[schedule.key], values[schedule.metric[0]])
    return tuple(looker.queued)


@dataclass(frozen=True)
class _Looker:
    """One look: each method decides about one schedule, and queues and notes the run that is due."""

    store: Schedules
    jobs: Jobs
    now: datetime
    queued: list[Schedule] = field(default_factory=list)

    def at_time(self, schedule: Schedule, state: State) -> Upcoming:
        came: datetime | None
        if schedule.trigger == "every":
            came = due_every(state.last, self.now, schedule.when["every"])
        else:
            first = _next(schedule, state.last)
            came = self.now if first is not None and first <= self.now else None  # however many were missed
        if came is None:
            return Upcoming(schedule, at=_next(schedule, state.last))
        self._claim(schedule, state, {"due": came})
        self.store.fired(schedule.key, state, last=came, baseline=None, low=None)
        return Upcoming(schedule, at=_next(schedule, came))

    def at_rows(self, schedule: Schedule, state: State, count: int) -> Upcoming:
        wanted = schedule.when["rows"]
        baseline = count if state.baseline is None else state.baseline
        if count < baseline:
            self.store.lowered(schedule.key, state, count)
            baseline = count
        if rows_due(baseline, count, wanted):
            self._claim(schedule, state, {"new": count - baseline})
            self.store.fired(schedule.key, state, last=self.now, baseline=count, low=None)
            baseline = count
        return Upcoming(schedule, rows=wanted - (count - baseline))

    def at_metric(self, schedule: Schedule, state: State, value: float) -> None:
        fires, low = below(state.low, value, schedule.metric[1])
        if fires:
            self._claim(schedule, state, {"value": value})
            self.store.fired(schedule.key, state, last=self.now, baseline=None, low=low)
        elif low is None and state.low is not None:
            self.store.recovered(schedule.key, state)

    def _claim(self, schedule: Schedule, state: State, about: Mapping[str, Any]) -> None:
        """Queues the run, unless another daemon has, or a job waits that will do. Raises NotApplied."""
        key = f"{schedule.trigger}/{state.claim}"
        if self.jobs.queue(schedule.kind, schedule.target, {**schedule.when, **about}, key=key) is not None:
            self.queued.append(schedule)


def _next(schedule: Schedule, last: datetime) -> datetime | None:
    if schedule.trigger == "every":
        return next_every(last, schedule.when["every"])
    return cron.following(schedule.when["cron"], schedule.when.get("timezone", "UTC"), last)
