"""Finds out whether a function returns the same memory again, and then copies what it returns.

A `preprocess` that fills one buffer again and again would change rows that wait to be predicted. The first values of
each size are copied and compared; if none shares memory with another, later ones are trusted and cost nothing.

A value holds memory itself (a tensor, an array, a ctypes view), or reads it when it is used: a function by its closure,
its defaults and the globals that it names, a partial, a bound method, an iterator.
"""

from __future__ import annotations

import ctypes
import gc
from array import array
from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, ValuesView
from contextlib import suppress
from copy import deepcopy
from dis import get_instructions
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, GeneratorType, MethodType, MethodWrapperType, ModuleType
from typing import Any

from components.arrays import nbytes
from components.errors import RowError

_CDATA = ctypes.Array.__mro__[1]
_EMPTY = CellType()
_BUFFERS = (bytearray, array, memoryview)
_VIEWS = (ItemsView, ValuesView)
_BOUND = (BuiltinMethodType, MethodWrapperType)
_READERS = (FunctionType, MethodType, partial, GeneratorType)
_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None))
_DENSE = ("torch.strided", "torch.jagged")
_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_SPARSE = {
    "torch.sparse_coo": ("_indices", "_values"),
    **dict.fromkeys(("torch.sparse_csr", "torch.sparse_bsr"), _ROWS),
    **dict.fromkeys(("torch.sparse_csc", "torch.sparse_bsc"), _COLUMNS),
}
"""The dense tensors that hold a sparse one, by its layout."""
_ARRAY_ITERATORS = ("flatiter", "nditer", "broadcast")
_UNCOPYABLE = (
    "the function returned a {} that reads memory and cannot be copied, so that another call may change it: return the "
    "values themselves"
)
KEPT_BYTES = 64 * 1024 * 1024


class Watch:
    """Watches the values of one function. `enough` values of a size without shared memory are believed."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._seen: Counter[int] = Counter()
        self._kept: list[Any] = []  # alive, so that no other value can get the memory of one that was freed
        self._marks: set[object] = set()
        self._bytes = 0
        self.shares = False
        """Whether a value has shared memory with another: from then on all are copied."""

    def own(self, value: Any) -> Any:
        """Return the value, or a copy of it that shares memory with no other. Raises RowError if it reads memory and
        cannot be copied.
        """
        if self.shares:
            return copied(value)
        if isinstance(value, _IMMUTABLE):
            return value
        if hasattr(value, "untyped_storage") and self._seen[(nbytes(value) or 0).bit_length()] >= self._enough:
            return value  # its marks, which take longer to find, would add up to the same size
        marks = dict(_marks(value))
        size = sum(marks.values())
        if self._seen[size.bit_length()] >= self._enough:
            return value
        if not self._marks.isdisjoint(marks):
            self.shares = True
            self._kept, self._marks = [], set()
            return copied(value)
        own = copied(value)
        self._seen[size.bit_length()] += 1
        self._bytes += size
        if self._seen[size.bit_length()] == self._enough or self._bytes > KEPT_BYTES:
            self._kept, self._marks, self._bytes = [], set(), 0
        self._kept.append(value)
        self._marks |= marks.keys()
        return own


def copied(value: Any) -> Any:
    """Return a copy of tensors, arrays, containers and functions; what cannot be copied is returned itself. Raises
    RowError if that is something that reads memory when it is used.
    """
    if isinstance(value, _IMMUTABLE):
        return value
    kind = type(value)
    if kind is dict:
        return {key: copied(item) for key, item in value.items()}
    if kind in {list, tuple}:
        if set(map(type, value)) <= _PLAIN:
            return kind(value)
        return kind([copied(item) for item in value])
    if hasattr(value, "untyped_storage"):
        return value.detach().clone().requires_grad_(value.requires_grad)  # `deepcopy` copies all of a slice's storage
    if _by_itself(value):
        return _copied_reader(value)
    if _stateless(value) or getattr(value, "is_animated", False):  # a copy of a picture has its first frame only
        return value
    own = {id(held): copied(held) for held in _attributes(value) if _by_itself(held)}
    try:
        copy = deepcopy(value, own)
    except Exception:  # noqa: BLE001 - a class of the user's may refuse with anything
        return value
    if _is_array(value) and value.shape and not value.flags.writeable:
        copy.flags.writeable = False
    return copy


_PLAIN = set(_IMMUTABLE)


def _by_itself(value: Any) -> bool:
    """Whether `deepcopy` cannot copy a value, or not with the memory that it reads."""
    return _reads(value) or isinstance(value, (memoryview, _CDATA))


def _copied_reader(value: Any) -> Any:
    """Return a copy of what `deepcopy` takes as it is, with the memory that it reads; what cannot be copied is returned
    itself.
    """
    try:
        if isinstance(value, FunctionType):
            return _copied_function(value)
        if isinstance(value, partial):
            return type(value)(copied(value.func), *map(copied, value.args), **copied(value.keywords))
        if isinstance(value, MethodType):
            return MethodType(copied(value.__func__), copied(value.__self__))
        if isinstance(value, _BOUND):
            return getattr(copied(value.__self__), value.__name__)
        if isinstance(value, _VIEWS):
            named = isinstance(value, ItemsView)
            items = copied(dict(value if named else enumerate(value)))
            return items.items() if named else items.values()
        if _iterates_arrays(value) and hasattr(value, "base"):
            return _copied_elements(value)
        if isinstance(value, memoryview):
            held: Any = memoryview(value.tobytes() if value.readonly else bytearray(value.tobytes()))
            return held.cast("B").cast(value.format, value.shape) if value.nbytes else value
        return deepcopy(value)
    except (TypeError, ValueError, RecursionError):  # a generator, a pointer, or functions that refer to each other
        if any(size for _, size in _marks(value)):
            raise RowError(_UNCOPYABLE.format(type(value).__name__)) from None
        return value


def _copied_elements(value: Any) -> Any:
    elements = copied(value.base).flat
    for _ in range(value.index):  # the copy is where the original is
        next(elements)
    return elements


def _copied_function(value: FunctionType) -> FunctionType:
    named = {name: copied(each) for name, each in _globals_read(value).items()}
    cells = tuple(cell if cell == _EMPTY else CellType(copied(cell.cell_contents)) for cell in value.__closure__ or ())
    known = {**value.__globals__, **named} if named else value.__globals__
    own = FunctionType(value.__code__, known, value.__name__, copied(value.__defaults__), cells)
    own.__kwdefaults__ = copied(value.__kwdefaults__)
    own.__dict__.update(value.__dict__)
    return own


def _marks(value: Any, seen: set[int] | None = None) -> Iterator[tuple[object, int]]:
    """Yield the addresses of the memory that a value holds or reads and that could be written again, with their
    sizes.
    """
    seen = set() if seen is None else seen
    if isinstance(value, _IMMUTABLE) or id(value) in seen:
        return
    seen.add(id(value))
    parts: Iterable[Any]
    if (address := _address(value)) is not None:
        yield from [address] if address[1] else []
        parts = value.flat if getattr(getattr(value, "dtype", None), "hasobject", False) else ()
    elif _reads(value):
        parts = _read_by(value)
    elif _stateless(value):
        return
    else:
        if not isinstance(value, tuple):
            yield id(value), 0
        parts = _held(value)
    for part in parts:
        yield from _marks(part, seen)


def _address(value: Any) -> tuple[object, int] | None:
    """Return where the memory of a tensor, an array or a buffer is, and its size; None for anything else."""
    if hasattr(value, "untyped_storage") and str(value.layout) in _DENSE:
        return ("memory", value.untyped_storage().data_ptr()), value.nbytes
    if _is_array(value):
        if not hasattr(value, "__setitem__"):  # numpy's scalars
            return None, 0
        return ("memory", _whole(value).__array_interface__["data"][0]), value.nbytes
    if isinstance(value, _CDATA):
        with suppress(ValueError):  # a null pointer
            held: Any = value.contents if hasattr(value, "contents") else value
            return ("memory", ctypes.addressof(held)), ctypes.sizeof(held)
    if isinstance(value, memoryview):
        return id(value.obj), value.nbytes
    return (id(value), len(value)) if isinstance(value, (bytearray, array)) else None


def _held(value: Any) -> Iterable[Any]:
    """Return what a container or an object holds that could be written again."""
    if isinstance(value, (list, tuple, dict)):
        items: Any = value.values() if isinstance(value, dict) else value
        return () if set(map(type, items)) <= _PLAIN else items
    if hasattr(value, "untyped_storage"):
        return [getattr(value, name)() for name in _SPARSE.get(str(value.layout), ())]
    # What else an object refers to may be shared by intent, such as a vocabulary.
    return [held for held in _attributes(value) if _is_memory(held) or _reads(held)]


def _reads(value: Any) -> bool:
    """Whether a value reads what it refers to only when it is used."""
    if isinstance(value, _BOUND):
        return not isinstance(value.__self__, ModuleType | type | None)
    iterates = hasattr(value, "__next__") or isinstance(value, _VIEWS)
    known = iterates and type(value).__module__ in {"builtins", "itertools"}
    return known or isinstance(value, _READERS) or _iterates_arrays(value)


def _iterates_arrays(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ in _ARRAY_ITERATORS


def _read_by(value: Any) -> list[Any]:
    if isinstance(value, _BOUND):
        return [value.__self__]
    if _iterates_arrays(value):
        with suppress(ValueError):  # one that is closed
            return [value.base] if hasattr(value, "base") else list(getattr(value, "operands", None) or value.iters)
        return []
    if not isinstance(value, FunctionType):
        return [each for each in gc.get_referents(value) if not isinstance(each, type)]
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
    defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *_globals_read(value).values()]


def _globals_read(function: FunctionType) -> dict[str, Any]:
    """The memory that a function finds by name. What else a module holds is shared by intent, such as a network."""
    loads = [each.argval for each in get_instructions(function.__code__) if each.opname == "LOAD_GLOBAL"]
    named = {name: function.__globals__.get(name) for name in loads}
    return {name: each for name, each in named.items() if _is_memory(each) or isinstance(each, (list, dict))}


def _is_memory(value: Any) -> bool:
    return hasattr(value, "untyped_storage") or _is_array(value) or isinstance(value, (*_BUFFERS, _CDATA))


def _attributes(value: Any) -> Iterator[Any]:
    """Yield the attributes of an object, and the items of those that are containers."""
    try:
        state = object.__getstate__(value)  # of a class with slots, too
    except TypeError:  # a class that is not written in Python
        return
    parts = state if isinstance(state, tuple) else (state,)
    for attribute in (each for part in parts if isinstance(part, dict) for each in part.values()):
        if isinstance(attribute, (list, tuple, dict)):
            yield from attribute.values() if isinstance(attribute, dict) else attribute
        else:
            yield attribute
            yield from getattr(attribute, "arrays", ())  # of a DataFrame


def _stateless(value: Any) -> bool:
    """Whether a value is nothing but itself, such as `MISSING = object()`, which is compared by `is`."""
    kind = type(value)
    plain = all(getattr(kind, name, None) is getattr(object, name) for name in ("__getstate__", "__reduce__"))
    return plain and not hasattr(kind, "__len__") and not object.__getstate__(value)


def _is_array(value: Any) -> bool:
    # A scalar of numpy has the interface too, of a new array each time.
    return hasattr(value, "__array_interface__") and hasattr(value, "base") and hasattr(value, "__setitem__")


def _whole(array: Any) -> Any:
    """Return the array that an array is a view of."""
    while _is_array(array.base):
        array = array.base
    return array
