"""BSON values as bytes: MongoDB stores values that the driver cannot decode, or would not send back unchanged.

A row's `_id` may be such a value: a string that is not UTF-8, a binary of subtype 2 with a wrong inner length, a
document that holds a field twice. A row's *key* identifies it on the server: a Python value if its type is in `EXACT`,
because the driver sends these back unchanged; otherwise a `RawValue`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import bson
from bson import Binary, Decimal128, Int64, ObjectId, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import create_decimal128_context
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

STRICT: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
"""Decodes every date, and refuses text that is not UTF-8 instead of altering it."""

_ENCODING: Final[CodecOptions[dict[str, Any]]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(document_class=RawBSONDocument)

UNDECODABLE: Final = (bson.errors.BSONError, ValueError, TypeError, OverflowError, RecursionError)
"""The exceptions that decoding stored bytes may raise."""

EXACT: Final = frozenset({ObjectId, str, int, Int64, float, bytes, Binary, datetime, DatetimeMS, Timestamp, Decimal128})
"""The Python types of keys that the driver encodes to exactly the stored bytes."""

_EXACT_KINDS: Final = frozenset({0x01, 0x02, 0x05, 0x07, 0x09, 0x10, 0x11, 0x12, 0x13})
_OTHER_NUMBERS: Final = {0x01, 0x10, 0x13}  # than an int64
_DIGITS: Final = create_decimal128_context()
_NO_BYTES: Final = {0x06: 0, 0x0A: 0, 0x7F: 0, 0xFF: 0}
_SIZES: Final = {**_NO_BYTES, 0x01: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16}
"""The number of bytes of a value, for types with a fixed size."""

_BEYOND_LENGTH: Final = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4, 0x0F: 0}
"""For types that begin with a length: the number of bytes of a value beyond that length."""


class RawValue(bytes):
    """One BSON value: the byte of its type, then its stored bytes. Two are equal if their stored bytes are equal."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> RawValue:
        """Return the value, encoded; a RawValue is returned unchanged."""
        if type(value) is RawValue:
            return value
        document = bson.encode({"": value}, codec_options=_ENCODING)
        return cls(document[4:5] + document[6:-1])

    @classmethod
    def text(cls, encoded: bytes) -> RawValue:
        """Return a string of these bytes, which need not be UTF-8."""
        return cls(b"\x02" + struct.pack("<i", len(encoded) + 1) + encoded + b"\0")

    @classmethod
    def stored(cls, value: bytes) -> RawValue:
        """Return the value of these bytes; raises ValueError if they are not exactly one value."""
        try:
            whole = fields(document({}, {"": cls(value)}).raw)
        except (LookupError, struct.error, *UNDECODABLE):
            whole = {}
        if whole != {"": value}:
            raise ValueError(f"not the bytes of one BSON value: {value[:40].hex()}")
        return cls(value)

    def __repr__(self) -> str:
        try:
            return repr(self.value())
        except UNDECODABLE:
            return f"<BSON of type {self[0]}: {self[1:41].hex()}>"

    def value(self, codec: CodecOptions[dict[str, Any]] = STRICT) -> Any:
        """Return the decoded value; raises one of `UNDECODABLE`."""
        return bson.decode(document({}, {"": self}).raw, codec)[""]

    def fields(self) -> dict[str, RawValue]:
        """Return the fields of a document or an array; any other value has none."""
        return fields(self[1:]) if self[0] in {0x03, 0x04} else {}

    def last(self, name: str) -> RawValue | None:
        """Return a field of a document; if the name occurs twice, the last, as the driver decodes it."""
        return dict(_elements(self[1:])).get(name) if self[0] == 0x03 else None


def fields(document: bytes | memoryview) -> dict[str, RawValue]:
    """Return the fields of a BSON document, undecoded; if a name occurs twice, the first counts, as in MongoDB."""
    values: dict[str, RawValue] = {}
    for name, value in _elements(bytes(document)):
        values.setdefault(name, value)
    return values


def readable(
    values: Mapping[str, RawValue], key: str = "", codec: CodecOptions[dict[str, Any]] = STRICT
) -> dict[str, Any]:
    """Return the decoded fields, with the field `key` as a row's key. A field that cannot be decoded is left out."""
    decoded: dict[str, Any] = {}
    for name, value in values.items():
        with suppress(*UNDECODABLE):
            decoded[name] = key_of(value) if name == key else value.value(codec)
    return decoded


def key_of(value: RawValue) -> Any:
    """Return the key of a row with this stored `_id`."""
    if value[0] in _EXACT_KINDS:
        try:
            return value.value()
        except UNDECODABLE:
            return value
    return value


def plain(key: Any) -> Any:
    """Return the Python value of a key, if it would be encoded to the same bytes; otherwise the key, as a RawValue."""
    raw = RawValue.of(key)
    try:
        value = raw.value()
        return value if RawValue.of(value) == raw else raw
    except UNDECODABLE:
        return raw


def identity(key: Any) -> Any:
    """Return a hashable value that is equal for two keys if and only if they are the same row; it is a key of that row,
    too.

    Python takes 1 and True as equal; this function compares the bytes of such `_id`s. MongoDB takes equal numbers of
    any type as the same `_id`, and a replace changes the type of the stored one.
    """
    kind = type(key)
    if kind is ObjectId or kind is str:
        return key
    raw = RawValue.of(Int64(key) if kind is int else key)
    try:
        return _same_numbers(raw)
    except (*UNDECODABLE, ArithmeticError):  # what no driver writes is another row only if its bytes are others
        return raw


def _same_numbers(raw: RawValue) -> RawValue:
    """The value with each number in the form that stands for all of its types."""
    if raw[0] in _OTHER_NUMBERS:
        return _same_number(raw)
    if raw[0] not in {0x03, 0x04}:
        return raw
    same = ((name, _same_numbers(value)) for name, value in _raw_elements(raw[1:]))
    body = b"".join(value[:1] + name + b"\0" + value[1:] for name, value in same)
    return RawValue(raw[:1] + struct.pack("<i", len(body) + 5) + body + b"\0")


def _same_number(raw: RawValue) -> RawValue:
    """The number as an int64, else as a double, else as a decimal without zeros at its end: the first that it fits."""
    value = raw.value()
    number = value.to_decimal() if isinstance(value, Decimal128) else Decimal(value)
    if number.is_nan():
        return RawValue.of(math.nan)
    if -(2**63) <= number < 2**63 and number == int(number):
        return RawValue.of(Int64(number))
    if number == float(number):
        return RawValue.of(float(number))
    return RawValue.of(Decimal128(number.normalize(_DIGITS)))


def size(key: Any) -> int:
    """Return about how many bytes a key takes in a command."""
    kind = type(key)
    if kind is ObjectId:
        return 20
    if kind is str:
        return len(key) + 20 if key.isascii() else len(key.encode()) + 20
    return len(RawValue.of(key)) + 16


def chunks(keys: Iterable[Any], rows: int, largest: int) -> Iterator[list[Any]]:
    """Yield the keys in order, in lists of at most `rows` keys and `largest` bytes; a larger key is a list alone."""
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
    """Return a document to send: the fields of `plain`, then those of `raw`, whose values may be raw."""
    body = bson.encode(plain)[4:-1] + b"".join(_element(name, value) for name, value in raw.items())
    return RawBSONDocument(struct.pack("<i", len(body) + 5) + body + b"\0")


def equals(key: Any) -> Any:
    """Return the condition that an `_id` is this key."""
    return key if type(key) in EXACT else document({}, {"$eq": key})


def among(keys: Sequence[Any]) -> Mapping[str, Any]:
    """Return the condition that an `_id` is one of these keys."""
    if all(type(key) in EXACT for key in keys):
        return {"$in": list(keys)}
    body = b"".join(_element(str(index), key) for index, key in enumerate(keys))
    return document({}, {"$in": RawValue(b"\x04" + struct.pack("<i", len(body) + 5) + body + b"\0")})


def _element(name: str, value: Any) -> bytes:
    raw = RawValue.of(value)
    return raw[:1] + name.encode() + b"\0" + raw[1:]


def _elements(document: bytes) -> Iterator[tuple[str, RawValue]]:
    return ((name.decode("utf-8", "backslashreplace"), value) for name, value in _raw_elements(document))


def _raw_elements(document: bytes) -> Iterator[tuple[bytes, RawValue]]:
    at, end = 4, len(document) - 1
    while at < end:
        begin = document.index(0, at + 1) + 1
        kind = document[at]
        after = begin + _size(document, kind, begin)
        yield document[at + 1 : begin - 1], RawValue(document[at : at + 1] + document[begin:after])
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
