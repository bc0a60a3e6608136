"""The assignment of a worker."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from daemon.engine.assignment import Assignment
from daemon.handlers.predict.suspects import Ended
from daemon.health.worker_report import WorkerReport
from daemon.store.partition import Partition

COMPILE_SECONDS: Final = 600.0
TUNED = ("log", "queue_rows", "queue_bytes", "memory")
"""What a running worker takes up when it changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAssignment(Assignment[WorkerReport]):
    """The first line that a worker reads; times are in seconds."""

    worker: str
    partition: int = 0
    partitions: int = 1
    stop_timeout: float = 30.0
    queue_rows: int = 100_000
    queue_bytes: int = 256 * 1024 * 1024
    stage_seconds: float = 20.0
    compile_seconds: float = COMPILE_SECONDS
    """After so long it gives up compiling a model."""
    memory: int = 0
    """Bytes; 0 for no limit."""
    ended: Ended = ""
    """How the previous process of this worker ended."""
    module: str = "daemon.worker"

    @property
    def name(self) -> str:
        """The name of the process: the worker's, with its number if several share the worker's keys."""
        return self.share.process(self.worker)

    @property
    def share(self) -> Partition:
        """The process's share of the keys."""
        return Partition(self.partition, self.partitions)

    def tuning(self) -> dict[str, Any]:
        """What a running worker takes up, as JSON values. What its listeners' limits are it reads in the registry."""
        return {name: getattr(self, name) for name in TUNED}

    def tuned(self, line: bytes) -> Self:
        """The assignment with what `tuning` of a later one gave."""
        return replace(self, **{name: value for name, value in json.loads(line).items() if name in TUNED})

    def decode(self, line: bytes) -> WorkerReport:
        return WorkerReport.from_json(line)
