"""Keeping workers running: each has a keeper, which starts it, waits for its end, judges it by the ending that its last
report names, and starts it again. Exit codes decide nothing, since user code can produce all of them.

| the worker's ending | the keeper |
|---|---|
| declaration changed | starts it again at once |
| memory limit | starts it again at once |
| cannot be built | waits a minute, or until a declaration or a file of the user's code has changed |
| fenced | tells the supervisor, which steps down; does not start it again |
| none: a crash, after it has got further | starts it again at once, 30 times a minute at most |
| none: a crash | starts it again after a backoff that doubles, with jitter; a minute of health ends it |

A worker that says nothing for `stage_seconds`, or whose model works on one batch for longer, is killed. The next one is
told how the one before it ended, so that it can find out whether a row is the reason.

The fleet is the set of keepers. Its caller gives it names and assignments; it never reads the configuration.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import structlog

from components.import_folder import ImportFolder, Stamp
from daemon.engine import Ending, Engine, WorkerProcess, ended
from daemon.handlers.predict.suspects import Ended
from daemon.health.backoff import backoff
from daemon.health.readiness import WorkerState, stuck
from daemon.health.worker_report import WorkerReport
from daemon.supervisor.timed_wait import timed_wait, watched
from daemon.worker.assignment import WorkerAssignment

log = structlog.get_logger(__name__)

HEALTHY_SECONDS = 60.0
CANNOT_BE_BUILT_SECONDS = 60.0
LOOK_SECONDS = 1.0
AT_ONCE = 30
"""So many starts in a minute may come at once: what kills its process for every row must not start for ever."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Backoff:
    """Delays that double from `first` to `most` seconds, with jitter, and begin anew after a healthy run. There is none
    after a run that got further than the one before it, but for AT_ONCE such runs in a minute.
    """

    def __init__(self, first: float = 0.5, most: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = first
        self._most = most
        self._clock = clock
        self._failures = 0
        self._at_once: deque[float] = deque(maxlen=AT_ONCE)

    def delay(self, ran_seconds: float, *, further: bool = False) -> float:
        """How long to wait after a run of `ran_seconds` that ended by itself."""
        if ran_seconds >= HEALTHY_SECONDS:
            self._failures = 0
        if further and (len(self._at_once) < AT_ONCE or self._clock() - self._at_once[0] >= 60.0):
            self._at_once.append(self._clock())
            return 0.0
        self._failures = min(self._failures + 1, 16)
        return backoff(self._failures, self._first, self._most)


class WorkerKeeper:
    """Keeps one worker running until `stop`. `changed` is called whenever there is news of it, `fenced` when it was
    fenced.
    """

    def __init__(
        self,
        engine: Engine,
        spec: WorkerAssignment,
        listeners: tuple[str, ...],
        changed: Callable[[], None],
        fenced: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._listeners = listeners
        self._changed = changed
        self._fenced = fenced
        self._code = ImportFolder(spec.import_root, spec.allow_imports)
        self._process: WorkerProcess[WorkerReport] | None = None
        self._backoff = Backoff()
        self._nudged = asyncio.Event()
        self._stopping = False
        self._ended = asyncio.Event()
        self._restarts = 0
        self._before: Ended = ""
        self._overdue: str | None = None
        self._reason: str | None = None
        self._caught_up = dict.fromkeys(listeners, time.monotonic())
        self._untold = False
        self._counted: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    async def run(self) -> None:
        """Starts the worker, again and again, until `stop` or until it is fenced."""
        try:
            while not self._stopping:
                code = await asyncio.to_thread(self._code.stamps)
                delay = await self._run_once()
                if self._stopping or delay is None:
                    return
                self._restarts += 1
                self._nudged.clear()
                await self._pause(delay, code)
        finally:
            self._ended.set()
            self._changed()

    async def _pause(self, seconds: float, code: frozenset[Stamp]) -> None:
        """Waits until the next start: for so long, or until `nudge`, or until the user's code is no longer `code`."""
        end = time.monotonic() + seconds
        while not self._nudged.is_set() and (left := end - time.monotonic()) > 0:
            await timed_wait(self._nudged, min(left, LOOK_SECONDS))
            if left > LOOK_SECONDS and await asyncio.to_thread(self._code.stamps) != code:
                log.info("the code of a worker has changed: it is started again", worker=self._spec.name)
                return

    async def stop(self, seconds: float) -> None:
        """Stops the worker, in `seconds` at most, and does not start it again."""
        self._stopping = True
        self._nudged.set()
        if self._process is not None:
            await self._process.stop(seconds)
        await self._ended.wait()

    def kill(self) -> None:
        """Ends the worker at once."""
        self._stopping = True
        self._nudged.set()
        if self._process is not None:
            self._process.kill()

    def nudge(self) -> None:
        """Something has changed: a worker that waits to be started again is started now."""
        self._nudged.set()

    def tune(self, spec: WorkerAssignment) -> None:
        """The worker takes up what has changed in its settings; the next one starts with all of them."""
        self._untold = True
        self._spec = spec
        self._tell()

    def _tell(self) -> None:
        if self._untold and self._process is not None and self._process.report is not None:
            self._untold = False  # it reports once it has read its assignment
            self._process.tell(self._spec.tuning())

    def state(self) -> WorkerState:
        """What is known of the worker."""
        process = self._process
        return WorkerState(
            name=self._spec.name,
            listeners=self._listeners,
            pid=process.pid if process else None,
            started_at=process.started_at if process else 0.0,
            report=process.report if process else None,
            reported_at=process.reported_at if process else None,
            restarts=self._restarts,
            reason=self._reason,
            caught_up=self._caught_up,
            counted=tuple((name, dict(labels), value) for (name, labels), value in self._counted.items()),
        )

    async def _run_once(self) -> float | None:
        """One life of the worker; seconds until the next, None where there is to be none."""
        try:
            spec, self._untold = replace(self._spec, ended=self._before), False
            self._process = process = await self._engine.start(spec, self._changed)
        except OSError as error:
            delay = self._backoff.delay(0.0)
            self._reason = f"it cannot be started: {error}"
            log.warning("worker cannot be started", worker=self._spec.name, error=str(error), again_in_seconds=delay)
            return delay
        log.info("worker started", worker=self._spec.name, pid=process.pid)
        self._changed()
        if self._stopping:  # asked while the process came up
            process.kill()
        self._overdue = None
        looked = time.monotonic()
        async for _ in watched(process, LOOK_SECONDS):
            self._tell()
            before, looked = looked, time.monotonic()
            if looked - before > LOOK_SECONDS + self._spec.stage_seconds / 2:
                continue  # it was this process that stood still: what workers reported meanwhile is not yet read
            if self._overdue is None and not self._stopping:
                self._overdue = stuck(self.state(), time.monotonic(), self._spec.stage_seconds)
                if self._overdue is not None:
                    log.error("worker is ended", worker=self._spec.name, pid=process.pid, reason=self._overdue)
                    process.kill()
        code = await process.wait()
        last = self.state()
        self._caught_up = {name: last.handled_until(name) or at for name, at in self._caught_up.items()}
        self._process = None
        if self._spec.partitions > 1 and process.report is not None:
            # Its siblings' counters go on: the sum of all must not fall, or Prometheus would take it for a new count.
            self._counted.update({(name, tuple(its.items())): value for name, its, value in process.report.samples})
        self._before = self._how(process, code)
        return self._judge(process, code)

    def _how(self, process: WorkerProcess[WorkerReport], code: int) -> Ended:
        if self._overdue is not None:
            return "timed_out"
        if code == -signal.SIGKILL:
            return "killed"
        return "" if process.report is not None and process.report.ending is not None else "crashed"

    def _judge(self, process: WorkerProcess[WorkerReport], code: int) -> float | None:
        ran = time.monotonic() - process.started_at
        said = process.report.reason if process.report is not None else None
        ending = process.report.ending if process.report is not None else None
        how = str(ending) if ending is not None else ended(code)
        event = {"worker": self._spec.name, "pid": process.pid, "exit": how, "reason": said}
        self._reason = how + (f": {said}" if said else "")
        self._changed()
        if self._stopping:
            log.info("worker stopped", **event)
            return None
        if ending is Ending.FENCED:
            log.warning("worker was fenced: another daemon owns the service, or the database was put back", **event)
            self._fenced(self._reason)
            return None
        if (
            ending is Ending.DECLARATION_CHANGED and ran >= 1.0
        ):  # sooner than that, over and over, is no change but a fault
            log.info("worker starts again with the new declaration", **event)
            return 0.0
        if ending is Ending.MEMORY_LIMIT:
            log.warning("worker is replaced", **event)
            return 0.0
        if ending is Ending.CANNOT_BE_BUILT:
            log.error("worker cannot run what is declared: mend service.toml or the code that it names", **event)
            return CANNOT_BE_BUILT_SECONDS
        delay = self._backoff.delay(ran, further=further(process.report))
        log.error("worker ended and is started again", **event, again_in_seconds=round(delay, 1))
        return delay


def further(report: WorkerReport | None) -> bool:
    """Whether the worker finished a batch, or learned which rows may have ended the one before it: then it is worth
    another start at once.
    """
    if report is None:
        return False
    return report.settled > 0 or any(any(listener.rows.values()) for listener in report.listeners.values())


class Fleet:
    """The workers that should run. `spawn` runs a keeper, and makes an error in one an error of the daemon."""

    def __init__(
        self, engine: Engine, spawn: Spawn, changed: Callable[[], None], fenced: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._spawn = spawn
        self._changed = changed
        self._fenced = fenced
        self._keepers: dict[str, WorkerKeeper] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The workers that are kept running."""
        return tuple(self._keepers)

    def start(self, spec: WorkerAssignment, listeners: tuple[str, ...]) -> None:
        """Keeps this worker running from now on."""
        keeper = WorkerKeeper(self._engine, spec, listeners, self._changed, self._fenced)
        self._keepers[spec.name] = keeper
        self._spawn(keeper.run())

    def tune(self, spec: WorkerAssignment) -> None:
        """See `WorkerKeeper.tune`."""
        if spec.name in self._keepers:
            self._keepers[spec.name].tune(spec)

    async def stop(self, names: Iterable[str], seconds: float) -> None:
        """Stops these workers together, in `seconds` at most."""
        leaving = [keeper for name in list(names) if (keeper := self._keepers.get(name)) is not None]
        await asyncio.gather(*(keeper.stop(seconds) for keeper in leaving))
        self._keepers = {name: keeper for name, keeper in self._keepers.items() if keeper not in leaving}
        self._changed()

    def kill(self) -> None:
        """Ends all workers at once."""
        for keeper in self._keepers.values():
            keeper.kill()

    def nudge(self) -> None:
        """Workers that wait to be started again are started now."""
        for keeper in self._keepers.values():
            keeper.nudge()

    def states(self) -> tuple[WorkerState, ...]:
        """What is known of each worker."""
        return tuple(keeper.state() for keeper in self._keepers.values())
