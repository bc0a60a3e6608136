"""Makes the user's own classes and functions within an object findable by name while skops writes or reads its state.

skops writes the module and the name of a class or a function, and imports them to read it. Code of a notebook or script
is in no module of the daemon: there it came by value, with the object that is declared. So within `findable` it has
names of a module that is made for this time: its own name and a number, in the order in which the object holds it.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from components.reduced_code import travelling

MODULE: Final = "predictd_held_code"


@contextmanager
def findable(state: object) -> Iterator[set[str]]:
    """Within this context, code that `state` holds by value can be imported by the names that this returns; what no
    other module has is written by them.
    """
    with travelling():
        walk = _Walk()
        with suppress(Exception):  # what cannot be pickled is refused where it is declared
            walk.dump(state)
        module, count, names, renamed = ModuleType(MODULE), Counter[str](), set(), []
        for each in walk.found:
            home, name = each.__module__, each.__name__
            numbered = f"{name} {count[name]}"
            count[name] += 1
            setattr(module, numbered, each)
            names.add(f"{MODULE}.{numbered}")
            if home == "__main__" or getattr(sys.modules.get(home), name, None) is not each:
                with suppress(AttributeError, TypeError):  # a class may refuse it
                    each.__module__, each.__name__ = MODULE, numbered
                    renamed.append((each, home, name))
        sys.modules[MODULE] = module
        try:
            yield names
        finally:
            del sys.modules[MODULE]
            for each, home, name in renamed:
                each.__module__, each.__name__ = home, name


class _Walk(cloudpickle.Pickler):  # type: ignore[misc]
    """Finds the classes and functions that a pickle holds by value."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=5)
        self.found: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented and isinstance(obj, (type, FunctionType)):
            self.found.append(obj)
        return reduced
