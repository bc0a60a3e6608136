"""The rehearser: runs rehearsals while this daemon leads, each in a process of its own.

| the process | the rehearsal |
|---|---|
| reports that it is done | has its result |
| works on a step for longer than that may take | a problem of the section at work |
| takes more memory than it may | a problem of the section at work |
| ends by itself or by a signal of its own code | a problem of the section at work |
| cannot be started, finds no MongoDB, is killed (SIGKILL) | is tried again, twice; then it has failed |

If a rehearsal fails, what serves stays, and whoever asked gets the reason.

Clients ask by requests (`daemon.store.registry.rehearsals`), the supervisor itself before it publishes a changed
service.toml.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from components.declarations import parsed
from components.errors import MongoUnavailable, PredictdError
from components.secrets import sealed
from daemon.config import Config
from daemon.engine import WorkerProcess, ended
from daemon.health.rehearsal_report import RehearsalReport
from daemon.rehearsal.assignment import RehearsalAssignment
from daemon.rehearsal.changes import changed
from daemon.store.connection import Data
from daemon.store.registry.components import Catalog
from daemon.store.registry.rehearsals import Part, Rehearsals, Result
from daemon.supervisor.claimer import Claimer
from daemon.supervisor.leader_context import LeaderContext
from daemon.supervisor.timed_wait import watched

log = structlog.get_logger(__name__)

AT_ONCE: Final = 2
ATTEMPTS: Final = 3
START_SECONDS: Final = 60.0
POLL_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 0.2
KILLED: Final = -9
MEMORY_SHARE: Final = 0.9
"""Of the memory that is free when it starts, if there is no limits.worker_memory."""


class Rehearser(Claimer):
    """Runs rehearsals between `start` and `stop`."""

    def __init__(self, module: str = "daemon.rehearsal") -> None:
        super().__init__(POLL_SECONDS)
        self._module = module
        self.torch = False
        """Whether a model of the service needs torch."""
        self._places = asyncio.Semaphore(AT_ONCE)
        self._processes: set[WorkerProcess[RehearsalReport]] = set()

    async def stop(self) -> None:
        """Ends all rehearsals. Their requests stay: the next leader claims them."""
        for task in self._tasks:
            task.cancel()
        self.kill()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def kill(self) -> None:
        """Ends their processes at once."""
        for process in self._processes:
            process.kill()

    # ---- requests -------------------------------------------------------------------------------------------------

    async def of_config(self, config: Config, known: Catalog, also: Collection[str], code: Path | None) -> Result:
        """Rehearses what `config` changes; `also` are the sections whose code has changed, `code` are the sources.
        Raises MongoUnavailable.
        """
        trust = self._context.pins.trust
        parts = [
            Part(kind, name, "config", parsed(kind, name, sealed(given, os.environ, trust.seal)))
            for kind in ("table", "model", "listener")
            for name, given in config.declarations()[f"{kind}s"].items()
        ]
        parts = changed(known, parts, also)
        if not parts:
            return Result()

        def ask(data: Data) -> str:
            return Rehearsals(data, self._context.service).ask(parts, trust)

        request = await self._context.call(ask)
        try:
            return await self._run(request, replace(self._context, config=config, code=code))
        finally:
            with suppress(MongoUnavailable):  # the TTL index removes it
                await self._context.call(lambda data: Rehearsals(data, self._context.service).forget(request))

    async def _prepare(self) -> None:
        await self._context.call(lambda data: Rehearsals(data, self._context.service).prepare())

    async def _turn(self) -> None:
        while (request := await self._context.call(self._claim)) is not None:
            self._keep(self._answer(request))

    def _claim(self, data: Data) -> str | None:
        return Rehearsals(data, self._context.service).claim(self._context.epoch)

    async def _answer(self, request: str) -> None:
        result, epoch = await self._run(request, self._context), self._context.epoch
        while True:
            with suppress(MongoUnavailable):
                return await self._context.call(
                    lambda data: Rehearsals(data, self._context.service).finish(request, epoch, result)
                )
            await asyncio.sleep(1.0)

    # ---- one rehearsal --------------------------------------------------------------------------------------------

    async def _run(self, request: str, context: LeaderContext) -> Result:
        began = time.monotonic()
        failed = ""
        for attempt in range(1, ATTEMPTS + 1):
            async with self._places:
                try:
                    result = await self._attempt(request, context)
                    break
                except OSError as error:
                    failed = f"its process cannot be started: {error}"
                except _FailedError as error:
                    failed = str(error)
            log.warning("a rehearsal could not take place", rehearsal=request, reason=failed, attempt=attempt)
        else:
            result = Result(failed=f"{failed} ({ATTEMPTS} attempts)")
        said: Mapping[str, Any] = {name: [": ".join(each) for each in getattr(result, name)] for name in _SAID}
        seconds = round(time.monotonic() - began, 2)
        refused = bool(result.problems or result.failed)
        (log.warning if refused else log.info)("rehearsed", rehearsal=request, refused=refused, seconds=seconds, **said)
        return result

    async def _attempt(self, request: str, context: LeaderContext) -> Result:
        """Runs one process. Raises OSError, and _FailedError if it could not rehearse."""
        config = context.config
        spec = RehearsalAssignment(
            rehearsal=request,
            build_seconds=config.limits.build_seconds,
            stage_seconds=config.limits.stage_seconds,
            module=self._module,
            torch=self.torch or any(model.type == "torch" for model in config.models.values()),
            **context.assignment(()),
        )
        room = config.limits.worker_memory or await asyncio.to_thread(_free)
        process = await context.engine.start(spec, lambda: None)
        self._processes.add(process)
        try:
            overdue = await self._watch(process, room)
        finally:
            process.kill()
            self._processes.discard(process)
        code, report = await process.wait(), process.report or RehearsalReport()
        found = Result(report.problems, report.warnings, report.notes)
        if report.done:
            return found
        if not report.stage or (code == KILLED and overdue is None):
            raise _FailedError(overdue or f"its process ended with {ended(code)} before it was done")
        why = overdue or f"it ended the process with {ended(code)}"
        return replace(found, problems=(*found.problems, (report.stage, why)))

    async def _watch(self, process: WorkerProcess[RehearsalReport], room: int) -> str | None:
        """Returns when it has ended, or why it must be ended."""
        async for _ in watched(process, WATCH_SECONDS):
            report = process.report
            within = START_SECONDS if report is None else report.within
            since = time.monotonic() - (process.reported_at or process.started_at)
            if since > within and not (report is not None and report.done):
                what = "one step of it" if report is not None and report.stage else "its process"
                more = "" if report is None or not report.stage else f"; {_MORE} if it only needs more time"
                return f"{what} took more than {round(within, 1):g} s{more}"
            if (used := await asyncio.to_thread(_memory, process.pid)) > room:
                return f"it takes {used >> 20:,} MiB of memory, and {room >> 20:,} MiB is the most"
        return None


_SAID: Final = ("problems", "warnings", "notes")
_MORE: Final = "raise limits.build_seconds (to build it) or limits.stage_seconds (to predict its rows)"


class _FailedError(PredictdError):
    """The rehearsal could not take place; another attempt may help."""


def _memory(pid: int) -> int:
    """The memory of a process that is not shared, in bytes; 0 if it has ended."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _free() -> int:
    """The memory that a process may take at most, in bytes."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(MEMORY_SHARE * int(available.split()[1]) * 1024)
    return 1 << 62
