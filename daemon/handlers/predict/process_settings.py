"""Keeps what this whole process has only once as it is: one model's call must not change what its neighbours compute.

After each batch a changed setting is put back, and reported once, by the models that were at work. What a model sets
while it is imported and built stays, and is reported: it may need it in each call.
"""

from __future__ import annotations

import locale
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

_LEFT: Final = "a model changed a setting of {0} for the whole process; it was put back"
_BUILT: Final = "a model set something for the whole process when it was built; give it a worker of its own"


def _directory() -> str:
    with suppress(OSError):  # it was removed
        return os.getcwd()  # noqa: PTH109 - looked at after each batch
    return "?"


def _change_directory(path: str) -> None:
    with suppress(OSError):
        os.chdir(path)


_PYTHON: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "working directory": (_directory, _change_directory),
    "locale": (partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    "socket.setdefaulttimeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "logging.disable": (lambda: logging.root.manager.disable, logging.disable),
}


class ProcessSettings:
    """The settings of this process, as they were before its first batch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._torch: dict[str, Any] = {}
        self._python: dict[str, Any] = {}
        self._imported = False
        """Whether torch was imported after the first batch had begun, by the code of a model."""
        self._working: list[str] = []
        self._compiling = 0
        self._reported: set[str] = set()

    def forked(self) -> None:
        """In a fork: whoever held the lock, or was at work, did not come along."""
        self._lock, self._working, self._compiling = threading.Lock(), [], 0

    @contextmanager
    def kept(self, model: str) -> Iterator[None]:
        """The context of one batch of a model."""
        with self._lock:
            if self._working or not self._python:
                self._check(alone=not self._working)
            self._working.append(model)
        try:
            yield
        finally:
            with self._lock:
                self._check(alone=len(self._working) == 1)
                self._working.remove(model)

    @contextmanager
    def built(self, model: str) -> Iterator[None]:
        """The context in which a model is imported and built."""
        before = self._held()
        yield
        with self._lock:
            if "torch" in sys.modules:
                from components.torch import settings

                before = {**settings.DEFAULTS, **before}
            changed = {name: value for name, value in self._held().items() if before.get(name, value) != value}
            for name, value in changed.items():
                log.warning(_BUILT, model=model, change=f"{name} was changed from {before[name]} to {value}")
            for kept in (self._torch, self._python):
                kept.update({name: value for name, value in changed.items() if name in kept})

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

    @staticmethod
    def _held() -> dict[str, Any]:
        found = {name: get() for name, (get, _) in _PYTHON.items()}
        if "torch" in sys.modules:
            from components.torch import settings

            found.update(settings.held())
        return found

    def _check(self, *, alone: bool) -> None:
        if self._compiling:
            return
        self._python = self._python or {name: get() for name, (get, _) in _PYTHON.items()}
        if alone:  # else another one may have changed it for a moment, in its call
            self._report("Python", self._put_back())
        if "torch" not in sys.modules:
            self._imported = True
            return
        from components.torch import settings

        if not self._torch:
            self._torch = {**settings.held(), **(settings.DEFAULTS if self._imported else {})}
        self._report("torch", settings.put_back(self._torch))

    def _put_back(self) -> list[str]:
        changed = []
        for name, (get, put) in _PYTHON.items():
            before, now = self._python[name], get()
            if now != before:
                put(before)
                changed.append(f"{name} was changed from {before} to {now}")
        return changed

    def _report(self, whose: str, changes: list[str]) -> None:
        for change in changes:
            if change not in self._reported:
                self._reported.add(change)
                models = ", ".join(sorted(set(self._working))) or "the last batch"
                log.warning(_LEFT.format(whose), models=models, change=change)


PROCESS = ProcessSettings()
"""Of this process."""
os.register_at_fork(after_in_child=PROCESS.forked)
