"""Where workers and jobs run. An engine starts a process from its specification and hands back a handle; who keeps it
running is not its business.

Such a process needs nothing but its specification: the same program runs as a child process here
(`daemon.engine.local`) or wherever another engine puts it.

    __init__.py     what every engine has in common: specifications, reports, how a process says why it ends
    local.py        the engine of this machine: child processes, by fork from the nursery or by exec
    nursery.py      the supervisor's side of the nursery: keeps it running, and asks it for processes
    fork_server.py  the nursery itself: has imported what they need, and forks
    child.py        the child's side: the descriptors for reports and log lines, the end of the parent
    pipes.py        the pipes between the two, and the lines that come through them
    threads.py      how many threads the numerical libraries of a process use
    family.py       what a process started: found by its mark, and ended with it
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Ending", "Engine", "JobSpec", "Report", "Spec", "WorkerProcess", "WorkerSpec", "ended"]

Report = Mapping[str, Any]
"""The report of a worker: state, reason, ending, threads, busy stages, listeners, stream, metric samples. For that of a
job see `daemon.job`.
"""


class Ending(StrEnum):
    """Why a process ends by itself: `ending` in its last report.

    A process that ends without it has crashed, whatever its exit code: user code can produce every exit code.
    """

    STOPPED = "stopped"
    DECLARATION_CHANGED = "declaration_changed"
    CANNOT_BE_BUILT = "cannot_be_built"
    FENCED = "fenced"

    @classmethod
    def of(cls, report: Report | None) -> Ending | None:
        """The ending that a process's last report names; None if it names none."""
        word = (report or {}).get("ending")
        return cls(word) if isinstance(word, str) and word in set(cls) else None

    def __str__(self) -> str:
        """For a person."""
        return self.value.replace("_", " ")


class Spec(Protocol):
    """What an engine needs to know of a process: its name for logs, the module that runs, and its order."""

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def module(self) -> str:
        """The program."""

    @property
    def torch(self) -> bool:
        """Whether it needs torch."""

    @property
    def threads(self) -> int | None:
        """The threads of its numerical libraries; None: the engine sets no number."""

    def order(self) -> dict[str, Any]:
        """What it reads first, as JSON values."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The order of a worker. `log` is that section of service.toml; times are in seconds; `module` is the program
    that runs.
    """

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
    signing_key: str = field(default="", repr=False)
    module: str = "daemon.worker"
    torch: bool = True
    threads: int | None = None

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.worker

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
            "threads": self.threads,
            "signing_key": self.signing_key,
        }


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The order of the process of one job; without `threads` the process chooses."""

    job: str
    uri: str = field(repr=False)
    database: str
    service: str
    epoch: int
    state_dir: Path
    import_root: Path
    allow_imports: tuple[str, ...]
    log: Mapping[str, str]
    signing_key: str = field(repr=False)
    threads: int | None = None
    module: str = "daemon.job"
    torch: bool = True

    @property
    def name(self) -> str:
        """The job's id."""
        return f"job {self.job}"

    def order(self) -> dict[str, Any]:
        """What the job reads first, as JSON values."""
        return {
            "uri": self.uri,
            "database": self.database,
            "service": self.service,
            "epoch": self.epoch,
            "job": self.job,
            "state_dir": str(self.state_dir),
            "import_root": str(self.import_root),
            "allow_imports": list(self.allow_imports),
            "log": dict(self.log),
            "signing_key": self.signing_key,
            "threads": self.threads,
        }


class WorkerProcess(Protocol):
    """A worker, or the process of a job, that was started."""

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
    """Starts workers and jobs."""

    async def start(self, spec: Spec, on_report: Callable[[], None]) -> WorkerProcess:
        """Starts a process; `on_report` is called in the event loop at each report. Raises OSError if no process can be
        started.
        """

    async def close(self) -> None:
        """No start waits any longer, and what starts need is given back; processes that run go on."""


def ended(code: int) -> str:
    """An exit code for a person."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
