"""What an operator does with what is applied, as calls: each has the name of its command, and does the same.

With `wait` (the default) a call returns when its work is done, with a progress bar on a terminal. A promotion is signed
with the service's key.

If MongoDB fails during a change, nobody knows whether it was made, and a caller who gets an error repeats it. So each
change is one that may be repeated, and is repeated here while MongoDB is away (`Watch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from bson import ObjectId

from components.errors import DeclarationError, JobFailed, NotApplied
from components.raw_value import UNDECODABLE, RawValue, key_of, plain
from daemon.api.connection import Connection
from daemon.api.rehearsal import rehearse_version
from daemon.api.waiter import Watch, wait_for_job, wait_for_listener
from daemon.store.connection import reaching
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.rows import dead_letters
from daemon.store.service import notify
from daemon.store.service.jobs import Job, Jobs


def name_of(component: Any) -> str:
    """The name of a component, or what is a name already. Raises DeclarationError for anything else."""
    name = getattr(component, "identifier", component)
    if not isinstance(name, str):
        raise DeclarationError(f"expected the name of a component, or a component, got {component!r}")
    return name


def at_least_one(limit: int) -> int:
    """How many to list at most. Raises DeclarationError if it is no such number."""
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise DeclarationError(f"limit: expected a whole number, at least 1, got {limit!r}")
    return limit


class Controls(ABC):
    """The calls. Each takes a name or the component itself, and raises NotApplied if that is not applied."""

    @abstractmethod
    def _open(self) -> Connection:
        """The connection. Raises PredictdError if it is closed."""

    # ---- jobs -----------------------------------------------------------------------------------------------------

    def train(self, model: str | Any, wait: bool = True) -> dict[str, Any]:
        """Trains a model with its trainer; returns the job. Raises JobFailed, with the reason, if it fails."""
        return self._job("train", name_of(model), wait=wait)

    def validate(self, validation: str | Any, wait: bool = True) -> dict[str, Any]:
        """Measures the live version of a validation's model; returns the job, with the metrics in its `result`. Raises
        JobFailed, with the reason, if it fails.
        """
        return self._job("validate", name_of(validation), wait=wait)

    def cancel(self, job: str) -> bool:
        """Cancels a job; `job` is its id, or the end of it. Returns whether it is cancelled: False if that was too
        late.
        """
        at = self._open()
        jobs = Jobs(at.database, at.service)
        with reaching():
            found = jobs.get(job)
        if found is None:
            raise NotApplied(f"there is no job {job!r}, or more than one id ends with that; db.jobs() lists them")
        identifier = found.id

        def cancelled() -> bool:
            now = None if jobs.cancel(identifier) else jobs.get(identifier)
            return now is None or now.state == "cancelled"

        return bool(Watch(at, f"job {identifier}")(cancelled))

    def _job(self, kind: Literal["train", "validate"], target: str, *, wait: bool) -> dict[str, Any]:
        at = self._open()
        jobs = Jobs(at.database, at.service)
        own, watch = str(ObjectId()), Watch(at, f"{kind} {target}")
        identifier = watch(lambda: jobs.queue(kind, target, {"by": "by hand"}, own=own))
        if wait:
            return wait_for_job(at, identifier).document()
        found: Job | None = watch(lambda: jobs.get(identifier))
        if found is None:
            raise JobFailed(f"job {identifier} is no longer there")
        return found.document()

    # ---- versions -------------------------------------------------------------------------------------------------

    def promote(self, model: str | Any, number: int, wait: bool = True) -> None:
        """Makes a version the live one; returns when every output of the model's listeners follows it. Raises
        DeclarationError, with the reason, if it cannot predict rows of these listeners.
        """
        if not isinstance(number, int) or isinstance(number, bool):
            raise DeclarationError(f"promote: expected the number of a version, got {number!r}")
        at, model = self._open(), name_of(model)
        with reaching():
            at.registry().expect(["model"], model)
            versions = Versions(at.database, at.service, model, at.registry().trust)
            due = not versions.is_live(number)
        if due:
            rehearse_version(at, model, number)
            Watch(at, f"model {model!r}")(
                lambda: versions.is_live(number) or versions.promote(number, reason="promoted by hand")
            )
        self._followed(model, wait=wait)

    def rollback(self, model: str | Any, wait: bool = True) -> int:
        """Makes the previous live version live again; returns its number when every output follows it."""
        at, model = self._open(), name_of(model)
        with reaching():
            at.registry().expect(["model"], model)
            versions = Versions(at.database, at.service, model, at.registry().trust)
            live, before = versions.way_back()
        Watch(at, f"model {model!r}")(lambda: versions.back(live, before, "rolled back by hand"))
        self._followed(model, wait=wait)
        return before

    def _followed(self, model: str, *, wait: bool) -> None:
        if not wait:
            return
        at = self._open()
        known = Watch(at, f"model {model!r}")(at.catalog)
        for name, listener in known.listeners.items():
            if listener.declaration.model == model:
                wait_for_listener(at, name)

    # ---- listeners ------------------------------------------------------------------------------------------------

    def pause(self, listener: str | Any) -> None:
        """Pauses a listener: its rows are not predicted, and its outputs stay, until `resume`."""
        listener = name_of(listener)
        self._change(listener, lambda registry: registry.pause(listener))

    def resume(self, listener: str | Any, wait: bool = True) -> None:
        """Resumes a paused listener; returns when a scan has found what has changed in the meantime."""
        listener = name_of(listener)
        self._change(listener, lambda registry: registry.resume(listener))
        if wait:
            wait_for_listener(self._open(), listener)

    def resync(self, listener: str | Any, wait: bool = True) -> None:
        """Predicts every row of a listener again, while changed rows still go first; returns when all are."""
        listener, asked = name_of(listener), uuid4().hex
        self._change(listener, lambda registry: registry.resync(listener, asked))
        if wait:
            wait_for_listener(self._open(), listener)

    def _change(self, listener: str, change: Callable[[Registry], None]) -> None:
        at = self._open()

        def made() -> None:
            change(at.registry())
            notify.ring(at.database, at.service)

        Watch(at, f"listener {listener!r}")(made)

    # ---- dead letters ---------------------------------------------------------------------------------------------

    def dead_letters(self, listener: str | Any = None, limit: int = 100) -> list[dict[str, Any]]:
        """The rows that cannot be predicted, oldest first: of each `listener`, `table`, `row` (its `_id`), `error`,
        `traceback`, `attempts`, `first_at` and `last_at`. Raises NotApplied if there is no such listener.

        An `_id` that the driver cannot decode, or would send back changed, is a RawValue; `retry` and `discard` take
        it.
        """
        found = self._letters(listener, {}, at_least_one(limit))
        return [
            {"listener": letter["_id"]["listener"], "row": plain(letter["_id"]["row"])}
            | {name: value for name, value in letter.items() if name in _SHOWN}
            for letter in found
        ]

    def retry(self, listener: str | Any = None, row: Any = ...) -> int:
        """Tries dead rows again: all, those of one listener, or only the one with the `_id` `row`. Returns how many.

        Raises NotApplied if the row is not dead.
        """
        at = self._open()
        return self._each(listener, row, lambda letter: dead_letters.retry(at.database, letter))

    def discard(self, listener: str | Any = None, row: Any = ...) -> int:
        """Deletes dead letters, chosen as by `retry`; their rows keep the error until they change. Returns how many.

        Raises NotApplied if the row is not dead.
        """
        at = self._open()
        return self._each(listener, row, lambda letter: dead_letters.discard(at.database, letter))

    def _each(self, listener: str | Any, row: Any, do: Callable[[dict[str, Any]], None]) -> int:
        chosen = self._letters(listener, {} if row is ... else _of_row(row), 0)
        if row is not ... and not chosen:
            raise NotApplied(f"row {row!r} is not dead; db.dead_letters() lists those that are")
        watch = Watch(self._open(), "dead letters")
        for letter in chosen:
            watch(partial(do, letter))
        return len(chosen)

    def _letters(self, listener: str | Any, query: dict[str, Any], limit: int) -> list[dict[str, Any]]:
        at, listener = self._open(), None if listener is None else name_of(listener)
        query = query if listener is None else {"_id.listener": listener, **query}
        with reaching():
            found = list(dead_letters.listed(at.database, at.service, query, limit))
            if not found and listener is not None:
                at.registry().expect(["listener"], listener)
            return [letter for letter in found if "row" in letter["_id"]]


def _of_row(row: Any) -> dict[str, Any]:
    try:
        return dead_letters.of_row(key_of(RawValue.of(row)))
    except UNDECODABLE as error:
        raise DeclarationError(f"row: expected the `_id` of a row, got {row!r}: {error}") from None


_SHOWN = frozenset({"table", "error", "traceback", "attempts", "first_at", "last_at"})
