"""The assignment of a job's process."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.engine.assignment import Assignment
from daemon.health.job_report import JobReport


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAssignment(Assignment[JobReport]):
    """What a job's process reads first; with `threads` None it chooses itself."""

    job: str
    module: str = "daemon.job"

    @property
    def name(self) -> str:
        return f"job {self.job}"

    def decode(self, line: bytes) -> JobReport:
        return JobReport.from_json(line)
