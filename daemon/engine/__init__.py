"""Engines start the processes of workers and jobs. An engine starts a process from its specification and returns a
handle; the caller restarts it if it ends.

A process needs only its specification, so the same program can run as a child process (`daemon.engine.local`) or on
another machine, with another engine. `daemon.supervisor.service` chooses it.

    __init__.py     the protocols of every engine: handles, reports, the reason of an end
    local.py        the engine of this machine: child processes, by fork from the nursery or by exec
    nursery.py      the supervisor's side of the nursery: keeps it running, and asks it for processes
    fork_server.py  the nursery itself: has imported their modules, and forks
    assignment.py   the specification of a process: what it reads first, and how its reports are read
    child.py        the child's side: the descriptors for reports and log lines, the end of the parent
    pipes.py        the pipes between the two, and the lines that come through them
    threads.py      how many threads the numerical libraries of a process use, and how it yields to those that serve
    family.py       finds the processes that a process started, by its mark, and ends them with it
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from daemon.engine.assignment import Assignment
from daemon.health.report import Ending

__all__ = ["Ending", "Engine", "WorkerProcess", "ended"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class WorkerProcess(Protocol[R_co]):
    """A worker, or the process of a job, that was started."""

    @property
    def pid(self) -> int:
        """The process id on its machine."""

    @property
    def started_at(self) -> float:
        """When it was started, by the monotonic clock."""

    @property
    def report(self) -> R_co | None:
        """The latest readable report, None before the first."""

    @property
    def reported_at(self) -> float | None:
        """When the latest report came, by the monotonic clock."""

    def tell(self, order: Mapping[str, Any]) -> None:
        """Sends it one more order, once it has reported."""

    async def wait(self) -> int:
        """Waits until it has ended and its last report is read; the exit code, negative for a signal."""

    async def stop(self, seconds: float) -> int:
        """Asks it to drain and end; kills it after `seconds`. The exit code."""

    def kill(self) -> None:
        """Ends it at once."""


class Engine(Protocol):
    """Starts workers and jobs."""

    async def start(self, spec: Assignment[R], on_report: Callable[[], None]) -> WorkerProcess[R]:
        """Starts a process; `on_report` is called in the event loop at each report. Raises OSError if no process can be
        started.
        """

    def succeed(self, place: str) -> None:
        """Ends what an earlier daemon of this place has left running, and is that place's engine from now on."""

    async def close(self) -> None:
        """Ends the waiting starts and frees the engine's resources; running processes go on."""


def ended(code: int) -> str:
    """An exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
