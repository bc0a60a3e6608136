"""The threads of a model: one in which it is built, loaded and called, and one for its `preprocess`, unless that has
processes of its own.

What a constructor opens (a connection of sqlite3, a CUDA context, an event loop) may belong to the thread that opened
it. `postprocess` runs in the model's thread. A version that goes live is built in a thread of its own, while the one
before still predicts; both have the same thread for `preprocess`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

from components.model import Model
from daemon.handlers.predict.decoding import Decoders
from daemon.handlers.predict.hand import Hand
from daemon.handlers.predict.processes import Processes

P = ParamSpec("P")
T = TypeVar("T")


class OneThread(Hand):
    """Calls functions in one thread, which ends with this object."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # A daemon thread: a model that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._calls.put, None)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls.put((answer, lambda: function(*args, **kwargs)))
        result, error = answer.get()
        if error is None:
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


# A Future would do, at three times the cost: the caller waits for one answer only.
_Call: TypeAlias = "tuple[SimpleQueue[tuple[Any, BaseException | None]], Callable[[], Any]]"


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        answer, function = call
        try:
            answer.put((function(), None))
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            answer.put((None, error))
        del call, answer, function  # while it waits, it keeps no batch in memory


@dataclass(frozen=True, slots=True)
class ModelThreads:
    """Where a model is built and called, and where its rows are preprocessed; by default in the caller's thread."""

    model: Hand = field(default_factory=Hand)
    preprocess: Hand = field(default_factory=Hand)
    decoders: Decoders | None = None
    """Those of the worker, which run no code of the model's."""

    @classmethod
    def own(cls, model: str) -> ModelThreads:
        """Return new threads, as a worker gives them to a model."""
        return cls(OneThread(f"{model}.model"), OneThread(f"{model}.preprocess"))

    def loaded(self, model: Model) -> ModelThreads:
        """Return these threads for a model that is loaded: with processes for its `preprocess`, if it asks for them and
        has threads of its own.
        """
        if not model.preprocess_processes or not isinstance(self.preprocess, OneThread):
            return self
        decoders = None
        if self.decoders is not None:
            decoders = Decoders(max(1, self.decoders.number // model.preprocess_processes))
        return replace(self, preprocess=Processes(model, ModelThreads(decoders=decoders)))
