"""What the process of a job reports: written by the process, one line of JSON each; read by the supervisor.

{"state", "doing", "pid", "threads", "reason", "still": seconds since the work last got on,
 "progress": {"step", "total", "loss", "learning_rate", "rows_per_second", "device", "metrics"},
 "log": lines since the last report, and at the end "result" or "error": {"type", "message", "traceback"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from daemon.health.report import Count, Ending, Name, Plain, Report, Seconds, reported


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far the work is; None is not known."""

    step: Count | None = None
    total: Count | None = None
    loss: float | None = None
    learning_rate: float | None = None
    rows_per_second: float | None = None
    device: str | None = None
    metrics: Mapping[Name, float] | None = None

    def known(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    def updated(self, newer: JobProgress) -> JobProgress:
        """What is known from both; of two values the newer one."""
        return replace(self, **newer.known())


@dataclass(frozen=True, slots=True)
class JobError:
    """What ended an attempt at a job."""

    type: str
    message: str
    traceback: str = ""


@reported
@dataclass(frozen=True, slots=True)
class JobReport(Report):
    """One job at work. `doing` is the part of the work in words; `reason` is what it waits for."""

    state: Literal["starting", "running", "waiting", "done", "stopped", "failed"]
    doing: str = ""
    pid: Count | None = None
    threads: Count | None = None
    progress: JobProgress = field(default_factory=JobProgress)
    reason: str | None = None
    still: Seconds = 0.0
    log: tuple[str, ...] = ()
    result: Mapping[Name, Plain | Mapping[Name, Plain]] | None = None
    error: JobError | None = None
    ending: Ending | None = None
