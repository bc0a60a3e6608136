"""The assignment of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.engine.assignment import Assignment
from daemon.handlers.predict.suspects import Ended
from daemon.health.worker_report import WorkerReport

__all__ = ["WorkerAssignment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAssignment(Assignment):
    """The first line that a worker reads; times are in seconds."""

    worker: str
    stop_timeout: float = 30.0
    queue_rows: int = 100_000
    queue_bytes: int = 256 * 1024 * 1024
    stage_seconds: float = 20.0
    memory: int = 0
    """Bytes; 0 for no limit."""
    ended: Ended = ""
    """How the previous process of this worker ended."""
    module: str = "daemon.worker"

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.worker

    def decode(self, line: bytes) -> WorkerReport:
        """See `daemon.engine.Spec`."""
        return WorkerReport.from_json(line)
