"""Waiting for a job, or for the scans that bring every output to a model's live version."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.progress import Progress

from components.errors import PredictdError
from daemon.api import waiter
from daemon.api.connection import NotServed
from daemon.api.waiter import PATIENCE_SECONDS
from daemon.cli import screens
from daemon.cli.command import Place, err, hint, say
from daemon.health.worker_failure import FAILING_SECONDS
from daemon.health.worker_report import ListenerPhase, ScanReport
from daemon.logs.terminal import columns
from daemon.logs.text import escaped
from daemon.store.service import overview
from daemon.store.service.jobs import Job

_GIVEN_UP_SECONDS: Final[Mapping[ListenerPhase, float]] = {
    "failing": FAILING_SECONDS,
    "missing": FAILING_SECONDS,
    "waiting": PATIENCE_SECONDS,
}
"""How long a listener may be in a state in which it judges no rows: it may get over it by itself."""

_PAUSE: Final = 0.2


def unserved(here: Place) -> str:
    """The hint that no daemon is active to do what was asked for."""
    return f"no daemon is active for the service {here.service!r}: it is done once one runs (`predictd run`)"


def wait_for_job(here: Place, identifier: str) -> Job:
    """The job, once it is done, with a progress bar on a terminal. Raises JobFailed, with its reason."""
    if not here.served:
        hint(unserved(here))
    try:
        return waiter.wait_for_job(here, identifier, more="`predictd jobs logs {job}`")
    except KeyboardInterrupt:
        name = screens.job_id(identifier)
        hint(f"{name} goes on; `predictd jobs show {name}` tells how it is, `predictd jobs cancel {name}` ends it")
        raise


def follow(here: Place, listeners: Sequence[str]) -> None:
    """Returns once every row of these listeners has been judged for what is live now. A terminal shows rows, rate and
    the time left.

    A paused listener is skipped. One that has been failing for a while is given up; the others are followed to their
    end. Raises PredictdError then, and if no daemon is active, DeclarationError if a worker cannot run its listener.
    """
    watch = _Watch(here)
    given_up: list[str] = []
    try:
        with Progress(*columns(), console=err, disable=not err.is_terminal) as progress:
            tasks = {name: progress.add_task(escaped(name), total=None, words="") for name in listeners}
            while tasks:
                known = overview.scans(here.database, here.service)
                scanning = watch.scans()
                for name in list(tasks):
                    scan = known.get(name)
                    if scan is None or scan["paused"] or scan["finished"]:
                        progress.remove_task(tasks.pop(name))
                        say(_outcome(name, scan))
                        continue
                    watch.worker(scan["worker"])
                    trouble = watch.trouble(name)
                    if trouble is not None:
                        progress.remove_task(tasks.pop(name))
                        given_up.append(f"listener {name} is {trouble}")
                        continue
                    now = scanning.get(name)
                    done = max(scan["done"], now.done if now else 0) if scan["current"] else 0
                    words = screens.pace(now) if scan["current"] else "its worker takes up the new version"
                    progress.update(tasks[name], completed=done, total=now.total if now else None, words=words)
                time.sleep(_PAUSE if tasks else 0)
    except KeyboardInterrupt:
        hint("it goes on without being watched; `predictd status` shows how far it is")
        raise
    if given_up:
        raise PredictdError(
            "; ".join(given_up) + ". Its rows are judged once it works again: mend the cause; no command is needed"
        )


def _outcome(name: str, scan: dict[str, Any] | None) -> str:
    if scan is None:
        return f"{name}: was removed"
    if scan["paused"]:
        return f"{name}: is paused; it follows when it is resumed"
    return f"{name}: all {scan['done']:,} rows are judged"


class _Watch(waiter.Watch):
    """What can block the wait; a listener may be in trouble for a while."""

    def __init__(self, here: Place) -> None:
        super().__init__(here, "")
        self._unserved = unserved(here)
        self._troubled: dict[str, float] = {}

    def scans(self) -> dict[str, ScanReport]:
        """The scans that run, by listener, as the daemon last reported. Raises PredictdError if no daemon has been
        active for a while.
        """
        try:
            self._look()
        except NotServed:
            raise PredictdError(self._unserved) from None
        return {name: report.scan for name, report in self._status.listeners().items() if report.scan is not None}

    def trouble(self, name: str) -> str | None:
        """Why this listener will not judge its rows by itself; None as long as it may."""
        report = self._status.listeners().get(name)
        seconds = _GIVEN_UP_SECONDS.get(report.state) if report is not None else None
        if report is None or seconds is None:
            self._troubled.pop(name, None)
            return None
        now = time.monotonic()
        return report.trouble if now - self._troubled.setdefault(name, now) > seconds else None
