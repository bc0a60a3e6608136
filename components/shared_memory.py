"""Finds out whether a function returns the same memory again, and then copies what it returns.

A `preprocess` that fills one buffer again and again would change rows that wait to be predicted. The first values of
each size are copied and compared; if none shares memory with another, later ones are trusted and cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None))
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
        """Return the value, or a copy of it that shares memory with no other."""
        if self.shares:
            return copied(value)
        if isinstance(value, _IMMUTABLE):
            return value
        marks = dict(_marks(value))
        size = sum(marks.values())
        if self._seen[size.bit_length()] >= self._enough:
            return value
        if not self._marks.isdisjoint(marks):
            self.shares = True
            self._kept, self._marks = [], set()
            return copied(value)
        self._seen[size.bit_length()] += 1
        self._bytes += size
        own = copied(value)
        if self._seen[size.bit_length()] == self._enough or self._bytes > KEPT_BYTES:
            self._kept, self._marks, self._bytes = [], set(), 0
        self._kept.append(value)
        self._marks |= marks.keys()
        return own


def copied(value: Any) -> Any:
    """Return a copy of tensors, arrays and containers; a value that cannot be copied is returned itself."""
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
    if kind is memoryview:  # `deepcopy` refuses it
        held = value.tobytes() if value.readonly else bytearray(value.tobytes())
        return memoryview(held).cast("B").cast(value.format, value.shape) if value.nbytes else value
    if _stateless(value) or getattr(value, "is_animated", False):  # a copy of a picture has its first frame only
        return value
    try:
        copy = deepcopy(value)
    except Exception:  # noqa: BLE001 - a class of the user's may refuse with anything
        return value
    if _is_array(value) and value.shape and not value.flags.writeable:  # numpy's scalars have flags, but none to set
        copy.flags.writeable = False
    return copy


_PLAIN = set(_IMMUTABLE)


def _marks(value: Any) -> Iterator[tuple[object, int]]:
    """Yield the addresses of the memory that a value holds and that could be written again, with their sizes."""
    if isinstance(value, _IMMUTABLE) or _stateless(value):
        return
    if hasattr(value, "untyped_storage"):
        if value.numel():
            yield ("memory", value.untyped_storage().data_ptr()), value.nbytes
    elif _is_array(value):
        if value.nbytes:
            yield ("memory", _whole(value).__array_interface__["data"][0]), value.nbytes
        for item in value.flat if getattr(getattr(value, "dtype", None), "hasobject", False) else ():
            yield from _marks(item)
    elif isinstance(value, memoryview):
        yield id(value.obj), value.nbytes
    else:
        if not isinstance(value, tuple):
            yield id(value), 0
        for item in _held(value):
            yield from _marks(item)


def _held(value: Any) -> Iterable[Any]:
    """Return what a container or an object holds that could be written again."""
    if isinstance(value, (list, tuple, dict)):
        items: Any = value.values() if isinstance(value, dict) else value
        return () if set(map(type, items)) <= _PLAIN else items
    # What else an object refers to may be shared by intent, such as a vocabulary.
    return [held for held in _attributes(value) if hasattr(held, "untyped_storage") or _is_array(held)]


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
    return hasattr(value, "__array_interface__") and hasattr(value, "base")


def _whole(array: Any) -> Any:
    """Return the array that an array is a view of."""
    while _is_array(array.base):
        array = array.base
    return array
