"""One listener in a worker: its corridor, its scans, the version that it runs, and its report."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.declarations import ListenerDeclaration
from components.errors import DeclarationError, PredictdError
from components.extended_json import decoded
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.corridor import Corridor
from daemon.handlers.predict.corridor_threads import BATCHES_HELD, CorridorThreads
from daemon.handlers.predict.dirty_keys import DirtyKeys
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.suspects import NoSuspects, Suspects
from daemon.handlers.predict.triage import RetryPolicy, Triage
from daemon.handlers.predict.turnstile import Turnstile
from daemon.health.measures import Measures, WorkerMeasures
from daemon.health.worker_report import ListenerPhase, ListenerReport
from daemon.listeners.inputs import inputs
from daemon.listeners.intake import Feed
from daemon.listeners.scan_lane import ScanLane
from daemon.logs.text import readable
from daemon.rehearsal.compiling import compile_model
from daemon.store.mongo_retry import MongoRetry
from daemon.store.registry.model_loader import CodeChanged, ModelLoader
from daemon.store.registry.registry import Declared, Registry
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.outputs import Outputs
from daemon.store.rows.scans import Mark, Scans
from daemon.store.rows.table_kind import refusal
from daemon.worker.assignment import WorkerAssignment
from daemon.worker.compiler import Compiler, StillCompiling

log = structlog.get_logger(__name__)


class DeclarationChanged(PredictdError):
    """The declaration of a listener has changed since this worker was started."""


@dataclass(frozen=True)
class Shared:
    """The objects that all listeners of a worker share. `fail` ends the process; a listener in `swaps` soon reloads
    from the registry.
    """

    assignment: WorkerAssignment
    database: Database[dict[str, Any]]
    registry: Registry
    loader: ModelLoader
    patience: MongoRetry
    measures: WorkerMeasures
    fail: Callable[[BaseException], None]
    compiler: Compiler
    swaps: queue.Queue[ListenerRun] = field(default_factory=queue.Queue)
    turnstile: Turnstile = field(default_factory=Turnstile)


class ListenerRun:
    """One listener in this worker: its corridor, its scans, and its report."""

    def __init__(self, shared: Shared, declared: Declared, live: Live) -> None:
        assignment, database = shared.assignment, shared.database
        name, listener = declared.name, declared.listener
        table = database[listener.table]
        self.declared = declared
        live.model.serves = True
        self.measures = Measures(shared.measures, name)
        self.letters = DeadLetters(database, assignment.service, name, listener.table, assignment.share)
        self.outputs = outputs = Outputs(table, name, live.key.fields, decoded(listener.where))
        dirty = DirtyKeys(assignment.queue_rows)
        self.suspects = _suspects(assignment, name, listener.max_batch)
        self.triage = Triage(name, suspects=self.suspects, retry=_retry(listener), owe=self._owe_scan)
        self.corridor = Corridor(
            name,
            live=live,
            reload=self._asked,
            outputs=outputs,
            letters=self.letters,
            dirty=dirty,
            cap=BatchCap(listener.latency_budget, _ceiling(listener, self.suspects)),
            measures=self.measures,
            batch_bytes=assignment.queue_bytes // BATCHES_HELD,
            triage=self.triage,
        )
        self.scan = ScanLane(
            table,
            listener=name,
            dirty=dirty,
            scans=Scans(database, assignment.service, name, assignment.epoch, assignment.share),
            mark=lambda: Mark(self.corridor.live.generation, declared.scope),
            dead=self.letters.rows,
            patience=shared.patience,
            order=listener.scan_order,
            rate=listener.scan_rate,
            held=lambda: self.triage.holds_scans or self.feed.refused is not None,
            partition=assignment.share,
        )
        self.feed = Feed(
            name,
            listener.table,
            dirty,
            self.scan,
            self.letters,
            partial(shared.swaps.put, self),
            lambda: shared.patience(f"{name}.table", lambda: refusal(table)),
            inputs(live.key.fields, decoded(listener.where)),
        )
        apart = live.model.waits or live.model.preprocess_processes > 0
        busy = 1 < assignment.partitions >= len(os.sched_getaffinity(0)) and not apart
        self.threads = CorridorThreads(self.corridor, shared.patience, shared.fail, shared.turnstile, joined=busy)
        self._patience = shared.patience
        self._registry = shared.registry
        self._loader = shared.loader
        self._compiler = shared.compiler
        self._assignment, self._database = assignment, database
        self._swapping = threading.RLock()
        self._unloadable: int | None = None
        self._swap_later = partial(shared.swaps.put, self)

    def _owe_scan(self, reason: str) -> None:
        self.scan.request(reason, self.feed.progress.oldest() or time.monotonic())

    def reload(self, live: Live, *, compiling: bool = False) -> Live:
        """Asks the registry for the live version, and runs it from the next batch on. A higher generation orders a scan
        (R9d).

        Batches in flight keep the version that they were judged for, so that each output is computed by the version
        that it states. With `compiling`, a model that asks for it is compiled before it serves: another copy of it, if
        it serves uncompiled. Raises every error of the loading, and DeclarationChanged.
        """
        with self._swapping:  # called for a promotion, and for a row with a newer output
            generation = self._now().generation
            # Compiling may have been what ended the process before this one.
            uncompiled = self.corridor.live.model.to_compile and not self._assignment.ended
            if generation == live.generation and not (compiling and uncompiled):
                return self.corridor.live
            self._unloadable = generation
            try:
                _, newer = self._loader.live(self._now, fresh=False, compiling=compiling)
                if compiling and newer.model.to_compile:
                    newer = self._compiled(newer)
            except CodeChanged as error:
                raise DeclarationChanged(str(error)) from error
            except PyMongoError:
                self._unloadable = None
                raise
            self._unloadable = None
            before = self.corridor.live
            if newer.generation == before.generation and newer.model.to_compile:
                return before  # there was no row to compile it for
            newer.model.serves = True
            self.corridor.swap(newer)
            self.triage.mended()
        if newer.generation == before.generation:
            return newer  # the same version, compiled
        log.info(
            "swapped",
            listener=self.declared.name,
            version=newer.version,
            generation=newer.generation,
            before=before.version,
        )
        self.scan.request(f"version {newer.version} is live (generation {newer.generation})")
        return newer

    def _compiled(self, live: Live) -> Live:
        """Compiles a model that does not serve yet, for all listeners of this worker that it will serve. Returns it, or
        another copy if compiling does not return.
        """
        began, declared = time.monotonic(), self._registry.worker(self._assignment.worker).items()
        model, state_dir = self.declared.model.name, self._assignment.state_dir
        alike = {name: (each.listener, each.fields) for name, each in declared if each.model.name == model}
        about: dict[str, Any] = {"model": live.model.identifier, "version": live.version}
        reason: str | None = "an earlier compilation has not returned; another process of the worker can compile"
        if self._compiler.stuck:
            live.model.to_compile = False
        else:
            log.info("compiling; the model serves uncompiled meanwhile", **about)
            try:
                reason = self._compiler.run(
                    partial(compile_model, live.model, live.threads, alike, self._database, state_dir, proven=True)
                )
            except StillCompiling as error:
                reason = str(error)
                self._loader.forget(model)
                _, live = self._loader.live(self._now, fresh=False)
                live.model.to_compile = False
        if reason is None:
            log.info("compiled", seconds=round(time.monotonic() - began, 1), **about)
        elif not live.model.to_compile:
            log.warning("the model cannot be compiled; it serves uncompiled", reason=readable(reason), **about)
        return live

    def _asked(self, live: Live) -> Live:
        """The live version, reloaded because a row has a newer output (R6).

        A version that cannot be loaded is left to the swap, which tries again; so is any version while a swap is under
        way, which may be compiling for minutes. Meanwhile the previous version is served, and the scan after the swap
        predicts these rows again.
        """
        if self._now().generation == self._unloadable:
            return self.corridor.live
        if not self._swapping.acquire(blocking=False):
            self._swap_later()
            return self.corridor.live
        try:
            return self.reload(live)
        except (DeclarationChanged, PyMongoError):
            raise
        except Exception:  # noqa: BLE001 - user code may raise anything; the swap reports it
            self._swap_later()
            return self.corridor.live
        finally:
            self._swapping.release()

    def _now(self) -> Declared:
        """The listener as it is declared now. Raises DeclarationChanged if that has changed since this worker was
        started.
        """
        try:
            now = self._registry.listener(self.declared.name)
        except DeclarationError as error:
            raise DeclarationChanged(str(error)) from error
        if now.identity != self.declared.identity:
            raise DeclarationChanged(f"listeners.{self.declared.name}: its declaration has changed")
        if now.listener != self.declared.listener:
            self._tune(now)
        return now

    def _tune(self, now: Declared) -> None:
        """Takes up the listener's limits."""
        self.declared, listener = now, now.listener
        self.corridor.cap.tune(listener.latency_budget, _ceiling(listener, self.suspects))
        self.scan.tune(listener.scan_order, listener.scan_rate)
        self.triage.retry = _retry(listener) or RetryPolicy()

    def limit(self, assignment: WorkerAssignment) -> None:
        """Takes up the worker's limits."""
        self.corridor.dirty.limit = assignment.queue_rows
        self.corridor.batch_bytes = assignment.queue_bytes // BATCHES_HELD

    def lag(self) -> float:
        """Seconds since the oldest change that is not yet written."""
        waits = [since for since in (self.feed.progress.oldest(), self.scan.owed_since) if since is not None]
        return max(0.0, time.monotonic() - min(waits)) if waits else 0.0

    def report(self, *, open_: bool, lag: float) -> ListenerReport:
        """The version that it runs, and how far it is behind."""
        scan, reason = self.scan.report(), self.feed.refused or self.feed.missing
        waits = self._patience.trouble(self.declared.name)
        state: ListenerPhase = "running"
        if reason is not None:
            state = "missing"
        elif not open_:
            state, reason = "starting", "the change stream is not open"
        else:
            state, reason = self.triage.state
            if state != "failing" and waits is not None:
                state, reason = "waiting", waits
            elif state == "running" and self.scan.due:
                state = "backfilling"
        live = self.corridor.live
        return ListenerReport(
            state,
            None if reason is None else readable(reason),
            generation=live.generation,
            version=live.version,
            lag_seconds=round(lag, 3),
            queue=self.corridor.dirty.depth(),
            scan=scan,
            rows=dict(self.measures.totals),
            dead_letters=len(self.letters),
        )


def _retry(listener: ListenerDeclaration) -> RetryPolicy | None:
    return None if listener.retry is None else RetryPolicy(listener.retry.attempts, listener.retry.within)


def _ceiling(listener: ListenerDeclaration, suspects: NoSuspects) -> int:
    return min(listener.max_batch, suspects.cap or listener.max_batch)


def _suspects(assignment: WorkerAssignment, listener: str, rows: int) -> NoSuspects:
    share = assignment.share
    if share.of > 1:
        listener = f"{listener}.{share.index + 1}of{share.of}"
    try:
        return Suspects(assignment.state_dir / "rows_at_work", listener, assignment.ended, rows)
    except OSError as error:
        log.warning(
            "the state directory cannot be written: a row that kills the model's process cannot be found",
            listener=listener,
            reason=str(error),
        )
        return NoSuspects()


def chained(declared: Declared) -> set[str]:
    """The paths under `_outputs.` in a listener's key and filter."""
    key = declared.listener.key
    paths = set([key] if isinstance(key, str) else key)

    def walk(query: Any) -> None:
        if isinstance(query, Mapping):
            for name, value in query.items():
                paths.add(name)
                walk(value)
        elif isinstance(query, list):
            for each in query:
                walk(each)

    walk(declared.listener.where)
    return {path for path in paths if path.startswith("_outputs.")}
