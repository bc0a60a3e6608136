"""Makes the user's own classes and functions within an object findable by name while skops writes or reads its state.

skops writes the module and the name of a class or a function, and imports them to read it. Code of a notebook or script
is in no module of the daemon: there it came by value, with the object that is declared. So within `findable` it has
names of a module that is made for this time: its own name, a hash of its code, and a number, as two may be alike.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from components.reduced_code import travelling

MODULE: Final = "predictd_held_code"
_EMPTY: Final = CellType()


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
            numbered = f"{name} {_content(each)}"
            count[numbered] += 1
            numbered += f" {count[numbered]}"
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
            sys.modules.pop(MODULE, None)
            for each, home, name in renamed:
                each.__module__, each.__name__ = home, name


def _content(held: type | FunctionType) -> str:
    """A hash of the code of a function, or of a class's methods: another function of the name is not taken for it."""
    functions = [held] if isinstance(held, FunctionType) else vars(held).values()
    described = [_described(each.__code__) + _given(each) for each in functions if isinstance(each, FunctionType)]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _given(function: FunctionType) -> list[Any]:
    """What a function was made with, as far as that is plain."""
    held = [
        *(function.__defaults__ or ()),
        *(cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY),
    ]
    return [each for each in held if isinstance(each, (str, bytes, int, float, type(None)))]


def _described(code: CodeType) -> list[Any]:
    constants = [
        _described(each)
        if isinstance(each, CodeType)
        else sorted(map(repr, each))
        if isinstance(each, frozenset)
        else each
        for each in code.co_consts
    ]
    return [code.co_code, code.co_names, code.co_varnames, constants]


class _Nowhere(io.BytesIO):
    """Keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


class _Walk(cloudpickle.Pickler):  # type: ignore[misc]
    """Finds the classes and functions that a pickle holds by value."""

    def __init__(self) -> None:
        super().__init__(_Nowhere(), protocol=5)
        self.found: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented and isinstance(obj, (type, FunctionType)):
            self.found.append(obj)
        return reduced
