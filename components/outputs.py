"""Converts a model's output to a value that BSON can hold.

Nothing is stored by its text. What BSON holds is stored as it is; the rest by the table in docs/api.md:

    tensors, arrays, their scalars     numbers, nested lists; datetime64 a date
    images                             PNG (or TIFF) bytes
    tuples, sets, frozensets           lists; a set's items sorted
    named tuples, dataclasses,         documents
    pydantic models
    an Enum's member                   its value
    Decimal                            Decimal128, if it has at most 34 digits
    date                               a date, at midnight
    UUID                               binary of subtype 4
    pandas: DataFrame, Series          a list of documents, a list

A value that is not finite, or that stands neither in BSON nor in the table, is refused with its place in the output:
"output.scores[3] is nan". The module imports neither torch nor pandas nor pydantic.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, TypeAlias
from uuid import UUID

import bson
import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp
from PIL import Image

from components import images
from components.arrays import isfinite_array, vector
from components.datatypes import Datatype, datatype
from components.errors import DecodeError, EncodeError, OutputError, RowError

MAX_DEPTH = 90
"""BSON nests at most 100 levels; the value is a few levels deep in its row."""

_BSON_TYPES = (
    Binary,
    Code,
    DBRef,
    DatetimeMS,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    RawBSONDocument,
    Regex,
    Timestamp,
    datetime,
    re.Pattern,
)
_SETS = (set, frozenset)
_SEQUENCES = (list, tuple, *_SETS)
_HOLDING: dict[type, Callable[[Any], object]] = {
    Binary: lambda value: vector(value) if value.subtype == VECTOR_SUBTYPE else None,
    Code: lambda value: value.scope,
    DBRef: lambda value: dict(value.as_doc()),
    RawBSONDocument: dict,
}
"""Of these types, what values hold of others."""
# The path to a value, innermost part first; it becomes text only in an error message.
_Place: TypeAlias = "tuple[_Place, str | int] | None"


def storable(value: object) -> object:
    """Return a model's output as BSON; raises OutputError with the place and the reason if BSON cannot hold it."""
    return _convert(value, None, 0)


def typed(value: object, kind: Datatype) -> object:
    """Return a model's output as its declared datatype stores it; raises OutputError if it does not fit."""
    try:
        stored = kind.encode(value)
        array = kind.decode(stored) if isinstance(stored, Binary) else None
    except RowError as error:
        raise OutputError(f"output: {error} (the listener's `output`)") from error
    if hasattr(array, "__array__") and not isfinite_array(array):
        raise OutputError("output holds nan or an infinity; outputs must be finite numbers")
    return storable(stored)


def _convert(value: Any, at: _Place, depth: int) -> object:
    plain = _PLAIN.get(type(value))
    if plain is not None:
        return plain(value, at)
    if value is None or (isinstance(value, _BSON_TYPES) and not isinstance(value, Enum)):
        if isinstance(value, Decimal128) and not value.to_decimal().is_finite():
            raise OutputError(f"{_words(at)} is {value}; outputs must be finite numbers")
        if isinstance(value, tuple(_HOLDING)):
            _check_held(value, at, depth)
        return value if value is not _missing("NaT") else None
    if depth > MAX_DEPTH:
        raise OutputError(f"{_words(None)} is nested more than {MAX_DEPTH} deep; BSON cannot hold it")
    if isinstance(value, (*_SEQUENCES, Mapping)) and isinstance(value, Enum):
        return _convert(value.value, at, depth + 1)
    if isinstance(value, Mapping):
        return _mapping(value, at, depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _convert(dict(zip(value._fields, value, strict=True)), at, depth)
    if isinstance(value, _SEQUENCES):
        return _list(value, at, depth)
    return _foreign(value, at, depth)


def _foreign(value: Any, at: _Place, depth: int) -> object:
    """Convert a value that is neither plain nor a container, by the table above."""
    if isinstance(value, Enum):  # before the plain types: a member of a `str, Enum` is a str too
        return _convert(value.value, at, depth + 1)
    # Before the subclasses of plain types: numpy's float64 is a float, and its tolist returns a plain float.
    if hasattr(value, "tolist"):
        return _convert(_listed(value, at), at, depth + 1)
    for kind, convert in _PLAIN.items():
        if isinstance(value, kind):
            # Not `kind(value)`, which would ask a class of the user's for its text.
            return convert(_exactly(kind, value), at)
    for kind, rule in _TABLE.items():
        if isinstance(value, kind):
            try:
                return _convert(rule(value), at, depth + 1)
            except EncodeError as error:
                raise OutputError(f"{_words(at)}: {error}") from error
    document = _document(value)
    if document is not None:
        return _convert(document, at, depth + 1)
    if value is _missing("NA"):
        return None
    raise _unknown(value, at)


def _unknown(value: object, at: _Place) -> OutputError:
    return OutputError(
        f"{_words(at)} is of type {_type(value)}, which BSON cannot hold; convert it in postprocess: return numbers, "
        "text, bytes, lists or dictionaries"
    )


def _exactly(kind: type, value: Any) -> Any:
    """Return a value of a subclass of a plain type as one of the type itself, without the subclass's own methods."""
    if kind is bytes:
        return bytes.__getitem__(value, slice(None))
    if kind is bytearray:
        return bytearray.__getitem__(value, slice(None))
    return {bool: bool, int: int.__int__, float: float.__float__, str: str.__str__}[kind](value)


def _listed(value: Any, at: _Place) -> Any:
    """Return an array, a tensor or a Series as nested lists, or as its one value; nanoseconds as dates."""
    dtype: Any = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind == "m":
        raise OutputError("the output holds timedelta64; return a number of seconds")
    if getattr(dtype, "names", None):  # a structured array, or one record of it
        if getattr(value, "shape", ()):
            return list(value)
        return {name: value[name] for name in dtype.names}
    if kind == "M" and isinstance(value, (np.ndarray, np.generic)):
        dates: Any = value
        years = dates[~np.isnat(dates)].astype("datetime64[Y]").astype(int) + 1970
        if ((years < 1) | (years > 9999)).any():
            raise OutputError(f"{_words(at)} holds a date beyond the years 1 to 9999")
        return value.astype("datetime64[us]").tolist()
    if isinstance(value, np.longdouble):  # its `tolist` returns itself
        return float(value)
    try:
        listed = value.tolist()
    except Exception as error:
        raise OutputError(
            f"{_words(at)} is of type {_type(value)} and cannot become lists ({error}); return a dense tensor or array"
        ) from error
    if type(listed) is type(value):
        raise _unknown(value, at)
    return listed


def _document(value: Any) -> Any:
    """Return an object with fields as a dictionary, a DataFrame as a list of them; None for any other value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    pydantic, pandas = sys.modules.get("pydantic"), sys.modules.get("pandas")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.root if isinstance(value, pydantic.RootModel) else _fields(value)
    if pandas is not None and isinstance(value, pandas.DataFrame):
        if not value.columns.is_unique:
            raise OutputError("the output is a DataFrame with two columns of one name; give each a name of its own")
        return value.to_dict("records")
    return None


def _fields(value: Any) -> dict[str, Any]:
    """Return what a pydantic model shows of itself: its fields, those that are computed too, not those it excludes."""
    kind = type(value)
    hidden = {name for name, field in kind.model_fields.items() if field.exclude}
    shown = {name: item for name, item in dict(value).items() if name not in hidden}
    return shown | {name: getattr(value, name) for name in kind.model_computed_fields}


def _missing(name: str) -> Any:
    """Return pandas' NaT or NA; an object that no value is, if pandas is not imported."""
    return getattr(sys.modules.get("pandas"), name, object())


def _sorted(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # of several types: in another process, a set has another order
        return sorted(values, key=lambda value: bson.encode({"": value}))


_TABLE: dict[type, Callable[[Any], object]] = {
    Image.Image: images.encode,
    Decimal: datatype("decimal").encode,
    date: lambda value: datetime(value.year, value.month, value.day),  # noqa: DTZ001 - as the driver reads dates
    UUID: Binary.from_uuid,
}


def _mapping(value: Mapping[Any, Any], at: _Place, depth: int) -> dict[str, object]:
    items = list(value.items())
    document = {_key(key, at): _convert(item, (at, key), depth + 1) for key, item in items}
    if len(document) < len(items):
        keys = [_key(key, at) for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise OutputError(f"{_words(at)} has two keys that are stored as {twice!r}; give each a name of its own")
    return document


def _check_held(value: Any, at: _Place, depth: int) -> None:
    """Check the values within one of BSON's own types, which is stored as it is."""
    for kind, held in _HOLDING.items():
        if isinstance(value, kind):
            try:
                _convert(held(value), at, depth + 1)
            except DecodeError as error:
                raise OutputError(f"{_words(at)}: {error}") from error


def _list(values: Collection[Any], at: _Place, depth: int) -> list[object]:
    # An embedding is a long list of floats: checking the whole list in C is faster than one item at a time.
    if set(map(type, values)) == {float} and all(map(isfinite, values)):
        return sorted(values) if isinstance(values, _SETS) else list(values)
    converted = [_convert(item, (at, index), depth + 1) for index, item in enumerate(values)]
    return _sorted(converted) if isinstance(values, _SETS) else converted


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
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str):
        raise OutputError(f"{_words(at)} has the key {key!r} of type {_type(key)}; keys in BSON are strings")
    if "\0" in key:
        raise OutputError(f"{_words(at)} has the key {key!r}; a key in BSON holds no null character")
    return _str(str.__str__(key), at)


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
    memoryview: lambda value, _at: value.tobytes(),
}
