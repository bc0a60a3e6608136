"""Queries: which rows of a table, and which of their fields, as a value that can be stored and compared.

A query reads nothing. `query["field"] == value` makes a condition; `&`, `|` and `~` combine conditions; `filter`,
`select` and `limit` each return a new query:

    valid = Query("mnist").filter(Query("mnist")["_fold"] == "valid").select("img", "class").limit(500)

The table handle of the Python API is such a query that can also read and write.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from components.errors import DeclarationError
from components.extended_json import plain
from components.names import check_field


class Condition:
    """A condition on a row; `where` is the same condition as a MongoDB filter."""

    __slots__ = ("where",)

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.where: dict[str, Any] = plain(where)

    def __and__(self, other: Condition | Mapping[str, Any]) -> Condition:
        return Condition(_both(self.where, _where(other)))

    def __or__(self, other: Condition | Mapping[str, Any]) -> Condition:
        return Condition({"$or": [*_alternatives(self.where), *_alternatives(_where(other))]})

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Condition:
        return Condition({"$nor": [self.where]})

    def __bool__(self) -> bool:
        raise TypeError(
            "a condition has no truth value; write & for and, | for or, ~ for not, each side in parentheses"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and other.where == self.where

    __hash__ = None  # type: ignore[assignment]  # its filter may be changed

    def __repr__(self) -> str:
        return f"Condition({self.where!r})"


class Field:
    """A field of a query's rows, by its (dotted) path; comparing it makes a `Condition`.

    As in MongoDB, a field that holds a list matches if one of its items matches, and `!=` matches rows without the
    field.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        check_field(path, "query")
        self.path = path

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        # MongoDB would read a document or a pattern without $eq as operators.
        plain = not isinstance(value, (Mapping, re.Pattern))
        return Condition({self.path: value if plain else {"$eq": value}})

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Condition({self.path: {"$ne": value}})

    def __lt__(self, value: Any) -> Condition:
        return Condition({self.path: {"$lt": value}})

    def __le__(self, value: Any) -> Condition:
        return Condition({self.path: {"$lte": value}})

    def __gt__(self, value: Any) -> Condition:
        return Condition({self.path: {"$gt": value}})

    def __ge__(self, value: Any) -> Condition:
        return Condition({self.path: {"$gte": value}})

    __hash__ = None  # type: ignore[assignment]  # `==` makes a condition instead of comparing

    def isin(self, values: Iterable[Any]) -> Condition:
        """The field holds one of these values; raises DeclarationError for a string, which is not a list of values."""
        if isinstance(values, (str, bytes, Mapping)):
            raise DeclarationError(f"query: {self.path}.isin takes a list of values, got {values!r}")
        return Condition({self.path: {"$in": list(values)}})

    def exists(self, there: bool = True) -> Condition:
        """The row has the field, which may be null; with False: the row lacks it."""
        return Condition({self.path: {"$exists": there}})

    def __repr__(self) -> str:
        return f"Field({self.path!r})"


class Query:
    """At most `max_rows` rows of `table` that match `where`; only their `fields`, or all of them (None).

    It is immutable. Raises DeclarationError for an invalid filter, field or number of rows.
    """

    table: str
    where: dict[str, Any]
    fields: tuple[str, ...] | None
    max_rows: int | None

    def __init__(
        self,
        table: str,
        where: Mapping[str, Any] | Condition | None = None,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> None:
        if not isinstance(table, str) or not table:
            raise DeclarationError(f"query: expected the name of a table, got {table!r}")
        self.table = table
        self.where = _where({} if where is None else where)
        self.fields = None if fields is None else _checked_fields(fields)
        self.max_rows = None if limit is None else _checked_limit(limit)

    def __getitem__(self, path: str) -> Field:
        return Field(path)

    def __iter__(self) -> Iterator[Any]:
        # Without this, Python would iterate with query[0], query[1]...
        raise TypeError(f"{self!r} is only a query; iterate over db[{self.table!r}], which reads the rows")

    def filter(self, *conditions: Condition | Mapping[str, Any]) -> Self:
        """Return a query for the rows that also match these conditions (or MongoDB filters)."""
        where = self.where
        for condition in conditions:
            where = _both(where, _where(condition))
        return self._with(where=where)

    def select(self, *fields: str) -> Self:
        """Return a query for only these fields of the rows, and their `_id`."""
        return self._with(fields=_checked_fields(fields))

    def limit(self, n: int) -> Self:
        """Return a query for at most `n` rows: those with the lowest `_id`."""
        return self._with(max_rows=_checked_limit(n))

    def plain(self) -> Query:
        """Return the same query without a database, which can be copied and pickled."""
        return Query(self.table, self.where, self.fields, self.max_rows)

    def _with(self, **changes: Any) -> Self:
        """Return a copy, of the same class, with some attributes changed."""
        changed = copy.copy(self)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self._parts() == other._parts()

    __hash__ = None  # type: ignore[assignment]  # its filter is a dict

    def _parts(self) -> tuple[Any, ...]:
        return self.table, self.where, self.fields, self.max_rows

    def __repr__(self) -> str:
        parts = [repr(self.table)]
        parts += [f"where={self.where!r}"] if self.where else []
        parts += [f"fields={list(self.fields)!r}"] if self.fields is not None else []
        parts += [f"limit={self.max_rows}"] if self.max_rows is not None else []
        return f"{type(self).__name__}({', '.join(parts)})"


def mentioned(where: Any) -> set[str]:
    """Return the first part of each field that a filter reads: {"_fold"} for {"$or": [{"_fold": "train"}]}."""
    if isinstance(where, Mapping):
        own = {str(key).split(".", maxsplit=1)[0] for key in where if not str(key).startswith("$")}
        nested = (mentioned(value) for key, value in where.items() if key in {"$and", "$or", "$nor"})
        return own.union(*nested)
    if isinstance(where, list):
        return set[str]().union(*map(mentioned, where))
    return set()


def _where(condition: Condition | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(condition, Condition):
        return condition.where
    if isinstance(condition, Mapping):
        return Condition(condition).where
    raise DeclarationError(
        f"query: expected a condition such as table['_fold'] == 'valid', or a MongoDB filter, got {condition!r}"
    )


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if not one or not other:
        return dict(one or other)
    if not set(one) & set(other) and not any(key.startswith("$") for key in (*one, *other)):
        return {**one, **other}
    return {"$and": [*_members(one), *_members(other)]}


def _members(where: dict[str, Any]) -> list[dict[str, Any]]:
    return list(where["$and"]) if set(where) == {"$and"} else [where]


def _alternatives(where: dict[str, Any]) -> list[dict[str, Any]]:
    return list(where["$or"]) if set(where) == {"$or"} else [where]


def _checked_fields(fields: Sequence[str]) -> tuple[str, ...]:
    given = (fields,) if isinstance(fields, str) else tuple(fields)
    if not given:
        raise DeclarationError("query: select names no field; leave it out for all of them")
    for path in given:
        check_field(path, "query")
    return tuple(dict.fromkeys(given))


def _checked_limit(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise DeclarationError(f"query: limit: expected a number of rows from 1, got {n!r}")
    return n
