"""Answers the searches of other clients (`daemon.store.service.searches`) in the indexes of the worker's listeners.

What is searched for goes through the model's own threads, between two batches; the vectors are followed as in a program
that searches. Whatever goes wrong here is the answer to a request: it never ends the worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any, Final

import structlog
from pymongo.errors import PyMongoError

from components.errors import DeclarationError, PredictdError, RowError
from components.raw_value import document
from daemon.handlers.search import embedded, given
from daemon.listeners.followed_vectors import FollowedVectors
from daemon.listeners.index_vectors import Index, IndexVectors, applied
from daemon.logs.text import brief, readable
from daemon.store.driver_errors import sentence
from daemon.store.registry.components import Catalog
from daemon.store.service.searches import SearchRequests
from daemon.worker.listener_run import ListenerRun, Shared

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.2
IDLE_SECONDS: Final = 2.0
"""Between two looks while the service has no index."""
TROUBLE_SECONDS: Final = 30.0
MOST: Final = 1000
"""Rows in an answer."""


class SearchDesk:
    """The searches of one worker, one after the other."""

    def __init__(self, shared: Shared, runs: Sequence[ListenerRun]) -> None:
        self._shared = shared
        self._runs = {run.declared.name: run for run in runs}
        self._requests = SearchRequests(shared.database, shared.assignment.service, shared.assignment.name)
        self._vectors = IndexVectors()
        self._begun = False

    def run(self, stopping: Event) -> None:
        """Looks for requests until the worker stops; after an error it looks seldom."""
        pause, told = 0.0, ""
        while not stopping.wait(pause):
            try:
                pause, told = LOOK_SECONDS if self._look() else IDLE_SECONDS, ""
            except Exception as error:  # noqa: BLE001 - no search may end the worker
                reason, pause = _said(error), TROUBLE_SECONDS
                if reason != told:
                    log.warning("searches are not answered", reason=reason)
                told = reason

    def _look(self) -> bool:
        """Answers what waits. Returns whether the service has an index."""
        indexed = self._requests.indexed()
        if not self._begun or self._requests.waiting():
            known = self._shared.registry.read()
            mine = [name for name, each in known.indexes.items() if each.declaration.listener in self._runs]
            if not self._begun:
                self._requests.prepare()
                self._requests.fail_claimed("the process that computed it ended; ask again")
                self._begun = True
            while (request := self._requests.next(mine, known.indexes)) is not None:
                self._answer(request, known)
        return indexed

    def _answer(self, request: Mapping[str, Any], known: Catalog) -> None:
        try:
            answer = self._found(request, known)
            self._requests.answer(request, answer)
        except Exception as error:  # noqa: BLE001 - it is the answer
            self._requests.answer(request, {"state": "failed", "error": _said(error)})

    def _found(self, request: Mapping[str, Any], known: Catalog) -> dict[str, Any]:
        name, like, n = request.get("index"), request.get("like"), request.get("n", 10)
        index = applied(known, name) if isinstance(name, str) else None
        if index is None:
            raise DeclarationError(f"there is no index {name!r}; there is {', '.join(known.indexes) or 'none'}")
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST:
            raise DeclarationError(f"n: expected a number of rows from 1 to {MOST}, got {n!r}")
        live = self._runs[index.listener.name].corridor.live
        if live.output is None:
            raise DeclarationError(f"index {name!r}: its listener is being declared anew; ask again")
        wanted = embedded(live, like) if isinstance(like, Mapping) else given(live.output, like)
        vectors = self._followed(index).current()
        found = vectors.nearest(wanted, live.generation, n)
        return {
            "state": "done",
            "found": list(_shown(found)),
            "version": live.version,
            "compared": vectors.count(live.generation),
            "of": len(vectors),
            "exact": vectors.exact,
        }

    def _followed(self, index: Index) -> FollowedVectors:
        shared = self._shared
        return self._vectors.of(index, shared.database, shared.assignment.service, shared.registry.trust)


def _shown(found: Sequence[tuple[Any, float]]) -> Iterator[Any]:
    """Each row's `_id`, as stored, and its score."""
    for key, score in found:
        yield document({}, {"_id": key, "score": score})


def _said(error: Exception) -> str:
    text = sentence(error) if isinstance(error, PyMongoError) else str(error)
    own = isinstance(error, (PredictdError, RowError, PyMongoError))
    return readable(brief(text if own else f"{type(error).__name__}: {text}"))
