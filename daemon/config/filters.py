"""Checks a listener's `where`: which operators of MongoDB's query language it may use.

A filter must depend only on the row's own content. The daemon evaluates it when the row changes. A filter on the clock,
on chance or on outputs would change its result without an event, and an output would be stale or missing. A filter must
not run code either. All operators of the query language are allowed except a few, which are refused by name.

TOML has no ObjectId and no Decimal128, so these are written in MongoDB's Extended JSON, `{ "$oid" = "..." }`. A filter
that is made in Python may hold the values themselves; as JSON it has the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from bson import json_util
from bson.errors import BSONError

from daemon.config.document import Found, Keys
from daemon.config.problems import suggestion

_LOGICAL = ("$and", "$or", "$nor")
_COMPARISONS = (
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$type", "$not", "$regex", "$options", "$mod",
    "$all", "$elemMatch", "$size", "$bitsAllSet", "$bitsAnySet", "$bitsAllClear", "$bitsAnyClear",
    "$geoWithin", "$geoIntersects",
)  # fmt: skip
_TYPES = ("$oid", "$date", "$uuid", "$binary", "$numberLong", "$numberDouble", "$numberDecimal")
_TOP = (*_LOGICAL, "$jsonSchema", "$comment")
_OF_ALL_FIELDS = ("additionalProperties", "patternProperties", "minProperties", "maxProperties", "enum")
_CODE = "it would run code in the server; write the condition with query operators, or compute a field when you insert"
_CHANCE = "its result changes without the row changing, so outputs would silently go stale; filter on a stored field"
_RAISES = (
    "an expression can read the clock, and it can fail on one row ($toInt of a word), which would stop every row that "
    "is checked with it; write the condition with query operators, or compute a field when you insert"
)
_SEARCH = "it cannot check a single changed row; filter on a stored field"
_REFUSED = {
    "$where": _CODE,
    "$code": _CODE,
    "$expr": _RAISES,
    "$sampleRate": _CHANCE,
    "$text": _SEARCH,
    "$near": _SEARCH,
    "$nearSphere": _SEARCH,
}
_OUTPUTS = (
    "a filter cannot use outputs: the daemon's own writes raise no event, so the row would not be checked again; "
    "chain the listener by its `key`, or filter on a field of your own"
)
_ALL_FIELDS = (
    "is refused for the row itself: the daemon adds the field `_outputs`, which may change whether the row matches; "
    "name the fields in `properties` and `required`"
)


def filter_problems(where: Mapping[str, Any], path: Keys) -> Iterator[Found]:
    yield from _refused(where, path)
    yield from _document(where, path)


def _refused(value: Any, path: Keys) -> Iterator[Found]:
    """Yield the problems that are independent of the place in a filter: refused operators, keys and values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _REFUSED:
                yield Found((*path, key), f"{key} is refused in a filter: {_REFUSED[key]}")
            elif not key or "\0" in key:
                yield Found(path, "a filter's key is a field's name or an operator, never empty")
            else:
                yield from _schema(item, (*path, key)) if key == "$jsonSchema" else ()
                yield from _refused(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _refused(item, (*path, place))
    else:
        yield from value_problems(value, path)


def value_problems(value: Any, path: Keys) -> Iterator[Found]:
    """Yield the problems of a scalar that will be sent to MongoDB."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            yield Found(path, f"{value.isoformat()} has no time zone; write it with one, as in {value.isoformat()}Z")
    elif isinstance(value, date):
        yield Found(path, f"{value} has no time; write {value}T00:00:00Z, or a string if the field holds strings")
    elif isinstance(value, time):
        yield Found(path, f'{value} has no date and MongoDB knows no such value; write a string, "{value}"')
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield Found(path, f"{value} does not fit into 64 bits; write a smaller number, or a string")


def _document(where: Any, path: Keys) -> Iterator[Found]:
    """Yield the problems of a document of fields and logical operators."""
    if not isinstance(where, Mapping):
        yield Found(path, 'a condition is a section of fields, for example { _fold = "valid" }')
        return
    for key, value in where.items():
        here = (*path, key)
        if key in _LOGICAL:
            yield from _logical(key, value, here)
        elif key.startswith("$"):
            if key in _COMPARISONS:
                yield Found(here, f"{key} belongs below a field, as in {{ class = {{ {key} = ... }} }}")
            elif key not in _TOP and key not in _REFUSED:
                yield Found(here, f"unknown operator; {suggestion(key, _TOP, 'operator')}")
        elif key.split(".", maxsplit=1)[0] == "_outputs":
            yield Found(here, _OUTPUTS)
        elif "" in key.split("."):
            yield Found(here, "no field has this path: a part of it is empty; write the names of fields, a dot between")
        elif isinstance(value, Mapping):
            yield from _condition(value, here)


def _schema(schema: Any, path: Keys) -> Iterator[Found]:
    """Yield what in a schema of the whole row depends on its outputs."""
    for key, value in schema.items() if isinstance(schema, Mapping) else ():
        here = (*path, key)
        if key in _OF_ALL_FIELDS and value is not True:
            yield Found(here, f"{key} {_ALL_FIELDS}")
        elif key in {"properties", "required", "dependencies"} and isinstance(value, (Mapping, list)):
            yield from [Found(here, _OUTPUTS)] if "_outputs" in value else ()
            for name, each in value.items() if key == "dependencies" and isinstance(value, Mapping) else ():
                yield from _schema({"required": each} if isinstance(each, list) else each, (*here, name))
        elif key in {"allOf", "anyOf", "oneOf"} and isinstance(value, list):
            for place, each in enumerate(value):
                yield from _schema(each, (*here, place))
        elif key == "not":
            yield from _schema(value, here)


def _logical(key: str, value: Any, path: Keys) -> Iterator[Found]:
    if not isinstance(value, list) or not value:
        yield Found(path, f"{key} takes a list of conditions, for example [{{ a = 1 }}, {{ b = 2 }}]")
        return
    for place, item in enumerate(value):
        yield from _document(item, (*path, place))


def _condition(value: Mapping[str, Any], path: Keys) -> Iterator[Found]:
    """Yield the problems of a field's condition: operators, or a document to be equal to, never a mixture."""
    operators = [key for key in value if key.startswith("$")]
    if not operators:
        return
    if set(operators) & set(_TYPES):
        try:
            _typed(value)
        except (BSONError, ValueError, TypeError, ArithmeticError) as error:
            yield Found(
                path, f'not a value in Extended JSON ({error}); for example {{ "$date" = "2026-01-31T00:00:00Z" }}'
            )
        return
    for key, item in value.items():
        here = (*path, key)
        if not key.startswith("$"):
            yield Found(
                here,
                f'a plain field beside the operator {operators[0]}; write "{path[-1]}.{key}" as a condition of its own',
            )
        elif key not in _COMPARISONS and key not in _REFUSED:
            yield Found(here, f"unknown operator; {suggestion(key, _COMPARISONS, 'operator')}")
        elif key in {"$in", "$nin", "$all"} and not isinstance(item, list):
            yield Found(here, f"{key} takes a list, for example {{ {key} = [1, 2] }}")
        elif isinstance(item, Mapping) and (key == "$not" or set(item) & set(_TYPES)):
            yield from _condition(item, here)
        elif isinstance(item, Mapping) and key == "$elemMatch":
            of_fields = any(not part.startswith("$") or part in _LOGICAL for part in item)
            yield from (_document if of_fields else _condition)(item, here)


def _typed(value: Mapping[str, Any]) -> Any:
    """Return the BSON value of `{"$oid": ...}` and the like."""
    if len(value) != 1:
        raise ValueError("it must be the only key")
    decoded = json_util.object_hook(dict(value), json_util.JSONOptions(tz_aware=True, tzinfo=UTC))
    if isinstance(decoded, Mapping):
        raise TypeError("the value has the wrong type")
    return decoded
