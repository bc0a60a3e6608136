"""Converts a model's output to a value that BSON can hold.

Tensors and arrays become numbers or nested lists, images become PNG bytes, tuples become lists. A value that is not
finite, or that BSON cannot hold, is refused with its place in the output: "output.scores[3] is nan". The module does
not import torch: it calls `tolist` on any value that has it (tensors, arrays, their scalars).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from math import isfinite
from typing import Any, TypeAlias

from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from PIL import Image

from components import images
from components.errors import EncodeError, OutputError

__all__ = ["storable"]

MAX_DEPTH = 90
"""BSON nests at most 100 levels; the value is a few levels deep in its row."""

_BSON_TYPES = (Binary, datetime, DatetimeMS, Decimal128, Int64, ObjectId)
# The path to a value, innermost part first; it becomes text only in an error message.
_Place: TypeAlias = "tuple[_Place, str | int] | None"


def storable(value: object) -> object:
    """Return a model's output as BSON; raises OutputError with the place and the reason if BSON cannot hold it."""
    return _convert(value, None, 0)


def _convert(value: Any, at: _Place, depth: int) -> object:
    plain = _PLAIN.get(type(value))
    if plain is not None:
        return plain(value, at)
    if value is None or isinstance(value, _BSON_TYPES):
        return value
    if depth > MAX_DEPTH:
        raise OutputError(f"{_words(None)} is nested more than {MAX_DEPTH} deep; BSON cannot hold it")
    if isinstance(value, Mapping):
        return {_key(key, at): _convert(item, (at, key), depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _list(value, at, depth)
    return _foreign(value, at, depth)


def _foreign(value: Any, at: _Place, depth: int) -> object:
    """Convert a value that is neither plain nor a container: arrays, tensors, images, subclasses of plain types."""
    # Before the subclasses of plain types: numpy's float64 is a float, and its tolist returns a plain float.
    if hasattr(value, "tolist"):
        return _convert(value.tolist(), at, depth + 1)
    for kind, convert in _PLAIN.items():
        if isinstance(value, kind):
            return convert(kind(value), at)
    if isinstance(value, Image.Image):
        try:
            return images.encode(value)
        except EncodeError as error:
            raise OutputError(f"{_words(at)}: {error}") from error
    raise OutputError(f"{_words(at)} is of type {_type(value)}, which BSON cannot hold; convert it in postprocess")


def _list(values: list[Any] | tuple[Any, ...], at: _Place, depth: int) -> list[object]:
    # An embedding is a long list of floats: checking the whole list in C is faster than one item at a time.
    if set(map(type, values)) == {float} and all(map(isfinite, values)):
        return list(values)
    return [_convert(item, (at, index), depth + 1) for index, item in enumerate(values)]


def _float(value: float, at: _Place) -> float:
    if not isfinite(value):
        raise OutputError(f"{_words(at)} is {value}; outputs must be finite numbers")
    return value


def _int(value: int, at: _Place) -> int:
    if not -(2**63) <= value < 2**63:
        raise OutputError(f"{_words(at)} is an int of more than 64 bits; store it as a string")
    return value


def _str(value: str, at: _Place) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{_words(at)} is a string that is no valid Unicode: {error.reason}") from error
    return value


def _same(value: Any, _at: _Place) -> Any:
    return value


def _key(key: object, at: _Place) -> str:
    if not isinstance(key, str):
        raise OutputError(f"{_words(at)} has the key {key!r} of type {_type(key)}; keys in BSON are strings")
    if "\0" in key:
        raise OutputError(f"{_words(at)} has the key {key!r}; a key in BSON holds no null character")
    return _str(str(key), at)


def _words(at: _Place) -> str:
    parts: list[str] = []
    while at is not None:
        at, step = at
        parts.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "output" + "".join(reversed(parts))


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_PLAIN: dict[type, Callable[[Any, _Place], object]] = {
    bool: _same,
    int: _int,
    float: _float,
    str: _str,
    bytes: _same,
    bytearray: lambda value, _at: bytes(value),
}
