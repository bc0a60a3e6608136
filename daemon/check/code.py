"""Looking at code that a declaration names: importing it, whether it can be called so, and errors in one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from components.errors import ImportRefused, Problem
from components.import_paths import ImportPolicy

__all__ = ["Imported", "mismatch", "said"]


class Imported:
    """The code of one declaration, imported as far as that works; `problems` tells where it does not."""

    def __init__(self, policy: ImportPolicy) -> None:
        self._policy = policy
        self._found: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def get(self, path: str, key: str, *, called: bool = True) -> Any:
        """Return what an import path names, None where it cannot be had; `key` is where it stands, `called` says that
        it must be callable.
        """
        if path not in self._found:
            try:
                self._found[path] = self._policy.resolve(path)
            except ImportRefused as error:
                self.problems.append(Problem(key, str(error)))
                return None
            # Importing runs the user's code, which may raise anything
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self.problems.append(Problem(key, f'importing "{path}" failed: {said(error)}'))
                return None
        found = self._found[path]
        if called and not callable(found):
            message = f'"{path}" is a {type(found).__name__}; name a function or a callable object'
            self.problems.append(Problem(key, message))
        return found


def mismatch(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return why `function` cannot be called so, empty where it can or where nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return ""


def said(error: BaseException) -> str:
    """Return an exception in one line, with the place in the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename} line {trace.tb_lineno})" if trace is not None else ""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0]}" if lines else "") + place
