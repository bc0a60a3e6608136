"""Dead letters: the rows that cannot be predicted, each with its reason; they can be retried or discarded.

The row itself holds `_outputs.<listener>.error`. The collection `_predictd.dead_letters` adds the traceback, the
attempts and the times, and alone records a row that refuses every write. A letter is written before the row's error. A
kill between the two therefore leaves a letter too many, which is cleared when the row is replayed and judged, but never
one too few.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

import structlog
from bson.raw_bson import RawBSONDocument
from pydantic import Strict, TypeAdapter
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from components.raw_value import RAW, STRICT, document, equals, fields, identity, readable, size
from daemon.handlers.predict.records import Letter
from daemon.health.report import defaulting
from daemon.store import names
from daemon.store.partition import WHOLE, Partition
from daemon.store.rows import raw_updates
from daemon.store.service import requests

log = structlog.get_logger(__name__)

LETHAL: Final = frozenset({"WorkerDied", "TimedOut"})
"""Letters of rows that kill or hang the worker: another attempt of such a row delays other rows too."""

_REST: Final = {"$bsonSize": {"$unsetField": {"field": "_id", "input": "$$ROOT"}}}
_READ: Final = {"$expr": {"$lte": [_REST, 1024 * 1024]}}
"""All but the `_id` of a letter is small, if nobody else has written it; a larger one is not read."""
LARGEST_LETTER_KEY: Final = 15 * 1024 * 1024  # a letter holds the key in its own `_id`, and a document at most 16 MB


@dataclass(frozen=True, slots=True)
class _Dead:
    """A dead row: the input and generation that it was judged for, whether it refuses its error mark, and whether its
    letter is lethal.
    """

    input: Any
    generation: Any
    unwritable: bool
    lethal: bool


@dataclass(frozen=True, slots=True)
class _Error:
    type: str = "?"
    message: str = ""
    stage: str = "?"


_Moment = Annotated[Annotated[datetime, Strict()] | None, defaulting(None)]
_Number = Annotated[int | None, defaulting(None)]


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a command reads of a letter. A field whose value has another type reads as its default."""

    error: Annotated[_Error, defaulting(_Error())] = field(default_factory=_Error)
    traceback: Annotated[str, defaulting("")] = ""
    attempts: _Number = None
    version: _Number = None
    generation: _Number = None
    first_at: _Moment = None
    last_at: _Moment = None


_ADAPTER: Final = TypeAdapter(_Stored)


class DeadLetters:
    """The dead letters of one listener, in one partition. Their keys are in memory: each row of each batch is looked
    up.
    """

    def __init__(
        self, database: Database[dict[str, Any]], service: str, listener: str, table: str, partition: Partition = WHOLE
    ) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.DEAD_LETTERS]
        self._share = {} if partition == WHOLE else {"$expr": partition.holds("$_id.row")}
        self._about = {"service": service, "listener": listener, "table": table}
        self._of = {"_id.service": service, "_id.listener": listener}
        self._dead: dict[Hashable, _Dead | None] = {}

    def load(self) -> None:
        """Reads the dead rows; deletes letters of a table that the listener no longer watches."""
        self._collection.delete_many({**self._of, "table": {"$ne": self._about["table"]}})
        only = {"input": 1, "generation": 1, "unwritable": 1, "lethal": 1}
        dead: dict[Hashable, _Dead | None] = {}
        raw = self._collection.with_options(codec_options=RAW)
        for found in raw.find({"$and": [{**self._of, "_id.row": {"$exists": True}}, self._share, _READ]}, only):
            letter = _decoded(found)
            unwritable, lethal = letter.get("unwritable") is True, letter.get("lethal") is True
            known = _Dead(letter.get("input"), letter.get("generation"), unwritable, lethal)
            dead[identity(letter["_id"]["row"])] = known
        self._dead = dead

    def __len__(self) -> int:
        return len(self._dead)

    def hold(self, name: Hashable) -> bool:
        """Whether the row of this identity is dead."""
        return name in self._dead

    def settled(self, name: Hashable, input_: bytes, generation: int, scanned: bool) -> bool:
        """Whether a row that refuses its error mark stays dead, because it was judged with this input before.

        This holds for scans only: an event of the row may mean that a field beside its key fields was repaired. A
        lethal letter holds for events too: only another input, another generation or a request gives the row another
        attempt.
        """
        known = self._dead.get(name)
        if known is None or not known.unwritable or not (scanned or known.lethal):
            return False
        return (known.input, known.generation) == (input_, generation)

    def exist(self, name: Hashable, input_: bytes, generation: int) -> bool:
        """Whether the row has a letter for this input and generation."""
        known = self._dead.get(name)
        return known is not None and (known.input, known.generation) == (input_, generation)

    def add(self, letters: Iterable[Letter]) -> None:
        """Stores the letters; the letter of a row that was dead already counts one more attempt."""
        letters = list(letters)
        lethal = {letter.name: self._lethal(letter) for letter in letters}
        fits = [letter for letter in letters if size(letter.key) <= LARGEST_LETTER_KEY]
        if len(fits) < len(letters):
            log.error(
                "the `_id` of a dead row is too large for a dead letter: only the row's own error mark names it",
                listener=self._about["listener"],
                rows=len(letters) - len(fits),
            )
        statements = [
            {
                "q": {"_id": self._id(letter.key)},
                # A pipeline, for the server's clock. No change stream watches this collection, so its event does not
                # matter.
                "u": [
                    {
                        "$set": {
                            **{name: {"$literal": value} for name, value in self._fields(letter).items()},
                            "lethal": lethal[letter.name],
                            "attempts": {"$add": [{"$cond": [{"$isNumber": "$attempts"}, "$attempts", 0]}, 1]},
                            "first_at": {"$ifNull": ["$first_at", "$$NOW"]},
                            "last_at": "$$NOW",
                        }
                    }
                ],
                "upsert": True,
            }
            for letter in fits
        ]
        for letter in fits:  # some may be stored although the others are refused: they are cleared with their rows
            self._dead.setdefault(letter.name, None)
        self._send("update", statements)
        for letter in letters:
            name = letter.name
            self._dead[name] = _Dead(letter.input, letter.generation, letter.unwritable, lethal[name])

    def clear(self, rows: Iterable[Hashable]) -> int:
        """Deletes the letters of those rows that are no longer dead. Returns how many there were."""
        dead = [name for name in rows if name in self._dead]
        self._send("delete", [{"q": {"_id": self._id(name)}, "limit": 1} for name in dead])
        for name in dead:
            self._dead.pop(name, None)
        return len(dead)

    def rows(self) -> list[Any]:
        """The keys of the dead rows."""
        return list(self._dead)

    def forget(self, key: Any) -> None:
        """A client asked for another attempt: the row is judged as any other. Its letter stays until the row has an
        output.
        """
        self._dead[identity(key)] = None

    def _lethal(self, letter: Letter) -> bool:
        """Whether the letter holds for events too; also if the row of a lethal letter then refuses its mark."""
        if letter.type in LETHAL:
            return True
        known = self._dead.get(letter.name)
        same = known is not None and (known.input, known.generation) == (letter.input, letter.generation)
        return letter.unwritable and same and known is not None and known.lethal

    def _fields(self, letter: Letter) -> dict[str, Any]:
        return {
            "table": self._about["table"],
            "error": letter.mark(),
            "traceback": letter.traceback,
            "input": letter.input,
            "generation": letter.generation,
            "version": letter.version,
            "unwritable": letter.unwritable,
        }

    def _id(self, key: Any) -> RawBSONDocument:
        return letter_id(self._about["service"], self._about["listener"], key)

    def _send(self, command: str, statements: list[dict[str, Any]]) -> None:
        for refusal in raw_updates.send(self._collection, command, statements).refused:
            raise OperationFailure(f"MongoDB refuses a dead letter: {refusal.reason}", refusal.code)


def letter_id(service: str, listener: str, key: Any) -> RawBSONDocument:
    """The `_id` of a row's letter."""
    return document({"service": service, "listener": listener}, {"row": key})


def _decoded(found: RawBSONDocument, *, tz_aware: bool = False) -> dict[str, Any]:
    """A letter as a document; `_id.row` is the row's key."""
    parts = fields(found.raw)
    return {
        **readable(parts, codec=STRICT.with_options(tz_aware=tz_aware)),
        "_id": readable(parts["_id"].fields(), "row"),
    }


def listed(
    database: Database[dict[str, Any]], service: str, query: Mapping[str, Any], limit: int = 0
) -> Iterable[dict[str, Any]]:
    """The letters of a service, oldest first. `_id.row` is the row's key; see `_Stored` for the other fields."""
    raw = database[names.DEAD_LETTERS].with_options(codec_options=RAW)
    one = {"$type": "string", "$not": {"$type": "array"}}
    whole = {"_id.service": service, "_id.listener": one, "_id.row": {"$exists": True}}
    whole |= {"table": {**one, "$regex": r"^[^.$\0][^$\0]*$"}}
    for found in raw.find({"$and": [whole, query, _READ]}).sort("last_at", 1).limit(limit):
        letter = _decoded(found, tz_aware=database.codec_options.tz_aware)
        yield {**letter, **asdict(_ADAPTER.validate_python(letter))}


def of_row(key: Any) -> dict[str, Any]:
    """The condition that a letter is of this row; the server takes 5 and 5.0 for the same `_id`."""
    return {"_id.row": equals(key)}


def retry(database: Database[dict[str, Any]], letter: Mapping[str, Any]) -> None:
    """Gives a dead row another attempt: removes the error from the row, then sends the worker a request through its own
    change stream.

    The letter stays until the attempt succeeds, so after a kill at any moment the row can be retried again.
    """
    about = letter["_id"]
    path = f"_outputs.{about['listener']}"
    database[letter["table"]].update_one(
        {"_id": equals(about["row"]), f"{path}.error": {"$exists": True}}, {"$unset": {f"{path}.error": ""}}
    )
    requests.retry(database, about)


def discard(database: Database[dict[str, Any]], letter: Mapping[str, Any]) -> None:
    """Deletes a letter. The row keeps its error, so it is not predicted again until it changes."""
    about = letter["_id"]
    database[names.DEAD_LETTERS].delete_one({"_id": letter_id(about["service"], about["listener"], about["row"])})
