"""Verdicts on the state of the service: whether it is ready, whether its work makes progress, and its status line.

Pure functions over a `ServiceState`. `/readyz`, the keepers of workers and `systemctl status` all use them, so they
cannot disagree. Times are seconds of the monotonic clock; `now` is passed in.

A service is *not ready* as soon as rows would wait, for example while MongoDB is away or a worker starts; nothing is
broken then. A worker is *stuck* if it runs without progress: then its keeper replaces it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from daemon.health.service_status import ConfigState, RunningJob, ServiceStatus, WorkerStatus
from daemon.health.worker_report import ListenerReport, Sample, WorkerReport, together

STALE_SECONDS = 10.0
"""A worker reports every two seconds at least; after this long without one, its state is unknown."""

QUIET_SECONDS = 3.0
"""A figure is taken for the present one for so long; a worker reports more often, and so does its stream."""

SILENT_SECONDS = 10.0
"""A change stream answers every second; after this long without an answer it stands still."""

BUSY_SECONDS = 60.0
"""A stage that is busy with one batch for longer does not keep up."""

USER_STAGES = ("prepare", "predict")
"""The stages that run user code."""

STARTING_SECONDS = 120.0
"""How long a worker may take to import torch, load its weights and open its stream."""

SHOWN_NAMES = 5

Role = Literal["starting", "standby", "active", "stopping"]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker as the supervisor knows it. `listeners` are those it should run; `reason` is why it is not up.

    `caught_up` is when each listener was last known to have handled everything, as far as no report says it; `counted`
    are the last samples of its processes that have ended, if other processes serve the same listeners.
    """

    name: str
    listeners: tuple[str, ...]
    pid: int | None = None
    started_at: float = 0.0
    report: WorkerReport | None = None
    reported_at: float | None = None
    restarts: int = 0
    reason: str | None = None
    caught_up: Mapping[str, float] = field(default_factory=dict)
    counted: tuple[Sample, ...] = ()

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None

    def listener(self, name: str) -> ListenerReport | None:
        """What it reports of a listener."""
        return self.report.listeners.get(name) if self.report is not None else None

    def age(self, now: float) -> float | None:
        """The age of its last report, which every figure in it shares."""
        return None if self.reported_at is None else max(0.0, now - self.reported_at)

    def handled_until(self, name: str) -> float | None:
        """Until when everything that happened is known to be handled."""
        report = self.listener(name)
        if report is None or self.reported_at is None:
            return self.caught_up.get(name)
        return self.reported_at - report.lag_seconds

    def lag(self, name: str, now: float) -> float:
        """How far a listener is behind: it grows while nothing is reported."""
        until, report = self.handled_until(name), self.listener(name)
        lag = 0.0 if until is None else max(0.0, now - until)
        behind = report is not None and report.lag_seconds > 0
        return round(lag, 3) if behind or lag > QUIET_SECONDS else 0.0

    def silent(self, now: float) -> float | None:
        """Seconds since the server last answered its change stream."""
        age = self.age(now)
        return None if self.report is None or age is None else self.report.stream.silent_seconds + age

    @property
    def stream_open(self) -> bool:
        """Whether its change stream is open."""
        return self.report is not None and self.report.stream.open


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The whole service at one moment. `mongo` is None while MongoDB answers (since `mongo_back_at`), else the reason
    why it does not; `role_reason` is the reason for the role.

    `jobs` are those that run; `paused` are the paused listeners; `refused` are declarations in the database that carry
    no signature of this service, each with the reason; `held` are the models whose newest version waits for a person,
    each with the reason; `notified` is the number of the last notification that was acted on.
    """

    service: str
    role: Role = "starting"
    role_reason: str | None = None
    mongo: str | None = None
    mongo_back_at: float = 0.0
    epoch: int | None = None
    workers: tuple[WorkerState, ...] = ()
    config: ConfigState = field(default_factory=ConfigState)
    jobs: tuple[RunningJob, ...] = ()
    paused: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    notified: int = 0


@dataclass(frozen=True, slots=True)
class ListenerReadiness:
    """Whether rows of one listener are predicted as they come; if not, why. The report that says so is
    `report_age_seconds` old.
    """

    ready: bool
    reason: str | None
    lag_seconds: float = 0.0
    report_age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict on the whole service and on each of its listeners."""

    ready: bool
    reason: str | None
    listeners: Mapping[str, ListenerReadiness]


def readiness(state: ServiceState, now: float) -> Readiness:
    """Ready means: this daemon is active, MongoDB answers, and every listener predicts rows as they come, its stream
    open.

    A backfill does not change that, since live rows go first; it is shown as the reason of a listener that is ready.
    """
    general = _obstacle(state)
    listeners: dict[str, ListenerReadiness] = {}
    waiting: dict[str, list[str]] = {}
    for name, workers in _serving(state).items():
        reasons_: list[str] = []
        for worker in workers:
            reason = general or _trouble(worker, now) or _listener_trouble(state, worker, name, worker.age(now) or 0.0)
            if reason is not None and reason not in reasons_:
                reasons_.append(reason)
        reports = [report for worker in workers if (report := worker.listener(name)) is not None]
        shown = "; ".join(reasons_) or (together(reports).backfill if reports else None)
        ages = [age for worker in workers if (age := worker.age(now)) is not None]
        listeners[name] = ListenerReadiness(
            not reasons_,
            shown,
            max(worker.lag(name, now) for worker in workers),
            round(max(ages), 3) if len(ages) == len(workers) else None,
        )
        for reason in reasons_:
            waiting.setdefault(reason, []).append(name)
    reasons = "; ".join(f"{_few(names)}: {reason}" for reason, names in waiting.items())
    reason = general or reasons or None
    return Readiness(reason is None, reason, listeners)


def _serving(state: ServiceState) -> dict[str, list[WorkerState]]:
    """The processes that serve each listener."""
    serving: dict[str, list[WorkerState]] = {}
    for worker in state.workers:
        for name in worker.listeners:
            serving.setdefault(name, []).append(worker)
    return serving


def streams_open(state: ServiceState) -> bool:
    """Whether every worker has opened its change stream: no change is missed from then on."""
    return state.role == "active" and all(worker.up and worker.stream_open for worker in state.workers)


def stuck(worker: WorkerState, now: float, seconds: float) -> str | None:
    """Why a worker that runs is to be ended: it reports nothing, or its model works on one batch for too long.

    `seconds` is how long either may last. A worker that starts may be silent for longer: it imports and builds what
    people wrote. Waiting for MongoDB does not count as work.
    """
    report = worker.report
    silent = now - (worker.reported_at or worker.started_at)
    starting = report is None or report.state == "starting"
    if silent > (max(seconds, STARTING_SECONDS) if starting else seconds):
        return f"it has not reported for {silent:.0f} s"
    for stage, busy in ({} if report is None else report.busy).items():
        if busy + silent > seconds and stage.rpartition(".")[2] in USER_STAGES:
            return f"stage {stage} has worked on one batch for {busy + silent:.0f} s"
    return None


def status_line(state: ServiceState, now: float) -> str:
    """One line for a person: what runs and how far behind it is, or why it is not ready."""
    verdict = readiness(state, now)
    good = sum(listener.ready for listener in verdict.listeners.values())
    total = len(verdict.listeners)
    suffix = "" if state.config.ok else f"; the new service.toml is {_not_taken(state.config)}"
    if not verdict.ready and (state.role != "active" or state.mongo is not None):
        return f"{verdict.reason}{suffix}"
    if not verdict.ready:
        return f"{good} of {total} listeners ready: {verdict.reason}{suffix}"
    lag = max((listener.lag_seconds for listener in verdict.listeners.values()), default=0.0)
    return f"{total} listener{'' if total == 1 else 's'} running, lag {lag:.1f} s{suffix}"


def _not_taken(config: ConfigState) -> str:
    return "refused" if config.held is None else f"held: {config.held}"


def service_status(state: ServiceState, now: float) -> ServiceStatus:
    """The service as its status document shows it."""
    verdict = readiness(state, now)
    shared = {name for name, workers in _serving(state).items() if len(workers) > 1}
    return ServiceStatus(
        state.service,
        state.role,
        verdict.ready,
        verdict.reason,
        {worker.name: _worker_status(worker, now, shared) for worker in state.workers},
        state.config,
        state.jobs,
        state.paused,
        state.refused,
        held=state.held,
        notified=state.notified,
        rehearses=True,
    )


def _worker_status(worker: WorkerState, now: float, shared: Collection[str]) -> WorkerStatus:
    """`shared` are the listeners that other processes serve too: without a word of this one they would look well."""
    missing = {n: ListenerReport("starting", _trouble(worker, now)) for n in worker.listeners if n in shared}
    about = WorkerStatus(
        up=worker.up, pid=worker.pid, restarts=worker.restarts, reason=worker.reason, listeners=missing
    )
    report, age = worker.report, worker.age(now)
    if report is None or age is None:
        return about
    return replace(
        about,
        state=report.state,
        reason=report.reason or (_silence(worker, age) if worker.up and age > STALE_SECONDS else None),
        report_age_seconds=round(age, 3),
        listeners=missing | {n: replace(each, lag_seconds=worker.lag(n, now)) for n, each in report.listeners.items()},
        stream=report.stream,
        busy=report.busy,
        threads=report.threads,
    )


def _obstacle(state: ServiceState) -> str | None:
    """Why no listener is ready."""
    if state.role == "stopping":
        return "stopping"
    if state.mongo is not None:
        return f"MongoDB: {state.mongo}"
    if state.role == "standby":
        return f"standby: {state.role_reason}"
    if state.role == "starting":
        return f"starting: {state.role_reason}" if state.role_reason else "starting"
    return None


def _trouble(worker: WorkerState, now: float) -> str | None:
    """Why no listener of a worker is ready."""
    if not worker.up:
        return f"worker {worker.name} is not running: {worker.reason or 'it is being started'}"
    age = worker.age(now)
    if worker.report is None or age is None or worker.report.state == "starting":
        return f"worker {worker.name} is starting"
    if age > STALE_SECONDS:
        return _silence(worker, age)
    if worker.report.state != "running":
        why = worker.report.reason
        return f"worker {worker.name} is {worker.report.state}" + (f": {why}" if why else "")
    if not worker.stream_open:
        return f"worker {worker.name} has no open change stream"
    silent = worker.silent(now)
    if silent is not None and silent > SILENT_SECONDS:
        return f"the change stream of worker {worker.name} has had no answer for {silent:.0f} s"
    return None


def _listener_trouble(state: ServiceState, worker: WorkerState, name: str, age: float) -> str | None:
    """Why one listener of a worker that runs is not ready."""
    report, refused = worker.listener(name), state.refused.get(f"listener/{name}")
    if report is None and refused is not None:
        return f"its declaration in the database is refused: {refused}; for one of service.toml run `predictd reload`"
    if report is None:
        return "its worker does not report it yet"
    for stage, busy in (worker.report.busy if worker.report is not None else {}).items():
        if busy + age > BUSY_SECONDS and stage.rpartition(".")[0] == name:
            return f"stage {stage} of worker {worker.name} has been busy for {busy + age:.0f} s"
    return report.trouble


def _silence(worker: WorkerState, age: float) -> str:
    return f"worker {worker.name} has not reported for {age:.0f} s"


def _few(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
