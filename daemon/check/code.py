"""Checks the code that a declaration names: imports it, and checks its signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from components.errors import ImportRefused, Problem
from components.import_paths import ImportPolicy
from daemon.logs.text import described


class Imported:
    """The imported code of one declaration; `problems` holds the failures."""

    def __init__(self, policy: ImportPolicy) -> None:
        self._policy = policy
        self._objects: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def get(self, path: str, key: str, *, called: bool = True) -> Any:
        """Return the object of an import path, or None if it cannot be imported.

        key: the key in the file, for problems. called: the object must be callable.
        """
        if path not in self._objects:
            try:
                self._objects[path] = self._policy.resolve(path)
            except ImportRefused as error:
                self.problems.append(Problem(key, str(error)))
                return None
            # Importing runs the user's code, which may raise anything
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self.problems.append(Problem(key, f'importing "{path}" failed: {described(error)}'))
                return None
        imported = self._objects[path]
        if called and not callable(imported):
            message = f'"{path}" is a {type(imported).__name__}; name a function or a callable object'
            self.problems.append(Problem(key, message))
        return imported


def mismatch(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return why `function` cannot be called with these arguments; empty if it can, or if its signature is unknown."""
    try:
        signature = inspect.signature(function)
    except Exception:  # noqa: BLE001 - it compares a callable object with others, and asks for its attributes
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return ""
