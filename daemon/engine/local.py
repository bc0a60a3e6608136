"""The local engine: a worker, or the process of a job, is a child process of the supervisor.

* Its stdin stays open as long as the supervisor lives: its end tells the worker that the supervisor is gone, however
  that came about. The first line on it is the worker's specification, so that no password stands on a command line or
  in an environment.
* Its stdout carries reports, one JSON object a line. Any other line (a model that prints) is logged. A report that
  cannot be read is logged at most once a minute; the last good one stays.
* It runs in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone, which then stops its
  workers in order.
* `-P` keeps the current directory out of `sys.path`: what a worker imports does not depend on where the daemon was
  started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

import structlog

from daemon.engine import Spec, WorkerProcess
from daemon.health.report import ReportRefused

__all__ = ["LocalEngine"]

log = structlog.get_logger(__name__)

R = TypeVar("R")

_LINE_BYTES = 16 * 1024 * 1024
_LAST_WORDS_SECONDS = 2.0
_COMPLAIN_SECONDS = 60.0


class LocalEngine:
    """Starts workers as child processes; `without` names variables of the environment that they do not inherit."""

    def __init__(self, without: Iterable[str] = ()) -> None:
        self._without = frozenset(without)

    async def start(self, spec: Spec[R], on_report: Callable[[], None]) -> WorkerProcess[R]:
        """See `daemon.engine.Engine`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", spec.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in self._without},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec.order()).encode() + b"\n")
        # One that died before it read this tells more by its exit code than the broken pipe does.
        with suppress(ConnectionError):
            await process.stdin.drain()
        return _LocalWorker(spec, process, on_report)


class _LocalWorker(Generic[R]):
    """A child process that reports on its stdout."""

    def __init__(self, spec: Spec[R], process: asyncio.subprocess.Process, on_report: Callable[[], None]) -> None:
        self._name = spec.name
        self._decode = spec.decode
        self._process = process
        self._on_report = on_report
        self.pid = process.pid
        self.started_at = time.monotonic()
        self.report: R | None = None
        self.reported_at: float | None = None
        self._reader = asyncio.create_task(self._read(), name=f"reports of {spec.name}")
        self._complain_at = 0.0

    async def wait(self) -> int:
        code = await self._process.wait()
        # The last report often holds the reason. A grandchild that keeps the pipe open must not keep us.
        await asyncio.wait([self._reader], timeout=_LAST_WORDS_SECONDS)
        self._reader.cancel()
        return code

    async def stop(self, seconds: float) -> int:
        self._signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(asyncio.shield(self.wait()), seconds)
        except TimeoutError:
            log.warning("worker did not stop in time and is killed", worker=self._name, pid=self.pid, seconds=seconds)
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        # Its session holds whatever it started (data loaders, compilers): they go with it. Until it is reaped its group
        # is surely its own.
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                log.warning("worker wrote a line that is too long", worker=self._name, limit_bytes=_LINE_BYTES)
                continue
            if not line:
                return
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            self.report = self._decode(line)
        except ReportRefused as error:
            self._refuse(line, str(error))
            return
        self.reported_at = time.monotonic()
        self._on_report()

    def _refuse(self, line: bytes, reason: str) -> None:
        event = {"worker": self._name, "text": line.decode(errors="replace").rstrip()[:1000]}
        if not (line.startswith(b"{") and b'"state"' in line):
            log.info("worker printed", **event)
        elif (now := time.monotonic()) >= self._complain_at:
            self._complain_at = now + _COMPLAIN_SECONDS
            log.warning("a report cannot be read, the last good one stays", **event, reason=reason)
