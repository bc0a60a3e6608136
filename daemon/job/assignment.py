"""The assignment of a job's process."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.engine.assignment import Assignment
from daemon.health.job_report import JobReport

__all__ = ["JobAssignment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAssignment(Assignment):
    """What a job's process reads first; with `threads` None it chooses itself."""

    job: str
    module: str = "daemon.job"

    @property
    def name(self) -> str:
        """The job's name in the log."""
        return f"job {self.job}"

    def decode(self, line: bytes) -> JobReport:
        """See `daemon.engine.Spec`."""
        return JobReport.from_json(line)
