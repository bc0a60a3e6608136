"""Checks of the arguments that all trainers have; the arguments themselves: `components.declarations.trainers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from components.declarations import Keyed, made
from components.errors import DeclarationError
from components.key import Key
from components.query import Query


class Checks:
    """Checks of one trainer's arguments: each returns the value, or raises DeclarationError with the argument."""

    def __init__(self, identifier: str) -> None:
        self.identifier = identifier

    def refuse(self, argument: str, why: str) -> DeclarationError:
        """Return the error of an argument."""
        return DeclarationError(f"trainer {self.identifier!r}: {argument}: {why}")

    def callable(self, argument: str, value: Any) -> Callable[..., Any]:
        """Check a function."""
        if not callable(value):
            raise self.refuse(argument, f"expected a callable, got {value!r}")
        function: Callable[..., Any] = value
        return function

    def query(self, select: Any) -> Query | None:
        """Check the rows."""
        if select is not None and not isinstance(select, Query):
            raise self.refuse("select", f"expected a query such as db['mnist'], got {select!r}")
        return None if select is None else select.plain()

    def key(self, key: Any) -> Key | None:
        """Check a key of inputs and a target."""
        if key is None or isinstance(key, Key):
            return key
        return made(Keyed, f"trainer {self.identifier!r}", {"key": key}).parsed_key

    def mapping(self, argument: str, value: Any) -> dict[str, Any]:
        """Check keyword arguments."""
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
            raise self.refuse(argument, f"expected keyword arguments by name, got {value!r}")
        return dict(value or {})
