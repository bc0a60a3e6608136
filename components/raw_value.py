"""BSON values as their bytes: MongoDB stores values that the driver cannot decode, or would not send back as they were.

A row's `_id` may be such a value: a string that is not UTF-8, a binary of subtype 2 with a wrong inner length, a
document that holds a field twice. Its *key* is therefore what identifies it on the server: a value of one of the types
`EXACT` as Python holds it, since these are sent back unchanged, and everything else as a `RawValue`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import bson
from bson import Binary, Decimal128, Int64, ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

STRICT: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
"""Decodes every date, and refuses text that is not UTF-8 instead of altering it."""

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(document_class=RawBSONDocument)

UNDECODABLE: Final = (bson.errors.BSONError, ValueError, TypeError, OverflowError, RecursionError)
"""What decoding stored bytes may raise."""

EXACT: Final = frozenset({ObjectId, str, int, Int64, float, bytes, Binary, datetime, DatetimeMS, Timestamp, Decimal128})
"""The Python types of keys that are encoded again exactly as they were stored."""

_EXACT_KINDS: Final = frozenset({0x01, 0x02, 0x05, 0x07, 0x09, 0x10, 0x11, 0x12, 0x13})
_NO_BYTES: Final = {0x06: 0, 0x0A: 0, 0x7F: 0, 0xFF: 0}
_SIZES: Final = {**_NO_BYTES, 0x01: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16}
"""How many bytes a value of a type takes, if all of that type take as many."""

_BEYOND_LENGTH: Final = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4, 0x0F: 0}
"""How many bytes a value of a type takes beyond the length that it begins with."""


class RawValue(bytes):
    """One BSON value: the byte of its type, then its bytes as stored. Two are equal if they are stored alike."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> RawValue:
        """The value, encoded; a raw one as it is."""
        if type(value) is RawValue:
            return value
        document = bson.encode({"": value})
        return cls(document[4:5] + document[6:-1])

    def __repr__(self) -> str:
        try:
            return repr(self.value())
        except UNDECODABLE:
            return f"<BSON of type {self[0]}: {self[1:41].hex()}>"

    def value(self, codec: CodecOptions[dict[str, Any]] = STRICT) -> Any:
        """The value as Python has it. Raises one of `UNDECODABLE`."""
        return bson.decode(document({}, {"": self}).raw, codec)[""]

    def fields(self) -> dict[str, RawValue]:
        """The fields of a document or an array; of any other value, none."""
        return fields(self[1:]) if self[0] in {0x03, 0x04} else {}


def fields(document: bytes | memoryview) -> dict[str, RawValue]:
    """The fields of a BSON document, none of them decoded; of a name that occurs twice, the first, as MongoDB does."""
    found: dict[str, RawValue] = {}
    for name, value in _elements(bytes(document)):
        found.setdefault(name, value)
    return found


def readable(
    values: Mapping[str, RawValue], key: str = "", codec: CodecOptions[dict[str, Any]] = STRICT
) -> dict[str, Any]:
    """The fields, decoded; the field `key` as a key. One that cannot be decoded is left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        with suppress(*UNDECODABLE):
            found[name] = key_of(value) if name == key else value.value(codec)
    return found


def key_of(value: RawValue) -> Any:
    """The key of a row whose `_id` is stored like this."""
    if value[0] in _EXACT_KINDS:
        try:
            return value.value()
        except UNDECODABLE:
            return value
    return value


def identity(key: Any) -> Any:
    """What makes two keys the same row, and can be hashed. Python takes 1, 1.0 and True for equal; MongoDB's rows
    with these `_id`s are told apart by their bytes.
    """
    kind = type(key)
    return key if kind is ObjectId or kind is str or kind is RawValue else RawValue.of(key)


def size(key: Any) -> int:
    """About how many bytes a key takes in a command."""
    kind = type(key)
    if kind is ObjectId:
        return 20
    if kind is str:
        return len(key) + 20 if key.isascii() else len(key.encode()) + 20
    return len(RawValue.of(key)) + 16


def chunks(keys: Iterable[Any], rows: int, largest: int) -> Iterator[list[Any]]:
    """The keys in order, in lists of at most so many rows and bytes; a key that is larger than that stands alone."""
    chunk: list[Any] = []
    held = 0
    for key in keys:
        more = size(key)
        if chunk and (len(chunk) >= rows or held + more > largest):
            yield chunk
            chunk, held = [], 0
        chunk.append(key)
        held += more
    if chunk:
        yield chunk


def document(plain: Mapping[str, Any], raw: Mapping[str, Any]) -> RawBSONDocument:
    """A document to be sent: the fields of `plain`, then those of `raw`, whose values may be raw."""
    body = bson.encode(plain)[4:-1] + b"".join(_element(name, value) for name, value in raw.items())
    return RawBSONDocument(struct.pack("<i", len(body) + 5) + body + b"\0")


def equals(key: Any) -> Any:
    """The condition that an `_id` is this key."""
    return key if type(key) in EXACT else document({}, {"$eq": key})


def among(keys: Sequence[Any]) -> Mapping[str, Any]:
    """The condition that an `_id` is one of these keys."""
    if all(type(key) in EXACT for key in keys):
        return {"$in": list(keys)}
    body = b"".join(_element(str(index), key) for index, key in enumerate(keys))
    return document({}, {"$in": RawValue(b"\x04" + struct.pack("<i", len(body) + 5) + body + b"\0")})


def _element(name: str, value: Any) -> bytes:
    raw = RawValue.of(value)
    return raw[:1] + name.encode() + b"\0" + raw[1:]


def _elements(document: bytes) -> Iterator[tuple[str, RawValue]]:
    at, end = 4, len(document) - 1
    while at < end:
        begin = document.index(0, at + 1) + 1
        kind = document[at]
        after = begin + _size(document, kind, begin)
        name = document[at + 1 : begin - 1].decode("utf-8", "backslashreplace")
        yield name, RawValue(document[at : at + 1] + document[begin:after])
        at = after


def _size(document: bytes, kind: int, begin: int) -> int:
    if kind in _SIZES:
        return _SIZES[kind]
    if kind == 0x0B:  # a regular expression: two texts, each ended by a zero
        return document.index(0, document.index(0, begin) + 1) + 1 - begin
    if kind not in _BEYOND_LENGTH:
        raise bson.errors.InvalidBSON(f"a value of the unknown type {kind:#04x}")
    length: int = struct.unpack_from("<i", document, begin)[0]
    return length + _BEYOND_LENGTH[kind]
