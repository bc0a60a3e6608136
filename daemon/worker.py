"""A worker: the process that owns the corridors of its listeners. Shared-nothing; all of its state lies in MongoDB.

Started as `python -P -m daemon.worker`. The first line on standard input tells it where it belongs (`Assignment`); then standard
input stays open, and its end means that the parent is gone: the worker leaves at once, and its successor replays from the
saved position. Standard output carries reports, one JSON object a line; logs go to standard error.

    start:  claim the stream's position, load the models, open the corridors, scan what is due
    run:    the threads work; the main thread reports
    stop:   no more events, drain what is in flight, save the position
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.errors import DeclarationError, Fenced, PredictdError
from components.importing import ImportPolicy
from components.signing import SigningKey
from daemon import logs
from daemon.batching import BatchCap, DirtyKeys
from daemon.config import decoded_filter
from daemon.corridor import BATCHES_HELD, Corridor, CorridorThreads
from daemon.handlers.predict import Live
from daemon.intake import Feed, Keeper, ScanLane, StreamIntake
from daemon.listeners.change_stream import Subscription
from daemon.loading import CodeChanged, Loader
from daemon.measures import Measures, WorkerMeasures
from daemon.store.connection import open_database
from daemon.store.dead_letters import DeadLetters
from daemon.store.outputs import Outputs
from daemon.store.patience import Patience, Stopping
from daemon.store.positions import Positions
from daemon.store.registry import Declared, Registry
from daemon.store.scans import Mark, Scans

log = structlog.get_logger(__name__)

STOPPED: Final = 0
BROKEN: Final = 1
CHANGED: Final = 64
UNBUILDABLE: Final = 65
ORPHANED: Final = 70
FENCED: Final = 76
REPORT_SECONDS: Final = 0.5
REPORT_IDLE_SECONDS: Final = 2.0
SWAP_AGAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told by its parent."""

    uri: str
    database: str
    service: str
    worker: str
    epoch: int
    state_dir: str
    import_root: str
    allow_imports: tuple[str, ...] = ()
    log: Mapping[str, str] = field(default_factory=dict)
    stop_timeout: float = 30.0
    queue_rows: int = 100_000
    queue_bytes: int = 256 * 1024 * 1024
    signing_key: str = field(default="", repr=False)

    @classmethod
    def read(cls, line: str) -> Assignment:
        told = json.loads(line)
        return cls(**{**told, "allow_imports": tuple(told["allow_imports"])})


class DeclarationChanged(PredictdError):
    """A listener is no longer what this worker was started for."""


class ListenerRun:
    """One listener in this worker: its corridor, its scans, and what it reports."""

    def __init__(self, worker: Worker, declared: Declared, live: Live) -> None:
        assignment, database = worker.assignment, worker.database
        name, listener = declared.name, declared.listener
        table = database[listener["table"]]
        self.declared = declared
        self.measures = Measures(worker.measures, name)
        self.letters = DeadLetters(database, assignment.service, name, listener["table"])
        outputs = Outputs(table, name, live.key.fields, decoded_filter(listener["where"]))
        dirty = DirtyKeys(assignment.queue_rows)
        self.corridor = Corridor(
            name,
            live=live,
            reload=self.reload,
            outputs=outputs,
            letters=self.letters,
            dirty=dirty,
            cap=BatchCap(listener["latency_budget"], listener["max_batch"]),
            measures=self.measures,
            batch_bytes=assignment.queue_bytes // BATCHES_HELD,
        )
        self.scan = ScanLane(
            table,
            listener=name,
            dirty=dirty,
            scans=Scans(database, assignment.service, name, assignment.epoch),
            mark=lambda: Mark(self.corridor.live.generation, declared.scope),
            dead=self.letters.rows,
            patience=worker.patience,
            order=listener["scan_order"],
            rate=listener["scan_rate"],
        )
        self.feed = Feed(name, listener["table"], dirty, self.scan, self.letters, partial(worker.swaps.put, self))
        self.threads = CorridorThreads(self.corridor, worker.patience, worker.fail)
        self._registry = worker.registry
        self._loader = worker.loader
        self._swapping = threading.Lock()

    def reload(self, live: Live) -> Live:
        """Asks the registry what is live (R6), and runs that from the next batch on. A higher generation brings a scan (R9d).

        Batches that are under way keep the version that they were judged for: each output is what its stated version computes.
        """
        with self._swapping:  # asked for by a promotion, and by a row that holds a newer output
            if self._now().generation == live.generation:
                return self.corridor.live
            try:
                _, newer = self._loader.live(self._now, fresh=False)
            except CodeChanged as error:
                raise DeclarationChanged(str(error)) from error
            before, self.corridor.live = self.corridor.live, newer
        log.info(
            "swapped",
            listener=self.declared.name,
            version=newer.version,
            generation=newer.generation,
            before=before.version,
        )
        self.scan.request(f"version {newer.version} is live (generation {newer.generation})")
        return newer

    def _now(self) -> Declared:
        """The listener as it is declared now. Raises DeclarationChanged where it is not what this worker was started for."""
        try:
            now = self._registry.listener(self.declared.name)
        except DeclarationError as error:
            raise DeclarationChanged(str(error)) from error
        if now.identity != self.declared.identity:
            raise DeclarationChanged(f"listeners.{self.declared.name} was declared anew")
        return now

    def report(self, *, open_: bool, lag: float) -> dict[str, Any]:
        state, reason, scan = "running", self.feed.missing, self.scan.report()
        if self.feed.missing:
            state = "missing"
        elif not open_:
            state, reason = "starting", "the change stream is not open"
        elif scan is not None:
            state = "backfilling"
        return {
            "state": state,
            "reason": reason,
            "generation": self.corridor.live.generation,
            "version": self.corridor.live.version,
            "lag_seconds": round(lag, 3),
            "queue": self.corridor.dirty.depth(),
            "scan": scan,
            "rows": dict(self.measures.totals),
            "dead_letters": len(self.letters),
        }


class Worker:
    """The composition root of the process."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.stopping = threading.Event()
        self.patience = Patience(self.stopping)
        self.measures = WorkerMeasures()
        self.database: Database[dict[str, Any]]
        self.registry: Registry
        self.loader: Loader
        self.swaps: queue.Queue[ListenerRun] = queue.Queue()
        self.runs: list[ListenerRun] = []
        self.intake: StreamIntake | None = None
        self.keeper: Keeper | None = None
        self.failure: BaseException | None = None
        self.state = "starting"
        self.reason: str | None = None
        self._reporting = threading.Lock()
        self._reported: tuple[float, str] = (0.0, "")
        self.told_all = threading.Event()

    # ---- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads and starts everything. Raises DeclarationError where the user's code cannot be built."""
        assignment = self.assignment
        self.database = self.patience("mongodb", self._connect)
        key = SigningKey.parse(assignment.signing_key)
        self.registry = Registry(self.database, assignment.service, assignment.epoch, key)
        self.loader = Loader(self.database, assignment.service, ImportPolicy(assignment.allow_imports))
        declared = self.patience("registry", lambda: self.registry.worker(assignment.worker))
        for name in declared:
            self.runs.append(self.patience("model", partial(self._load, name)))
        subscription = Subscription(
            service=assignment.service,
            tables=tuple(sorted({run.feed.table for run in self.runs})),
            chained=tuple(sorted({path for run in self.runs for path in chained(run.declared)})),
        )
        self.intake = StreamIntake(
            self.database,
            subscription,
            Positions(self.database, assignment.service, assignment.worker, assignment.epoch),
            [run.feed for run in self.runs],
            patience=self.patience,
            count_key=self.measures.stream_keys.inc,
            count_open=self.measures.stream_opens.inc,
        )
        self.intake.claim()
        for run in self.runs:  # after the claim: an older leader adds no more
            self.patience(f"{run.declared.name}.letters", run.letters.load)
        self.keeper = Keeper(self.intake, [run.scan for run in self.runs], self.patience)
        for run in self.runs:
            run.threads.start()
            self._thread(run.scan.run, f"{run.declared.name}.scan")
        self._thread(self._swap, "swap")
        self._thread(self.intake.run, "stream")
        self._thread(self.keeper.run, "keeper")
        self.state = "running"

    def _connect(self) -> Database[dict[str, Any]]:
        client: MongoClient[dict[str, Any]] = MongoClient(  # resolves a mongodb+srv name at once, so it may fail
            self.assignment.uri,
            appname=f"predictd worker {self.assignment.worker}",
            connectTimeoutMS=5000,
            serverSelectionTimeoutMS=5000,
            socketTimeoutMS=20_000,
            # What we write may be sent twice by design, and we send it again ourselves (`Patience`). The driver's own way of
            # retrying makes the server keep a record of every single update.
            retryWrites=False,
        )
        return open_database(client, self.assignment.database)

    def _load(self, name: str) -> ListenerRun:
        return ListenerRun(self, *self.loader.live(lambda: self.registry.listener(name), fresh=True))

    def _swap(self) -> None:
        """Loads what was promoted, one listener after the other, beside whatever runs; a version that cannot be loaded is tried again."""
        while True:
            run = self.swaps.get()
            task = f"{run.declared.name}.swap"
            try:
                self.patience(task, partial(self._swapped, run))
                self.patience.note(task, None)
            except (DeclarationChanged, Fenced, Stopping):
                raise
            except Exception as error:  # whatever the user's code raises: the version that runs goes on
                log.exception(
                    "the live version cannot be loaded; the one before it is served on", listener=run.declared.name
                )
                self.patience.note(task, f"the live version cannot be loaded: {error}")
                again = threading.Timer(SWAP_AGAIN_SECONDS, self.swaps.put, [run])
                again.daemon = True
                again.start()

    @staticmethod
    def _swapped(run: ListenerRun) -> Live:
        return run.reload(run.corridor.live)

    def _thread(self, target: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001  # a thread that ended silently would be rows that wait for ever
                self.fail(error)

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def fail(self, error: BaseException) -> None:
        """A thread met what it cannot wait out: the process ends, and its successor starts from the saved position."""
        if isinstance(error, Stopping):
            return  # it was told to
        if self.failure is None:
            self.failure = error
        self.stopping.set()

    # ---- run ------------------------------------------------------------------------------------------------------

    def report_on(self) -> None:
        """Reports until the process ends; from its first moment, so that a start that waits for MongoDB can be seen to."""
        while not self.told_all.wait(REPORT_SECONDS):
            self.report()

    def report(self, state: str | None = None, reason: str | None = None) -> None:
        """Writes one report; where nothing changed, only every two seconds. A given state stays."""
        with self._reporting:
            self.state, self.reason = state or self.state, reason or self.reason
            self._report()

    def _report(self) -> None:
        intake, state, reason = self.intake, self.state, self.reason
        open_ = intake is not None and intake.open
        oldest = intake.progress.oldest() if intake is not None else None
        lag = 0.0 if oldest is None else time.monotonic() - oldest
        troubles = self.patience.troubles()
        if troubles and state in {"starting", "running"}:
            state, reason = ("waiting" if state == "running" else state), "; ".join(troubles)
        for run in self.runs:
            name = run.declared.name
            self.measures.lag_seconds.labels(name).set(lag)
            for lane, depth in run.corridor.dirty.depth().items():
                self.measures.queue_depth.labels(name, lane).set(depth)
            scan = run.scan.report() or {}
            self.measures.scan_done.labels(name).set(scan.get("done") or 0)
            self.measures.scan_total.labels(name).set(scan.get("total") or 0)
        said: dict[str, Any] = {
            "state": state,
            "reason": reason,
            "pid": os.getpid(),
            "listeners": {run.declared.name: run.report(open_=open_, lag=lag) for run in self.runs},
            "stream": {
                "open": open_,
                "keys": int(self.measures.stream_keys._value.get()),  # noqa: SLF001  # prometheus has no public reader
                "opened": int(self.measures.stream_opens._value.get()),  # noqa: SLF001
            },
        }
        busy = {f"{run.declared.name}.{k}": round(v, 3) for run in self.runs for k, v in run.threads.busy().items()}
        text, now = json.dumps(said, sort_keys=True), time.monotonic()
        if text == self._reported[1] and not busy and now - self._reported[0] < REPORT_IDLE_SECONDS:
            return
        self._reported = (now, text)
        said["busy"] = busy
        said["samples"] = list(self.measures.samples())
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()

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
        end = (
            time.monotonic() + self.assignment.stop_timeout * 0.8
        )  # the rest is for saving, and for whoever waits for us
        drained = [run.threads.stop(max(0.0, end - time.monotonic())) for run in self.runs]
        if not all(drained):
            log.warning("stopped before every batch in flight had ended; their rows are replayed at the next start")
        with suppress(PyMongoError):  # then the successor replays a little more
            self.keeper.save(last=True)


def chained(declared: Declared) -> set[str]:
    """The paths under `_outputs.` that a listener looks at: in its key, and in its filter."""
    key = declared.listener["key"]
    paths = set([key] if isinstance(key, str) else key)

    def walk(query: Any) -> None:
        if isinstance(query, Mapping):
            for name, value in query.items():
                paths.add(name)
                walk(value)
        elif isinstance(query, list):
            for each in query:
                walk(each)

    walk(declared.listener["where"])
    return {path for path in paths if path.startswith("_outputs.")}


def leave_with_parent() -> None:
    """Waits for the end of standard input, which comes when the parent is gone, however it went."""
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: the interpreter's end must not wait for a lock that we hold
        pass
    os._exit(ORPHANED)


def exit_code(failure: BaseException | None) -> int:
    match failure:
        case None:
            return STOPPED
        case DeclarationChanged():
            return CHANGED
        case Fenced():
            return FENCED
        case DeclarationError():
            return UNBUILDABLE
        case _:
            return BROKEN


def main() -> None:
    """The process, from its first line to its exit code."""
    assignment = Assignment.read(sys.stdin.buffer.readline().decode())
    logs.configure(**assignment.log)  # type: ignore[arg-type]
    structlog.contextvars.bind_contextvars(worker=assignment.worker)
    threading.Thread(target=leave_with_parent, name="parent", daemon=True).start()
    sys.path.insert(0, str(Path(assignment.import_root)))
    worker = Worker(assignment)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=worker.report_on, name="reporter", daemon=True).start()
    try:
        worker.start()
        gc.freeze()  # what was imported and loaded stays: collections need not walk through it again and again
        log.info("worker runs", listeners=[run.declared.name for run in worker.runs], epoch=assignment.epoch)
        worker.stopping.wait()
        if worker.failure is None:
            worker.stop()
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told, and the exit code says what to do
        worker.fail(error)
    worker.told_all.set()  # what follows is the last word
    if worker.failure is not None:
        told = isinstance(worker.failure, PredictdError)
        log.error("worker ends", reason=str(worker.failure), exc_info=None if told else worker.failure)
        worker.report("failed", f"{type(worker.failure).__name__}: {worker.failure}")
    else:
        worker.report()  # with what was done while it drained
    sys.stdout.flush()
    os._exit(exit_code(worker.failure))  # threads may still wait for MongoDB: nothing of theirs is lost


if __name__ == "__main__":
    main()
