"""Asks the daemon to rehearse what is about to be applied or promoted, and waits for what it finds.

If no daemon is active that could (none runs, or one of an older release), nothing is rehearsed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Final

from components.errors import DeclarationError
from components.serialization import Declared
from daemon.api.connection import Connection, NotServed
from daemon.api.waiter import PATIENCE_SECONDS, At, Watch, shown
from daemon.rehearsal.changes import changed
from daemon.store.connection import Data, reaching
from daemon.store.registry.components import Catalog
from daemon.store.registry.rehearsals import Part, Rehearsals, Result
from daemon.store.service import notify
from daemon.store.service.services import served
from daemon.store.service.status import StatusBoard

STATUS_SECONDS: Final = 10.0

_PAUSE: Final = 0.1


def rehearse(connection: Connection, parts: Sequence[Declared], known: Catalog, *, force: bool) -> None:
    """Raises DeclarationError if what these declarations change must not go live; with `force`, warns of it.

    Warns of what a person should look at.
    """
    given = [
        Part(
            part.kind,
            part.name,
            "api",
            part.declaration,
            {d: len(b) for a in part.artifacts for d, b in a.blobs.items()},
        )
        for part in parts
    ]
    proposed = changed(known, given, [f"{part.kind}s.{part.name}" for part in given] if force else ())
    if not proposed:
        return
    trust = connection.registry().trust
    what = ", ".join(f"{part.kind} {part.name!r}" for part in proposed)
    result = _asked(connection, what, lambda requests: requests.ask(proposed, trust))
    if result is None:
        return
    refused = [f"{at}: {message}" for at, message in result.problems]
    if result.failed is not None:
        refused.append(
            f"the rehearsal could not take place: {result.failed}; apply it again, with force=True in any case"
        )
    if refused and not force:
        raise DeclarationError(f"{what} is not applied, and what serves stays: {'; '.join(refused)}")
    for each in [*refused, *(f"{at}: {message}" for at, message in result.warnings)]:
        warnings.warn(each, stacklevel=5)


def rehearse_version(at: At, model: str, number: int) -> None:
    """Raises DeclarationError if this version must not go live."""
    result = _asked(at, f"version {number} of {model!r}", lambda requests: requests.ask_version(model, number))
    refused = [] if result is None else [f"{at}: {message}" for at, message in result.problems]
    if result is not None and result.failed is not None:
        refused.append(f"the rehearsal could not take place: {result.failed}; promote it again")
    if refused:
        raise DeclarationError(f"version {number} of {model!r} is not promoted: {'; '.join(refused)}")


def _asked(at: At, what: str, ask: Callable[[Rehearsals], str]) -> Result | None:
    """What the daemon finds; None if there is none that rehearses."""
    requests = Rehearsals(at.database, at.service)
    if not _rehearses(at.database, at.service):
        return None
    with reaching():
        request = ask(requests)
        notify.ring(at.database, at.service)
    watch = Watch(at, f"the rehearsal of {what}")
    with shown(f"rehearse {what}") as show:
        while True:
            try:
                result: Result | None = watch(lambda: requests.result(request))
            except NotServed:
                return Result(failed=f"no daemon has been active for {PATIENCE_SECONDS:.0f} s")
            if result is not None:
                with reaching():
                    requests.forget(request)
                return result
            show(0.0, None, "a few rows are predicted")
            time.sleep(_PAUSE)


def _rehearses(database: Data, service: str) -> bool:
    """Whether a daemon is active that rehearses. One that has just begun has not published its status yet."""
    end = time.monotonic() + STATUS_SECONDS
    while True:
        with reaching():
            epoch = _epoch(database, service)
            status = StatusBoard(database, service).read()
        if epoch is None or (status is not None and status.epoch == epoch):
            return epoch is not None and status is not None and status.rehearses
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)


def _epoch(database: Data, service: str) -> int | None:
    """The epoch of the active daemon; None if there is none."""
    return next((each.epoch for each in served(database) if each.service == service), None)
