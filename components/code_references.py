"""Whether code refers to a module: through closures, globals, defaults, attributes and containers."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from components.code_source import travelling_modules


def refers(obj: object, module: Any) -> bool:
    """Return whether `obj` refers to a torch module, or to a part of it; False if `module` is no torch module."""
    if not hasattr(module, "named_modules"):
        return False
    parts = {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}
    own = {known.__name__ for known in travelling_modules()} | {"__main__", str(getattr(obj, "__module__", None))}
    waiting: list[Any] = [obj]
    seen: dict[int, Any] = {}  # the objects too: another one could get the id of one that was freed
    while waiting:
        one = waiting.pop()
        if id(one) in parts:
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            waiting += _referred(one, own)
    return False


def _referred(obj: Any, own: Collection[str]) -> Iterator[Any]:
    if isinstance(obj, types.FunctionType):
        yield from _of_function(obj, own)
    elif isinstance(obj, Mapping):
        yield from obj.values()
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from obj
    elif isinstance(obj, type):
        yield from (*vars(obj).values(), *obj.__bases__) if obj.__module__ in own else ()
    elif not isinstance(obj, types.ModuleType):
        held = ("__self__", "__func__", "func", "args", "keywords", "fget", "fset", "__dict__")
        wraps = isinstance(obj, (types.MethodType, functools.partial, staticmethod, classmethod, property))
        yield type(obj)
        yield from (getattr(obj, name, None) for name in (held if wraps else held[-1:]))


def _of_function(function: types.FunctionType, own: Collection[str]) -> Iterator[Any]:
    yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the enclosing function has not assigned it
            continue
    if function.__module__ not in own:
        return
    names = list(_names(function.__code__))
    for found in map(function.__globals__.get, names):
        yield found
        if isinstance(found, types.ModuleType) and found.__name__ in own:
            yield from (getattr(found, name, None) for name in names)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)
