"""The records that pass between the stages of a corridor. They are frozen, so that no stage changes what another
holds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bson.timestamp import Timestamp

from components.raw_value import identity

MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Seen:
    """The output that a snapshot saw in a row; `asof` is MISSING if there was none, or none of predictd's form."""

    asof: Any = MISSING
    generation: int = 0
    input: bytes | None = None
    error: bool = False
    present: bool = False


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Takes the place of a value that MongoDB stores and the driver cannot decode."""

    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row that matches the listener: its `_id`, the values of the key fields as stored, their hash, and its
    output. A value is `Undecodable` if the driver cannot decode it. `name` is the identity of the `_id`, which takes
    longer to find than to keep.
    """

    key: Any
    values: tuple[Any, ...]
    input: bytes
    seen: Seen
    name: Hashable = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", identity(self.key))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A batch's rows at one cluster time.

    `rows` match the listener. `strays` exist, do not match (or lack a key field) and have an output. `unread` are keys
    that did not fit the byte limit; they were not judged. The row of every other key is deleted, or does not match and
    has no output.
    """

    at: Timestamp
    rows: tuple[Row, ...]
    strays: tuple[tuple[Any, Seen], ...]
    unread: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One guarded write: `set` a whole output, `touch` its `asof`, or `unset` it."""

    key: Any
    seen: Seen
    kind: Literal["set", "touch", "unset"]
    asof: Timestamp
    generation: int
    output: Mapping[str, Any] | None = None
    name: Hashable = None
    """That of the row, by default found from the key."""

    def __post_init__(self) -> None:
        if self.name is None:
            object.__setattr__(self, "name", identity(self.key))


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a write: the rows that met a race, or that a client's open transaction holds; the rows that refused
    the write (and why); the reply's time, if there was one.
    """

    missed: frozenset[Hashable]
    refused: Mapping[Hashable, str]
    time: Timestamp | None


def joined(parts: Iterable[Written]) -> Written:
    """The results of a batch's parts as one."""
    missed: frozenset[Hashable] = frozenset()
    refused: dict[Hashable, str] = {}
    time: Timestamp | None = None
    for part in parts:
        missed |= part.missed
        refused |= part.refused
        time = max((each for each in (time, part.time) if each is not None), default=None)
    return Written(missed, refused, time)


@dataclass(frozen=True, slots=True)
class Letter:
    """Why a row has no output. `unwritable`: the row refuses even the error mark, so only this letter shows that it was
    judged.
    """

    key: Any
    input: bytes
    generation: int
    version: int
    stage: str
    type: str
    message: str
    traceback: str
    unwritable: bool = False
    cause: Literal["model", "row", "transient"] = "model"
    """"row": its value alone is the reason; "transient": another attempt may succeed."""

    @property
    def name(self) -> Hashable:
        """The identity of the row."""
        name: Hashable = identity(self.key)
        return name

    def mark(self) -> dict[str, str]:
        """The error that is stored in the row itself."""
        return {"type": self.type, "message": self.message, "stage": self.stage}


@dataclass(frozen=True, slots=True)
class Guilt:
    """The type and message of the dead letter of a row that, predicted alone, ended the process."""

    type: str
    message: str
