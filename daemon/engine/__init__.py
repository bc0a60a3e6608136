"""Where workers and jobs run. An engine starts a process from its specification and hands back a handle; who keeps it
running is not its business.

Such a process needs nothing but its specification: the same program runs as a child process here
(`daemon.engine.local`) or wherever another engine puts it. What it reports, how it is told to stop and what its exit
codes mean is said here, for every engine.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol, TypeVar

__all__ = ["Engine", "Exit", "Spec", "WorkerProcess", "ended"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Exit(IntEnum):
    """What an exit code says to who keeps a worker or runs a job. Any other code, or a signal, is a crash."""

    STOPPED = 0
    DECLARATION_CHANGED = 64
    CANNOT_BE_BUILT = 65
    PARENT_GONE = 70
    FENCED = 76


class Spec(Protocol[R_co]):
    """What an engine needs to know of a process: its name for logs, the module that runs, what it is told, and how its
    reports are read.
    """

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def module(self) -> str:
        """The program."""

    def order(self) -> dict[str, Any]:
        """What it reads first, as JSON values."""

    def decode(self, line: bytes) -> R_co:
        """The report in a line of its standard output. Raises ReportRefused."""


class WorkerProcess(Protocol[R_co]):
    """A worker, or the process of a job, that was started."""

    @property
    def pid(self) -> int:
        """The process id, on whatever machine it runs."""

    @property
    def started_at(self) -> float:
        """When it was started, by the monotonic clock."""

    @property
    def report(self) -> R_co | None:
        """The latest report that could be read, None before the first."""

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

    async def start(self, spec: Spec[R], on_report: Callable[[], None]) -> WorkerProcess[R]:
        """Starts a process; `on_report` is called in the event loop at each report. Raises OSError where no process can
        be had.
        """


def ended(code: int) -> str:
    """An exit code for a person."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
