"""Updates whose replies are read as raw BSON. MongoDB's reply to an upsert or a refused write contains the `_id`; the
driver's bulk write raises on an `_id` that it cannot decode, although the write was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, OperationFailure

from components.raw_value import RAW, RawValue, fields, readable

COMMAND_BYTES: Final = 8 * 1024 * 1024
COMMAND_ROWS: Final = 1000
TOO_LARGE: Final = 10334  # the server's code for a document of more than 16 MB


class Refusal(NamedTuple):
    """A statement that MongoDB refused: its index among those that were sent, and the reason."""

    at: int
    code: int
    reason: str


@dataclass(slots=True)
class Answer:
    """The result of the statements."""

    matched: int = 0
    refused: list[Refusal] = field(default_factory=list)


def send(
    table: Collection[dict[str, Any]],
    command: str,
    statements: Sequence[Mapping[str, Any]],
    session: ClientSession | None = None,
    **options: Any,
) -> Answer:
    """Sends the statements of an `update` or `delete` command, unordered, in as few commands as their bytes allow.
    `options` are those of the command.
    """
    answer = Answer()
    what = "updates" if command == "update" else "deletes"
    for begin, part in _parts(statements):
        whole = {command: table.name, what: part, "ordered": False, "writeConcern": table.write_concern.document}
        whole |= options
        try:
            reply = table.database.command(whole, session=session, codec_options=RAW)
        except DocumentTooLarge as error:  # of one statement: several together are never this large
            answer.refused.append(Refusal(begin, TOO_LARGE, str(error)))
            continue
        parts = fields(reply.raw)
        if "writeConcernError" in parts:
            failed = readable(parts["writeConcernError"].fields())
            raise OperationFailure(str(failed.get("errmsg")), failed.get("code"), failed)
        answer.matched += int(parts["n"].value())
        errors = parts["writeErrors"].fields().values() if "writeErrors" in parts else ()
        answer.refused += (_refusal(begin, each) for each in errors)
    return answer


def _refusal(begin: int, raw: RawValue) -> Refusal:
    error = readable(raw.fields())
    return Refusal(begin + int(error["index"]), int(error["code"]), str(error.get("errmsg")))


def _parts(statements: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, list[RawBSONDocument]]]:
    part: list[RawBSONDocument] = []
    held = begin = 0
    for index, statement in enumerate(statements):
        encoded = bson.encode(statement)
        if part and (held + len(encoded) > COMMAND_BYTES or len(part) >= COMMAND_ROWS):
            yield begin, part
            part, held, begin = [], 0, index
        part.append(RawBSONDocument(encoded))
        held += len(encoded)
    if part:
        yield begin, part
