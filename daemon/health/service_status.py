"""The status of a service: written by the daemon that is active, read by commands and clients.

The document may have been written by another version, or by anybody who may write to the database: a field whose value
is of another type reads as its default, and unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, TypeAdapter

from daemon.health.job_report import JobProgress
from daemon.health.report import defaulting
from daemon.health.worker_report import ListenerReport, StreamReport, together

_Text = Annotated[str | None, defaulting(None)]


@dataclass(frozen=True, slots=True)
class ConfigState:
    """Whether service.toml as it was last read is the one that runs. If not, the configuration before it stays: the
    file is invalid, or is `held`: this is the name of its plan.
    """

    ok: bool = True
    error: str | None = None
    loaded_at: str = ""
    held: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """The process of the active daemon."""

    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs. `job` is its id, `seconds` the time of all its attempts."""

    job: str
    kind: str
    target: str
    model: str
    attempt: int
    seconds: float
    pid: int | None = None
    progress: Annotated[JobProgress, PlainSerializer(JobProgress.known)] = field(default_factory=JobProgress)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker. `up`: its process runs. `restarts`: how often it was started again. What it reported of itself is
    `report_age_seconds` old.
    """

    state: str = "down"
    up: bool = False
    pid: int | None = None
    restarts: int = 0
    reason: str | None = None
    listeners: Annotated[Mapping[str, ListenerReport], defaulting({})] = field(default_factory=dict)
    stream: Annotated[StreamReport | None, defaulting(None)] = None
    busy: Annotated[Mapping[str, float], defaulting({})] = field(default_factory=dict)
    threads: Annotated[int | None, defaulting(None)] = None
    report_age_seconds: Annotated[float | None, defaulting(None)] = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service at one moment. `at` is the server's time of writing, `age_seconds` the time since then. `notified` is
    the number of the last notification that the daemon has acted on (`daemon.store.service.notify`). `rehearses`: it
    answers requests for rehearsals; a daemon of an older release does not.
    """

    id: Annotated[str, Field(alias="_id")] = ""
    state: Annotated[str, defaulting("unknown")] = "unknown"
    ready: Annotated[bool, defaulting(False)] = False
    reason: _Text = None
    workers: Annotated[Mapping[str, WorkerStatus], defaulting({})] = field(default_factory=dict)
    config: Annotated[ConfigState, defaulting(ConfigState())] = field(default_factory=ConfigState)
    jobs: Annotated[tuple[RunningJob, ...], defaulting(())] = ()
    paused: Annotated[tuple[str, ...], defaulting(())] = ()
    refused: Annotated[Mapping[str, str], defaulting({})] = field(default_factory=dict)
    held: Annotated[Mapping[str, str], defaulting({})] = field(default_factory=dict)
    notified: Annotated[int | None, defaulting(None)] = None
    rehearses: Annotated[bool, defaulting(False)] = False
    owner: Annotated[Owner | None, defaulting(None)] = None
    http: _Text = None
    epoch: Annotated[int | None, defaulting(None)] = None
    at: Annotated[datetime | None, defaulting(None)] = None
    age_seconds: Annotated[float | None, defaulting(None)] = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ServiceStatus:
        """The status in a document of MongoDB."""
        return _ADAPTER.validate_python(dict(document))

    def document(self) -> dict[str, Any]:
        """The status as MongoDB holds it."""
        document: dict[str, Any] = _ADAPTER.dump_python(self, by_alias=True, warnings=False)
        return document

    def news(self) -> ServiceStatus:
        """The status without what changes all the time."""
        workers = {
            name: replace(
                worker,
                report_age_seconds=None,
                stream=None if worker.stream is None else replace(worker.stream, silent_seconds=0.0, place=None),
            )
            for name, worker in self.workers.items()
        }
        return replace(self, workers=workers)

    def listeners(self) -> dict[str, ListenerReport]:
        """What the workers report of their listeners; one report of each, however many processes serve it."""
        reports: dict[str, list[ListenerReport]] = {}
        for worker in self.workers.values():
            for name, report in sorted(worker.listeners.items()):
                reports.setdefault(name, []).append(report)
        return {name: together(each) for name, each in reports.items()}

    def processes(self, worker: str) -> dict[str, WorkerStatus]:
        """The processes of a worker, by their names."""
        found = {name: each for name, each in self.workers.items() if name.partition("/")[0] == worker}
        return found or {worker: WorkerStatus()}


_ADAPTER = TypeAdapter(ServiceStatus)
