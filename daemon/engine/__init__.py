"""Where worker processes run. An engine starts a worker from its specification and hands back a handle; who keeps it running is not its business.

A worker needs nothing but its specification: the same program runs as a child process here (`daemon.engine.local`) or wherever another
engine puts it. What it reports, how it is told to stop and what its exit codes mean is said here, for every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Engine", "Exit", "Report", "WorkerProcess", "WorkerSpec"]

Report = Mapping[str, Any]
"""What a worker says of itself: state, reason, busy stages, its listeners, its stream, metric samples."""


class Exit(IntEnum):
    """What a worker's exit code says to who keeps it. Any other code, or a signal, is a crash."""

    STOPPED = 0
    DECLARATION_CHANGED = 64
    CANNOT_BE_BUILT = 65
    PARENT_GONE = 70
    FENCED = 76


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker is told. `log` is that section of service.toml; times are in seconds; `module` is the program that runs."""

    worker: str
    uri: str = field(repr=False)  # it may hold a password
    database: str
    service: str
    epoch: int
    state_dir: Path
    import_root: Path
    allow_imports: tuple[str, ...]
    queue_rows: int
    queue_bytes: int
    log: Mapping[str, str]
    stop_timeout: float
    module: str = "daemon.worker"

    def order(self) -> dict[str, Any]:
        """What the worker reads first, as JSON values."""
        return {
            "uri": self.uri,
            "database": self.database,
            "service": self.service,
            "worker": self.worker,
            "epoch": self.epoch,
            "state_dir": str(self.state_dir),
            "import_root": str(self.import_root),
            "allow_imports": list(self.allow_imports),
            "queue_rows": self.queue_rows,
            "queue_bytes": self.queue_bytes,
            "log": dict(self.log),
            "stop_timeout": self.stop_timeout,
        }


class WorkerProcess(Protocol):
    """A worker that was started."""

    @property
    def pid(self) -> int:
        """The process id, on whatever machine it runs."""

    @property
    def started_at(self) -> float:
        """When it was started, by the monotonic clock."""

    @property
    def report(self) -> Report | None:
        """The latest report, None before the first."""

    @property
    def reported_at(self) -> float | None:
        """When the latest report came, by the monotonic clock."""

    async def wait(self) -> int:
        """Waits until it has ended and its last report is read; the exit code, negative for a signal."""

    async def stop(self, seconds: float) -> int:
        """Asks it to drain and end; kills it after `seconds`. The exit code."""

    def kill(self) -> None:
        """Ends it at once."""


class Engine(Protocol):
    """Starts workers."""

    async def start(self, spec: WorkerSpec, on_report: Callable[[], None]) -> WorkerProcess:
        """Starts a worker; `on_report` is called in the event loop at each report. Raises OSError where no process can be had."""
