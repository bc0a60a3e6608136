"""Waiting for what the daemon does: a job until it has ended, a listener until its rows have their outputs.

What is waited for is shown as a bar on a terminal, as a line every few seconds in a notebook, and not at all elsewhere.
Nothing here asks anything. An interrupt (Ctrl-C) ends the waiting; the daemon goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from components.errors import DeclarationError, JobFailed, MongoUnavailable, NotApplied, SignatureRefused
from daemon.api.connection import Connection, NotServed
from daemon.health.worker_failure import Failing
from daemon.logs.text import escaped
from daemon.store import names
from daemon.store.connection import reaching
from daemon.store.rows.scans import Mark
from daemon.store.service.jobs import Jobs
from daemon.store.service.services import served
from daemon.store.service.status import StatusBoard

__all__ = ["wait_for_job", "wait_for_listener", "wait_until_unserved"]

PATIENCE_SECONDS: Final = 60.0
"""How long nobody may be there to do what is waited for; a daemon that is restarted needs less."""

_PAUSE: Final = 0.1
_LOOK_SECONDS: Final = 2.0
_LINE_SECONDS: Final = 5.0


class Show(Protocol):
    """Shows how far something is."""

    def __call__(self, done: float, total: float | None, words: str) -> None:
        """`done` of `total` (None: nobody knows), and what else is worth saying."""


def wait_for_job(connection: Connection, identifier: str, more: str = "db.logs({job!r})") -> dict[str, Any]:
    """The job, once it is done. Raises JobFailed, with its reason, where it fails or is cancelled, and NotServed where
    no daemon is left to run it.

    `more` is what tells more of a job that has failed.
    """
    jobs = Jobs(connection.database, connection.service)
    watch = _Watch(connection, f"job {identifier}")
    with _shown(f"{identifier.split('/')[1]} {identifier.split('/')[2]}") as show:
        while True:
            job: dict[str, Any] | None = watch(lambda: jobs.get(identifier))
            if job is None:
                raise JobFailed(f"job {identifier} is no longer there")
            progress = job.get("progress") or {}
            show(progress.get("step") or 0, progress.get("total"), _words(job, progress))
            if job["state"] == "done":
                return job
            if job["state"] in ("failed", "cancelled"):
                raise JobFailed(_reason(job, more))
            time.sleep(_PAUSE)


def _words(job: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    if job["state"] == "queued":
        return f"tried again after: {_message(job)}" if job.get("error") else "queued"
    words = [f"loss {progress['loss']:.4g}"] if isinstance(progress.get("loss"), (int, float)) else []
    rate = progress.get("rows_per_second")
    words += [f"{rate:,.0f} rows/s"] if isinstance(rate, (int, float)) else []
    return ", ".join(words) or str(progress.get("doing") or "its process starts")


def _message(job: Mapping[str, Any]) -> str:
    error = job.get("error") or {}
    return f"{error.get('type', 'Error')}: {error.get('message', 'it left no reason')}"


def _reason(job: Mapping[str, Any], more: str) -> str:
    name = "/".join(str(job["_id"]).split("/")[1:])
    if job["state"] == "cancelled":
        return f"{name} was cancelled"
    attempts = job.get("attempts") or 1
    tried = "" if attempts == 1 else f" after {attempts} attempts"
    return f"{name} failed{tried}: {_message(job)} ({more.format(job=name)} has more)"


def wait_for_listener(connection: Connection, listener: str) -> None:
    """Returns once every row of the listener has been judged for what is applied now; from then on it is live.

    Raises DeclarationError where its worker cannot run it, SignatureRefused where the daemon refuses what it needs,
    NotApplied where it was removed meanwhile, NotServed where no daemon is left.
    """
    scans, registry = connection.database[names.SCANS], connection.registry()
    watch = _Watch(connection, f"listener {listener}")
    with _shown(f"backfill {listener}") as show:
        while True:
            own = watch(connection.catalog).listeners.get(listener)
            if own is None:
                raise NotApplied(f"listener {listener!r} was removed while it was waited for")
            if own.paused:
                return
            declared = watch(lambda: registry.listener(listener))
            mark = Mark(declared.generation, declared.scope).document()
            scan = watch(lambda: scans.find_one({"_id": f"{connection.service}/{listener}"})) or {}
            current = scan.get("mark") == mark
            if current and scan.get("state") == "done":
                return
            watch.refusals(f"listener/{listener}", f"model/{own.declaration.model}", f"table/{own.declaration.table}")
            watch.worker(own.declaration.worker)
            show(scan.get("done", 0) if current else 0, watch.total(listener), "" if current else "its worker starts")
            time.sleep(_PAUSE)


def wait_until_unserved(connection: Connection, listener: str) -> None:
    """Returns once no worker runs the listener any more, so that nothing writes its outputs. Raises NotServed where no
    daemon is left to say so.
    """
    watch = _Watch(connection, f"listener {listener}")
    asked_at = time.monotonic()
    while True:
        status = watch.status()
        there = any(listener in (worker.get("listeners") or {}) for worker in (status.get("workers") or {}).values())
        # The document may be as old as the daemon's way of telling it, so a first "no" may be from before the listener
        # came.
        if not there and time.monotonic() - asked_at > 2 * _LOOK_SECONDS:
            return
        time.sleep(_PAUSE)


class _Watch:
    """What may be in the way: MongoDB for a while, the daemon for a while, or something that waiting does not mend."""

    def __init__(self, connection: Connection, what: str) -> None:
        self._connection = connection
        self._what = what
        self._seen = time.monotonic()
        self._looked = 0.0
        self._status: dict[str, Any] = {}
        self._failing = Failing()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """The call's result. Raises what stood in its way for too long."""
        while True:
            try:
                with reaching():
                    result = call()
                self._look()
            except MongoUnavailable:
                if time.monotonic() - self._seen > PATIENCE_SECONDS:
                    raise
                time.sleep(1.0)
            else:
                return result

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        connection = self._connection
        self._status = StatusBoard(connection.database, connection.service).read() or {}
        if connection.service in {each.service for each in served(connection.database)}:
            self._seen = now
        elif now - self._seen > PATIENCE_SECONDS:
            raise NotServed(
                f"{self._what}: no daemon has been active for the service {connection.service!r} for "
                f"{PATIENCE_SECONDS:.0f} s; what was applied stays, and is taken up when one runs again"
            )

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself, some seconds old at most."""
        self(lambda: None)
        return self._status

    def refusals(self, *names_: str) -> None:
        """Raises SignatureRefused where the daemon refuses one of these declarations."""
        refused = self._status.get("refused") or {}
        for name in names_:
            if name in refused:
                raise SignatureRefused(f"the daemon refuses {name}: {refused[name]}")

    def worker(self, name: str) -> None:
        """Raises DeclarationError where a worker has been unable to run what is declared for a while."""
        why = self._failing.why(name, (self._status.get("workers") or {}).get(name) or {}, time.monotonic())
        if why is not None:
            raise DeclarationError(f"worker {name}: {why.partition(': ')[2] or why}")

    def total(self, listener: str) -> float | None:
        """How many rows the listener's scan has to judge, as far as its worker has said so."""
        for worker in (self._status.get("workers") or {}).values():
            scan = ((worker.get("listeners") or {}).get(listener) or {}).get("scan") or {}
            if scan.get("total") is not None:
                return float(scan["total"])
        return None


@contextmanager
def _shown(label: str) -> Iterator[Show]:
    """A bar, lines, or nothing, as the place allows."""
    console = Console(stderr=True, highlight=False)
    if console.is_jupyter:
        yield _lines(label)
        return
    if not console.is_terminal:
        yield _silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escaped(label), total=None, words="")
        yield lambda done, total, words: progress.update(task, completed=done, total=total, words=escaped(words))


def _silent(done: float, total: float | None, words: str) -> None:
    """Nobody looks."""


def _lines(label: str) -> Show:
    """A line every few seconds: a notebook keeps what is printed, and draws no bar without further packages."""
    said_at = time.monotonic()

    def show(done: float, total: float | None, words: str) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _LINE_SECONDS:
            said_at = time.monotonic()
            far = f"{done:,.0f} of {total:,.0f}" if total else ""
            print(f"{label}: {', '.join(filter(None, (far, words)))}")  # noqa: T201 - a notebook's output is a page

    return show
