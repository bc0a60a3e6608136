"""The local engine: runs workers and jobs as child processes of the supervisor.

* A child's stdin stays open as long as the supervisor lives. Its end tells the child that the supervisor is gone, for
  any reason. Its first line is the child's assignment, so that no password is in a command line or an environment; the
  others answer its requests for signatures.
* Reports come through a descriptor of their own. Standard output and standard error belong to user code
  (`daemon.engine.pipes`).
* It leads a session of its own, so that a terminal's Ctrl-C reaches only the supervisor, which then stops its workers
  in order. The processes that it started end with it (`daemon.engine.family`).
* It has ended if its process has, even if its own children still hold its pipes open.
* `-P` keeps the current directory out of `sys.path`: what a worker imports does not depend on where the daemon was
  started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import structlog

from daemon.engine import WorkerProcess
from daemon.engine.assignment import Assignment
from daemon.engine.child import CHANNEL, answer
from daemon.engine.family import MARK, Orphans, become_subreaper, end_family, end_left_behind, new_mark
from daemon.engine.nursery import Forked, Nursery
from daemon.engine.pipes import Output, Pipes, Reports
from daemon.engine.threads import variables

log = structlog.get_logger(__name__)

R = TypeVar("R")

REAP_SECONDS: Final = 0.5
REAP_IDLE_SECONDS: Final = 20.0


class LocalEngine:
    """Starts workers as child processes: by the `nursery` if it can, else by exec. `without` names variables of the
    environment that they do not inherit.
    """

    def __init__(self, without: Iterable[str] = (), nursery: Nursery | None = None) -> None:
        self._without = frozenset(without)
        self._nursery = nursery
        self._place = ""
        self._running: dict[int, _LocalProcess[Any]] = {}
        self._orphans = Orphans()
        self._reaping: asyncio.TimerHandle | None = None

    async def start(self, spec: Assignment[R], on_report: Callable[[], None]) -> WorkerProcess[R]:
        """See `daemon.engine.Engine`."""
        become_subreaper()
        mark, pipes = new_mark(self._place), Pipes.open()
        inherited = {name: value for name, value in os.environ.items() if name not in self._without}
        environ = {**variables(spec.threads), **inherited, MARK: mark}
        process: Forked | Executed | None = None
        try:
            if self._nursery is not None:
                process = await self._nursery.fork(spec, mark, environ, pipes)
            process = process or _exec(spec, pipes, environ)
        except BaseException:
            pipes.close()
            raise
        finally:
            pipes.child.close()
        worker = _LocalProcess(spec, process, mark, pipes, on_report, self._ended)
        self._running[worker.pid] = worker
        worker.order(spec.order())
        if self._reaping is None:
            self._reap_in(REAP_IDLE_SECONDS)
        return worker

    def succeed(self, place: str) -> None:
        """See `daemon.engine.Engine`."""
        self._place = place
        if left := end_left_behind(place):
            log.warning("processes that an earlier daemon had left behind are ended", pids=sorted(left))

    async def close(self) -> None:
        """See `daemon.engine.Engine`."""
        if self._nursery is not None:
            await self._nursery.close()

    def _ended(self, worker: _LocalProcess[Any], family: set[int]) -> None:
        self._running.pop(worker.pid, None)
        self._orphans.expect(family)
        self._reap_in(REAP_SECONDS)

    def _reap_in(self, seconds: float) -> None:
        if self._reaping is not None:
            self._reaping.cancel()
        self._reaping = asyncio.get_running_loop().call_later(seconds, self._reap)

    def _reap(self) -> None:
        self._orphans.reap(self._running)
        self._reaping = None
        if self._orphans.waiting or self._running:
            self._reap_in(REAP_SECONDS if self._orphans.waiting else REAP_IDLE_SECONDS)


@dataclass(frozen=True, slots=True)
class Executed:
    """A process that was started by exec."""

    pid: int
    pidfd: int
    process: subprocess.Popen[bytes]

    def code(self) -> int:
        """Reaps it; the exit code, negative for a signal."""
        return self.process.wait()


def _exec(spec: Assignment[Any], pipes: Pipes, environ: Mapping[str, str]) -> Executed:
    ends = pipes.child
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", spec.module, spec.name],  # ps shows the name
        stdin=ends.stdin,
        stdout=ends.stdout,
        stderr=ends.stderr,
        pass_fds=(ends.reports, ends.log),
        start_new_session=True,
        env={**environ, CHANNEL: f"{ends.reports},{ends.log},{pipes.pass_}"},
    )
    return Executed(process.pid, os.pidfd_open(process.pid), process)


class _LocalProcess(Generic[R]):
    """A child process, from its start to its end."""

    def __init__(
        self,
        spec: Assignment[R],
        process: Forked | Executed,
        mark: str,
        pipes: Pipes,
        on_report: Callable[[], None],
        on_end: Callable[[_LocalProcess[Any], set[int]], None],
    ) -> None:
        self.pid = process.pid
        self.started_at = time.monotonic()
        self.report: R | None = None
        self.reported_at: float | None = None
        self._name = spec.name
        self._sign = spec.sign
        self._process = process
        self._mark = mark
        self._pipes = pipes
        self._on_report = on_report
        self._on_end = on_end
        loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = loop.create_future()
        self._readers = (
            Reports(pipes.reports, pipes.pass_, spec.name, spec.decode, self._take, self._answer),
            Output(pipes.stdout, spec.name, "stdout"),
            Output(pipes.stderr, spec.name, "stderr"),
        )
        self._family: set[int] = set()
        loop.add_reader(process.pidfd, self._end)

    def order(self, order: Mapping[str, object]) -> None:
        """Writes its assignment."""
        line = json.dumps(order).encode() + b"\n"
        # If it died before it read this, its exit code says more than the broken pipe.
        with suppress(BrokenPipeError):
            if os.write(self._pipes.stdin, line) != len(line):
                log.error("the assignment of a process is too long for a pipe", worker=self._name, bytes=len(line))
                self.kill()

    def tell(self, order: Mapping[str, object]) -> None:
        if not self._code.done():  # its pipe is open
            with suppress(BrokenPipeError, BlockingIOError):  # it has ended, or has not read for long and is ended soon
                os.write(self._pipes.stdin, json.dumps(order).encode() + b"\n")

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def stop(self, seconds: float) -> int:
        if not self._code.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):  # in Python 3.11 wait_for may pass over a cancellation
                return await self.wait()
        except TimeoutError:
            log.warning("worker did not stop in time and is killed", worker=self._name, pid=self.pid, seconds=seconds)
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        if not self._code.done():  # until it is reaped, no other process has its pid
            self._end_family()

    def _end_family(self) -> None:
        self._family |= end_family(self._mark, self.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _end(self) -> None:
        """The process has ended: ends the processes that it started. Its last output is in the pipes by now."""
        asyncio.get_running_loop().remove_reader(self._process.pidfd)
        os.close(self._process.pidfd)
        self._end_family()
        code = self._process.code()
        for reader in self._readers:
            reader.drain()
        self._pipes.close()
        if self._family:
            log.info(
                "the processes that a worker had started were ended with it",
                worker=self._name,
                pids=sorted(self._family),
            )
        self._code.set_result(code)
        self._on_end(self, self._family)

    def _answer(self, request: bytes) -> None:
        """Answers a request for a signature. Raises ReportRefused."""
        line = answer(request, self._sign)
        with suppress(BrokenPipeError, BlockingIOError):  # it ended, or it asks faster than it reads
            os.write(self._pipes.stdin, line)

    def _take(self, report: R) -> None:
        self.report = report
        self.reported_at = time.monotonic()
        self._on_report()
