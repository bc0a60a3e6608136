"""What the state of the service means: is it ready, does its work still move, how is it said in one line.

Pure functions over a `ServiceState`, which the supervisor takes as a picture of itself. `/readyz`, the watchdog and
`systemctl status` all ask here, so they cannot disagree. Times are seconds of the monotonic clock; `now` is passed in.

Readiness and the watchdog ask different questions. A service is *not ready* as soon as rows would wait (MongoDB is
away, a worker starts, a backfill runs): nothing is broken. The *watchdog* is withheld only when a process is there and
does not move, so that systemd kills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from daemon.health.worker_report import ListenerReport, WorkerReport

__all__ = [
    "ConfigState",
    "ListenerReadiness",
    "Readiness",
    "ServiceState",
    "WorkerState",
    "readiness",
    "status_document",
    "status_line",
    "streams_open",
    "stuck",
]

STALE_SECONDS = 10.0
"""A worker reports every two seconds at least; after this long without a report nothing is known about it."""

BUSY_SECONDS = 60.0
"""A stage that is busy with one batch for longer is not keeping up with anything."""

STARTING_SECONDS = 120.0
"""How long a worker may take to import torch, load its weights and open its stream."""

_STAGES_ON_MONGODB = frozenset({"stream", "scan", "read", "write", "position"})
"""Stages (of `busy`, whose keys are LISTENER.STAGE) that wait for MongoDB; while it is away their being busy says
nothing about the worker.
"""

Role = Literal["starting", "standby", "active", "stopping"]


@dataclass(frozen=True, slots=True)
class ConfigState:
    """The verdict on the configuration file as it was last read; the running one stays where `ok` is false."""

    ok: bool = True
    error: str | None = None
    loaded_at: str = ""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker as the supervisor knows it. `listeners` are those it should run; `reason` says why it is not up."""

    name: str
    listeners: tuple[str, ...]
    pid: int | None = None
    started_at: float = 0.0
    report: WorkerReport | None = None
    reported_at: float | None = None
    restarts: int = 0
    reason: str | None = None

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None

    def listener(self, name: str) -> ListenerReport | None:
        """What it reports of a listener."""
        return self.report.listeners.get(name) if self.report is not None else None

    @property
    def stream_open(self) -> bool:
        """Whether its change stream is open."""
        return self.report is not None and self.report.stream.open


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The whole service at one moment. `mongo` is None while MongoDB answers (since `mongo_back_at`), else why not;
    `role_reason` explains the role.

    `jobs` are those that run; `paused` are listeners that somebody paused; `refused` are declarations in the database
    that are not this service's.
    """

    service: str
    role: Role = "starting"
    role_reason: str | None = None
    mongo: str | None = None
    mongo_back_at: float = 0.0
    epoch: int | None = None
    workers: tuple[WorkerState, ...] = ()
    config: ConfigState = field(default_factory=ConfigState)
    jobs: tuple[Mapping[str, Any], ...] = ()
    paused: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListenerReadiness:
    """Whether rows of one listener are predicted as they come; if not, why."""

    ready: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict on the whole service and on each of its listeners."""

    ready: bool
    reason: str | None
    listeners: Mapping[str, ListenerReadiness]


def readiness(state: ServiceState, now: float) -> Readiness:
    """Ready means: this daemon is active, MongoDB answers, and every listener predicts rows as they come, its stream
    open.

    A backfill does not take that away, live rows go first; it is told as the reason of a listener that is ready.
    """
    general = _obstacle(state)
    listeners: dict[str, ListenerReadiness] = {}
    for worker in state.workers:
        trouble = _trouble(worker, now)
        for name in worker.listeners:
            report = worker.listener(name)
            silent = "its worker does not report it yet" if report is None else None
            reason = general or trouble or silent or (report.trouble if report else None)
            listeners[name] = ListenerReadiness(reason is None, reason or (report.backfill if report else None))
    waiting = [f"{name}: {verdict.reason}" for name, verdict in listeners.items() if not verdict.ready]
    reason = general or ("; ".join(waiting) if waiting else None)
    return Readiness(reason is None, reason, listeners)


def streams_open(state: ServiceState) -> bool:
    """Whether every worker has opened its change stream: from here on no row is overlooked."""
    return state.role == "active" and all(worker.up and worker.stream_open for worker in state.workers)


def stuck(state: ServiceState, now: float, patience: float) -> str | None:
    """Which worker is there and does not move, and for how long; None where the watchdog may be fed.

    `patience` (seconds) is how old a report, and how long a stage's batch, may be.
    """
    for worker in state.workers:
        if not worker.up:
            continue  # it is being restarted, by a supervisor that is evidently awake
        report = worker.report
        if report is None or report.state == "starting":
            # It says no more until it has started, for which it needs MongoDB.
            starting = now - max(worker.started_at, state.mongo_back_at)
            if state.mongo is None and starting > STARTING_SECONDS:
                return f"worker {worker.name} has been starting for {starting:.0f} s"
            continue
        if report.state == "stopping":
            continue  # whoever stops it waits for a bounded time
        age = now - (worker.reported_at or worker.started_at)
        if age > max(patience, STALE_SECONDS):
            return f"worker {worker.name} has not reported for {age:.0f} s"
        mongo_away = state.mongo is not None or report.state == "waiting"
        for stage, seconds in report.busy.items():
            if seconds > patience and not (mongo_away and stage.rpartition(".")[2] in _STAGES_ON_MONGODB):
                return f"stage {stage} of worker {worker.name} has been busy for {seconds:.0f} s"
    return None


def status_line(state: ServiceState, now: float) -> str:
    """One line for a person: what runs and how far behind it is, or what is in the way."""
    verdict = readiness(state, now)
    good = sum(listener.ready for listener in verdict.listeners.values())
    total = len(verdict.listeners)
    suffix = "" if state.config.ok else "; the new service.toml is refused"
    if not verdict.ready and (state.role != "active" or state.mongo is not None):
        return f"{verdict.reason}{suffix}"
    if not verdict.ready:
        return f"{good} of {total} listeners ready: {verdict.reason}{suffix}"
    reports = [worker.listener(name) for worker in state.workers for name in worker.listeners]
    lags = [report.lag_seconds for report in reports if report is not None]
    return f"{total} listener{'' if total == 1 else 's'} running, lag {max(lags, default=0.0):.1f} s{suffix}"


def status_document(state: ServiceState, now: float) -> dict[str, Any]:
    """The service as its status document shows it: verdict, workers with their reports (samples are for /metrics),
    configuration.
    """
    verdict = readiness(state, now)
    workers = {}
    for worker in state.workers:
        report = {} if worker.report is None else worker.report.document()
        about = {"up": worker.up, "pid": worker.pid, "restarts": worker.restarts}
        workers[worker.name] = {"state": "down", "reason": worker.reason, "listeners": {}} | report | about
    return {
        "state": state.role,
        "ready": verdict.ready,
        "reason": verdict.reason,
        "workers": workers,
        "config": asdict(state.config),
        "jobs": [dict(job) for job in state.jobs],
        "paused": list(state.paused),
        "refused": dict(state.refused),
    }


def _obstacle(state: ServiceState) -> str | None:
    """What is in the way of every listener."""
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
    """What is in the way of every listener of a worker."""
    if not worker.up:
        return f"worker {worker.name} is not running: {worker.reason or 'it is being started'}"
    if worker.report is None or worker.reported_at is None or worker.report.state == "starting":
        return f"worker {worker.name} is starting"
    age = now - worker.reported_at
    if age > STALE_SECONDS:
        return f"worker {worker.name} has not reported for {age:.0f} s"
    if worker.report.state != "running":
        why = worker.report.reason
        return f"worker {worker.name} is {worker.report.state}" + (f": {why}" if why else "")
    for stage, seconds in worker.report.busy.items():
        if seconds > BUSY_SECONDS:
            return f"stage {stage} of worker {worker.name} has been busy for {seconds:.0f} s"
    if not worker.stream_open:
        return f"worker {worker.name} has no open change stream"
    return None
