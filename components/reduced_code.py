"""What an artifact's pickler makes of code objects and modules, and of parts of code that cloudpickle only names."""

from __future__ import annotations

import functools
import gc
import io
import re
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as internals

from components.code_source import travelling_modules

_turn = threading.RLock()
_NOTEBOOK_FILE = re.compile(r".*[/\\]ipykernel_\d+[/\\]\d+\.py|<ipython-input-.*>")
_MODULE_NOISE = ("__builtins__", "__cached__", "__loader__", "__spec__", "__warningregistry__")
_PLACES = ("__file__", "__path__")
_unplaced: ContextVar[bool] = ContextVar("predictd_unplaced", default=False)


@contextmanager
def unplaced() -> Iterator[None]:
    """Within this context, code is reduced without its file and the numbers of its lines."""
    token = _unplaced.set(True)
    try:
        yield
    finally:
        _unplaced.reset(token)


@contextmanager
def travelling(allow: Sequence[str] = ()) -> Iterator[None]:
    """Within this context, which one thread at a time is in, the user's own modules are pickled by value."""
    with _turn:
        known = internals.list_registry_pickle_by_value()
        added = [module for module in travelling_modules(allow) if module.__name__ not in known]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def without_place(reduced: Any) -> Any:
    """Return a reduced function or class; within `unplaced`, without the file and the folder of a function's globals
    (its own reading of `__file__` stays), and the line of a class.
    """
    if _unplaced.get() and isinstance(reduced, tuple):
        if reduced[0] is internals._make_function:  # noqa: SLF001
            for name in _PLACES:
                reduced[1][1].pop(name, None)
        elif reduced[0] in (internals._make_skeleton_class, internals._make_skeleton_enum):  # noqa: SLF001
            reduced[2][0].pop("__firstlineno__", None)  # from Python 3.13 on
    return reduced


def _reduced_code(code: types.CodeType) -> tuple[Any, ...]:
    if _unplaced.get():
        code = code.replace(co_filename="", co_firstlineno=1, co_linetable=b"")
    if _NOTEBOOK_FILE.fullmatch(code.co_filename):
        code = code.replace(co_filename="<notebook>")
    make, parts = internals._code_reduce(code)  # noqa: SLF001
    consts = code.co_consts
    return make, tuple(tuple(map(_ordered, consts)) if part is consts else part for part in parts)


def _reduced_module(module: types.ModuleType) -> tuple[Any, ...]:
    make, parts = internals._module_reduce(module)  # noqa: SLF001
    if make is not internals.dynamic_subimport:
        return make, parts
    left_out = (*_MODULE_NOISE, *_PLACES) if _unplaced.get() else _MODULE_NOISE
    return make, (parts[0], {name: value for name, value in parts[1].items() if name not in left_out})


class _Sorted:
    """A frozenset among the constants of code, pickled in sorted order; Python's order differs between processes."""

    def __init__(self, items: frozenset[Any]) -> None:
        self._items = sorted(items, key=lambda item: (type(item).__name__, repr(item)))

    def __reduce__(self) -> tuple[Any, ...]:
        return frozenset, (self._items,)


def _ordered(const: Any) -> Any:
    if isinstance(const, frozenset):
        return _Sorted(const)
    return tuple(map(_ordered, const)) if type(const) is tuple else const


def _unless_imported(parts: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Reduce to `parts`, but to its name what the daemon can import: by itself each of these reduces to its name."""

    def reduced(obj: Any) -> Any:
        found = internals._lookup_module_and_qualname(obj)  # noqa: SLF001
        imported = found is not None and not internals._is_registered_pickle_by_value(found[0])  # noqa: SLF001
        return obj.__reduce__() if imported else parts(obj)

    return reduced


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduced_file(file: io.TextIOWrapper) -> Any:
    """In its place cloudpickle would send its content, of which a reader at the end reads nothing."""
    if file not in (sys.stdout, sys.stderr):
        raise TypeError(f"cannot pickle the open file {file.name!r}")
    return internals._file_reduce(file)  # noqa: SLF001


def _reduced_property(known: functools.cached_property[Any]) -> tuple[Any, ...]:
    """Python 3.11 keeps a lock in each."""
    return functools.cached_property, (known.func,), {"attrname": known.attrname, "__doc__": known.__doc__}


def _reduced_dispatch(known: weakref.WeakKeyDictionary[Any, Any]) -> tuple[Any, ...]:
    """What `functools.singledispatch` has found for the classes that it met: a cache, which stays here. Its function
    holds a bound `clear` of it.
    """
    clears = (each for each in gc.get_referrers(known) if isinstance(each, types.MethodType))
    if known and not any(each.__func__ is type(known).clear for each in clears):
        raise TypeError("cannot pickle a dictionary with weak references")
    return weakref.WeakKeyDictionary, ()


REDUCERS: dict[type, Callable[[Any], Any]] = {
    types.CodeType: _reduced_code,
    types.ModuleType: _reduced_module,
    io.TextIOWrapper: _reduced_file,
    functools.cached_property: _reduced_property,
    weakref.WeakKeyDictionary: _reduced_dispatch,
    type(functools.lru_cache(len)): _unless_imported(
        lambda cached: (_cached, (cached.__wrapped__, *cached.cache_parameters().values()))  # the cache stays here
    ),
    typing.NewType: _unless_imported(lambda kind: (typing.NewType, (kind.__name__, kind.__supertype__))),
    typing.ParamSpec: _unless_imported(lambda given: (typing.ParamSpec, (given.__name__,))),
    typing.TypeVarTuple: _unless_imported(lambda given: (typing.TypeVarTuple, (given.__name__,))),
}
