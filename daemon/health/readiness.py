"""Verdicts on the state of the service: whether it is ready, whether its work makes progress, and its status line.

Pure functions over a `ServiceState`. `/readyz`, the keepers of workers and `systemctl status` all use them, so they
cannot disagree. Times are seconds of the monotonic clock; `now` is passed in.

A service is *not ready* as soon as rows would wait, for example while MongoDB is away or a worker starts; nothing is
broken then. A worker is *stuck* if it runs without progress: then its keeper replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from daemon.health.service_status import ConfigState, RunningJob, ServiceStatus, WorkerStatus
from daemon.health.worker_report import ListenerReport, WorkerReport

__all__ = [
    "ListenerReadiness",
    "Readiness",
    "ServiceState",
    "WorkerState",
    "readiness",
    "service_status",
    "status_line",
    "streams_open",
    "stuck",
]

STALE_SECONDS = 10.0
"""A worker reports every two seconds at least; after this long without one, its state is unknown."""

BUSY_SECONDS = 60.0
"""A stage that is busy with one batch for longer does not keep up."""

USER_STAGES = ("prepare", "predict")
"""The stages that run user code."""

STARTING_SECONDS = 120.0
"""How long a worker may take to import torch, load its weights and open its stream."""

Role = Literal["starting", "standby", "active", "stopping"]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker as the supervisor knows it. `listeners` are those it should run; `reason` is why it is not up."""

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
    """The whole service at one moment. `mongo` is None while MongoDB answers (since `mongo_back_at`), else the reason
    why it does not; `role_reason` is the reason for the role.

    `jobs` are those that run; `paused` are the paused listeners; `refused` are declarations in the database that carry
    no signature of this service, each with the reason; `held` are the models whose newest version waits for a person,
    each with the reason.
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

    A backfill does not change that, since live rows go first; it is shown as the reason of a listener that is ready.
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
    suffix = "" if state.config.ok else "; the new service.toml is refused"
    if not verdict.ready and (state.role != "active" or state.mongo is not None):
        return f"{verdict.reason}{suffix}"
    if not verdict.ready:
        return f"{good} of {total} listeners ready: {verdict.reason}{suffix}"
    reports = [worker.listener(name) for worker in state.workers for name in worker.listeners]
    lags = [report.lag_seconds for report in reports if report is not None]
    return f"{total} listener{'' if total == 1 else 's'} running, lag {max(lags, default=0.0):.1f} s{suffix}"


def service_status(state: ServiceState, now: float) -> ServiceStatus:
    """The service as its status document shows it."""
    verdict = readiness(state, now)
    return ServiceStatus(
        state.service,
        state.role,
        verdict.ready,
        verdict.reason,
        {worker.name: _worker_status(worker) for worker in state.workers},
        state.config,
        state.jobs,
        state.paused,
        state.refused,
        held=state.held,
    )


def _worker_status(worker: WorkerState) -> WorkerStatus:
    about = WorkerStatus(up=worker.up, pid=worker.pid, restarts=worker.restarts, reason=worker.reason)
    report = worker.report
    if report is None:
        return about
    return replace(
        about,
        state=report.state,
        reason=report.reason,
        listeners=report.listeners,
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
