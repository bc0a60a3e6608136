"""What code refers to, through closures, globals, defaults, attributes and containers: a module, or something that
cannot be pickled.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from components.code_source import travelling_modules

DEEPEST: Final = 8


def refers(obj: object, module: Any) -> bool:
    """Return whether `obj` refers to a torch module, or to a part of it; False if `module` is no torch module."""
    if not hasattr(module, "named_modules"):
        return False
    parts = {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}
    own = _own(obj)
    waiting: list[Any] = [obj]
    seen: dict[int, Any] = {}  # the objects too: another one could get the id of one that was freed
    while waiting:
        one = waiting.pop()
        if id(one) in parts:
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            waiting += [referred for _, referred in _referred(one, own)]
    return False


def culprit(obj: Any, fits: Callable[[Any], bool]) -> str:
    """Return where `obj` holds what does not fit, such as "helper.LOCK"; "" if no name leads there."""
    names: list[str] = []
    with suppress(Exception):  # an object of the user's may raise any when it is looked into
        names.extend(_way(obj, fits))
    return ".".join(filter(None, names))


def _way(obj: Any, fits: Callable[[Any], bool]) -> Iterator[str]:
    own, seen = _own(obj), {id(obj): obj}
    for _ in range(DEEPEST):
        held = _of_module(obj) if isinstance(obj, types.ModuleType) else _referred(obj, own)
        found = next(((name, one) for name, one in held if id(one) not in seen and not fits(one)), None)
        if found is None:
            return
        yield "" if found[0].startswith("__") else found[0]
        obj = seen[id(found[1])] = found[1]


def _own(obj: object) -> set[str]:
    return {known.__name__ for known in travelling_modules()} | {"__main__", str(getattr(obj, "__module__", None))}


def _referred(obj: Any, own: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield what an object refers to, each with its name; "" if it has none."""
    if isinstance(obj, types.FunctionType):
        yield from _of_function(obj, own)
    elif isinstance(obj, Mapping):
        yield from ((str(name), value) for name, value in obj.items())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from (("", item) for item in obj)
    elif isinstance(obj, type):
        if obj.__module__ in own:
            yield from vars(obj).items()
            yield from (("", base) for base in obj.__bases__)
    elif not isinstance(obj, types.ModuleType):
        yield "", type(obj)
        if isinstance(obj, (types.MethodType, functools.partial, staticmethod, classmethod, property)):
            held = ("__self__", "__func__", "func", "args", "keywords", "fget", "fset", "__dict__")
            yield from ((name, getattr(obj, name, None)) for name in held)
        else:
            attributes = getattr(obj, "__dict__", None)
            yield from attributes.items() if isinstance(attributes, dict) else ()


def _of_module(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in vars(module).items() if not name.startswith("__"))


def _of_function(function: types.FunctionType, own: Collection[str]) -> Iterator[tuple[str, Any]]:
    yield from (("__defaults__", function.__defaults__), ("__kwdefaults__", function.__kwdefaults__))
    yield "__dict__", function.__dict__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # the enclosing function has not assigned it
            continue
    if function.__module__ not in own:
        return
    names = list(_names(function.__code__))
    for name in names:
        found = function.__globals__.get(name)
        yield name, found
        if isinstance(found, types.ModuleType) and found.__name__ in own:
            yield from (("", getattr(found, attribute, None)) for attribute in names)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)
