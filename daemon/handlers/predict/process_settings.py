"""Keeps what torch holds for the whole process as it is: one model's call must not change what its neighbours compute.

After each batch a changed setting is put back, and reported once, by the models that were at work.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class ProcessSettings:
    """The settings of this process, as they were before its first batch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: Mapping[str, Any] | None = None
        self._imported = False
        """Whether torch was imported after the first batch had begun, by the code of a model."""
        self._working: list[str] = []
        self._compiling = 0
        self._reported: set[str] = set()

    @contextmanager
    def kept(self, model: str) -> Iterator[None]:
        """The context of one batch of a model."""
        with self._lock:
            self._check()
            self._working.append(model)
        try:
            yield
        finally:
            with self._lock:
                self._check()
                self._working.remove(model)

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """The context in which torch compiles: it changes settings of its own meanwhile, and puts them back."""
        with self._lock:
            self._compiling += 1
        try:
            yield
        finally:
            with self._lock:
                self._compiling -= 1

    def _check(self) -> None:
        if self._compiling:
            return
        if "torch" not in sys.modules:
            self._imported = True
            return
        from components.torch import settings

        if self._before is None:
            self._before = settings.DEFAULTS if self._imported else settings.held()
        for change in settings.put_back(self._before):
            models = ", ".join(sorted(set(self._working))) or "the last batch"
            if change not in self._reported:
                self._reported.add(change)
                event = "a model changed a setting of torch for the whole process; it was put back"
                log.warning(event, model=models, change=change)


PROCESS = ProcessSettings()
"""Of this process."""
