"""The process of a rehearsal: builds the models of its request, predicts rows of their listeners, and reports.

It has no key, stores nothing, and ends with its parent. The parent ends it if a step takes too long.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog
from pymongo.errors import OperationFailure

from components import images_apart
from components.declarations import ListenerDeclaration
from components.errors import DeclarationError, PredictdError, Problem
from components.import_paths import ImportPolicy
from components.model import Model
from daemon.engine.child import Channel, leave, leave_with_parent
from daemon.engine.threads import be_polite
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.processes import let_go
from daemon.health.rehearsal_report import RehearsalReport
from daemon.logs.setup import configure
from daemon.logs.text import described, readable
from daemon.rehearsal.assignment import RehearsalAssignment
from daemon.rehearsal.candidates import Candidate, declared_anew, of_version
from daemon.rehearsal.compiling import compile_model
from daemon.rehearsal.rules import Note, rehearsed
from daemon.rehearsal.sample import rows_of
from daemon.store.connection import Data, make_client, open_database
from daemon.store.driver_errors import sentence
from daemon.store.mongo_retry import MongoRetry
from daemon.store.registry.components import Catalog
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.registry import Registry
from daemon.store.registry.rehearsals import Rehearsals
from daemon.store.registry.trust import Trust

MONGODB_SECONDS: Final = 30.0
LEAST_SECONDS: Final = 10.0
"""For the predictions of a listener, however long its model took to build."""


def main() -> None:
    """The process, from its assignment to its end."""
    channel = Channel.open()
    assignment = RehearsalAssignment.read(sys.stdin.buffer.readline())
    configure(**assignment.log, stream=channel.log)  # type: ignore[arg-type]
    structlog.contextvars.bind_contextvars(rehearsal=assignment.rehearsal)
    faulthandler.enable()  # a crash in somebody's extension says where it was
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, name="parent", daemon=True).start()
    be_polite(assignment.threads)
    Rehearsal(assignment, channel).run()
    let_go()
    leave(0)  # threads of the user's code may still run: nothing of theirs is kept


class Rehearsal:
    """One rehearsal; each of its reports holds all that was found so far."""

    def __init__(self, assignment: RehearsalAssignment, channel: Channel) -> None:
        self._assignment = assignment
        self._channel = channel
        self._patience = MongoRetry(threading.Event())
        self._found: dict[str, list[tuple[str, str]]] = {"problems": [], "warnings": [], "notes": []}

    def run(self) -> None:
        """Rehearses and reports."""
        self._doing("", MONGODB_SECONDS)
        try:
            self._all()
        except PredictdError as error:
            self._add(Problem("rehearsal", str(error)))
        self._doing("", MONGODB_SECONDS, done=True)

    def _all(self) -> None:
        assignment = self._assignment
        assignment.open_imports()
        images_apart.use(assignment.formats, assignment.images)
        database = self._patience("mongodb", self._connect)
        trust = Trust.decoded(assignment.trust)
        registry = Registry(database, assignment.service, assignment.epoch, trust)
        loader = ModelLoader(database, assignment.service, ImportPolicy(assignment.allow_imports), trust)
        requests = Rehearsals(database, assignment.service)
        known = self._patience("registry", registry.read)
        version = self._patience("request", lambda: requests.version(assignment.rehearsal))
        if version is None:
            parts = self._patience("request", lambda: requests.parts(assignment.rehearsal, trust))
            known, candidates = declared_anew(known, parts, loader)
        else:
            candidates = of_version(known, *version, loader)
        for candidate in candidates:
            self._rehearse(candidate, known, database)

    def _rehearse(self, candidate: Candidate, known: Catalog, database: Data) -> None:
        at, limits, began = f"models.{candidate.model}", self._assignment, time.monotonic()
        threads = ModelThreads.own(candidate.model)
        self._doing(at, limits.build_seconds)
        try:
            model = self._patience("model", lambda: threads.model.run(candidate.build))
            threads.model.run(model.warm)
            threads = threads.loaded(model)
        except BaseException as error:  # noqa: BLE001 - user code may raise any
            self._add(Problem(at, f"it cannot be loaded: {described(error)}"))
            return
        # One time for building and predicting: who waits for a refusal does not wait for the sum of the two.
        both = max(limits.build_seconds, limits.stage_seconds) - (time.monotonic() - began)
        seconds = min(limits.stage_seconds, max(LEAST_SECONDS, both))
        for name in candidate.listeners:
            listener = known.listeners[name].declaration
            fields = known.fields(listener.table)
            self._doing("", MONGODB_SECONDS)
            at = f"listeners.{name}"
            try:
                rows = self._patience("rows", lambda: self._rows(listener, database))  # noqa: B023 - called at once
                left = partial(_left, time.monotonic() + seconds)
                calling = partial(self._calling, at, left)
                calling()
                for found in rehearsed(name, listener, fields, model, rows, calling, threads, left):
                    self._add(found)
            except BaseException as error:  # noqa: BLE001 - a class of the user's may raise where it is compared
                self._add(Problem(at, described(error)))
        if model.to_compile and not self._found["problems"]:
            self._compile(candidate, known, model, threads, database)

    def _compile(
        self, candidate: Candidate, known: Catalog, model: Model, threads: ModelThreads, database: Data
    ) -> None:
        """Compiles the model, so that the worker finds the code, and says if it will serve uncompiled."""
        at = f"models.{candidate.model}"
        self._doing(at, self._assignment.build_seconds)
        listeners = {name: known.listeners[name].declaration for name in candidate.listeners}
        read = {name: (each, known.fields(each.table)) for name, each in listeners.items()}
        reason = compile_model(model, threads, read, database, self._assignment.state_dir, proven=False)
        if reason is not None and not model.to_compile:  # else it is compiled once there are rows
            self._add(Note(at, f"it will serve uncompiled: {reason}", warns=True))

    @staticmethod
    def _rows(listener: ListenerDeclaration, database: Data) -> list[bytes]:
        try:
            return rows_of(listener, database)
        except OperationFailure as error:  # another attempt does not help: a filter that MongoDB refuses
            raise DeclarationError(f"MongoDB refuses to read rows: {sentence(error)}") from error

    def _add(self, found: Problem) -> None:
        kind = "problems" if not isinstance(found, Note) else "warnings" if found.warns else "notes"
        self._found[kind].append((found.path, readable(found.message)))

    def _calling(self, stage: str, left: Callable[[], float]) -> None:
        self._doing(stage, left())

    def _doing(self, stage: str, within: float, *, done: bool = False) -> None:
        """Reports what comes next, and what was found until now."""
        found: dict[str, Any] = {name: tuple(said) for name, said in self._found.items()}
        self._channel.report(RehearsalReport(stage, within, done=done, **found).to_json())

    def _connect(self) -> Data:
        client = make_client(self._assignment.uri, "predictd rehearsal", socketTimeoutMS=20_000, tz_aware=True)
        return open_database(client, self._assignment.database)


def _left(end: float) -> float:
    return max(0.1, end - time.monotonic())


if __name__ == "__main__":
    main()
