"""MongoDB filters as JSON: values that JSON lacks (dates, ids, bytes, infinity) are written as Extended JSON."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
from bson import Binary, Code, Decimal128, Int64, ObjectId, json_util

from components.errors import DeclarationError

_TYPES = {"$oid", "$date", "$uuid", "$binary", "$numberLong", "$numberDouble", "$numberDecimal"}
_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}
_OPTIONS = json_util.JSONOptions(tz_aware=True, tzinfo=UTC)


def plain(value: Any) -> Any:
    """Return a filter with numbers, texts and lists in place of NumPy's, and lists in place of sets and tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if not hasattr(value, "__array__"):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError):  # a tensor on a GPU, or one that takes part in a gradient
        return value
    if array.dtype.kind in "mM":  # a datetime64 of nanoseconds would be a number
        return value
    return plain(array.tolist()) if array.ndim else array.item()


def encoded(value: Any) -> Any:
    """Return a filter, or a value in one, as JSON; raises DeclarationError if MongoDB cannot store the value."""
    return _encoded(plain(value))


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise DeclarationError(f"a filter's key is a field's name or an operator, got {odd!r}; write it as a text")
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, Int64):
        return {"$numberLong": str(value)}
    if value is None or (isinstance(value, (str, bool, int)) and not isinstance(value, Code)):
        return value
    return _scalar(value)


def decoded(value: Any) -> Any:
    """Return the filter that `encoded` wrote, as MongoDB expects it."""
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in _TYPES:
            return json_util.object_hook(dict(value), _OPTIONS)
        return {key: decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {"$numberDouble": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, datetime):
        # MongoDB takes a date without a time zone as UTC, not as this machine's zone.
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return {"$date": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    if isinstance(value, ObjectId):
        return {"$oid": str(value)}
    if isinstance(value, UUID):
        return {"$uuid": str(value)}
    if isinstance(value, Decimal128):
        return {"$numberDecimal": str(value)}
    if isinstance(value, bytes):
        subtype = value.subtype if isinstance(value, Binary) else 0
        return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": f"{subtype:02x}"}}
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        options = "".join(letter for flag, letter in _FLAGS.items() if value.flags & flag)
        return {"$regex": value.pattern, "$options": options} if options else {"$regex": value.pattern}
    if isinstance(value, Code):
        raise DeclarationError(
            f"a filter cannot hold a Code ({value!r}): it would run code in the server; write the condition with query "
            "operators, or compute a field when you insert"
        )
    raise DeclarationError(
        f"a filter cannot hold a {type(value).__name__} ({value!r}); write a value that MongoDB stores: text, a "
        "number, a date, bytes, an ObjectId"
    )
