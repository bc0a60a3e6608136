"""The composition root of a worker: starts its parts, reports, swaps versions, and stops."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.errors import Fenced, PredictdError
from components.import_paths import ImportPolicy
from daemon.engine import Ending, threads
from daemon.engine.child import Channel
from daemon.handlers.predict.decoding import Decoders
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.model_threads import ModelThreads, OneThread
from daemon.health.measures import WorkerMeasures
from daemon.health.worker_report import StreamReport, WorkerPhase, WorkerReport
from daemon.listeners.intake import PositionSaver, StreamIntake
from daemon.listeners.subscription import Subscription
from daemon.logs.setup import configure
from daemon.logs.text import brief, readable
from daemon.store.connection import make_client, open_database
from daemon.store.mongo_retry import MongoRetry, Stopping
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.registry import Declared, Registry
from daemon.store.registry.trust import Trust
from daemon.store.rows.positions import Positions
from daemon.worker.assignment import WorkerAssignment
from daemon.worker.compiler import Compiler
from daemon.worker.listener_run import DeclarationChanged, ListenerRun, Shared, chained
from daemon.worker.memory import MemoryLimit
from daemon.worker.search_desk import SearchDesk

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 0.5
REPORT_IDLE_SECONDS: Final = 2.0
SWAP_AGAIN_SECONDS: Final = 30.0
COMPILE_SECONDS: Final = 1.0
REASON: Final = 400
"""The most characters of a reason: a declaration's error has its remedy at the end."""


class Worker:
    """The composition root of the process."""

    def __init__(self, assignment: WorkerAssignment, channel: Channel) -> None:
        self.assignment = assignment
        self._channel = channel
        self._memory = MemoryLimit(assignment.memory)
        self._tuned = False
        self._ending: Ending | None = None
        self.stopping = threading.Event()
        self.patience = MongoRetry(self.stopping)
        self.measures = WorkerMeasures()
        self.database: Database[dict[str, Any]]
        self.shared: Shared
        self._preprocess: dict[str, OneThread] = {}
        self._decoders: Decoders
        self.runs: list[ListenerRun] = []
        self.intake: StreamIntake | None = None
        self.keeper: PositionSaver | None = None
        self.failure: BaseException | None = None
        self.outgrown: str | None = None
        self.state: WorkerPhase = "starting"
        self.reason: str | None = None
        self._reporting = threading.Lock()
        self._reported: WorkerReport | None = None
        self._reported_at = 0.0
        self.reported_all = threading.Event()

    # ---- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads and starts everything. Raises DeclarationError if the user's code cannot be built."""
        assignment = self.assignment
        self._decoders = Decoders(threads.chosen(os.environ))
        self.database = self.patience("mongodb", self._connect)
        trust, policy = Trust.decoded(assignment.trust, self._channel), ImportPolicy(assignment.allow_imports)
        self.shared = Shared(
            assignment,
            self.database,
            Registry(self.database, assignment.service, assignment.epoch, trust),
            ModelLoader(self.database, assignment.service, policy, trust, self._model_threads),
            self.patience,
            self.measures,
            self.fail,
            Compiler(assignment.compile_seconds),
        )
        declared = self.patience("registry", lambda: self.shared.registry.worker(assignment.worker))
        for name in declared:
            self.runs = [
                *self.runs,
                self.patience("model", partial(self._load, name, declared)),
            ]  # the reporter may read them
        sessions = tuple(session for run in self.runs for session in run.outputs.sessions)
        paths = tuple(sorted({path for run in self.runs for path in chained(run.declared)}))
        reads_own = {path.split(".")[1] for path in paths} & {run.declared.name for run in self.runs}
        subscription = Subscription(
            service=assignment.service,
            tables=tuple(sorted({run.feed.table for run in self.runs})),
            chained=paths,
            dropped=() if reads_own else sessions,
            partition=assignment.share,
            outputs=tuple((run.feed.table, run.declared.name) for run in self.runs),
        )
        self.intake = StreamIntake(
            self.database,
            subscription,
            Positions(self.database, assignment.service, assignment.worker, assignment.epoch, assignment.share),
            [run.feed for run in self.runs],
            patience=self.patience,
            count_keys=self.measures.stream_keys.inc,
            count_open=self.measures.stream_opens.inc,
            show_headroom=self.measures.oplog_headroom.set,
            sessions=sessions,
        )
        for run in self.runs:
            run.scan.claim()
        self.intake.claim()
        # What went live while the models were loaded may have been told to the process before this one.
        now = self.patience("registry", lambda: self.shared.registry.worker(assignment.worker))
        for run in self.runs:
            newer = now.get(run.declared.name)
            if newer is not None and newer.generation != run.corridor.live.generation:
                self.shared.swaps.put(run)
        self.intake.look()
        for run in self.runs:  # after the claim: an older leader adds no more
            self.patience(f"{run.declared.name}.letters", run.letters.load)
        self.keeper = PositionSaver(self.intake, [run.scan for run in self.runs], self.patience)
        self.report()  # what was learned from the previous process's end, before a row may end this one
        for run in self.runs:
            run.threads.start()
            self._thread(run.scan.run, f"{run.declared.name}.scan")
        self._thread(self._swap, "swap")
        self._thread(self._compile, "compile")
        if assignment.partition == 0:  # one of its processes answers
            self._thread(partial(SearchDesk(self.shared, self.runs).run, self.stopping), "searches")
        self._thread(self.intake.run, "stream")
        self._thread(self.keeper.run, "keeper")
        self.state = "running"
        if self._tuned:  # while it started
            self._tune()

    def told(self, line: bytes) -> None:
        """Takes a line of the supervisor's: an answer, or changed settings. Each listener looks at its own in the
        registry.
        """
        if self._channel.answered(line):
            return
        self.assignment = assignment = self.assignment.tuned(line)
        configure(**assignment.log, stream=self._channel.log)  # type: ignore[arg-type]
        self._memory.limit = assignment.memory
        self._tuned = True
        self._tune()
        log.info("settings are taken up", level=assignment.log.get("level"))

    def _tune(self) -> None:
        for run in list(self.runs):
            run.limit(self.assignment)
            self.shared.swaps.put(run)

    def _connect(self) -> Database[dict[str, Any]]:
        client = make_client(
            self.assignment.uri,
            f"predictd worker {self.assignment.worker}",
            socketTimeoutMS=20_000,
            # Every write may be sent twice, and `MongoRetry` sends it again. With the driver's own retries the server
            # would keep a record of every single update.
            retryWrites=False,
        )
        return open_database(client, self.assignment.database)

    def _model_threads(self, model: str) -> ModelThreads:
        """New threads of a model; all versions of it have the same one for `preprocess`."""
        if model not in self._preprocess:
            self._preprocess[model] = OneThread(f"{model}.preprocess")
        return ModelThreads(OneThread(f"{model}.model"), self._preprocess[model], self._decoders)

    def _load(self, name: str, read: dict[str, Declared]) -> ListenerRun:
        """Each read verifies all that is applied, so the one of the worker's listeners does for a first attempt; not if
        the model had no version then, as a listener before may have made one.
        """
        shared = self.shared
        known = read[name] if read[name].model.live is not None else None

        def now() -> Declared:
            nonlocal known
            first, known = known, None
            return first or shared.registry.listener(name)

        return ListenerRun(shared, *shared.loader.live(now, fresh=True))

    def _swap(self) -> None:
        """Loads promoted versions, one listener after the other, while the old ones run. A version that cannot be
        loaded is tried again later.
        """
        while True:
            run = self.shared.swaps.get()
            task = f"{run.declared.name}.swap"
            try:
                self.patience(task, partial(self._swapped, run))
                self.patience.note(task, None)
            except (DeclarationChanged, Fenced, Stopping):
                raise
            except Exception as error:  # user code may raise anything: the version that runs goes on
                log.exception(
                    "the live version cannot be loaded; the previous one is still served", listener=run.declared.name
                )
                self.patience.note(task, brief(f"the live version cannot be loaded: {error}"))
                again = threading.Timer(SWAP_AGAIN_SECONDS, self.shared.swaps.put, [run])
                again.daemon = True
                again.start()

    @staticmethod
    def _swapped(run: ListenerRun) -> Live:
        return run.reload(run.corridor.live, compiling=True)

    def _compile(self) -> None:
        """Has each model that asks for it compiled, while it serves: at once, and if there was no row to compile it
        for, again after its first predictions.
        """
        waiting = [run for run in self.runs if run.corridor.live.model.to_compile]
        for run in waiting:
            self.shared.swaps.put(run)
        while waiting and not self.stopping.wait(COMPILE_SECONDS):
            for run in [run for run in waiting if run.measures.totals["predicted"]]:
                self.shared.swaps.put(run)
                waiting.remove(run)

    def _thread(self, target: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            try:
                target()
            # If a thread ended silently, its rows would wait for ever
            except BaseException as error:  # noqa: BLE001
                self.fail(error)

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def fail(self, error: BaseException) -> None:
        """A thread failed: the process ends, and its successor starts from the saved position."""
        if isinstance(error, Stopping):
            return  # this process is stopping
        if self.failure is None:
            self.failure = error
            for run in self.runs if not isinstance(error, PredictdError) else ():
                run.suspects.blame()
        self.stopping.set()

    # ---- run ------------------------------------------------------------------------------------------------------

    def report_on(self) -> None:
        """Reports from the start of the process until its end, so that a start that waits for MongoDB is visible.

        If it cannot report any more, the process ends: it would be taken for one that hangs.
        """
        try:
            while not self.reported_all.wait(REPORT_SECONDS):
                self.report()
                if self.state == "running" and (reason := self._memory.exceeded()) is not None:
                    self.outgrown = reason
                    self.stopping.set()
        except BaseException as error:  # noqa: BLE001  # what a model has damaged
            self.fail(error)

    def report(self, state: WorkerPhase | None = None, reason: str | None = None) -> None:
        """Sends one report; if nothing has changed, only every two seconds. A given state stays for later reports."""
        with self._reporting:
            self.state, self.reason = state or self.state, reason or self.reason
            self._report()

    def last(self, ending: Ending | None, state: WorkerPhase | None = None, reason: str | None = None) -> None:
        """Sends the last report, which says why the process ends; without an ending it is a crash."""
        with self._reporting:
            self._ending = ending
        self.report(state, reason)

    def _report(self) -> None:
        runs, intake, state, reason = self.runs, self.intake, self.state, self.reason
        open_ = intake is not None and intake.open
        unread = 0.0 if intake is None else intake.pulse.lag
        lags = {run.declared.name: max(unread, run.lag()) for run in runs}
        trouble = self.patience.trouble()
        if trouble is not None and state in {"starting", "running"}:
            state, reason = ("waiting" if state == "running" else state), trouble
        for run in runs:
            name = run.declared.name
            self.measures.lag_seconds.labels(name).set(lags[name])
            for lane, depth in run.corridor.dirty.depth().items():
                self.measures.queue_depth.labels(name, lane).set(depth)
            scan = run.scan.report()
            self.measures.scan_done.labels(name).set(0 if scan is None else scan.done)
            self.measures.scan_total.labels(name).set(0 if scan is None else scan.total or 0)
        report = WorkerReport(
            state,
            os.getpid(),
            StreamReport(
                open_,
                int(self.measures.stream_keys._value.get()),  # noqa: SLF001  # prometheus has no public reader
                int(self.measures.stream_opens._value.get()),  # noqa: SLF001
            ),
            None if reason is None else readable(brief(reason, REASON)),  # a text may contain lone surrogates
            {run.declared.name: run.report(open_=open_, lag=lags[run.declared.name]) for run in runs},
            ending=self._ending,
            threads=threads.in_use(),
            settled=sum(run.suspects.settled for run in runs),
        )
        busy = {
            f"{run.declared.name}.{k}": round(max(0.0, v), 3) for run in runs for k, v in run.threads.busy().items()
        }
        now = time.monotonic()
        if report == self._reported and not busy and now - self._reported_at < REPORT_IDLE_SECONDS:
            return
        self._reported, self._reported_at = report, now
        if intake is not None:
            pulse = replace(report.stream, silent_seconds=round(intake.pulse.silent, 3), place=intake.pulse.place)
            report = replace(report, stream=pulse)
        report = replace(report, busy=busy, samples=tuple(self.measures.samples()))
        self._channel.report(report.to_json())

    # ---- stop -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stops the intake, drains the corridors within the stop timeout, and saves the position."""
        self.report("stopping")
        if self.intake is None or self.keeper is None:
            return
        self.intake.stop()
        self.keeper.stop()
        for run in self.runs:
            run.scan.stop()
        end = time.monotonic() + self.assignment.stop_timeout * 0.8  # the rest is for saving the position
        drained = [run.threads.stop(max(0.0, end - time.monotonic())) for run in self.runs]
        if not all(drained):
            log.warning("stopped before every batch in flight had ended; their rows are replayed at the next start")
        with suppress(PyMongoError):  # without it the successor replays a little more
            self.keeper.save(last=True)
