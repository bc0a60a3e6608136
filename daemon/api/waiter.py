"""Waits for the daemon: for a job until it has ended, for a listener until its rows have their outputs.

Progress is a bar on a terminal, a line every few seconds in a notebook, and not shown elsewhere. Nothing here asks the
user a question. An interrupt (Ctrl-C) ends the waiting; the daemon goes on.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from pymongo import timeout as time_limit

from components.errors import DeclarationError, JobFailed, MongoRefuses, MongoUnavailable, NotApplied, SignatureRefused
from daemon.api.connection import Connection, NotServed
from daemon.health.service_status import ServiceStatus
from daemon.health.worker_failure import Failing
from daemon.logs.terminal import Bar, Terminal, bar
from daemon.logs.text import escaped
from daemon.store import names
from daemon.store.connection import Data, reaching
from daemon.store.documents import read_one
from daemon.store.partition import combined
from daemon.store.registry.components import Catalog
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.rows.scans import Mark
from daemon.store.service.jobs import Job, Jobs
from daemon.store.service.services import served
from daemon.store.service.status import StatusBoard

PATIENCE_SECONDS: Final = 60.0
"""How long to wait without an active daemon; a restart takes less."""

CALL_SECONDS: Final = 20.0
"""How long a call waits for a MongoDB that holds the connection and does not answer."""

_PAUSE: Final = 0.1
_LOOK_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 5.0


class At(Protocol):
    """A service in a database: a connection of the API's, or the place of a command."""

    @property
    def database(self) -> Data: ...

    @property
    def service(self) -> str: ...


def wait_for_job(at: At, identifier: str, more: str = "db.logs({job!r})") -> Job:
    """The job, once it is done. Raises JobFailed, with its reason, if it fails or is cancelled, and NotServed if no
    daemon is left to run it.

    `more` is the call or command that shows more of a failed job.
    """
    jobs = Jobs(at.database, at.service)
    watch = Watch(at, f"job {identifier}")
    with shown(f"{identifier.split('/')[1]} {identifier.split('/')[2]}") as show:
        while True:
            job: Job | None = watch(lambda: jobs.get(identifier))
            if job is None:
                raise JobFailed(f"job {identifier} is no longer there")
            show(job.progress.step or 0, job.progress.total, _words(job))
            if job.state == "done":
                return job
            if job.ended:
                raise JobFailed(_reason(job, more))
            time.sleep(_PAUSE)


def _words(job: Job) -> str:
    progress = job.progress
    if job.state == "queued":
        return f"tried again after: {job.why}" if job.error else "queued"
    words = [] if progress.loss is None else [f"loss {progress.loss:.4g}"]
    words += [] if progress.rows_per_second is None else [f"{progress.rows_per_second:,.0f} rows/s"]
    return ", ".join(words) or "its process starts"


def _reason(job: Job, more: str) -> str:
    if job.state == "cancelled":
        return f"{job.name} was cancelled"
    tried = "" if job.attempts <= 1 else f" after {job.attempts} attempts"
    return f"{job.name} failed{tried}: {job.why} ({more.format(job=job.name)} has more)"


def wait_for_listener(connection: Connection, listener: str) -> None:
    """Returns once every row of the listener has been judged for what is applied now; from then on it is live. Returns
    with a warning if the listener is failing.

    Raises DeclarationError if its worker cannot run it, SignatureRefused if the daemon refuses a declaration that it
    needs, NotApplied if it was removed meanwhile, NotServed if no daemon is left.
    """
    watch = Watch(connection, f"listener {listener}")
    scans, registry = connection.database[names.SCANS], watch(connection.registry)
    with shown(f"backfill {listener}") as show:
        while True:
            own = watch(connection.catalog).listeners.get(listener)
            if own is None:
                raise NotApplied(f"listener {listener!r} was removed while it was waited for")
            if own.paused:
                return
            declared = watch(lambda: registry.listener(listener))
            mark = Mark(declared.generation, declared.scope).document()
            scan = combined(watch(lambda: read_one(scans, {"_id": f"{connection.service}/{listener}"})) or {})
            current = scan.get("mark") == mark
            if current and scan.get("state") == "done":
                return
            watch.refusals(f"listener/{listener}", f"model/{own.declaration.model}", f"table/{own.declaration.table}")
            watch.worker(own.declaration.worker)
            if (reason := watch.failing(listener, declared.generation)) is not None:
                warnings.warn(
                    f"listener {listener!r} is failing: {reason}; its rows wait until it works again", stacklevel=4
                )
                return
            done = scan.get("done")
            show(
                done if current and isinstance(done, int) else 0,
                watch.total(listener),
                "" if current else "its worker starts",
            )
            time.sleep(_PAUSE)


def wait_for_swap(connection: Connection, model: str, *, anew: bool) -> Version | None:
    """The live version, once every worker of the model's listeners runs it; None if there is none yet and no listener
    that needs one. `anew`: it is one of the present declaration.

    Paused and failing listeners are not waited for. Raises as `wait_for_listener` does.
    """
    versions = Versions(connection.database, connection.service, model)
    watch = Watch(connection, f"model {model}")
    with shown(f"swap {model}") as show:
        while True:
            known: Catalog = watch(connection.catalog)
            component = known.models.get(model)
            if component is None:
                raise NotApplied(f"model {model!r} was removed while it was waited for")
            live: Version | None = watch(versions.live)
            users = [each for each in known.listeners.values() if each.declaration.model == model and not each.paused]
            current = live is not None and (not anew or live.signature == component.signature)
            behind = [each for each in users if not current or not watch.runs(each.name, live)]
            if not behind:
                return live
            watch.refusals(f"model/{model}", *(f"listener/{each.name}" for each in behind))
            for each in behind:
                watch.worker(each.declaration.worker)
            show(len(users) - len(behind), len(users), "its workers take it up")
            time.sleep(_PAUSE)


def say(text: str) -> None:
    """Tells what has changed: on a terminal, in a notebook, and in the program's log ("predictd", INFO)."""
    logging.getLogger("predictd").info(text)
    console = Terminal(stderr=True, highlight=False)
    if console.is_terminal or console.is_jupyter:
        console.print(escaped(text), markup=False)


def wait_until_unserved(connection: Connection, listener: str, notification: int) -> None:
    """Returns once the daemon has acted on the notification of the listener's removal: its worker has ended, and
    nothing writes its outputs. Raises NotServed if no daemon is left to act.
    """
    watch = Watch(connection, f"listener {listener}")
    board = StatusBoard(connection.database, connection.service)
    while True:
        status = watch(board.read)
        if status is not None and _has_acted(status, notification, listener):
            return
        time.sleep(_PAUSE)


def _has_acted(status: ServiceStatus, notification: int, listener: str) -> bool:
    if status.notified is None:  # a daemon of an older release
        return listener not in status.listeners()
    return status.notified >= notification


class Watch:
    """What can block the wait: MongoDB or the daemon for a while, or an error that waiting does not repair."""

    def __init__(self, at: At, what: str) -> None:
        self._at = at
        self._what = what
        self._seen = time.monotonic()
        self._looked = 0.0
        self._status = ServiceStatus()
        self._failing = Failing()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """The call's result. Raises MongoUnavailable or NotServed if either was away for too long.

        The call is repeated after an error, also if it was done: it is one that may be.
        """
        while True:
            try:
                with reaching(), time_limit(CALL_SECONDS):
                    result = call()
                with reaching(), time_limit(CALL_SECONDS):
                    self._look()
            except MongoRefuses:
                raise
            except MongoUnavailable as error:
                if time.monotonic() - self._seen > PATIENCE_SECONDS:
                    raise MongoUnavailable(f"{self._what}: {error}" if self._what else str(error)) from None
                time.sleep(1.0)
            else:
                return result

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        at = self._at
        self._status = StatusBoard(at.database, at.service).read() or ServiceStatus()
        if at.service in {each.service for each in served(at.database)}:
            self._seen = now
        elif now - self._seen > PATIENCE_SECONDS:
            raise NotServed(
                f"{self._what}: no daemon has been active for the service {at.service!r} for "
                f"{PATIENCE_SECONDS:.0f} s; what was applied stays, and takes effect when one runs again"
            )

    def refusals(self, *names_: str) -> None:
        """Raises SignatureRefused if the daemon refuses one of these declarations."""
        refused = self._status.refused
        for name in names_:
            if name in refused:
                raise SignatureRefused(f"the daemon refuses {name}: {refused[name]}")

    def worker(self, name: str) -> None:
        """Raises DeclarationError if a worker has been unable to run its declarations for a while."""
        for process, status in self._status.processes(name).items():
            why = self._failing.why(process, status, time.monotonic())
            if why is not None:
                raise DeclarationError(f"worker {process}: {why.partition(': ')[2] or why}")

    def failing(self, listener: str, generation: int) -> str | None:
        """Why the listener fails on every row under this generation; None if it does not."""
        report = self._status.listeners().get(listener)
        return report.reason if report and (report.state, report.generation) == ("failing", generation) else None

    def runs(self, listener: str, live: Version | None) -> bool:
        """Whether a worker runs this version for the listener, or the listener is failing."""
        report = self._status.listeners().get(listener)
        return report is not None and (
            report.state == "failing" or (live is not None and report.version == live.number)
        )

    def total(self, listener: str) -> float | None:
        """The number of rows that the listener's scan has to judge; None until its worker has reported it."""
        report = self._status.listeners().get(listener)
        return None if report is None or report.scan is None else report.scan.total


def shown(label: str) -> AbstractContextManager[Bar]:
    """A bar on a terminal, lines in a notebook, nothing elsewhere."""
    console = Terminal(stderr=True, highlight=False)
    return nullcontext(_lines(label)) if console.is_jupyter else bar(console, label)


def _lines(label: str) -> Bar:
    """A line every few seconds: a notebook keeps what is printed, and draws no bar without further packages."""
    printed_at = time.monotonic()

    def show(done: float, total: float | None = None, words: str = "") -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= _LINE_SECONDS:
            printed_at = time.monotonic()
            far = f"{done:,.0f} of {total:,.0f}" if total else ""
            print(escaped(f"{label}: {', '.join(filter(None, (far, words)))}"))  # noqa: T201 - a notebook's output is a page

    return show
