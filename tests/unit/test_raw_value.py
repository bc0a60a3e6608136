"""BSON values as their bytes: what goes through them unchanged, and what is a key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import bson
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson.timestamp import Timestamp

from components.raw_value import (
    EXACT,
    UNDECODABLE,
    RawValue,
    among,
    chunks,
    document,
    equals,
    fields,
    identity,
    key_of,
    readable,
    size,
)
from daemon.logs.text import LONGEST_ID, names_row, row_id, row_key, shown_id

VALUES: list[Any] = [
    1,
    Int64(1),
    Int64(2**40),
    1.5,
    float("nan"),
    "a",
    "5",
    "true",
    '{"a": 1}',
    "a\0b",
    "\x1b[31m",
    "ab" * 12,
    "é",
    b"x",
    Binary(b"q", 2),
    Binary(b"q", 128),
    ObjectId("6b0857d4375f4876fe9974f0"),
    None,
    True,
    datetime(2020, 1, 1),  # noqa: DTZ001  # as the driver gives it back
    Timestamp(1, 2),
    Decimal128("1.0"),
    {"a": [1, {"b": Int64(2)}]},
    [],
    Regex("a", "i"),
    Code("x"),
    Code("x", {"a": 1}),
    MinKey(),
    MaxKey(),
    DBRef("a", 1),
]

ODD = {
    "text that is not UTF-8": RawValue(b"\x02\x03\0\0\0\xff\xfe\0"),
    "a binary of subtype 2 with a wrong inner length": RawValue(bytes.fromhex("0506000000 0263000000 6162")),
    "a document that holds a field twice": RawValue(
        b"\x03" + bytes.fromhex("13000000 10610001000000 10610002000000 00")
    ),
    "a symbol": RawValue(b"\x0e\x02\0\0\0a\0"),
    "undefined": RawValue(b"\x06"),
    "bytes that are not UTF-8 in a document": RawValue(b"\x03" + bytes.fromhex("0f000000 026b0003000000 fffe00 00")),
}


def test_a_document_is_taken_apart_without_decoding_it() -> None:
    """Values of every type, each with exactly its own bytes."""
    parts = fields(bson.encode({str(n): value for n, value in enumerate(VALUES)}))
    assert list(parts.values()) == [RawValue.of(value) for value in VALUES]


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
def test_what_the_driver_would_alter_stays_as_it_is(raw: RawValue) -> None:
    """As a key, in a condition, and in a document."""
    key = key_of(raw)
    assert identity(key) == identity(raw)
    assert fields(equals(key).raw)["$eq"] == raw
    assert fields(document({"a": 1}, {"b": key}).raw) == {"a": RawValue.of(1), "b": raw}


def test_the_common_keys_are_as_python_has_them() -> None:
    """No detour for them: they come back from the driver as they are stored."""
    for key in (
        ObjectId("6b0857d4375f4876fe9974f0"),
        "a",
        1,
        Int64(1),
        1.5,
        b"b",
        Binary(b"b", 4),
        datetime(2020, 1, 1),  # noqa: DTZ001
    ):
        assert type(key) in EXACT
        assert key_of(RawValue.of(key)) == key
        assert type(key_of(RawValue.of(key))) is type(key)
        assert equals(key) is key
    assert among(["a", 1]) == {"$in": ["a", 1]}


def test_a_list_with_odd_keys_holds_them_all_as_stored() -> None:
    """In their order."""
    keys = [1, *ODD.values(), "a"]
    held = fields(among(keys).raw)["$in"].fields()  # type: ignore[attr-defined]
    assert list(held.values()) == [RawValue.of(key) for key in keys]


def test_fields_that_cannot_be_decoded_are_left_out() -> None:
    """The others are there, and the key as a key."""
    bad = ODD["text that is not UTF-8"]
    assert readable({"a": RawValue.of(1), "b": bad, "k": bad}, "k") == {"a": 1, "k": bad}
    with pytest.raises(UNDECODABLE):
        bad.value()


@pytest.mark.parametrize("value", [*VALUES, *ODD.values()], ids=repr)
def test_every_key_has_a_name_that_gives_it_back(value: Any) -> None:
    """On one line, without control characters; 5 and "5" are told apart."""
    name = row_id(value)
    assert identity(row_key(name)) == identity(value)
    assert name.isprintable()


def test_names_that_could_be_confused_differ() -> None:
    """One for each key."""
    keys = [5, "5", 5.0, Int64(5), True, "true", None, "null", *ODD.values()]
    assert len({row_id(key) for key in keys}) == len(keys)
    assert row_id("plain-text") == "plain-text"


def test_long_names_are_cut_and_still_differ() -> None:
    """By a hash at their end."""
    first, second = row_id("x" * 100_000 + "a"), row_id("x" * 100_000 + "b")
    assert first != second
    assert max(len(first), len(second)) <= LONGEST_ID


@pytest.mark.parametrize(
    "key", ["x" * 100_000, "\0" * 3000, "é" * 500, {"a": ["b" * 400]}, b"c" * 400], ids=lambda key: repr(key)[:9]
)
def test_a_long_name_is_given_back_by_its_end(key: Any) -> None:
    """As it is shown, in full, or by "..." and its hash; that of another row is not it, and JSON lists stay short."""
    raw = RawValue.of(key)
    name = row_id(raw)
    assert len(name) <= LONGEST_ID
    assert names_row(name, raw)
    assert names_row(name[60:], raw)
    assert not names_row(name[60:], RawValue.of("y" * 100_000))
    assert not names_row(name[61:], raw)
    assert shown_id(raw, cut=True) == name
    assert shown_id(5, cut=True) == 5
    assert shown_id("x" * 199, cut=True) == "x" * 199


def test_chunks_are_bounded_by_rows_and_bytes() -> None:
    """A key that is larger than the bound stands alone; none is lost, and the order is kept."""
    keys: list[Any] = ["a" * n for n in (10, 10, 5000, 10, 10, 10)]
    parts = list(chunks(keys, 2, 1000))
    assert [len(part) for part in parts] == [2, 1, 2, 1]
    assert [key for part in parts for key in part] == keys


@pytest.mark.parametrize(
    "key", [ObjectId("6b0857d4375f4876fe9974f0"), "abc", "é" * 50, 7, b"x" * 100, {"a": "b" * 100}], ids=repr
)
def test_the_size_of_a_key_is_not_less_than_what_it_takes(key: Any) -> None:
    """In a list of a command."""
    assert size(key) >= len(RawValue.of(key))
