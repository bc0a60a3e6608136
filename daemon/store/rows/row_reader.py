"""Decodes the replies of a find into rows: a reply as a whole, or value by value if something in it cannot be decoded.

So a value that the driver cannot decode, or an `_id` that it would not send back as stored, costs its batch only some
microseconds for each row.

MongoDB stores a document that holds a name twice. The driver decodes the last one, and so do models get it. In the
guard of a write, and as what it changes, the first counts. A row whose guard failed although its output was as it had
been read is *odd*: from then on its output is read as stored, and the first counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from components.raw_value import EXACT, STRICT, UNDECODABLE, RawValue, document, fields, identity, key_of
from daemon.handlers.predict.records import MISSING, Row, Seen, Undecodable

MOST_ODD: Final = 10_000
SEEN_PARTS: Final = ("asof", "generation", "input", "error")
_NULL: Final = RawValue.of(None)


def projection(paths: Iterable[str]) -> dict[str, int]:
    """What MongoDB is asked for of rows with these key fields. The `_id` comes whole: it tells which row it is."""
    return {"_id": 1, **{path: 1 for path in paths if not path.startswith("_id.")}}


class RowReader:
    """Reads the rows of one listener, and their outputs, from the raw replies of a find."""

    def __init__(self, listener: str, paths: Sequence[str]) -> None:
        self._listener, self._paths = listener, tuple(paths)
        self._odd: set[Hashable] = set()

    def rows(self, reply: RawBSONDocument) -> Iterator[Row]:
        """The rows, with the values of the key fields."""
        documents = self._documents(reply)
        return map(self._row, documents) if documents is not None else map(self._raw_row, raw_documents(reply))

    def whole(self, document: Mapping[str, Any]) -> Row | None:
        """The row of a whole document; None if it lacks a key field, or MongoDB has to find it in an array."""
        for path in self._paths:
            value: Any = document
            for part in path.split("."):
                if not isinstance(value, dict) or part not in value:
                    return None
                value = value[part]
        return self._row(document)

    def seen(self, reply: RawBSONDocument) -> Iterator[tuple[Any, Seen]]:
        """The keys of the rows, and their outputs."""
        documents = self._documents(reply)
        if documents is not None:
            return ((row["_id"], self._output(_part(row.get("_outputs"), self._listener))) for row in documents)
        return ((key_of(row["_id"]), self._raw_output(row)) for row in map(RawValue.fields, raw_documents(reply)))

    def note_odd(self, keys: Iterable[Hashable]) -> None:
        """Notes the identities of odd rows."""
        self._odd = self._odd.union(keys) if len(self._odd) < MOST_ODD else set(keys)

    def _documents(self, reply: RawBSONDocument) -> list[dict[str, Any]] | None:
        """As `decoded`; None also if one of them is an odd row's."""
        documents = decoded(reply)
        if (
            documents is not None
            and self._odd
            and not self._odd.isdisjoint(identity(each["_id"]) for each in documents)
        ):
            return None
        return documents

    def _row(self, row: Mapping[str, Any]) -> Row:
        values = tuple(value_at(row, path) for path in self._paths)
        return Row(row["_id"], values, _digest(values), self._output(_part(row.get("_outputs"), self._listener)))

    def _raw_row(self, document: RawValue) -> Row:
        raw, row = tuple(_raw_at(document, path) for path in self._paths), document.fields()
        values = tuple(_decoded(value) for value in raw)
        # The same hash as if the reply had been decoded whole; for a value that cannot be, a hash of its raw bytes.
        digest = _digest(raw if any(isinstance(value, Undecodable) for value in values) else values)
        return Row(key_of(row["_id"]), values, digest, self._raw_output(row))

    def _raw_output(self, row: Mapping[str, RawValue]) -> Seen:
        output = row.get("_outputs", _NULL).fields().get(self._listener, _NULL)
        if output[0] != 0x03:
            return Seen()
        parts = output.fields()
        return self._output({name: _decoded(parts[name]) for name in SEEN_PARTS if name in parts})

    @staticmethod
    def _output(output: Any) -> Seen:
        if not isinstance(output, dict):
            return Seen()
        generation, asof = output.get("generation"), output.get("asof")
        return Seen(
            # predictd writes only timestamps. A client wrote anything else, and Python does not return every BSON value
            # unchanged.
            asof=asof if isinstance(asof, Timestamp) else MISSING,
            generation=generation if isinstance(generation, int) else 0,
            input=output.get("input"),
            error="error" in output,
            present=True,
        )


def decoded(reply: RawBSONDocument) -> list[dict[str, Any]] | None:
    """The documents of a cursor's reply; None if one of them has a value that cannot be decoded, or an `_id` that must
    be kept as stored.
    """
    try:
        cursor = bson.decode(reply.raw, STRICT)["cursor"]
    except UNDECODABLE:
        return None
    documents: list[dict[str, Any]] = cursor["firstBatch"] if "firstBatch" in cursor else cursor["nextBatch"]
    return documents if all(type(each["_id"]) in EXACT for each in documents) else None


def raw_documents(reply: RawBSONDocument) -> Iterator[RawValue]:
    """The documents of a cursor's reply, as stored."""
    cursor = fields(reply.raw)["cursor"].fields()
    batch = cursor["firstBatch"] if "firstBatch" in cursor else cursor["nextBatch"]
    return iter(batch.fields().values())


def keys(reply: RawBSONDocument) -> list[Any]:
    """The keys of the documents of a cursor's reply."""
    documents = decoded(reply)
    if documents is not None:
        return [each["_id"] for each in documents]
    return [key_of(each.fields()["_id"]) for each in raw_documents(reply)]


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; a path through an array has no single value and gives the array itself."""
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict):
            return value
        value = value.get(part)
    return value


def _raw_at(value: RawValue, path: str) -> RawValue:
    """As `value_at`, for a row that is not decoded."""
    for part in path.split("."):
        if value[0] != 0x03:
            return value
        value = value.last(part) or _NULL
    return value


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _decoded(value: RawValue) -> Any:
    try:
        return value.value()
    except UNDECODABLE as error:
        return Undecodable(f"MongoDB stores a value of BSON type {value[0]} that cannot be decoded: {error}")


def _digest(values: tuple[Any, ...]) -> bytes:
    if any(type(value) is RawValue for value in values):
        array = document({}, {str(index): value for index, value in enumerate(values)}).raw
        encoded = document({}, {"": values[0] if len(values) == 1 else RawValue(b"\x04" + array)}).raw
    else:
        encoded = bson.encode({"": values[0] if len(values) == 1 else list(values)})
    return hashlib.blake2b(encoded, digest_size=16).digest()
