"""What is fuzzed: values of any shape, and the check that each has to pass."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import strategies as st


@dataclass(frozen=True, slots=True)
class Target:
    """`check` raises for a value that is not answered as it should be."""

    values: st.SearchStrategy[Any]
    check: Callable[[Any], None]


NAMES = st.text(string.ascii_letters + "._$", max_size=8)

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=40)
)

_SCALARS = PLAIN | st.sampled_from(
    [
        Int64(1 << 62),
        Timestamp(1, 1),
        Timestamp(2**32 - 1, 2**32 - 1),
        Regex("("),
        ObjectId("0" * 24),
        Binary(b"\xff\x00", 2),
        Binary(b"", 4),
        Decimal128("NaN"),
        DatetimeMS(1 << 60),
        DatetimeMS(-(1 << 60)),
        datetime(1, 1, 1, tzinfo=UTC),
        MinKey(),
        MaxKey(),
        Code("f"),
        Code("f", {"a": 1}),
        "x" * 100_000,
        "\x1b[2J\x9b\u202e",
    ]
)

BSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters, max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
"""What MongoDB can store."""
