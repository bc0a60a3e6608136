"""One attempt at a job: its process from start to end, and its outcome (the table is in
`daemon.supervisor.job_runner`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog

from daemon.engine import Ending, Engine, WorkerProcess, ended
from daemon.health.job_report import JobError, JobProgress, JobReport
from daemon.health.service_status import RunningJob
from daemon.job.assignment import JobAssignment
from daemon.store.service.jobs import DECLARED_BY, LOG_LINES, Job
from daemon.supervisor.timed_wait import watched

log = structlog.get_logger(__name__)

RETRIES: Final = 2
"""Of a validation; a trainer declares its own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. A process that reports nothing for `silent`, or no progress for `still`, hangs."""

    poll: float = 5.0
    relay: float = 1.0
    silent: float = 120.0
    still: float = 600.0
    first_retry: float = 1.0
    most_retry: float = 300.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What its declaration grants a job; `refused` says why it is not run at all, `torch` whether it needs torch."""

    retries: int = RETRIES
    time_limit: float | None = None
    threads: int | None = None
    refused: str | None = None
    torch: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `retry`: another one may end differently."""

    state: Literal["done", "failed", "stopped", "lost"]
    result: Mapping[str, Any] | None = None
    error: JobError | None = None
    retry: bool = False


class Attempt:
    """One process for one job, from its start to its end."""

    def __init__(self, job: Job, terms: Terms, limits: Limits) -> None:
        self.job = job
        self.terms = terms
        self.process: WorkerProcess[JobReport] | None = None
        self.stopping = False
        self.progress = JobProgress()
        self._limits = limits
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._started = time.monotonic()
        self._outcome: Outcome | None = None

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def ran(self) -> float:
        """Seconds that the job has run, in all attempts."""
        return self.job.ran + time.monotonic() - self._started

    @property
    def failures(self) -> int:
        """Failures in a row, if this attempt is one: those before it count if it got no further than they did."""
        further = (self.progress.step or 0) > self.job.best_step
        return 1 if further else self.job.failures + 1

    async def run(
        self, engine: Engine, spec: JobAssignment, relay: Callable[[Attempt], Coroutine[Any, Any, bool]]
    ) -> Outcome:
        """Runs the process to its end. `relay` stores what it has reported; it is False if the job is not ours."""
        try:
            self.process = process = await engine.start(spec, self._heard)
        except OSError as error:
            return failed("CannotStart", f"its process cannot be started: {error}", retry=True)
        log.info("job started", job=self.id, pid=process.pid, attempt=self.job.attempts)
        if self.stopping:  # `kill` was called while the process started
            process.kill()
        async for _ in watched(process, self._limits.relay):
            overdue = self._overdue(process, time.monotonic())
            if overdue is not None:
                self._outcome = overdue
                process.kill()
            elif not await relay(self):
                self._outcome = Outcome("lost")
                process.kill()
        return self._judged(process, await process.wait())

    def lines(self) -> list[str]:
        """The lines reported since the last call, for the job's log."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def keep(self, lines: list[str]) -> None:
        """These lines could not be stored: the next `lines` returns them again."""
        self._lines.extendleft(
            reversed(lines[-(LOG_LINES - len(self._lines)) :] if len(self._lines) < LOG_LINES else [])
        )

    def give_up(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()

    def state(self) -> RunningJob:
        """The attempt as the service's status shows it."""
        job, pid = self.job, self.process.pid if self.process else None
        seconds = round(self.ran, 1)
        return RunningJob(job.id, job.kind, job.target, job.model, job.attempts, seconds, pid, self.progress)

    def _heard(self) -> None:
        report = self.process.report if self.process is not None else None
        if report is not None:
            self.progress = self.progress.updated(report.progress)
            self._lines.extend(report.log)

    def _overdue(self, process: WorkerProcess[JobReport], now: float) -> Outcome | None:
        limit, report = self.terms.time_limit, process.report
        if limit is not None and self.ran > limit:
            what = f"{DECLARED_BY[self.job.kind]} {self.job.target!r}"
            message = (
                f"it was not done after {limit:g} s of work; raise the time_limit of {what}, or give it less to do"
            )
            return failed("TimeLimit", message)
        silent = now - (process.reported_at or process.started_at)
        if silent > self._limits.silent:
            return failed("Hanging", f"its process has reported nothing for {silent:.0f} s, and was ended", retry=True)
        still = silent if report is None else report.still + silent
        if still > self._limits.still and (report is None or report.state != "waiting"):
            during = f", while it was {report.doing}" if report is not None and report.doing else ""
            return failed("Hanging", f"it has made no progress for {still:.0f} s{during}, and was ended", retry=True)
        return None

    def _judged(self, process: WorkerProcess[JobReport], code: int) -> Outcome:
        if self._outcome is not None:
            return self._outcome
        report = process.report or JobReport("starting")
        if report.state == "done":
            return Outcome("done", report.result or {})
        if report.state == "stopped" or self.stopping:
            return Outcome("stopped")
        if report.ending is Ending.FENCED:
            return Outcome("lost")
        if report.error is not None:
            return Outcome("failed", error=report.error, retry=report.ending is not Ending.CANNOT_BE_BUILT)
        hint = " (out of memory, perhaps)" if code == -9 else ""
        doing = f" while it was {report.doing}" if report.doing else ""
        return failed("Crashed", f"its process ended with {ended(code)}{hint}{doing}", retry=True)


def failed(kind: str, message: str, *, retry: bool = False) -> Outcome:
    return Outcome("failed", error=JobError(kind, message), retry=retry)
