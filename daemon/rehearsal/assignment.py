"""The assignment of a rehearsal's process."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.engine.assignment import Assignment
from daemon.health.rehearsal_report import RehearsalReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalAssignment(Assignment[RehearsalReport]):
    """What the process reads first. `rehearsal` is the request's id; to build a model may take `build_seconds`, a
    prediction `stage_seconds`.
    """

    rehearsal: str
    build_seconds: float
    stage_seconds: float
    module: str = "daemon.rehearsal"

    @property
    def name(self) -> str:
        return f"rehearsal {self.rehearsal}"

    def decode(self, line: bytes) -> RehearsalReport:
        return RehearsalReport.from_json(line)
