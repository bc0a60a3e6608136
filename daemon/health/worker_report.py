"""What a worker reports: written by the worker, one line of JSON each; read by the supervisor.

{"state", "reason", "ending", "threads", "pid", "busy": {"listener.stage": seconds},
 "samples": [[name, {label: value}, number], ...],
 "listeners": {name: {"state", "reason", "generation", "version", "lag_seconds", "queue": {lane: keys},
                      "rows": {result: rows}, "dead_letters", "scan": null or
                          {"done", "total", "rate", "eta_seconds", "reason"}}},
 "stream": {"open", "keys", "opened", "silent_seconds", "place"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter

from daemon.health.report import Count, Ending, Name, Seconds, decoded

__all__ = ["ListenerPhase", "ListenerReport", "Sample", "ScanReport", "StreamReport", "WorkerPhase", "WorkerReport"]

ListenerPhase = Literal["starting", "running", "backfilling", "missing", "waiting", "careful", "failing"]
WorkerPhase = Literal["starting", "running", "waiting", "stopping", "failed"]

Sample = tuple[str, Mapping[str, str], float]
"""A Prometheus sample: its name, its labels, its value."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """How far a scan is. `total` is the number of rows when it began; `rate` is in rows a second."""

    done: Count
    total: Count | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ListenerReport:
    """One listener. `rows` counts the rows of this process by their result, `queue` the keys in each lane."""

    state: ListenerPhase
    reason: str | None = None
    generation: Count = 0
    version: Count = 0
    lag_seconds: Seconds = 0.0
    queue: Mapping[Literal["live", "scan"], Count] = field(default_factory=dict)
    scan: ScanReport | None = None
    rows: Mapping[Name, Count] = field(default_factory=dict)
    dead_letters: Count = 0

    @property
    def trouble(self) -> str | None:
        """Why its rows are not predicted as they come; None if they are."""
        if self.state in ("running", "backfilling", "careful"):
            return None
        return f"{self.state}: {self.reason}" if self.reason else self.state

    @property
    def backfill(self) -> str | None:
        """How far its scan is; None if none runs."""
        if self.scan is None:
            return None
        return f"backfilling: {self.scan.done} of {'?' if self.scan.total is None else self.scan.total} rows"


@dataclass(frozen=True, slots=True)
class StreamReport:
    """The change stream: whether it is open, the keys that it delivered, how often it was opened.

    `silent_seconds` is the time since the server last answered, which it does every second; `place` is the cluster time
    that the stream has reached.
    """

    open: bool
    keys: Count = 0
    opened: Count = 0
    silent_seconds: Seconds = 0.0
    place: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker. `busy` holds for how many seconds each stage ("listener.stage") has worked on its present batch."""

    state: WorkerPhase
    pid: Count
    stream: StreamReport
    reason: str | None = None
    listeners: Mapping[Name, ListenerReport] = field(default_factory=dict)
    busy: Mapping[Name, Seconds] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    ending: Ending | None = None
    threads: Count | None = None

    @classmethod
    def from_json(cls, line: bytes) -> WorkerReport:
        """The report in a line of JSON. Raises ReportRefused, and nothing else."""
        return decoded(_ADAPTER, line)

    def to_json(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(_ADAPTER.dump_python(self, warnings=False))


_ADAPTER = TypeAdapter(WorkerReport)
