"""Outputs as people return them: stored exactly, or by the table in docs/api.md, or refused with the place."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple
from uuid import UUID

import bson
import numpy as np
import pandas as pd
import pydantic
import pytest
import torch
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import VECTOR_SUBTYPE, BinaryVectorDtype
from bson.raw_bson import RawBSONDocument

from components import OutputError
from components.outputs import storable

NOON = datetime(2024, 5, 6, 12)  # noqa: DTZ001 - as the driver reads dates


class Label(str, Enum):  # noqa: UP042 - as people write it
    CAT = "cat"


class Plain(Enum):
    PAIR = (1, 2)
    NAME = "name"


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


class Loud(str):
    """Its text is not its value."""

    __slots__ = ()

    def __str__(self):
        return "LOUD"


class Money(float):
    def __float__(self):
        return -1.0

    def __str__(self):
        return "$"


class Count(int):
    def __int__(self):
        return -1


class Box(NamedTuple):
    x: int
    label: Label


@dataclass
class Found:
    box: Box
    score: np.float32


class Answer(pydantic.BaseModel):
    label: Label
    found: list[int]


class Items(pydantic.RootModel[list[int]]):
    pass


class Shape(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    side: int = pydantic.Field(alias="length")
    secret: str = pydantic.Field("s", exclude=True)

    @pydantic.computed_field
    @property
    def area(self) -> int:
        return self.side**2


RECORDS = np.array([(1, 2.5)], [("n", "i4"), ("score", "f4")])


UUID_ = UUID("12345678123456781234567812345678")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Label.CAT, "cat"),
        ({Label.CAT: Plain.PAIR}, {"cat": [1, 2]}),
        ([Level.HIGH, Word.YES], [3, "yes"]),
        (Loud("a"), "a"),
        ({Loud("k"): Money(1.5)}, {"k": 1.5}),
        (Count(7), 7),
        (Box(1, Label.CAT), {"x": 1, "label": "cat"}),
        (Found(Box(1, Label.CAT), np.float32(0.5)), {"box": {"x": 1, "label": "cat"}, "score": 0.5}),
        (Answer(label=Label.CAT, found=[1]), {"label": "cat", "found": [1]}),
        (Items([1, 2]), [1, 2]),
        (Shape(length=3, more=1), {"side": 3, "more": 1, "area": 9}),
        (RECORDS, [{"n": 1, "score": 2.5}]),
        (RECORDS[0], {"n": 1, "score": 2.5}),
        (np.longdouble(1.5), 1.5),
        (memoryview(b"ab"), b"ab"),
        (np.array(["2024-05-06T12", "NaT"], "datetime64[h]"), [NOON, None]),
        (pd.Series(pd.to_datetime(["2024-05-06T12"])), [NOON]),
        (pd.Series([1, None], dtype="Int64"), [1, None]),
        (OrderedDict(a=(1, 2)), {"a": [1, 2]}),
        ({"b", "a"}, ["a", "b"]),
        ({Label.CAT, "b", None, 3, (2, 1)}, [None, 3, "b", "cat", [2, 1]]),
        ({frozenset({2, 1}), frozenset({3, 0})}, [[0, 3], [1, 2]]),
        (frozenset({2, 1}), [1, 2]),
        (np.datetime64("2024-05-06T12:00:00.000000001"), NOON),
        (np.array(["2024-05-06T12"], "datetime64[h]"), [NOON]),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (date(2024, 5, 6), datetime(2024, 5, 6)),  # noqa: DTZ001
        (UUID_, Binary(UUID_.bytes, 4)),
        (Decimal("0.10"), Decimal128("0.10")),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        (pd.Series([1.5, 2.5]), [1.5, 2.5]),
        (pd.NaT, None),
    ],
)
def test_the_table_of_the_documentation(value, stored):
    """Each by its rule, also inside other values, and never by its text."""
    found = storable(value)
    assert found == stored
    assert bson.decode(bson.encode({"": found}))[""] is not ...


@pytest.mark.parametrize(
    "value",
    [
        Code("f()"),
        Code("f()", {"x": 1}),
        Regex("a", "i"),
        re.compile("a"),
        Timestamp(1, 2),
        MinKey(),
        MaxKey(),
        Int64(3),
        ObjectId(),
        DBRef("a", 1),
        Binary(b"a", 128),
        NOON,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_bson_holds_is_stored_as_it_is(value):
    """With its type."""
    found = storable({"x": [value]})["x"][0]
    assert found is value


@pytest.mark.parametrize(
    "value",
    [
        1j,
        object(),
        timedelta(1),
        range(3),
        iter([]),
        float("nan"),
        Decimal("1" * 35),
        Decimal("NaN"),
        Decimal128("Infinity"),
        np.timedelta64(1, "s"),
        np.datetime64("20000-01-01"),
        2**63,
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        Label,
        np.clongdouble(1),
        {Plain.NAME: 1, "name": 2},
        DBRef("a", float("nan")),
        Code("f()", {"x": [float("inf")]}),
        RawBSONDocument(bson.encode({"a": {"b": float("nan")}})),
        Binary.from_vector([1.0, float("nan")], BinaryVectorDtype.FLOAT32),
        Binary(b"no vector", VECTOR_SUBTYPE),
        {1.0, float("nan")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_rule_is_refused_with_its_place(value):
    """The letter says what to return."""
    with pytest.raises(OutputError, match=r"output\.x\[0\]|timedelta64"):
        storable({"x": [value]})


def test_two_columns_of_one_name_are_refused():
    """Pandas would leave one of them out."""
    with pytest.raises(OutputError, match="two columns of one name"):
        storable(pd.DataFrame([[1, 2]], columns=["a", "a"]))
