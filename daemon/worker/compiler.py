"""The one compilation that a worker does at a time, and what becomes of one that does not return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from components.errors import PredictdError
from daemon.handlers.predict.process_settings import PROCESS


class StillCompiling(PredictdError):
    """The compilation took too long. Its thread cannot be ended, and the copy of the model that it holds is lost."""


class Compiler:
    """Calls functions that compile, each in a thread of its own, and waits so many seconds for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread: threading.Thread | None = None

    def run(self, function: Callable[[], str | None]) -> str | None:
        """Return what the function returns, or raise what it raises. Raises StillCompiling."""
        answer: SimpleQueue[tuple[str | None, BaseException | None]] = SimpleQueue()

        def call() -> None:
            try:
                with PROCESS.unchecked():
                    answer.put((function(), None))
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                answer.put((None, error))

        self._thread = threading.Thread(target=call, name="compiler", daemon=True)
        self._thread.start()
        try:
            reason, error = answer.get(timeout=self._seconds)
        except Empty:
            raise StillCompiling(f"it was not compiled within {self._seconds:.0f} s") from None
        if error is not None:
            raise error
        return reason

    @property
    def stuck(self) -> bool:
        """Whether a compilation that took too long still runs: torch compiles no other meanwhile."""
        return self._thread is not None and self._thread.is_alive()
